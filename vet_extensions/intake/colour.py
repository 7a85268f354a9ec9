"""Radiographs stored in colour, to grey: luminance, and whether an image has any colour. `image` and `raster` use it.

Exports for teaching, teleradiology and viewers' screen shots store grey as three equal channels or as a grey palette. Those are
radiographs like any other; a photograph or a Doppler image is not, and would teach the network another look. Hence the
default policy, "neutral".
"""

import numpy as np
from pydicom import Dataset

from vet_extensions.intake.dicom import PixelLayout
from vet_extensions.intake.lut import apply_lut
from vet_extensions.intake.pixels import WHITE, stored_values
from vet_extensions.intake.refusal import Refusal
from vet_extensions.schema import RejectionCode

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Red, green and blue in the luminance Y of YBR_FULL (PS3.3 C.7.6.3.1.2, after ITU-R BT.601)."""

_MAX_SPREAD = 0.04
"""Channels closer than this share of the range count as equal: lossy JPEG spreads grey by up to 8 of 255."""

_MAX_COLOURED_SHARE = 0.01
"""A side marker or a line of text in colour may cover this share of the pixels."""

_BAND_ROWS = 256
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
        band = (values[start : start + _BAND_ROWS] & top).astype(np.float32)  # [rows, W, 3]
        rgb = band if photometric == "RGB" else _from_ybr(band, middle=2 ** (bits - 1))
        n_coloured += int((np.ptp(rgb, axis=-1) > _MAX_SPREAD * top).sum())
        grey[start : start + _BAND_ROWS] = np.rint(np.clip(rgb @ _LUMA / top, 0.0, 1.0) * WHITE)
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
    table[patterns] = np.rint(rgb @ _LUMA.astype(np.float64) * WHITE)
    return table[raw]


def _from_ybr(ybr: np.ndarray, *, middle: int) -> np.ndarray:
    """The inverse of the YBR_FULL equations (PS3.3 C.7.6.3.1.2). Luminance stays: its weights applied to the result give Y."""
    y, b, r = ybr[..., 0], ybr[..., 1] - middle, ybr[..., 2] - middle
    red, blue = y + 1.402 * r, y + 1.772 * b
    green = (y - _LUMA[0] * red - _LUMA[2] * blue) / _LUMA[1]
    return np.stack([red, green, blue], axis=-1)


def _refuse_coloured(share: float, policy: str) -> None:
    if policy == "neutral" and share > _MAX_COLOURED_SHARE:
        raise Refusal(RejectionCode.UNSUPPORTED_PHOTOMETRIC, f"a colour image: {share:.0%} of its pixels are not grey")
