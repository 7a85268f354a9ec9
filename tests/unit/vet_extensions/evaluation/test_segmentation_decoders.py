"""Decoders and the way there and back: shapes, parameter counts, gradients, native sizes."""

import numpy as np
import pytest
import torch
from segmentation_factory import make_backbone
from torch import nn

from vet_extensions.errors import UserError
from vet_extensions.evaluation.embedding import Backbone
from vet_extensions.evaluation.features import prepare_image
from vet_extensions.evaluation.segmentation.decoders import (
    DECODERS,
    N_LEVELS,
    build_decoder,
    count_parameters,
    evenly_spaced_blocks,
)
from vet_extensions.evaluation.segmentation.dense import (
    Segmenter,
    patch_grid_truth,
    placement,
    prepare_mask,
    restore,
    slide,
)
from vet_extensions.evaluation.segmentation.sets import IGNORED


@pytest.mark.parametrize(
    ("n_blocks", "blocks"), [(12, [2, 5, 8, 11]), (24, [5, 11, 17, 23]), (4, [0, 1, 2, 3]), (3, [0, 1, 2, 2])]
)
def test_blocks_are_evenly_spaced_and_end_with_the_last(n_blocks: int, blocks: list[int]) -> None:
    assert evenly_spaced_blocks(n_blocks) == blocks


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("grid", [(4, 4), (5, 7)])
def test_every_decoder_uses_every_level_it_says_and_all_its_parameters(name: str, grid: tuple[int, int]) -> None:
    decoder = build_decoder(name, width=12, n_classes=3, channels=8)
    levels = [torch.randn(2, 12, *grid, requires_grad=True) for _ in range(N_LEVELS)]
    logits = decoder(levels)
    assert logits.shape[:2] == (2, 3)
    logits.square().sum().backward()
    used = [level.grad is not None and bool(level.grad.any()) for level in levels]
    assert used == ([False] * 3 + [True] if name == "linear" else [True] * 4)
    assert all(parameter.grad is not None for parameter in decoder.parameters())


def test_parameters_of_the_linear_decoders_are_those_of_one_convolution() -> None:
    assert count_parameters(build_decoder("linear", width=384, n_classes=6)) == 384 * 6 + 6
    norm = 2 * 4 * 384
    assert count_parameters(build_decoder("bn_linear", width=384, n_classes=6)) == norm + 4 * 384 * 6 + 6


def test_logits_are_not_clipped() -> None:
    decoder = build_decoder("linear", width=2, n_classes=2)
    nn.init.constant_(decoder.classify.weight, 1000.0)  # type: ignore[union-attr]
    assert decoder([torch.ones(1, 2, 1, 1)] * 4).max() > 1000


def test_an_unknown_decoder_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'segformer'.*linear, bn_linear, unet, dpt, upernet"):
        build_decoder("segformer", width=8, n_classes=2)


@pytest.mark.parametrize("shape", [(40, 30), (17, 64), (32, 32)])
def test_masks_land_where_their_images_do(shape: tuple[int, int]) -> None:
    rows, columns = placement(shape, 32)
    prepared = prepare_image(np.full(shape, 255, np.uint8), 32)
    assert (prepared[rows, columns] > 0.99).all()
    assert prepared.sum() == pytest.approx(prepared[rows, columns].sum())
    mask = prepare_mask(np.ones(shape, np.int64), 32)
    assert set(np.unique(mask[rows, columns])) == {1}
    assert ((mask == IGNORED) == (prepared < 0.5)).all()


@pytest.mark.parametrize("shape", [(40, 30), (17, 64), (100, 100)])
def test_a_prediction_comes_back_at_the_images_own_size(shape: tuple[int, int]) -> None:
    mask = np.zeros(shape, np.int64)
    mask[: shape[0] // 2, : shape[1] // 2] = 1
    prepared = torch.from_numpy(prepare_mask(mask, 64).astype(np.int64))
    logits = torch.nn.functional.one_hot(prepared * (prepared != IGNORED), 2).movedim(-1, 0).float()
    found = restore(logits, shape)
    assert found.shape == shape
    assert (found == mask).mean() > 0.95


def test_the_truth_on_the_grid_is_the_truth_where_patches_are_pure_and_lacks_what_is_small() -> None:
    mask = np.zeros((32, 32), np.int64)
    mask[:, 16:] = 1
    mask[3, 3] = 2
    drawn = patch_grid_truth(mask, image_size_px=32, patch_size=4, n_classes=3)
    assert ((drawn == 1) == (mask == 1)).all()
    assert not (drawn == 2).any()


def test_sliding_windows_cover_the_image_with_what_the_network_says() -> None:
    pytest.importorskip("monai")
    segmenter = Segmenter(make_backbone(), "linear", n_classes=2, seed=0, is_tuned=False).eval()
    images = torch.full((1, 3, 48, 48), 0.3)  # every patch alike, so that windows must agree
    with torch.no_grad():
        found = slide(segmenter, images, window_px=16)
        torch.testing.assert_close(found, segmenter(images))


def test_a_backbone_without_patches_cannot_segment() -> None:
    known = make_backbone()
    pooled = Backbone(**{**vars(known), "patch_size": None})
    with pytest.raises(UserError, match="no patch features"):
        Segmenter(pooled, "linear", n_classes=2, seed=0, is_tuned=False)
