"""Exposure-like changes of a grey crop: gamma, contrast, brightness, blur, noise. `radiograph_crop` calls `varied`.

The first three change each grey value by itself, so of 8-bit crops only the 256 values are computed and then looked up. Until
the end values are integers in 1/32 of a grey level, neither rounded to levels nor cut at black and white: what a bright pixel
lost there, noise and blur would miss.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch

FINE = 32
"""Fine steps a grey level. int16 then reaches from -1,024 to 1,023 levels."""

_FINE_WHITE = 255 * FINE
_WIDEST = (-256 * FINE, 511 * FINE)
"""Values are cut here before noise is added, which then has 512 levels of room on either side."""


@dataclass(frozen=True)
class ToneCurve:
    """grey -> (grey ** gamma - mean) * contrast + mean + brightness, on [0, 1]; mean: of the crop after gamma."""

    gamma: float = 1.0
    contrast: float = 1.0
    brightness: float = 0.0

    def of_bytes(self, crop: np.ndarray) -> np.ndarray:
        """float32 [256]: what becomes of each grey level of a uint8 crop."""
        levels = np.power(_LEVELS, np.float32(self.gamma))
        return self._about(levels, mean=cv2.mean(cv2.LUT(crop, levels))[0])

    def of_pixels(self, crop: np.ndarray) -> np.ndarray:
        """float32 [H, W]: what becomes of each pixel of a crop of any unsigned type."""
        values = np.power(crop.astype(np.float32) / np.float32(np.iinfo(crop.dtype).max), np.float32(self.gamma))
        return self._about(values, mean=float(values.mean()))

    def _about(self, values: np.ndarray, *, mean: float) -> np.ndarray:
        return values * np.float32(self.contrast) + np.float32(mean * (1 - self.contrast) + self.brightness)


class GaussianNoise:
    """Independent normal noise in fine steps: the quantiles of 65,536 equal shares, looked up by 16 random bits a pixel.

    An eighth of the time of drawing normal numbers. Beyond 4.3 standard deviations nothing is drawn; the variance is exact.
    """

    def __init__(self, sigma: float) -> None:
        """sigma: as a share of the range from black to white; above 0.45 the room for fine steps cuts the tails."""
        shares = (torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16
        normal = torch.special.ndtri(shares)
        steps = normal / normal.square().mean().sqrt() * sigma * _FINE_WHITE
        self._quantiles = steps.round().clamp(-512 * FINE, 512 * FINE).to(torch.int16).numpy()

    def draw(self, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """int16 [H, W] fine steps. Takes a quarter of a 64-bit draw a pixel, rounded up, straight from the bit generator."""
        raw = rng.bit_generator.random_raw(_n_words(shape))
        words = np.asarray(raw, dtype="<u8")  # low bits first on every machine
        return _look_up(words.view("<u2")[: math.prod(shape)].reshape(shape), self._quantiles)

    @staticmethod
    def skip(shape: tuple[int, int], rng: np.random.Generator) -> None:
        """Leave the generator as `draw` leaves it."""
        rng.bit_generator.random_raw(_n_words(shape), output=False)


def varied(
    crop: np.ndarray,
    curve: ToneCurve,
    *,
    blur_sigma_px: float = 0.0,
    noise: GaussianNoise | None = None,
    rng: np.random.Generator,
) -> np.ndarray:
    """uint8 [H, W]: the tone curve, then blur, then noise, then rounded and cut at black and white, once.

    crop: [H, W] uint8 or uint16. blur_sigma_px: 0 for none. noise: drawn from `rng`, which nothing else here uses.
    """
    if crop.dtype != np.uint8:
        values = _in_fine_steps(curve.of_pixels(crop))
    elif not blur_sigma_px and noise is None:
        return cv2.LUT(crop, np.rint(np.clip(curve.of_bytes(crop), 0, 1) * 255).astype(np.uint8))
    else:
        values = cv2.LUT(crop, _in_fine_steps(curve.of_bytes(crop)))
    if blur_sigma_px:
        values = cv2.GaussianBlur(values, (0, 0), blur_sigma_px)
    if noise is not None:
        values = cv2.add(values, noise.draw(values.shape, rng))
    return cv2.convertScaleAbs(np.maximum(values, 0, out=values), alpha=1 / FINE)  # rounds and cuts at white


def _n_words(shape: tuple[int, int]) -> int:
    """64-bit draws that the noise of a crop takes."""
    return -(-math.prod(shape) // 4)


def _in_fine_steps(values: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(values * _FINE_WHITE, *_WIDEST)).astype(np.int16)


def _look_up(indices: np.ndarray, table: np.ndarray) -> np.ndarray:
    """table[indices] of uint16 indices. OpenCV 5 does it twice as fast as numpy; older ones know 8-bit indices only."""
    try:
        return cv2.LUT(indices, table)
    except cv2.error:
        return np.take(table, indices)


_LEVELS = np.arange(256, dtype=np.float32) / 255
