"""The exposed field of a radiograph, for the option `collimation: crop`: as the file states it, else as the pixels show it.

Where lead blades shut out the beam, nothing darkens the detector: after all transformations that border is white, and it can take
a third of an image. Shutter and collimator attributes tell where it is (PS3.3 C.7.6.11, C.8.7.3); most files have neither.
`image` calls both functions. Blades that stand at an angle leave no border that a rectangle could cut off, and are left.
"""

import cv2
import numpy as np
from pydicom import Dataset

from vet_extensions.intake.dicom import number
from vet_extensions.intake.options import MIN_SIDE_PX
from vet_extensions.intake.pixels import WHITE
from vet_extensions.schema import Crop

_LEAST_AREA = 0.1
"""A smaller share of the image is no plausible field; then nothing is cut."""

_LOOK_PX = 1024
"""Borders are looked for at this size: noise averages out."""

_BORDER_LEVEL = 0.85
"""At the image's rim a border is at least this bright, as a share of white ..."""
_BORDER_SPREAD = 0.35
"""... and towards the field no darker than that by more than this: scattered rays reach under the blade."""
_FULL = 0.96
"""Share of a row's or column's pixels that are border where it lies under a blade: dust and letters may lie there too."""
_DROP = 0.3
"""At a blade's edge the share falls by this much, and the brightness by this share of white ..."""
_EDGE_SHARE = 0.02
"""... within this share of the side: blades are straight and sharp, what an animal's outline does is gradual."""


def stated_field(dataset: Dataset, *, rows: int, columns: int) -> Crop | None:
    """The smallest rectangle around what shutter and collimator attributes leave open; both together, where both are stated.

    Positions count from 1 at the upper left pixel, rows down, columns to the right; the edges themselves are open.
    None where the file states nothing, nothing plausible, or the whole image.
    """
    fields = [_stated_box(dataset, *names) for names in _ATTRIBUTES]
    top, left, bottom, right = 0.0, 0.0, float(rows), float(columns)
    for field in fields:
        if field is not None:
            top, left = max(top, field[0]), max(left, field[1])
            bottom, right = min(bottom, field[2]), min(right, field[3])
    if not np.isfinite([top, left, bottom, right]).all():
        return None
    return _plausible(int(np.ceil(top)), int(np.ceil(left)), int(bottom), int(right), rows=rows, columns=columns)


def visible_field(grey: np.ndarray) -> Crop | None:
    """The rectangle inside white borders of `grey` [H, W] (uint16, as stored: bone white). None where there are none."""
    rows, columns = grey.shape
    scale = min(1.0, _LOOK_PX / max(rows, columns))
    size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
    small = cv2.resize(grey, size, interpolation=cv2.INTER_AREA) if scale < 1 else grey
    height, width = small.shape
    top, left, bottom, right = 0, 0, height, width
    # Each cut takes white corners away from the other sides; after two rounds every side has seen the others' cuts.
    for _ in range(2):
        top += _border_length(small[top:bottom, left:right])
        bottom -= _border_length(small[top:bottom, left:right][::-1])
        left += _border_length(small[top:bottom, left:right].T)
        right -= _border_length(small[top:bottom, left:right].T[::-1])
    # Towards the inside, so that no rim stays.
    y, x = rows / height, columns / width
    return _plausible(
        int(np.ceil(top * y)), int(np.ceil(left * x)), int(bottom * y), int(right * x), rows=rows, columns=columns
    )


_ATTRIBUTES = (
    ("Shutter", "CenterOfCircularShutter", "RadiusOfCircularShutter", "VerticesOfThePolygonalShutter"),
    ("Collimator", "CenterOfCircularCollimator", "RadiusOfCircularCollimator", "VerticesOfThePolygonalCollimator"),
)


def _stated_box(
    dataset: Dataset, prefix: str, center: str, radius: str, vertices: str
) -> tuple[float, float, float, float] | None:
    """(top, left, bottom, right), half-open and from 0: what all shapes named by ShutterShape or CollimatorShape leave open."""
    value = dataset.get(f"{prefix}Shape")
    shapes = {str(value)} if isinstance(value, str) else {str(shape) for shape in value or ()}
    boxes = []
    if "RECTANGULAR" in shapes:
        names = ("UpperHorizontalEdge", "LeftVerticalEdge", "LowerHorizontalEdge", "RightVerticalEdge")
        boxes.append([number(dataset, prefix + name) for name in names])
    if "CIRCULAR" in shapes:
        middle = [number(dataset, center, index=i) for i in range(2)]
        reach = number(dataset, radius)
        if reach is not None and None not in middle:
            row, column = (m for m in middle if m is not None)
            boxes.append([row - reach, column - reach, row + reach, column + reach])
    if "POLYGONAL" in shapes:
        flat = _numbers(dataset, vertices)
        if len(flat) >= 6:
            boxes.append([min(flat[0::2]), min(flat[1::2]), max(flat[0::2]), max(flat[1::2])])
    known = np.array([box for box in boxes if None not in box], dtype=np.float64)
    if len(known) == 0:
        return None
    top, left = known[:, :2].max(axis=0) - 1
    bottom, right = known[:, 2:].min(axis=0)
    return float(top), float(left), float(bottom), float(right)


def _numbers(dataset: Dataset, keyword: str) -> list[float]:
    values = []
    while (value := number(dataset, keyword, index=len(values))) is not None:
        values.append(value)
    return values[: len(values) // 2 * 2]


def _border_length(lines: np.ndarray) -> int:
    """How many of the first lines of `lines` [N, M] lie under a blade; 0 if the first does not or no straight edge ends them."""
    n_lines = len(lines)
    level = float(np.median(lines[: max(1, n_lines // 200)])) if n_lines else 0.0
    if level < _BORDER_LEVEL * WHITE:
        return 0
    share = (lines >= level - _BORDER_SPREAD * WHITE).mean(axis=1)  # [N]
    below = np.flatnonzero(share < _FULL)
    if len(below) == 0 or below[0] == 0:
        return 0
    edge, reach = int(below[0]), max(2, round(_EDGE_SHARE * n_lines))
    steps = np.flatnonzero(share[edge : edge + reach + 1] <= _FULL - _DROP)
    around = lines[[max(0, edge - reach), min(n_lines - 1, edge + reach)]]
    # The lower quartile, since white corners may take more than half of a line.
    outside, inside = np.quantile(around, 0.25, axis=1)
    if len(steps) == 0 or outside - inside < _DROP * WHITE:
        return 0
    return edge + int(steps[0])


def _plausible(top: int, left: int, bottom: int, right: int, *, rows: int, columns: int) -> Crop | None:
    top, left, bottom, right = max(top, 0), max(left, 0), min(bottom, rows), min(right, columns)
    height, width = bottom - top, right - left
    if (height, width) == (rows, columns) or min(height, width) < MIN_SIDE_PX:
        return None
    return Crop(top, left, height, width) if height * width >= _LEAST_AREA * rows * columns else None
