"""Ellipsoids and mitred tubes: the small things of the anatomy, kept as arrays, and the builder that collects them.

`anatomy_bones` and `anatomy_viscera` add to a `SceneBuilder` in trunk lengths; `raster` projects the result in
millimetres. Small things are additive: each carries the *difference* between its own tissue and the tissue around it,
per millimetre of ray.
"""

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import NamedTuple

import numpy as np


class Mix(NamedTuple):
    """Change of tissue per millimetre of ray: millimetres of soft tissue, fat, bone and metal gained (or lost)."""

    soft: float = 0.0
    fat: float = 0.0
    bone: float = 0.0
    metal: float = 0.0

    def plus(self, other: "Mix", share: float) -> "Mix":
        """This mix with `share` of another added."""
        return Mix(*(own + share * added for own, added in zip(self, other)))


class Part(IntEnum):
    """What a primitive belongs to; organ masks are made per part."""

    OTHER = 0
    SPINE = 1
    RIBS = 2
    CARTILAGE = 3
    STERNUM = 4
    LIMBS = 5
    TRACHEA = 6
    VESSELS = 7
    LIVER = 8
    STOMACH = 9
    SPLEEN = 10
    KIDNEYS = 11
    BOWEL = 12
    BLADDER = 13
    GAS = 14
    MICROCHIP = 15
    NODULE = 16
    ESOPHAGUS = 17
    FOREIGN_BODY = 18
    SPURS = 19


class Bore(NamedTuple):
    """The inside of a hollow tube: its share of the radius and what changes there.

    is_thin: the wall is thin and the bore nearly the tissue outside, as in the trachea; it is then always drawn. A
    marrow cavity is folded into the tube's own mix where a pixel is coarser than the wall.
    """

    ratio: float
    mix: Mix
    is_thin: bool = False


@dataclass(frozen=True)
class Ellipsoids:
    """n ellipsoids. centre [n, 3]; half_axes [n, 3]; frame [n, 3, 3], columns = axes; mix [n, 4]; part [n]."""

    centre: np.ndarray
    half_axes: np.ndarray
    frame: np.ndarray
    mix: np.ndarray
    part: np.ndarray

    def select(self, chosen: np.ndarray) -> "Ellipsoids":
        """Those of a boolean or index array."""
        return Ellipsoids(*(getattr(self, field.name)[chosen] for field in fields(self)))


@dataclass(frozen=True)
class Segments:
    """n cylinders cut by a plane at each end. Points and plane normals [n, 3]; radius [n]; mix [n, 4]; part [n].

    Adjacent segments of a tube share the plane that halves the angle between them, so they neither overlap nor leave
    a gap.
    """

    start: np.ndarray
    end: np.ndarray
    start_normal: np.ndarray
    end_normal: np.ndarray
    radius: np.ndarray
    mix: np.ndarray
    part: np.ndarray

    def select(self, chosen: np.ndarray) -> "Segments":
        """Those of a boolean or index array."""
        return Segments(*(getattr(self, field.name)[chosen] for field in fields(self)))


_UPRIGHT = np.eye(3)


def frames_along(axes: np.ndarray) -> np.ndarray:
    """Orthonormal frames [n, 3, 3] whose first column runs along each of `axes` [n, 3] (unit length).

    The third column is perpendicular to y where the axis is not nearly y itself: flat bones stand upright in them.
    """
    axes = np.atleast_2d(np.asarray(axes, dtype=float))
    x, y, z = axes.T
    zero = np.zeros_like(x)
    is_transverse = np.abs(y) >= 0.9
    third = np.where(is_transverse[:, None], np.stack([zero, z, -y], 1), np.stack([-z, zero, x], 1))
    third = _unit(third)
    frames = np.empty((len(axes), 3, 3))
    frames[:, :, 0], frames[:, :, 2] = axes, third
    frames[:, 0, 1] = third[:, 1] * z - third[:, 2] * y
    frames[:, 1, 1] = third[:, 2] * x - third[:, 0] * z
    frames[:, 2, 1] = third[:, 0] * y - third[:, 1] * x
    return frames


