"""Joint principal components of patch features: deterministic, shared between images, robustly scaled."""

import numpy as np
import pytest
import torch

from vet_extensions.analysis.components import (
    foreground_by_component,
    foreground_by_intensity,
    joint_components,
    patch_features,
)
from vet_extensions.errors import UserError


def features(n_images: int = 2, side: int = 6, dim: int = 8) -> np.ndarray:
    scale = np.linspace(5.0, 0.1, dim)
    return (np.random.default_rng(0).normal(size=(n_images, side, side, dim)) * scale).astype(np.float32)


def test_components_are_those_of_scikit_learn_up_to_sign():
    from sklearn.decomposition import PCA

    x = features()
    reference = PCA(3, svd_solver="full").fit(x.reshape(-1, 8))
    ours = joint_components(x)
    np.testing.assert_allclose(
        np.abs(ours.scores.reshape(-1, 3)), np.abs(reference.transform(x.reshape(-1, 8))), atol=1e-4
    )
    np.testing.assert_allclose(ours.explained, reference.explained_variance_ratio_, rtol=1e-5)


def test_the_order_of_patches_does_not_flip_colours():
    x = features()
    flipped = joint_components(x[:, ::-1, ::-1])
    np.testing.assert_allclose(flipped.scores[:, ::-1, ::-1], joint_components(x).scores, atol=1e-4)


def test_equal_features_get_equal_colours_in_different_images():
    x = features()
    x[1, 0, 0] = x[0, 5, 5]
    colours = joint_components(x).colours
    np.testing.assert_array_equal(colours[1, 0, 0], colours[0, 5, 5])


def test_one_outlier_does_not_wash_out_the_colours():
    x = features(side=12)
    x[0, 0, 0, 0] = 12.0 * np.abs(x[..., 0]).max()
    colours = joint_components(x).colours
    assert colours.reshape(-1, 3).std(axis=0).min() > 40


def test_background_is_black_and_has_no_say_in_the_components():
    x = features()
    mask = np.ones(x.shape[:3], dtype=bool)
    mask[:, 0] = False
    loud = x.copy()
    loud[:, 0] = 1e3
    result, quiet = joint_components(loud, foreground=mask), joint_components(x, foreground=mask)
    assert not result.colours[:, 0].any()
    assert np.isnan(result.scores[:, 0]).all()
    np.testing.assert_array_equal(result.colours, quiet.colours)


def test_components_without_spread_are_grey_not_nan():
    colours = joint_components(np.ones((1, 3, 3, 2), dtype=np.float32)).colours
    assert set(np.unique(colours)) == {128}


def test_foreground_by_component_leaves_the_corners_out():
    x = 0.01 * features(side=8)
    x[:, 2:6, 2:6] += 10.0
    body = np.zeros(x.shape[:3], dtype=bool)
    body[:, 2:6, 2:6] = True
    np.testing.assert_array_equal(foreground_by_component(x), body)
    np.testing.assert_array_equal(foreground_by_component(-x), body)


def test_foreground_by_intensity_averages_over_a_patch():
    image = np.zeros((1, 8, 12), dtype=np.float32)
    image[0, :4, :6] = 0.2
    np.testing.assert_array_equal(foreground_by_intensity(image, (2, 2)), [[[True, False], [False, False]]])
    with pytest.raises(UserError, match="do not divide"):
        foreground_by_intensity(image, (3, 2))


@pytest.mark.parametrize("shape", [(4, 4, 8), (1, 1, 3, 8)])
def test_features_that_cannot_be_decomposed_are_refused(shape):
    with pytest.raises(UserError, match="got"):
        joint_components(np.zeros(shape, dtype=np.float32))


class GridBackbone:
    """Returns each patch's row and column as its features, and remembers the mode it was asked in."""

    training = True
    patch_size = 4
    num_register_tokens = 0
    seen: tuple[bool, ...] = ()

    def train(self, mode: bool = True) -> None:
        self.training = mode

    def get_intermediate_layers(self, x: torch.Tensor, n: int = 1, reshape: bool = False) -> tuple[torch.Tensor, ...]:
        self.seen += (self.training,)
        rows, columns = torch.meshgrid(torch.arange(x.shape[2] // 4), torch.arange(x.shape[3] // 4), indexing="ij")
        return (torch.stack([rows, columns]).expand(len(x), -1, -1, -1),)


def test_patch_features_put_rows_first_and_leave_the_mode_as_it_was():
    backbone = GridBackbone()
    grid = patch_features(backbone, torch.zeros(3, 3, 8, 12), batch_size=2)
    assert grid.shape == (3, 2, 3, 2)
    np.testing.assert_array_equal(grid[2, 1, 2], [1, 2])
    assert backbone.seen == (False, False)
    assert backbone.training
