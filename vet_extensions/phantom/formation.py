"""From path lengths to the picture a radiographer hangs: beam, scatter, noise, logarithm, display processing.

`render.render_view` calls `form_image`. The order is the physical one: a polychromatic beam is attenuated (Beer and
Lambert), a lead marker and the collimator shape it, the body scatters a low-frequency veil, the detector blurs and
counts photons, and the console makes a display image as digital radiography systems do: a window on the exposed body,
a coarse, middle and fine band weighted apart, a tone curve.
"""

from functools import lru_cache

import cv2
import numpy as np

from vet_extensions.phantom.exposure import Exposure
from vet_extensions.schema import View

# Linear attenuation in 1/mm at 40, 55 and 75 keV: soft tissue, fat, bone, metal.
_ATTENUATION = np.array(
    [[0.0268, 0.0223, 0.128, 2.0], [0.0216, 0.0192, 0.070, 1.2], [0.0188, 0.0171, 0.046, 0.6]], np.float32
)
_SOFT_SPECTRUM = np.array([0.45, 0.38, 0.17])
_HARD_SPECTRUM = np.array([0.15, 0.40, 0.45])
_MARKER_ABSORPTION = 0.985
_PHOTONS = 26_000.0
"""Photons on a pixel of a 256-px image in the open beam at tube load 1; fewer per pixel of a larger image."""
_LEAST_SIGNAL = 2e-5
_BODY_MM = 12.0
"""Soft tissue on a ray that counts as body when the display window is chosen."""


def form_image(paths_mm: np.ndarray, exposure: Exposure) -> np.ndarray:
    """Display image [H, W] float32 in [0, 1], bone white, from path lengths [soft, fat, bone, metal, H, W] in mm."""
    size = paths_mm.shape[-1]
    field = collimated_field(exposure, size)
    intensity = _transmission(paths_mm, exposure)
    if exposure.has_marker:
        intensity *= 1 - _MARKER_ABSORPTION * _marker(exposure, field, size)
    counts = _detect(intensity, exposure, field)
    log_image = -np.log(counts)
    window = _exposure_window(log_image, paths_mm[0] > _BODY_MM, field)
    image = _process(log_image, window, exposure)
    shown = np.zeros_like(image)
    shown[field] = image[field]
    return shown


def _transmission(paths_mm: np.ndarray, exposure: Exposure) -> np.ndarray:
    spectrum = _SOFT_SPECTRUM + exposure.tube_voltage * (_HARD_SPECTRUM - _SOFT_SPECTRUM)
    has_metal = bool(paths_mm[3].any())
    total = np.zeros_like(paths_mm[0])
    for share, (soft, fat, bone, metal) in zip(spectrum.astype(np.float32), _ATTENUATION):
        absorbed = soft * paths_mm[0]
        absorbed += fat * paths_mm[1]
        absorbed += bone * paths_mm[2]
        if has_metal:
            absorbed += metal * paths_mm[3]
        np.negative(absorbed, out=absorbed)
        total += share * np.exp(absorbed, out=absorbed)
    return total


def collimated_field(exposure: Exposure, size: int) -> tuple[slice, slice]:
    """Rows and columns inside the collimator; the trunk runs out of the field at its ends."""
    least, range_ = ((0.0, 0.09, 0.0, 0.10), (0.05, 0.09, 0.05, 0.10))
    if not exposure.is_lateral:
        least, range_ = ((0.12, 0.0, 0.12, 0.0), (0.10, 0.05, 0.10, 0.05))
    left, top, right, bottom = np.array(least) + np.array(range_) * exposure.collimation
    return slice(int(top * size), int(size - bottom * size)), slice(int(left * size), int(size - right * size))


def _marker(exposure: Exposure, field: tuple[slice, slice], size: int) -> np.ndarray:
    """Coverage [H, W] of a lead letter laid beside the animal: the side on the table, or the side it lies next to."""
    rows, columns = field
    if exposure.is_lateral:
        letter = "L" if exposure.view is View.LATERAL_LEFT else "R"
        column = columns.start + size * (0.04 + 0.72 * exposure.marker_along)
        row = rows.stop - 0.03 * size if exposure.marker_is_low else rows.start + 0.10 * size
    else:
        letter = "R" if exposure.marks_right_side else "L"  # frontal views hang with the animal's right on the left
        column = columns.start + 0.02 * size if exposure.marks_right_side else columns.stop - 0.09 * size
        row = rows.start + size * (0.10 + 0.8 * exposure.marker_along)
    glyph = _letter(letter, size)
    # Where putText would set it: the text's left end on the baseline; what falls outside the detector is lost.
    top, left = int(row) - glyph.shape[0] // 2, int(column) - glyph.shape[1] // 2
    lead = np.zeros((size, size), np.float32)
    first_row, first_column = max(top, 0), max(left, 0)
    seen = glyph[first_row - top : size - top, first_column - left : size - left]
    lead[first_row : first_row + seen.shape[0], first_column : first_column + seen.shape[1]] = seen
    return lead


