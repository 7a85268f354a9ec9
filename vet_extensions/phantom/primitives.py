"""Ellipsoids and mitred tubes: the small things of the anatomy, kept as arrays, and the builder that collects them.

`anatomy_bones` and `anatomy_viscera` add to a `SceneBuilder` in trunk lengths; `raster` projects the result in millimetres. Small
things are additive: each carries the *difference* between its own tissue and the tissue around it, per millimetre of ray.
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

    is_thin: the wall is thin and the bore nearly the tissue outside, as in the trachea; it is then always drawn. A marrow
    cavity is folded into the tube's own mix where a pixel is coarser than the wall.
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

    Adjacent segments of a tube share the plane that halves the angle between them, so they neither overlap nor leave a gap.
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


def frames_along(axes: np.ndarray) -> np.ndarray:
    """Orthonormal frames [n, 3, 3] whose first column runs along each of `axes` [n, 3] (unit length).

    The third column is perpendicular to y where the axis is not nearly y itself: flat bones stand upright in them.
    """
    axes = np.atleast_2d(np.asarray(axes, dtype=float))
    x, y, z = axes.T
    zero = np.zeros_like(x)
    is_transverse = np.abs(y) >= 0.9
    third = np.where(is_transverse[:, None], np.stack([zero, z, -y], 1), np.stack([-z, zero, x], 1))
    third /= np.linalg.norm(third, axis=1, keepdims=True)
    return np.stack([axes, np.cross(third, axes), third], axis=2)


def mitred_segments(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit normals of the cutting planes of n polylines: points [n, m, 3] -> at starts, at ends, each [n, m - 1, 3]."""
    tangents = np.diff(points, axis=1)
    tangents /= np.linalg.norm(tangents, axis=2, keepdims=True)
    normals = np.concatenate([tangents[:, :1], tangents[:, :-1] + tangents[:, 1:], tangents[:, -1:]], axis=1)
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    return normals[:, :-1], normals[:, 1:]


class SceneBuilder:
    """Collects primitives in trunk lengths; `ellipsoids` and `segments` give them scaled to millimetres.

    is_fine: draw marrow cavities as cylinders of their own (large images) instead of folding them into the bone.
    """

    def __init__(self, *, unit_mm: float, is_fine: bool):
        self.unit_mm = unit_mm
        self.is_fine = is_fine
        self._ellipsoids: list[tuple[np.ndarray, ...]] = []
        self._segments: list[tuple[np.ndarray, ...]] = []

    def add_ellipsoids(
        self, centre: np.ndarray, half_axes: np.ndarray, *, mix: Mix, part: Part, frame: np.ndarray | None = None
    ) -> None:
        """Add one ellipsoid or n of them. centre [n, 3] or [3]; half_axes and frame broadcast against it."""
        centre = np.atleast_2d(np.asarray(centre, dtype=float))
        n = len(centre)
        self._ellipsoids.append(
            (
                centre,
                np.broadcast_to(half_axes, (n, 3)),
                np.broadcast_to(np.eye(3) if frame is None else frame, (n, 3, 3)),
                np.broadcast_to(mix, (n, 4)),
                np.full(n, part),
            )
        )

    def add_tubes(
        self, points: np.ndarray, radius: np.ndarray | float, *, mix: Mix, part: Part, bore: Bore | None = None
    ) -> None:
        """Add one tube or n of the same number of points. points [n, m, 3] or [m, 3]; radius broadcasts to [n, m]."""
        points = np.asarray(points, dtype=float)
        points = points[None] if points.ndim == 2 else points
        radius = np.broadcast_to(radius, points.shape[:2])
        if bore is not None and not (self.is_fine or bore.is_thin):
            mix, bore = mix.plus(bore.mix, bore.ratio**2), None
        at_start, at_end = mitred_segments(points)
        mean_radius = (radius[:, :-1] + radius[:, 1:]) / 2
        cylinders = [(1.0, mix, part)] if bore is None else [(1.0, mix, part), (bore.ratio, bore.mix, Part.OTHER)]
        for ratio, tissue, belongs_to in cylinders:
            n = mean_radius.size
            self._segments.append(
                (
                    points[:, :-1].reshape(n, 3),
                    points[:, 1:].reshape(n, 3),
                    at_start.reshape(n, 3),
                    at_end.reshape(n, 3),
                    mean_radius.reshape(n) * ratio,
                    np.broadcast_to(tissue, (n, 4)),
                    np.full(n, belongs_to),
                )
            )

    def ellipsoids(self) -> Ellipsoids:
        """All ellipsoids so far, in millimetres."""
        centre, half_axes, frame, mix, part = (np.concatenate(column) for column in zip(*self._ellipsoids))
        return Ellipsoids(centre * self.unit_mm, half_axes * self.unit_mm, frame, mix, part)

    def segments(self) -> Segments:
        """All tube segments so far, in millimetres."""
        start, end, at_start, at_end, radius, mix, part = (np.concatenate(column) for column in zip(*self._segments))
        return Segments(start * self.unit_mm, end * self.unit_mm, at_start, at_end, radius * self.unit_mm, mix, part)
