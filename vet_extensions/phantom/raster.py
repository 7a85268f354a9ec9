"""Adds the path lengths of thousands of small ellipsoids and tube segments to an image.

`render` calls `add_ellipsoids` and `add_segments` with a scene's primitives. Each primitive is evaluated on a patch
that holds its projection. Patches are grouped by size, so that one matrix product (coefficients x pixel basis) serves
a whole group, in pieces that stay in the second-level cache.

Rays are points of the detector, and a vessel thinner than a pixel would fall between them. What is thinner than a pixel is
therefore drawn one pixel wide and as much fainter: a pixel's partial volume, with the amount of tissue kept.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np

from vet_extensions.phantom.camera import SOURCE_DETECTOR_MM, Camera
from vet_extensions.phantom.conics import Boxes, Conics, bounding_boxes, conics, patch_directions, pixel_basis
from vet_extensions.phantom.primitives import Ellipsoids, Segments

PIECE_PX = 32_768
"""Pixels evaluated at once: a handful of float32 arrays of this length fit the second-level cache of one core."""

_PATCH_SIDES = np.array(
    [4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096]
)
_ENDLESS = 50.0  # in segment lengths; its middle fiftieth is thinner than the ends of the segment by 0.005 %
_LARGEST_MITRE = 2.0  # tangent of half the angle between segments, beyond which a mitred corner is not followed

# Cost of the two ways to add patches to the image, in nanoseconds (measured; only their ratio matters).
_NS_PER_SLICE, _NS_PER_CANVAS_PX, _NS_PER_BINNED_PX = 2000.0, 1.2, 3.0


def _half_pixel_mm(camera: Camera, centre: np.ndarray) -> np.ndarray:
    """Half a pixel's width at the bodies' distance from the source, [n] mm."""
    return 0.5 * camera.pitch_mm / SOURCE_DETECTOR_MM * ((centre - camera.source) @ camera.beam)


def ellipsoid_reach(camera: Camera, ellipsoids: Ellipsoids) -> np.ndarray:
    """How far each ellipsoid reaches from its centre along right, down and beam, [n, 3] mm."""
    axes_of_camera = np.stack([camera.right, camera.down, camera.beam])
    scaled = np.einsum("ck,nka->nca", axes_of_camera, ellipsoids.frame) * ellipsoids.half_axes[:, None, :]
    return np.sqrt(np.einsum("nca,nca->nc", scaled, scaled))


def add_ellipsoids(
    canvas: np.ndarray, camera: Camera, ellipsoids: Ellipsoids, *, weights: np.ndarray, keeps_mass: bool = True
) -> None:
    """Add depth intervals through ellipsoids to canvas [C, H, W] float32, each times its weights [n, C]. In place; in mm.

    keeps_mass: make what was widened to a pixel fainter; off for silhouettes.
    """
    floor = _half_pixel_mm(camera, ellipsoids.centre)[:, None]
    if keeps_mass:
        weights = weights * np.minimum(ellipsoids.half_axes / floor, 1.0).prod(axis=1)[:, None]
    ellipsoids = replace(ellipsoids, half_axes=np.maximum(ellipsoids.half_axes, floor))
    boxes = bounding_boxes(camera, ellipsoids.centre, ellipsoid_reach(camera, ellipsoids))
    patches = _Patches(boxes, camera.size_px)
    chosen = patches.index
    centre, half_axes = ellipsoids.centre[chosen], ellipsoids.half_axes[chosen]
    to_sphere = ellipsoids.frame[chosen].transpose(0, 2, 1) / half_axes[:, :, None]
    conic = conics(
        camera,
        centre=centre,
        origin=np.einsum("nak,nk->na", to_sphere, camera.source - centre),
        right=to_sphere @ camera.step_right,
        down=to_sphere @ camera.step_down,
        direction=np.einsum("nak,nk->na", to_sphere, patches.directions(camera)),
    )
    for piece, basis in patches.pieces():
        chords = conic.discriminant[piece] @ basis
        np.sqrt(np.maximum(chords, 0, out=chords), out=chords)
        chords /= conic.a[piece] @ basis
        chords *= 2
        patches.add(canvas, piece, chords, weights[chosen[piece]])


def add_segments(
    canvas: np.ndarray, camera: Camera, segments: Segments, *, weights: np.ndarray, keeps_mass: bool = True
) -> None:
    """Add depth intervals through mitred tube segments to canvas [C, H, W] float32, each times its weights [n, C]. In place."""
    centre = (segments.start + segments.end) / 2
    floor = _half_pixel_mm(camera, centre)
    if keeps_mass:
        weights = weights * (np.minimum(segments.radius / floor, 1.0) ** 2)[:, None]
    segments = replace(segments, radius=np.maximum(segments.radius, floor))
    along = segments.end - segments.start
    length = np.linalg.norm(along, axis=1)
    along = along / length[:, None]
    patches = _Patches(_segment_boxes(camera, segments, along, length), camera.size_px)
    chosen = patches.index
    along, radius, centre = along[chosen], segments.radius[chosen, None], centre[chosen]
    very_long = _ENDLESS * length[chosen, None]

    def seen(vectors: np.ndarray) -> np.ndarray:
        """A vector as the cylinder measures it, [n, 4]: across its axis in radii; along, in so large a unit that its own
        ends do not show (a ray along the axis then needs no case of its own)."""
        axial = np.einsum("nk,...nk->n", along, vectors)[:, None]
        return np.concatenate([(vectors - axial * along) / radius, axial / very_long], axis=1)

    directions = patches.directions(camera)
    conic = conics(
        camera,
        centre=centre,
        origin=seen(camera.source - centre),
        right=seen(np.broadcast_to(camera.step_right, centre.shape)),
        down=seen(np.broadcast_to(camera.step_down, centre.shape)),
        direction=seen(directions),
    )
    starts = _plane_polynomials(camera, conic, directions, segments.start_normal[chosen], segments.start[chosen])
    ends = _plane_polynomials(camera, conic, directions, segments.end_normal[chosen], segments.end[chosen])
    for piece, basis in patches.pieces():
        a = conic.a[piece] @ basis
        half = conic.discriminant[piece] @ basis
        is_hit = half > 0
        np.sqrt(np.maximum(half, 0, out=half), out=half)
        half /= a
        middle = conic.b[piece] @ basis
        middle /= a
        enter, leave = -middle - half, half - middle
        linear = basis[[0, 1, 3]]
        _clip(enter, leave, starts, piece, linear, keeps_beyond=True)
        _clip(enter, leave, ends, piece, linear, keeps_beyond=False)
        leave -= enter
        np.maximum(leave, 0, out=leave)
        leave *= is_hit
        patches.add(canvas, piece, leave, weights[chosen[piece]])


def _segment_boxes(camera: Camera, segments: Segments, along: np.ndarray, length: np.ndarray) -> Boxes:
    """Boxes of cylinders including the corners that the slanted end planes leave standing."""
    cosine = np.minimum(
        np.einsum("nk,nk->n", along, segments.start_normal), np.einsum("nk,nk->n", along, segments.end_normal)
    )
    tangent = np.sqrt(np.maximum(1 - cosine**2, 0)) / np.maximum(cosine, 1e-3)
    half_length = length / 2 + segments.radius * np.minimum(tangent, _LARGEST_MITRE)
    parallel = np.abs(along @ np.stack([camera.right, camera.down, camera.beam], axis=1))
    perpendicular = np.sqrt(np.maximum(1 - parallel**2, 0))
    reach = parallel * half_length[:, None] + perpendicular * segments.radius[:, None]
    return bounding_boxes(camera, (segments.start + segments.end) / 2, reach)


def _plane_polynomials(
    camera: Camera, conic: Conics, directions: np.ndarray, normal: np.ndarray, point: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A plane's crossing depth as a ratio of linear polynomials, [n, 3] each: relative to the conic's depth."""
    slope = np.stack(
        [np.einsum("nk,nk->n", normal, directions), normal @ camera.step_right, normal @ camera.step_down], axis=1
    )
    offset = -conic.depth[:, None] * slope
    offset[:, 0] += np.einsum("nk,nk->n", normal, point - camera.source)
    return offset.astype(np.float32), slope.astype(np.float32)


