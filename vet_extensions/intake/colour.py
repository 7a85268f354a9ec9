"""Radiographs stored in colour, to grey: luminance, and whether an image has any colour. `image` and `raster` use it.

Exports for teaching, teleradiology and viewers' screen shots store grey as three equal channels or as a grey palette. Those are
radiographs like any other; a photograph or a Doppler image is not, and would teach the network another look. Hence the
default policy, "neutral".
"""

import cv2
import numpy as np
from pydicom import Dataset

from vet_extensions.intake.dicom import PixelLayout
from vet_extensions.intake.lut import apply_lut
from vet_extensions.intake.pixels import WHITE, stored_values
from vet_extensions.intake.refusal import Refusal
from vet_extensions.schema import RejectionCode

_LUMA = (0.299, 0.587, 0.114)
"""Red, green and blue in the luminance Y of YBR_FULL (PS3.3 C.7.6.3.1.2, after ITU-R BT.601)."""

_MAX_SPREAD = 0.04
"""Channels closer than this share of the range count as equal: lossy JPEG spreads grey by up to 8 of 255."""

_MAX_COLOURED_SHARE = 0.01
"""A side marker or a line of text in colour may cover this share of the pixels."""

_BAND_ROWS = 64
"""Rows at a time, so that a large image does not need its size in float32 once more."""


def colour_to_grey(values: np.ndarray, *, bits: int, photometric: str = "RGB", policy: str = "grey") -> np.ndarray:
    """Grey uint16 [H, W], the luminance of `values` [H, W, 3], unsigned integers of `bits` bits.

    photometric: RGB, YBR_FULL or YBR_FULL_422 (brought to full resolution).
    policy: "neutral" refuses what has colour. Errors: Refusal with UNSUPPORTED_PHOTOMETRIC.
    """
    if photometric not in ("RGB", "YBR_FULL", "YBR_FULL_422"):
        raise Refusal(RejectionCode.UNSUPPORTED_PHOTOMETRIC, f"{photometric} in this transfer syntax")
    top = 2**bits - 1
    grey = np.empty(values.shape[:2], np.uint16)
    n_coloured = 0
    for start in range(0, len(values), _BAND_ROWS):
        band = values[start : start + _BAND_ROWS] & top
        planes = [plane.astype(np.float32) for plane in cv2.split(band)]  # 3 x [rows, W]
        red, green, blue = planes if photometric == "RGB" else _from_ybr(*planes, middle=2 ** (bits - 1))
        spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
        n_coloured += np.count_nonzero(spread > _MAX_SPREAD * top)
        luma = (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue) * (WHITE / top)
        grey[start : start + _BAND_ROWS] = np.clip(np.rint(luma), 0, WHITE)
    _refuse_coloured(n_coloured / grey.size, policy)
    return grey


def palette_to_grey(raw: np.ndarray, dataset: Dataset, layout: PixelLayout, *, policy: str) -> np.ndarray:
    """Grey uint16 [rows, columns] of a PALETTE COLOR image: luminance of each entry, looked up (PS3.3 C.7.6.3.1.5 and 6).

    raw: bit patterns from `read_frame`. Segmented palettes are not read. Errors: Refusal.
    """
    counts = np.bincount(raw.ravel(), minlength=2 ** (8 * raw.itemsize))
    patterns = np.flatnonzero(counts)  # [V]
    stored = stored_values(patterns, layout)
    channels = []
    for name in ("Red", "Green", "Blue"):
        entries, bits = apply_lut(
            dataset,
            stored,
            dataset=dataset,
            is_input_signed=layout.is_signed,
            descriptor=f"{name}PaletteColorLookupTableDescriptor",
            data=f"{name}PaletteColorLookupTableData",
        )
        channels.append(entries / (2**bits - 1))
    rgb = np.clip(np.stack(channels, axis=-1), 0.0, 1.0)  # [V, 3]
    is_coloured = np.ptp(rgb, axis=-1) > _MAX_SPREAD
    _refuse_coloured(float(counts[patterns][is_coloured].sum() / raw.size), policy)
    table = np.zeros(len(counts), np.uint16)
    table[patterns] = np.rint(rgb @ np.array(_LUMA) * WHITE)
    return table[raw]


def _from_ybr(y: np.ndarray, cb: np.ndarray, cr: np.ndarray, *, middle: int) -> tuple[np.ndarray, ...]:
    """The inverse of the YBR_FULL equations (PS3.3 C.7.6.3.1.2). Luminance stays: its weights applied to the result give Y."""
    red, blue = y + 1.402 * (cr - middle), y + 1.772 * (cb - middle)
    green = (y - _LUMA[0] * red - _LUMA[2] * blue) / _LUMA[1]
    return red, green, blue


def _refuse_coloured(share: float, policy: str) -> None:
    if policy == "neutral" and share > _MAX_COLOURED_SHARE:
        raise Refusal(RejectionCode.UNSUPPORTED_PHOTOMETRIC, f"a colour image: {share:.0%} of its pixels are not grey")
