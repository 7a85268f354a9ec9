"""Grey values varied: the look-up equals the arithmetic, noise is what it says, nothing is cut before its time."""

import cv2
import numpy as np
import pytest

from vet_extensions.data.photometrics import GaussianNoise, ToneCurve, varied

CURVES = {
    "gamma": ToneCurve(gamma=1.4),
    "contrast up": ToneCurve(contrast=1.5),
    "contrast down": ToneCurve(contrast=0.6),
    "brightness": ToneCurve(brightness=-0.11),
    "all": ToneCurve(gamma=0.7, contrast=1.3, brightness=0.07),
}


def grey(high=256, dtype=np.uint8, size=98) -> np.ndarray:
    return np.random.default_rng(0).integers(0, high, (size, size)).astype(dtype)


def plainly_varied(crop: np.ndarray, curve: ToneCurve) -> np.ndarray:
    """float64 in [0, 255], pixel by pixel, rounded once."""
    values = (crop / np.iinfo(crop.dtype).max) ** curve.gamma
    values = (values - values.mean()) * curve.contrast + values.mean() + curve.brightness
    return np.rint(np.clip(values, 0, 1) * 255)


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES.keys())
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tone_curve_equals_the_arithmetic_on_every_pixel(curve, dtype):
    crop = grey(np.iinfo(dtype).max + 1, dtype)
    out = varied(crop, curve, rng=np.random.default_rng(0))
    difference = np.abs(out - plainly_varied(crop, curve))
    assert out.dtype == np.uint8
    assert difference.max() <= 1
    assert (difference > 0).mean() < (0.001 if dtype == np.uint8 else 0.02)  # ties; of 16 bits those on 1/32 of a level


def test_without_any_change_a_crop_stays_as_it_is():
    assert np.array_equal(varied(grey(), ToneCurve(), rng=np.random.default_rng(0)), grey())


def test_noise_is_normal_with_the_given_deviation():
    noise = GaussianNoise(0.02).draw((700, 700), np.random.default_rng(1)).astype(np.float64) / 32 / 255
    z = noise / 0.02
    assert abs(z.mean()) < 0.01
    assert z.std() == pytest.approx(1, abs=0.005)
    assert (z**4).mean() == pytest.approx(3, abs=0.05)
    for share, bound in ((0.3173, 1), (0.0455, 2), (0.0027, 3)):
        assert (np.abs(z) > bound).mean() == pytest.approx(share, rel=0.1)


def test_noise_of_one_pixel_tells_nothing_about_another():
    noise = GaussianNoise(0.02).draw((700, 700), np.random.default_rng(2)).astype(np.float64)
    spectrum = np.fft.ifft2(np.abs(np.fft.fft2(noise - noise.mean())) ** 2).real
    correlation = spectrum / spectrum[0, 0]
    correlation[0, 0] = 0
    assert np.abs(correlation).max() < 5.5 / 700  # 700 x 700 draws: 5.5 standard errors


def test_noise_comes_from_the_generator_alone():
    noise = GaussianNoise(0.02)

    def draw(seed):
        return noise.draw((31, 33), np.random.default_rng(seed))

    assert np.array_equal(draw(3), draw(3))
    assert not np.array_equal(draw(3), draw(4))


def test_an_older_opencv_draws_the_same_noise(monkeypatch):
    noise = GaussianNoise(0.02)
    expected = noise.draw((31, 33), np.random.default_rng(0))

    def refuse(*_):
        raise cv2.error("8-bit indices only")

    monkeypatch.setattr(cv2, "LUT", refuse)
    assert np.array_equal(noise.draw((31, 33), np.random.default_rng(0)), expected)


def test_noise_does_not_darken_what_is_brighter_than_white():
    bright = varied(
        grey(), ToneCurve(contrast=0.0, brightness=0.8), noise=GaussianNoise(0.01), rng=np.random.default_rng(0)
    )
    assert bright.min() == 255


def test_noise_follows_the_blur():
    flat = np.full((98, 98), 128, dtype=np.uint8)
    out = varied(flat, ToneCurve(), blur_sigma_px=2.0, noise=GaussianNoise(0.02), rng=np.random.default_rng(0))
    assert out.std() == pytest.approx(0.02 * 255, rel=0.05)


def test_blur_takes_grain_away():
    out = varied(grey(), ToneCurve(), blur_sigma_px=1.0, rng=np.random.default_rng(0))
    assert out.std() < 0.5 * grey().std()
    assert out.mean() == pytest.approx(grey().mean(), abs=1)
