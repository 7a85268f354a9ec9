"""From stored values to grey: the transformations that DICOM prescribes for a radiograph, in its order, as one look-up table.

`image` calls `to_grey` in the workers. The order is that of PS3.4 N.2: stored values, modality transformation, values of
interest, presentation. A radiograph has at most 16 bits, so the whole chain is a function of the stored bit pattern: it is
computed in float64 once for each pattern that occurs, and then looked up for each pixel.

Legend: P = 2 ** bits allocated, the number of bit patterns; V = the different unpadded stored values of the image.
"""

import cv2
import numpy as np
from pydicom import Dataset

from vet_extensions.intake.dicom import PixelLayout, is_for_processing, number, text
from vet_extensions.intake.lut import apply_lut
from vet_extensions.intake.processing import attenuation
from vet_extensions.intake.refusal import Refusal
from vet_extensions.schema import RejectionCode

WHITE = 65535

PERCENTILES = (0.5, 99.5)
"""Where a file gives no window, these of the unpadded values become black and white: single dead pixels and markers of lead
must not set the scale. For 1 in 2 real radiographs the window is empty."""


def to_grey(raw: np.ndarray, dataset: Dataset, layout: PixelLayout) -> np.ndarray:
    """Grey uint16 [rows, columns], 0 black to 65535 white, as meant for the eye: bone white, air black; padding black.

    raw: the bit patterns from `read_frame`. Raw detector values (FOR PROCESSING) come out as their attenuation.
    Errors: Refusal with INVALID_GREYSCALE_TRANSFORM or CONSTANT_IMAGE.
    """
    table = grey_table(dataset, layout, counts=_histogram(raw))
    return _look_up(raw, table)


def grey_table(dataset: Dataset, layout: PixelLayout, *, counts: np.ndarray) -> np.ndarray:
    """uint16 [P]: the grey of each bit pattern. counts: float or int [P], how often each pattern occurs in the image."""
    table = np.zeros(len(counts), dtype=np.uint16)  # [P]; padding stays black
    patterns = np.flatnonzero(counts)
    stored = stored_values(patterns, layout)
    is_shown = ~padding_mask(dataset, stored, layout)
    patterns, stored = patterns[is_shown], stored[is_shown]  # [V] from here on
    if len(patterns) == 0:
        raise Refusal(RejectionCode.CONSTANT_IMAGE, "every pixel is padding")
    values = apply_modality(dataset, stored, layout)
    _refuse_constant(values, "all unpadded pixels have one value")
    if is_for_processing(dataset):
        grey = _percentile_window(attenuation(dataset, values), counts[patterns])
    else:
        grey = apply_voi(dataset, values, layout)
        if grey is None:
            grey = _percentile_window(values, counts[patterns])
        if is_inverse(dataset):
            grey = 1.0 - grey
    _refuse_constant(grey, "the grey-scale transformation maps all pixels to one value")
    table[patterns] = np.rint(np.clip(grey, 0.0, 1.0) * WHITE)
    return table


def stored_values(patterns: np.ndarray, layout: PixelLayout) -> np.ndarray:
    """int64, the value of each bit pattern.

    The bits from HighBit down count, the others may hold anything (PS3.5 section 8.1.1; old files kept overlays there); the
    top one is the sign if PixelRepresentation is 1 (PS3.3 C.7.6.3.1).
    """
    values = (patterns.astype(np.int64) >> (layout.high_bit + 1 - layout.bits_stored)) & (2**layout.bits_stored - 1)
    if layout.is_signed:
        values = np.where(values >= 2 ** (layout.bits_stored - 1), values - 2**layout.bits_stored, values)
    return values