@lru_cache(maxsize=16)
def _letter(letter: str, size: int) -> np.ndarray:
    """A lead letter for images of `size` pixels, its left end on the baseline at the middle of the glyph's square."""
    half = max(8, size // 8)
    glyph = np.zeros((2 * half, 2 * half), np.uint8)
    scale, stroke = 0.75 * size / 256, max(1, round(1.6 * size / 256))
    cv2.putText(glyph, letter, (half, half), cv2.FONT_HERSHEY_SIMPLEX, scale, 1, stroke, cv2.LINE_AA)
    return glyph.astype(np.float32)


def _detect(intensity: np.ndarray, exposure: Exposure, field: tuple[slice, slice]) -> np.ndarray:
    """What the detector counts, relative to the open beam: primary beam, scatter veil, blur, quantum noise."""
    size = intensity.shape[0]
    primary = np.zeros_like(intensity)
    primary[field] = intensity[field]
    coarse_size = size // max(8, size // 16)
    coarse = cv2.resize(primary, (coarse_size, coarse_size), interpolation=cv2.INTER_AREA)
    veil = cv2.resize(cv2.GaussianBlur(coarse, (0, 0), 1.6), (size, size), interpolation=cv2.INTER_CUBIC)
    signal = primary * np.float32(1 - 0.25 * exposure.scatter)
    signal += np.float32(0.22 * exposure.scatter) * np.maximum(veil, 0)
    signal = cv2.GaussianBlur(signal, (0, 0), 0.45 * max(1.0, size / 512) + 0.15)  # focal spot and scintillator
    photons = np.float32(_PHOTONS * exposure.tube_load * 256 / size)
    noise = np.random.default_rng(exposure.noise_seed).standard_normal((size, size), dtype=np.float32)
    noise *= np.sqrt(np.maximum(signal, 1e-6) / photons)
    signal += noise
    return np.maximum(signal, np.float32(_LEAST_SIGNAL), out=signal)


def _exposure_window(log_image: np.ndarray, is_body: np.ndarray, field: tuple[slice, slice]) -> tuple[float, float]:
    """Darkest and brightest value worth showing, read on a sparse grid inside the collimated body."""
    step = max(1, log_image.shape[0] // 96)
    values, body = log_image[field][::step, ::step], is_body[field][::step, ::step]
    inside = values[body]
    low, high = np.percentile(inside if inside.size > 50 else values, (1.0, 99.3))
    return float(low), float(high)


def _process(log_image: np.ndarray, window: tuple[float, float], exposure: Exposure) -> np.ndarray:
    low, high = window
    size, boost = log_image.shape[0], exposure.local_contrast
    z = np.clip((log_image - np.float32(low)) * np.float32(1 / (high - low)), -0.5, 1.4)
    coarse = _coarse_band(z)
    middle = cv2.GaussianBlur(z, (0, 0), max(size / 100, 0.8))
    # Flatten the large scale, lift the middle and the fine one: 0.5 + sum of weighted bands.
    coarse_gain, middle_gain, fine_gain = 1 - 0.55 * boost, 1 + 0.9 * boost, 1 + 1.2 * boost
    z *= np.float32(fine_gain)
    z += np.float32(middle_gain - fine_gain) * middle
    z += np.float32(coarse_gain - middle_gain) * coarse
    z += np.float32(0.5 * (1 - coarse_gain))
    z *= np.float32(0.95)
    z += np.float32(0.03 + exposure.window_shift)
    np.clip(z, 0, 1.12, out=z)
    z *= np.float32(1 / 1.12)
    np.power(z, np.float32(1.05 * exposure.display_gamma), out=z)
    z -= np.float32(0.5)
    z *= np.float32(1 + exposure.window_width)
    z += np.float32(0.5)
    return np.clip(z, 0, 1, out=z)


def _coarse_band(z: np.ndarray) -> np.ndarray:
    """Blur with a width of a tenth of the image, made on a small copy."""
    size = z.shape[0]
    small_size = max(size // max(1, int(size * 0.10 / 3)), 4)
    small = cv2.resize(z, (small_size, small_size), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), 3.0 if small_size > 8 else 1.5)
    return cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC)
