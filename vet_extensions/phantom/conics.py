"""Quadrics seen through the camera: the polynomials that give a ray's chord through an ellipsoid or cylinder.

`raster` evaluates them for patches of thousands of small primitives, `ellipsoid_interval` for one large body on the
whole image.

A quadric is |M (p - centre)| <= 1. On the ray p = source + depth * d it reads a depth^2 + 2 b depth + c <= 0 with a =
|M d|^2, b = (M o).(M d), c = |M o|^2 - 1, o = source - centre. As d is affine in the pixel, a and the discriminant
b^2 - a c are quadratic polynomials of the pixel, six coefficients each: chord = 2 sqrt(discriminant) / a; where the
discriminant is zero runs the organ's outline. The coefficients are differences of large numbers, so they are made in
float64 about each patch's centre; there, evaluating them in float32 is accurate. Depths are kept relative to the
quadric's centre for the same reason.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vet_extensions.phantom.camera import SOURCE_DETECTOR_MM, Camera
from vet_extensions.phantom.lofts import Interval
from vet_extensions.phantom.trunk import Solid

NOWHERE = 1.0e5
"""Depth in mm that no body reaches: an empty interval enters at +NOWHERE and leaves at -NOWHERE."""

_CACHED_PATCH_PX = 4096


def pixel_basis(height: int, width: int) -> np.ndarray:
    """[6, height * width] float32: 1, x, x^2, y, y^2, xy of each pixel about the patch's centre."""
    return _cached_basis(height, width) if height * width <= _CACHED_PATCH_PX else _make_basis(height, width)


def _make_basis(height: int, width: int) -> np.ndarray:
    x = np.arange(width, dtype=np.float32) - np.float32((width - 1) / 2)
    y = np.arange(height, dtype=np.float32) - np.float32((height - 1) / 2)
    basis = np.empty((6, height, width), np.float32)
    basis[0] = 1.0
    basis[1], basis[2] = x, x * x
    basis[3], basis[4] = y[:, None], (y * y)[:, None]
    basis[5] = y[:, None] * x
    return basis.reshape(6, height * width)


_cached_basis = lru_cache(maxsize=512)(_make_basis)


@dataclass(frozen=True)
class Boxes:
    """Pixel boxes [n] that surely hold the projections; `first_*` and `last_*` are real-valued and may lie outside the image."""

    first_row: np.ndarray
    last_row: np.ndarray
    first_column: np.ndarray
    last_column: np.ndarray

    def is_visible(self, size_px: int) -> np.ndarray:
        """[n] whether any of the box lies in the image."""
        rows = (self.last_row >= 0) & (self.first_row <= size_px - 1)
        return rows & (self.last_column >= 0) & (self.first_column <= size_px - 1)


def bounding_boxes(camera: Camera, centre: np.ndarray, reach: np.ndarray) -> Boxes:
    """Boxes of bodies that reach `reach` [n, 3] mm from `centre` [n, 3] along right, down and beam."""
    from_source = centre - camera.source
    depth = from_source @ camera.beam
    nearest, farthest = depth - reach[:, 2], depth + reach[:, 2]
    scale = SOURCE_DETECTOR_MM / camera.pitch_mm
    edges = []
    for axis, own_reach in ((camera.down, reach[:, 1]), (camera.right, reach[:, 0])):
        middle = from_source @ axis
        low, high = middle - own_reach, middle + own_reach
        edges.append(np.minimum(low / nearest, low / farthest) * scale + camera.centre_px)
        edges.append(np.maximum(high / nearest, high / farthest) * scale + camera.centre_px)
    return Boxes(*edges)


@dataclass(frozen=True)
class Conics:
    """Coefficients [n, 6] float32 about the patch centres; b is for depths counted from the centre's own, `depth` [n]."""

    a: np.ndarray
    discriminant: np.ndarray
    b: np.ndarray
    depth: np.ndarray


def patch_directions(camera: Camera, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Ray directions [n, 3] (per mm of depth) at real-valued pixels [n]."""
    x, y = (column - camera.centre_px)[:, None], (row - camera.centre_px)[:, None]
    return camera.beam + x * camera.step_right + y * camera.step_down


def conics(
    camera: Camera,
    *,
    centre: np.ndarray,
    origin: np.ndarray,
    right: np.ndarray,
    down: np.ndarray,
    direction: np.ndarray,
) -> Conics:
    """Polynomials of n quadrics.

    centre [n, 3] in mm. The other arguments [n, 3] are seen through each quadric's own map M: source - centre, the
    camera's steps to the right and down, and the ray direction at the patch's centre.
    """
    depth = (centre - camera.source) @ camera.beam

    def dot(left: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.einsum("nk,nk->n", left, other)

    c = dot(origin, origin) - 1.0
    b_1, b_x, b_y = dot(origin, direction), dot(origin, right), dot(origin, down)
    a = np.stack(
        [
            dot(direction, direction),
            2 * dot(direction, right),
            dot(right, right),
            2 * dot(direction, down),
            dot(down, down),
            2 * dot(right, down),
        ],
        axis=1,
    )
    b_squared = np.stack([b_1 * b_1, 2 * b_1 * b_x, b_x * b_x, 2 * b_1 * b_y, b_y * b_y, 2 * b_x * b_y], axis=1)
    b = a * depth[:, None]
    b[:, 0] += b_1
    b[:, 1] += b_x
    b[:, 3] += b_y
    discriminant = b_squared - a * c[:, None]
    return Conics(a.astype(np.float32), discriminant.astype(np.float32), b.astype(np.float32), depth)


def ellipsoid_interval(solid: Solid, camera: Camera, *, unit_mm: float) -> Interval:
    """Depths [H, W] float32, from the camera's aiming plane, at which the rays enter and leave an ellipsoid."""
    centre, half_axes = solid.centre[None] * unit_mm, solid.half_axes * unit_mm
    axes_of_camera = np.stack([camera.right, camera.down, camera.beam])
    reach = np.linalg.norm(axes_of_camera @ (solid.frame * half_axes), axis=1)[None]
    boxes = bounding_boxes(camera, centre, reach)
    size = camera.size_px
    enter = np.full((size, size), NOWHERE, np.float32)
    leave = np.full((size, size), -NOWHERE, np.float32)
    if not boxes.is_visible(size)[0]:
        return enter, leave
    top, left = max(int(boxes.first_row[0]), 0), max(int(boxes.first_column[0]), 0)
    bottom, right = min(int(boxes.last_row[0]) + 2, size), min(int(boxes.last_column[0]) + 2, size)
    row, column = np.array([(top + bottom - 1) / 2]), np.array([(left + right - 1) / 2])
    to_sphere = solid.frame.T / half_axes[:, None]
    conic = conics(
        camera,
        centre=centre,
        origin=(camera.source - centre) @ to_sphere.T,
        right=(to_sphere @ camera.step_right)[None],
        down=(to_sphere @ camera.step_down)[None],
        direction=patch_directions(camera, row, column) @ to_sphere.T,
    )
    basis = pixel_basis(bottom - top, right - left)
    discriminant = conic.discriminant[0] @ basis
    a = conic.a[0] @ basis
    is_hit = discriminant > 0
    half = np.sqrt(np.maximum(discriminant, 0)) / a
    middle = np.float32(conic.depth[0] - camera.source_object_mm) - (conic.b[0] @ basis) / a
    shape = (bottom - top, right - left)
    enter[top:bottom, left:right] = np.where(is_hit, middle - half, NOWHERE).reshape(shape)
    leave[top:bottom, left:right] = np.where(is_hit, middle + half, -NOWHERE).reshape(shape)
    return enter, leave
