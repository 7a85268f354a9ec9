"""Boxes resized: as close to Pillow's bicubic filter as 8 bits allow, for any ratio, depth and turn."""

import numpy as np
import pytest
from PIL import Image

from vet_extensions.data.resampling import Box, prefilter, resized_box


def detailed(height=300, width=260, seed=0) -> np.ndarray:
    """Shadows with soft and with hard edges, and grain: what a stored radiograph holds."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    grey = 110 + 60 * np.sin(x / 23) * np.cos(y / 31)
    for _ in range(30):
        cx, cy, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(4, 40)
        grey += rng.uniform(-35, 35) / (1 + np.exp((np.hypot(x - cx, y - cy) - r) / rng.uniform(0.6, 3)))
    return np.clip(grey + rng.normal(0, 1.5, grey.shape), 0, 255).astype(np.uint8)


def bicubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    return np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))


def plain_weights(start: float, length: float, *, size: int, n_pixels: int) -> np.ndarray:
    """[size, n_pixels]: the stretched bicubic kernel, sampled and normalised within the image."""
    ratio = length / size
    centres = start + (np.arange(size) + 0.5) * ratio - 0.5
    weights = bicubic((np.arange(n_pixels) - centres[:, None]) / max(ratio, 1))
    return weights / weights.sum(axis=1, keepdims=True)


def plainly_resized(pixels: np.ndarray, box: Box, *, size: int) -> np.ndarray:
    """What `resized_box` imitates, in float64 and without any trick."""
    height, width = pixels.shape
    rows = plain_weights(box.top, box.height, size=size, n_pixels=height)
    columns = plain_weights(box.left, box.width, size=size, n_pixels=width)
    return np.clip(rows @ pixels.astype(np.float64) @ columns.T, 0, np.iinfo(pixels.dtype).max)


def psnr(a: np.ndarray, b: np.ndarray, *, white: float = 255) -> float:
    return float(10 * np.log10(white**2 / np.mean((a.astype(np.float64) - b) ** 2)))


BOXES = {
    "smaller than the crop": Box(30, 40, 60, 70),
    "at a corner of the image": Box(0, 0, 130, 120),
    "wide": Box(10, 20, 240, 150),
    "the whole image": Box(0, 0, 260, 300),
    "of fractions of pixels": Box(20.3, 31.7, 140.2, 171.9),
    "at the far corner, of fractions": Box(100.5, 100.5, 159.5, 199.5),
}


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES.keys())
def test_a_box_is_resized_as_pillow_does_it(box):
    pixels = detailed()
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    pillow = np.asarray(Image.fromarray(pixels).resize((98, 98), Image.Resampling.BICUBIC, box=corners))
    assert psnr(resized_box(pixels, box, size=98), pillow) > 50


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES.keys())
def test_a_box_is_resized_as_the_plain_filter_does_it(box):
    pixels = detailed()
    assert psnr(resized_box(pixels, box, size=98), plainly_resized(pixels, box, size=98)) > 50


@pytest.mark.parametrize("size", [20, 32, 60])
def test_large_reductions_are_antialiased_as_closely(size):
    pixels, box = detailed(), Box(3, 5, 250, 290)
    assert psnr(resized_box(pixels, box, size=size), plainly_resized(pixels, box, size=size)) > 50


def test_sixteen_bits_are_resized_to_sixteen_bits():
    pixels, box = detailed().astype(np.uint16) * 257, Box(8, 20, 200, 200)
    crop = resized_box(pixels, box, size=98)
    assert crop.dtype == np.uint16
    assert psnr(crop, plainly_resized(pixels, box, size=98), white=65535) > 50


def test_bright_edges_next_to_black_do_not_wrap_around():
    pixels = np.zeros((120, 120), dtype=np.uint8)
    pixels[:, 60:] = 255
    crop = resized_box(pixels, Box(0, 0, 120, 120), size=98)
    assert crop[:, :40].max() == 0
    assert crop[:, 60:].min() == 255


def test_a_quarter_turn_of_a_square_box_turns_the_crop():
    pixels, box = detailed(), Box(40, 60, 160, 160)
    turned = resized_box(pixels, box, size=64, angle_deg=90)
    assert psnr(turned, np.rot90(resized_box(pixels, box, size=64))) > 45


def test_where_a_turned_box_leaves_the_image_it_is_black():
    white = np.full((100, 100), 255, dtype=np.uint8)
    crop = resized_box(white, Box(0, 0, 100, 100), size=50, angle_deg=45)
    assert crop[0, 0] == crop[-1, -1] == 0
    assert crop[25, 25] == 255


@pytest.mark.parametrize("ratio", [1.0, 1.3, 1.75, 2.5, 3.9])
def test_the_prefilter_and_cubic_interpolation_together_are_the_stretched_kernel(ratio):
    weights = prefilter(round(64 * ratio))
    n = len(weights) // 2
    x = np.linspace(-2 * ratio - 2, 2 * ratio + 2, 400)[:, None] - np.arange(-n, n + 1)
    a, d = -0.75, np.abs(x)  # OpenCV's interpolation
    interpolation = np.where(d < 1, (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4) * (d < 2))
    together = interpolation @ weights
    wanted = bicubic(np.linspace(-2 * ratio - 2, 2 * ratio + 2, 400) / ratio) / ratio
    assert np.abs(together - wanted).max() < 0.05
    assert weights.sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(weights, weights[::-1], atol=1e-6)