def padding_mask(dataset: Dataset, stored: np.ndarray, layout: PixelLayout) -> np.ndarray:
    """bool: which stored values lie outside the picture.

    PixelPaddingValue to PixelPaddingRangeLimit, both included and in either order (it depends on MONOCHROME1 or 2), compared
    before any transformation (PS3.3 C.7.5.1.1.2).
    """
    value = number(dataset, "PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, dtype=bool)
    limit = number(dataset, "PixelPaddingRangeLimit")
    ends = [_as_stored(end, layout) for end in (value, value if limit is None else limit)]
    return (stored >= min(ends)) & (stored <= max(ends))


def apply_modality(dataset: Dataset, stored: np.ndarray, layout: PixelLayout) -> np.ndarray:
    """float64 [V]: the Modality LUT Sequence if there is one, else RescaleSlope and RescaleIntercept (PS3.3 C.11.1)."""
    items = dataset.get("ModalityLUTSequence")
    if items:
        values, _ = apply_lut(items[0], stored.astype(np.float64), dataset=dataset, is_input_signed=layout.is_signed)
        return values
    slope, intercept = number(dataset, "RescaleSlope"), number(dataset, "RescaleIntercept")
    slope = 1.0 if slope is None else slope
    intercept = 0.0 if intercept is None else intercept
    if not np.isfinite([slope, intercept]).all() or slope == 0:
        raise _invalid("RescaleSlope or RescaleIntercept is not finite, or the slope is 0")
    return stored * slope + intercept


def apply_voi(dataset: Dataset, values: np.ndarray, layout: PixelLayout) -> np.ndarray | None:
    """float64 [V] in [0, 1]: the first item of the VOI LUT Sequence, else the first window (PS3.3 C.11.2); None without either.

    Several windows are alternatives, of which the first is meant to be shown first (C.11.2.1.2).
    """
    items = dataset.get("VOILUTSequence")
    if items:
        output, bits = apply_lut(items[0], values, dataset=dataset, is_input_signed=_is_signed_input(dataset, layout))
        return output / (2**bits - 1)
    center, width = number(dataset, "WindowCenter"), number(dataset, "WindowWidth")
    if center is None and width is None:
        return None
    if center is None or width is None:
        raise _invalid("WindowCenter or WindowWidth stands alone")
    function = text(dataset, "VOILUTFunction").upper() or "LINEAR"
    return window(values, center=center, width=width, function=function)


def window(values: np.ndarray, *, center: float, width: float, function: str) -> np.ndarray:
    """The three window functions, output within [0, 1]. Source: PS3.3 C.11.2.1.2.1 (LINEAR), C.11.2.1.3.1 (SIGMOID),
    C.11.2.1.3.2 (LINEAR_EXACT)."""
    if not np.isfinite([center, width]).all() or width <= 0:
        raise _invalid("WindowWidth must be above 0, and it and WindowCenter finite")
    if function == "LINEAR":
        return _linear(values, center=center, width=width)
    if function == "LINEAR_EXACT":
        return np.clip((values - center) / width + 0.5, 0.0, 1.0)
    if function == "SIGMOID":
        # Beyond 60 the exponential changes nothing in float64 but could overflow.
        return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - center) / width, -60.0, 60.0)))
    raise _invalid("VOILUTFunction is none of LINEAR, LINEAR_EXACT and SIGMOID")


def is_inverse(dataset: Dataset) -> bool:
    """Whether low values are meant to be bright. MONOCHROME1 and PresentationLUTShape INVERSE state the same fact
    (PS3.3 C.7.6.3.1.2, C.8.11.3.1.2), so both together invert once."""
    is_monochrome1 = text(dataset, "PhotometricInterpretation").upper() == "MONOCHROME1"
    return is_monochrome1 or text(dataset, "PresentationLUTShape").upper() == "INVERSE"


def _linear(values: np.ndarray, *, center: float, width: float) -> np.ndarray:
    if width < 1:
        raise _invalid("WindowWidth is below 1, which LINEAR does not allow")
    if width == 1:
        return (values > center - 0.5).astype(np.float64)
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0.0, 1.0)


def _is_signed_input(dataset: Dataset, layout: PixelLayout) -> bool:
    """The output of a Modality LUT is unsigned; otherwise a negative intercept can make the VOI's input signed (C.11.2.1.1)."""
    if dataset.get("ModalityLUTSequence"):
        return False
    intercept = number(dataset, "RescaleIntercept") or 0.0
    return layout.is_signed or intercept < 0


def _percentile_window(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Stretch between two percentiles of the pixels; where these meet (few pixels are not background), between the extremes.

    values, counts: [V], each value and how many pixels have it.
    """
    order = np.argsort(values, kind="stable")
    cumulated = np.cumsum(counts[order], dtype=np.float64)
    places = np.searchsorted(cumulated, [cumulated[-1] * share / 100 for share in PERCENTILES])
    low, high = values[order][np.minimum(places, len(order) - 1)]
    if low == high:
        low, high = values.min(), values.max()
    return np.clip((values - low) / (high - low), 0.0, 1.0)


def _as_stored(value: float, layout: PixelLayout) -> int:
    """A padding value may be written with the VR of the other sign; bring it to the sign of the pixels."""
    if not np.isfinite(value):
        raise _invalid("PixelPaddingValue is not finite")
    pattern = int(value) % 2**16
    return pattern - 2**16 if layout.is_signed and pattern >= 2**15 else pattern


def _refuse_constant(values: np.ndarray, reason: str) -> None:
    if not np.isfinite(values).all():
        raise _invalid("the grey-scale transformation gives values that are not finite")
    if values.min() == values.max():
        raise Refusal(RejectionCode.CONSTANT_IMAGE, reason)


def _invalid(detail: str) -> Refusal:
    return Refusal(RejectionCode.INVALID_GREYSCALE_TRANSFORM, detail)


def _histogram(raw: np.ndarray) -> np.ndarray:
    n_patterns = 2 ** (8 * raw.itemsize)
    return cv2.calcHist([raw], [0], None, [n_patterns], [0, n_patterns]).ravel()


def _look_up(raw: np.ndarray, table: np.ndarray) -> np.ndarray:
    """table[raw]. OpenCV 5 does it eight times as fast as numpy; older ones know 8-bit input only."""
    try:
        return cv2.LUT(raw, table)
    except cv2.error:
        return table[raw]
