"""From path lengths to a display image: physics that can be checked on simple objects."""

from dataclasses import replace

import numpy as np
import pytest

from vet_extensions.phantom.exposure import PHANTOM_VIEWS, Exposure, sample_exposure
from vet_extensions.phantom.formation import form_image
from vet_extensions.schema import View

SIZE = 96
PLAIN = Exposure(view=View.VD, has_marker=False)


def wedge(channel: int, thickest_mm: float) -> np.ndarray:
    """A step wedge of one tissue on 100 mm of soft tissue, thicker downwards."""
    paths = np.zeros((4, SIZE, SIZE), np.float32)
    paths[0] = 100.0
    paths[channel] += np.linspace(0.0, thickest_mm, SIZE, dtype=np.float32)[:, None]
    return paths


def block_of_tissue(size: int) -> np.ndarray:
    """20 to 150 mm of soft tissue in the middle third of the columns, air around it."""
    paths = np.zeros((4, size, size), np.float32)
    paths[0, :, size // 3 : 2 * size // 3] = np.linspace(20.0, 150.0, size)[:, None]
    return paths


@pytest.mark.parametrize(("channel", "thickest_mm"), [(0, 60.0), (1, 60.0), (2, 20.0)])
def test_more_tissue_is_brighter(channel: int, thickest_mm: float) -> None:
    image = form_image(wedge(channel, thickest_mm), replace(PLAIN, tube_load=50.0))
    profile = image[8:-8, 40:56].mean(axis=1)
    smooth = np.convolve(profile, np.ones(9) / 9, mode="valid")
    assert (np.diff(smooth) > -0.01).all()
    assert profile[-1] > profile[0] + 0.3


def test_a_millimetre_of_bone_shows_more_than_one_of_soft_tissue() -> None:
    paths = np.zeros((4, SIZE, SIZE), np.float32)
    paths[0] = 100.0
    paths[2, :, 30:34] = 5.0
    paths[0, :, 60:64] += 5.0
    image = form_image(paths, replace(PLAIN, tube_load=50.0))[20:80]
    background = image[:, 44:52].mean()
    assert image[:, 30:34].mean() - background > 2 * (image[:, 60:64].mean() - background)


def test_more_dose_means_less_noise() -> None:
    paths = wedge(0, 10.0)
    grain = []
    for load in (0.3, 3.0):
        image = form_image(paths, replace(PLAIN, tube_load=load))[20:80, 25:70]
        grain.append(np.abs(np.diff(image, axis=1)).mean())
    assert grain[0] > 1.5 * grain[1]


def test_the_noise_follows_the_exposures_seed() -> None:
    paths = wedge(0, 10.0)
    one, again, other = (form_image(paths, replace(PLAIN, noise_seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).mean() > 1e-4


def test_outside_the_collimator_the_image_is_black() -> None:
    image = form_image(wedge(0, 10.0), replace(PLAIN, collimation=(1.0, 1.0, 1.0, 1.0)))
    assert image[:4].max() == 0
    assert image[:, : int(0.2 * SIZE)].max() == 0
    assert image[40:60, 40:60].min() > 0


@pytest.mark.parametrize("view", list(PHANTOM_VIEWS))
def test_a_marker_is_white_and_lies_inside_the_field(view: View) -> None:
    paths = block_of_tissue(256)
    changed = 0
    for along in (0.0, 0.5, 1.0):
        exposure = Exposure(view=view, marker_along=along, noise_seed=3)
        difference = form_image(paths, exposure) - form_image(paths, replace(exposure, has_marker=False))
        changed += int((difference > 0.3).sum())
    assert changed > 100


def test_frontal_markers_lie_on_the_side_that_they_name() -> None:
    paths = block_of_tissue(SIZE)
    for is_right, columns in ((True, slice(0, SIZE // 3)), (False, slice(2 * SIZE // 3, SIZE))):
        exposure = Exposure(view=View.VD, marks_right_side=is_right)
        difference = np.abs(form_image(paths, exposure) - form_image(paths, replace(exposure, has_marker=False)))
        assert difference[:, columns].sum() > 0.8 * difference.sum()


@pytest.mark.parametrize("size", [32, 33, 64, 200])
def test_any_size_gives_an_image_between_0_and_1(size: int) -> None:
    paths = np.zeros((4, size, size), np.float32)
    paths[0, size // 4 : -size // 4] = 120.0
    for k in range(3):
        image = form_image(paths, sample_exposure(PHANTOM_VIEWS[k], rng=np.random.default_rng(k)))
        assert np.isfinite(image).all()
        assert image.min() >= 0
        assert image.max() <= 1


def test_an_empty_beam_gives_a_finite_image() -> None:
    assert np.isfinite(form_image(np.zeros((4, 64, 64), np.float32), PLAIN)).all()
