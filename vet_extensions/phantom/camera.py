"""The X-ray geometry of one view: a point source, a flat detector, and the rays between them.

`primitives`, `lofts` and `composition` measure along the rays; `render` projects landmarks with the same camera, so
that ground truth and pixels agree by construction.

A pixel's ray is p(depth) = source + depth * direction(row, column), where `depth` counts millimetres along the
central beam and the direction is affine in the pixel. A length on a ray is therefore (depth difference) *
|direction|.
"""

from dataclasses import dataclass

import numpy as np

from vet_extensions.phantom.exposure import Exposure
from vet_extensions.schema import View

SOURCE_DETECTOR_MM = 1000.0
FIELD_WIDTH = 1.58
"""Width of the field at the animal's mid-plane, in trunk lengths, at zoom 1."""
TABLE_GAP_MM = 40.0
"""Table top, grid and detector housing between the animal and the detector."""

# image right, image down, beam direction; all four views are hung cranial to the left or cranial up.
_VIEW_AXES = {
    View.LATERAL_LEFT: ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    View.LATERAL_RIGHT: ((1, 0, 0), (0, 0, -1), (0, -1, 0)),
    View.VD: ((0, 1, 0), (1, 0, 0), (0, 0, 1)),
    View.DV: ((0, 1, 0), (1, 0, 0), (0, 0, -1)),
}


def rotation(roll: float, pitch: float, yaw: float) -> np.ndarray:
    """[3, 3] rotation about the body axes x, then y, then z, in radians."""
    cos_r, sin_r, cos_p, sin_p = np.cos(roll), np.sin(roll), np.cos(pitch), np.sin(pitch)
    cos_y, sin_y = np.cos(yaw), np.sin(yaw)
    about_x = np.array([[1, 0, 0], [0, cos_r, -sin_r], [0, sin_r, cos_r]])
    about_y = np.array([[cos_p, 0, sin_p], [0, 1, 0], [-sin_p, 0, cos_p]])
    about_z = np.array([[cos_y, -sin_y, 0], [sin_y, cos_y, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


@dataclass(frozen=True)
class Camera:
    """Source, detector and pixel grid of one view, in the body frame and millimetres.

    right, down, beam: unit vectors [3]. pitch_mm: distance of pixel centres on the detector.
    """

    source: np.ndarray
    right: np.ndarray
    down: np.ndarray
    beam: np.ndarray
    source_object_mm: float
    pitch_mm: float
    size_px: int

    @property
    def centre_px(self) -> float:
        return (self.size_px - 1) / 2

    @property
    def step_right(self) -> np.ndarray:
        """Change of `direction` from one column to the next, [3]."""
        return self.right * (self.pitch_mm / SOURCE_DETECTOR_MM)

    @property
    def step_down(self) -> np.ndarray:
        """Change of `direction` from one row to the next, [3]."""
        return self.down * (self.pitch_mm / SOURCE_DETECTOR_MM)

    def resized(self, size_px: int) -> "Camera":
        """The same field on another pixel grid."""
        pitch = self.pitch_mm * self.size_px / size_px
        return Camera(self.source, self.right, self.down, self.beam, self.source_object_mm, pitch, size_px)

    def project(self, points_mm: np.ndarray) -> np.ndarray:
        """Body points [..., 3] in mm to pixels [..., 2] as (column, row); (0, 0) is the centre of the first pixel."""
        from_source = np.asarray(points_mm, dtype=float) - self.source
        magnification = SOURCE_DETECTOR_MM / (from_source @ self.beam) / self.pitch_mm
        column = from_source @ self.right * magnification + self.centre_px
        row = from_source @ self.down * magnification + self.centre_px
        return np.stack([column, row], axis=-1)


def place_camera(exposure: Exposure, *, trunk_length_mm: float, chest_depth: float, size_px: int) -> Camera:
    """Aim the beam at the middle of the trunk, with this exposure's malpositioning.

    Turning the animal one way is turning source and detector the other way, hence the transposed rotation.
    chest_depth is in trunk lengths.
    """
    turn = rotation(exposure.roll, exposure.pitch, exposure.yaw).T
    right, down, beam = (turn @ np.array(axis, dtype=float) for axis in _VIEW_AXES[exposure.view])
    cos_i, sin_i = np.cos(exposure.in_plane_rotation), np.sin(exposure.in_plane_rotation)
    right, down = cos_i * right + sin_i * down, cos_i * down - sin_i * right
    aim = np.array([0.58, 0.0, -0.36 * chest_depth / 0.7]) + exposure.shift[0] * right + exposure.shift[1] * down
    half_thickness = 0.30 if exposure.is_lateral else 0.45
    source_object = SOURCE_DETECTOR_MM - (half_thickness * trunk_length_mm + TABLE_GAP_MM)
    field_mm = FIELD_WIDTH * trunk_length_mm * exposure.zoom
    return Camera(
        source=aim * trunk_length_mm - source_object * beam,
        right=right,
        down=down,
        beam=beam,
        source_object_mm=source_object,
        pitch_mm=field_mm * SOURCE_DETECTOR_MM / source_object / size_px,
        size_px=size_px,
    )


class Rays:
    """All rays of a camera as arrays, with depth counted from the plane through the aiming point.

    anchor: three [H, W] float32, the points where the rays cross that plane. direction: three [H, W] float32, the way
    per millimetre of depth. obliquity: [H, W] float32 = |direction|. Counting from the middle of the animal instead
    of from the source keeps the numbers small enough for float32.
    """

    def __init__(self, camera: Camera):
        offsets = np.arange(camera.size_px) - camera.centre_px
        columns, rows = offsets[None, :], offsets[:, None]
        right, down = camera.step_right, camera.step_down
        self.camera = camera
        self.direction, self.anchor = [], []
        way = np.empty((camera.size_px, camera.size_px))
        for k in range(3):
            np.add(camera.beam[k] + columns * right[k], rows * down[k], out=way)
            self.direction.append(way.astype(np.float32))
            way *= camera.source_object_mm
            way += camera.source[k]
            self.anchor.append(way.astype(np.float32))
        np.add(columns**2, rows**2, out=way)
        way *= (camera.pitch_mm / SOURCE_DETECTOR_MM) ** 2
        way += 1.0
        self.obliquity = np.sqrt(way, out=way).astype(np.float32)
        self._resized: dict[int, Rays] = {}

    def resized(self, size_px: int) -> "Rays":
        """The same field's rays on another pixel grid; kept, because every loft of a scene asks for the same one."""
        if size_px not in self._resized:
            self._resized[size_px] = Rays(self.camera.resized(size_px))
        return self._resized[size_px]
