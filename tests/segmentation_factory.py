"""A small segmentation task made from arrays: bright squares on noise, with the label maps that say where they are."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from vet_extensions.evaluation.embedding import Backbone, BlockTokens
from vet_extensions.evaluation.segmentation.sets import SegmentationSet

CLASSES = ("background", "square")


def make_set(*, n_patients: int = 10, size_px: int = 32, spacing_mm: float = 0.5) -> SegmentationSet:
    """One image a patient with a bright square on a dark, noisy ground; 6 of 10 patients train, 2 validate, 2 test."""
    generator = np.random.default_rng(0)
    images, masks = [], []
    for _ in range(n_patients):
        mask = np.zeros((size_px, size_px), np.int64)
        top, left = generator.integers(0, size_px // 2, size=2)
        mask[top : top + size_px // 2, left : left + size_px // 2] = 1
        images.append((mask * 120 + generator.integers(0, 60, size=mask.shape)).astype(np.uint8))
        masks.append(mask)
    split = np.array([("train", "train", "train", "val", "test")[number % 5] for number in range(n_patients)])
    spacing = np.full((n_patients, 2), spacing_mm)
    codes = np.arange(n_patients)
    return SegmentationSet("squares", CLASSES, split, codes, images.__getitem__, masks.__getitem__, spacing, "abc")


class Patches(nn.Module):
    """Stands in for a vision transformer: patches of 4 x 4 pixels, embedded, then a small layer for each of three blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(3))


def read_patches(model: nn.Module, images: Tensor, indices: object) -> tuple[BlockTokens, ...]:
    """The tokens after the blocks `indices`."""
    assert isinstance(model, Patches)
    x, found = model.embed(images), []
    for block in model.blocks:
        x = x + torch.tanh(block(x))
        found.append(BlockTokens(x.mean(dim=(2, 3)), x.permute(0, 2, 3, 1)))
    return tuple(found[index] for index in indices)  # type: ignore[attr-defined]


def make_backbone(*, seed: int = 0) -> Backbone:
    """A backbone of `Patches` with the random weights of a seed."""

    def build() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return Patches()

    known = Backbone(
        name="patches",
        weights_hash=f"seed {seed}",
        architecture="patches",
        embed_dim=8,
        patch_size=4,
        n_blocks=3,
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        image_size_px=32,
        build=build,
        read=read_patches,
    )
    return replace(known, untrained=lambda new_seed: replace(make_backbone(seed=new_seed + 100), name="random:patches"))
