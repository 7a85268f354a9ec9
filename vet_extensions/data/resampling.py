"""A box of a grey image resized with antialiasing: Pillow's bicubic filter to half a grey level, in a third of its time.

`radiograph_crop` calls `resized_box` for every crop. The filter that a reduction by r needs is the bicubic kernel stretched by
r. OpenCV's cubic interpolation is fast, but not stretched; so the image first goes through a short separable filter, made such
that both together are the stretched kernel. docs/decisions/0006 tells what else was measured.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

BICUBIC_A = -0.5
"""Keys' parameter of the filter that is imitated, Pillow's `BICUBIC`."""

_OPENCV_A = -0.75
_STEPS = 64
"""Filters are made for reductions by multiples of 1/64 and kept: a few hundred serve all boxes."""

_LONG = 4.0
"""Reductions by this much or more begin with means of whole pixels, which leave a reduction by 2 to 3: the filter stays short."""


class Box(NamedTuple):
    """Part of an image in pixels; borders at whole numbers lie between pixels."""

    left: float
    top: float
    width: float
    height: float


def resized_box(pixels: np.ndarray, box: Box, *, size: int, angle_deg: float = 0.0) -> np.ndarray:
    """The box, turned clockwise about its centre, as [size, size] of the image's type.

    pixels: [H, W] uint8 or uint16. Pixels around the box take part in its border, as in Pillow's `resize(box=...)`. Where a
    turned box leaves the image it is black. A box of whole pixels that is not turned takes two thirds of the time of others.
    """
    ratio = min(box.width, box.height) / size
    shrink = int(ratio / (_LONG / 2)) if ratio >= _LONG else 1
    kernel_x, kernel_y = (
        prefilter(round(_STEPS * side / size / shrink), shrink=shrink) for side in (box.width, box.height)
    )
    margin = shrink * (max(len(kernel_x), len(kernel_y)) // 2 + 2)
    part, left, top = _surroundings(pixels, box, angle_deg=angle_deg, margin=margin, multiple=shrink)
    if shrink > 1:
        part = cv2.resize(part, (part.shape[1] // shrink, part.shape[0] // shrink), interpolation=cv2.INTER_AREA)
    part = cv2.sepFilter2D(part, cv2.CV_32F, kernel_x, kernel_y, borderType=cv2.BORDER_REPLICATE)
    inside = Box((box.left - left) / shrink, (box.top - top) / shrink, box.width / shrink, box.height / shrink)
    crop = _interpolated(part, inside, size=size, angle_deg=angle_deg)
    np.maximum(crop, 0, out=crop)
    if pixels.dtype == np.uint8:
        return cv2.convertScaleAbs(crop)  # rounds and cuts at white
    return np.rint(np.minimum(crop, 65535, out=crop)).astype(pixels.dtype)


@lru_cache(maxsize=1024)
def prefilter(steps: int, *, shrink: int = 1) -> np.ndarray:
    """float32 [2 n + 1], sum 1: what before cubic interpolation makes it the bicubic filter of a reduction by steps / 64.

    Least squares over the continuous kernel: sum over j of p[j] interpolation(x - j) = bicubic(x / r) / r.
    shrink: so many pixels were averaged into one before, which the filter makes up for.
    """
    ratio = max(steps / _STEPS, 1.0)  # an enlargement interpolates
    n = math.ceil(
        2 * ratio - 1.5
    )  # the interpolation's own width covers the rest of the kernel's 2 ratio on either side
    taps = np.arange(-n, n + 1)
    x = np.arange(-16 * (n + 3), 16 * (n + 3) + 1) / 16
    averaged = (np.arange(shrink) + 0.5) / shrink - 0.5
    bases = np.mean([_cubic(x[:, None] - taps - offset, a=_OPENCV_A) for offset in averaged], axis=0)  # [points, taps]
    weights = np.linalg.lstsq(bases, _cubic(x / ratio, a=BICUBIC_A) / ratio)[0]
    return (weights / weights.sum()).astype(np.float32)


def _cubic(x: np.ndarray, *, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel (IEEE ASSP 29(6), 1981)."""
    x = np.abs(x)
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, a * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _surroundings(
    pixels: np.ndarray, box: Box, *, angle_deg: float, margin: int, multiple: int
) -> tuple[np.ndarray, int, int]:
    """The part of the image that the turned box and `margin` pixels around it cover, and its left and top border.

    Borders lie on multiples of `multiple`.
    """
    cos, sin = abs(math.cos(math.radians(angle_deg))), abs(math.sin(math.radians(angle_deg)))
    reach_x, reach_y = (box.width * cos + box.height * sin) / 2, (box.width * sin + box.height * cos) / 2
    height, width = pixels.shape
    left, right = _span(box.left + box.width / 2, reach_x + margin, size=width, multiple=multiple)
    top, bottom = _span(box.top + box.height / 2, reach_y + margin, size=height, multiple=multiple)
    return pixels[top:bottom, left:right], left, top


def _span(centre: float, reach: float, *, size: int, multiple: int) -> tuple[int, int]:
    """Start and end of the whole pixels within `reach` of `centre`, on multiples of `multiple`, within 0 to `size`."""
    start = max(0, math.floor((centre - reach) / multiple)) * multiple
    end = math.ceil((centre + reach) / multiple) * multiple
    return start, end if end <= size else max(size // multiple * multiple, start + multiple)


def _interpolated(part: np.ndarray, box: Box, *, size: int, angle_deg: float) -> np.ndarray:
    """The turned box [size, size] by cubic interpolation."""
    if angle_deg == 0 and all(float(value).is_integer() for value in box):
        left, top, width, height = map(int, box)
        return cv2.resize(part[top : top + height, left : left + width], (size, size), interpolation=cv2.INTER_CUBIC)
    border = cv2.BORDER_CONSTANT if angle_deg else cv2.BORDER_REPLICATE
    to_source = _box_transform(box, size=size, angle_deg=angle_deg)
    # Pixel centres stand at +0.5: shifted before and after.
    to_source[:, 2] += to_source[:, :2] @ (0.5, 0.5) - 0.5
    return cv2.warpAffine(
        part, to_source, (size, size), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, borderMode=border
    )


def _box_transform(box: Box, *, size: int, angle_deg: float) -> np.ndarray:
    """[2, 3] map from crop coordinates (0..size) to source coordinates: the box, turned about its centre."""
    cos, sin = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    linear = np.array([[cos, -sin], [sin, cos]]) @ np.diag([box.width / size, box.height / size])
    centre = np.array([box.left + box.width / 2, box.top + box.height / 2])
    return np.column_stack([linear, centre - linear @ (size / 2, size / 2)])