def _clip(
    enter: np.ndarray,
    leave: np.ndarray,
    plane: tuple[np.ndarray, np.ndarray],
    piece: np.ndarray,
    linear: np.ndarray,
    *,
    keeps_beyond: bool,
) -> None:
    """Shorten the intervals to one side of a plane, in place: the side its normal points to, or the other."""
    offset, slope = plane
    crossing = offset[piece] @ linear
    steepness = slope[piece] @ linear
    rises = steepness > 0
    # Rays that run in the plane cross it at infinity, on the right side or on the wrong one.
    steepness[np.abs(steepness) < 1e-6] = 1e-6
    crossing /= steepness
    enters_here = rises if keeps_beyond else ~rises
    np.maximum(enter, crossing, out=enter, where=enters_here)
    np.minimum(leave, crossing, out=leave, where=~enters_here)


class _Patches:
    """Image patches of the visible primitives, grouped by size.

    index: [m] which primitives are visible. All other arrays, and the pieces, count in this order.
    """

    def __init__(self, boxes: Boxes, size_px: int):
        self.size_px = size_px
        self.index = np.flatnonzero(boxes.is_visible(size_px))
        first_row, self.height = self._fit(boxes.first_row[self.index], boxes.last_row[self.index])
        first_column, self.width = self._fit(boxes.first_column[self.index], boxes.last_column[self.index])
        self.first_pixel = first_row * size_px + first_column
        self.first_row, self.first_column = first_row, first_column

    def _fit(self, first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First pixels and lengths of patches that lie in the image and hold the boxes' visible part."""
        first = np.maximum(np.floor(first).astype(np.int64), 0)
        last = np.minimum(np.ceil(last).astype(np.int64), self.size_px - 1)
        rounded_up = _PATCH_SIDES[np.searchsorted(_PATCH_SIDES, last - first + 1)]
        side = np.minimum(rounded_up, self.size_px)
        return np.minimum(first, self.size_px - side), side

    def directions(self, camera: Camera) -> np.ndarray:
        """Ray directions [m, 3] at the patches' centres."""
        return patch_directions(
            camera, self.first_row + (self.height - 1) / 2, self.first_column + (self.width - 1) / 2
        )

    def pieces(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Groups of equal patches, cut to cache size: (which of the m, pixel basis [6, P])."""
        shape = self.height * 8192 + self.width
        order = np.argsort(shape, kind="stable")
        borders = [0, *(np.flatnonzero(np.diff(shape[order])) + 1).tolist(), len(order)] if len(order) else []
        for begin, end in pairwise(borders):
            group = order[begin:end]
            height, width = int(self.height[group[0]]), int(self.width[group[0]])
            basis = pixel_basis(height, width)
            step = max(1, PIECE_PX // (height * width))
            for first in range(0, len(group), step):
                yield group[first : first + step], basis

    def add(self, canvas: np.ndarray, piece: np.ndarray, chords: np.ndarray, weights: np.ndarray) -> None:
        """Add chords [k, P] times weights [k, C] to the canvas [C, H, W], one block of memory, at the patches' places."""
        height, width = int(self.height[piece[0]]), int(self.width[piece[0]])
        slices_ns = len(piece) * _NS_PER_SLICE
        bins_ns = canvas[0].size * _NS_PER_CANVAS_PX + chords.size * _NS_PER_BINNED_PX
        weights = weights.astype(np.float32)
        channels = np.flatnonzero(weights.any(axis=0)).tolist()
        if slices_ns < bins_ns:
            corners = list(zip(self.first_row[piece].tolist(), self.first_column[piece].tolist()))
            for channel in channels:
                weighted = (chords * weights[:, channel, None]).reshape(-1, height, width)
                for (row, column), patch in zip(corners, weighted):
                    canvas[channel, row : row + height, column : column + width] += patch
            return
        first_pixel = self.first_pixel[piece]
        lowest = int(first_pixel.min())  # bins only for the rows between the highest and the lowest patch
        inside = (np.arange(height)[:, None] * self.size_px + np.arange(width)).ravel()
        pixels = ((first_pixel - lowest)[:, None] + inside).ravel()
        for channel in channels:
            weighted = chords * weights[:, channel, None]
            summed = np.bincount(pixels, weights=weighted.ravel()).astype(np.float32)
            canvas[channel].reshape(-1)[lowest : lowest + len(summed)] += summed