def _mitres(start: np.ndarray, end: np.ndarray, is_joined: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit normals [n, 3] of the planes that cut n segments at their starts and ends; is_joined [n - 1]: to the next one."""
    tangents = _unit(end - start)
    at_start, at_end = tangents, tangents.copy()
    before = np.flatnonzero(is_joined)
    joint = _unit(tangents[before] + tangents[before + 1])
    at_end[before] = joint
    at_start[before + 1] = joint
    return at_start, at_end


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.sqrt(np.einsum("...k,...k->...", vectors, vectors))[..., None]


class SceneBuilder:
    """Collects primitives in trunk lengths; `ellipsoids` and `segments` give them scaled to millimetres.

    is_fine: draw marrow cavities as cylinders of their own (large images) instead of folding them into the bone.
    """

    def __init__(self, *, unit_mm: float, is_fine: bool):
        self.unit_mm = unit_mm
        self.is_fine = is_fine
        # One row per call, with the number of primitives first; the arrays are filled once, at the end.
        self._ellipsoids: list[tuple] = []
        self._tubes: list[tuple[np.ndarray, np.ndarray, float, Mix, Part]] = []

    def add_ellipsoids(
        self, centre: np.ndarray, half_axes: np.ndarray, *, mix: Mix, part: Part, frame: np.ndarray | None = None
    ) -> None:
        """Add one ellipsoid or n of them. centre [n, 3] or [3]; half_axes and frame broadcast against it."""
        n = 1 if centre.ndim == 1 else len(centre)
        self._ellipsoids.append((n, centre, half_axes, _UPRIGHT if frame is None else frame, mix, part))

    def add_tubes(
        self, points: np.ndarray, radius: np.ndarray | float, *, mix: Mix, part: Part, bore: Bore | None = None
    ) -> None:
        """Add one tube or n of the same number of points. points [n, m, 3] or [m, 3]; radius broadcasts to [n, m]."""
        points = points[None] if points.ndim == 2 else points
        n_tubes, n_points = points.shape[:2]
        if n_tubes * (n_points - 1) == 0:
            return
        widths = np.empty((n_tubes, n_points))
        widths[...] = radius
        if bore is not None and not (self.is_fine or bore.is_thin):
            mix, bore = mix.plus(bore.mix, bore.ratio**2), None
        self._tubes.append((points, widths, 1.0, mix, part))
        if bore is not None:
            self._tubes.append((points, widths, bore.ratio, bore.mix, Part.OTHER))

    def ellipsoids(self) -> Ellipsoids:
        """All ellipsoids so far, in millimetres."""
        centre, half_axes, frame, mix, part = _filled(self._ellipsoids, ((3,), (3,), (3, 3), (4,), ()))
        return Ellipsoids(centre * self.unit_mm, half_axes * self.unit_mm, frame, mix, part)

    def segments(self) -> Segments:
        """All tube segments so far, in millimetres."""
        # All tubes lie end to end in one array; the way from a tube's last point to the next one's first is no segment.
        points = np.concatenate([np.empty((0, 3)), *(row[0].reshape(-1, 3) for row in self._tubes)])
        widths = np.concatenate([np.empty(0), *(row[1].ravel() for row in self._tubes)])
        is_first = np.ones(len(points), bool)
        rows, begin = [], 0
        for tubes, _, ratio, mix, part in self._tubes:
            n_tubes, n_points = tubes.shape[:2]
            is_first[begin : begin + n_tubes * n_points].reshape(n_tubes, n_points)[:, 1:] = False
            rows.append((n_tubes * (n_points - 1), ratio, mix, part))
            begin += n_tubes * n_points
        last = np.flatnonzero(~is_first)
        start, end = points[last - 1], points[last]
        at_start, at_end = _mitres(start, end, np.diff(last) == 1)
        ratio, mix, part = _filled(rows, ((), (4,), ()))
        radius = (widths[last - 1] + widths[last]) / 2 * ratio * self.unit_mm
        return Segments(start * self.unit_mm, end * self.unit_mm, at_start, at_end, radius, mix, part)


def _filled(rows: list[tuple], tails: tuple[tuple[int, ...], ...]) -> list[np.ndarray]:
    """The columns of `rows` as arrays over all primitives; each row's values are broadcast to its count."""
    total = sum(row[0] for row in rows)
    columns = [np.empty((total, *tail)) for tail in tails]
    first = 0
    for count, *values in rows:
        for column, value in zip(columns, values):
            column[first : first + count] = value
        first += count
    return columns
