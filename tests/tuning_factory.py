"""A tiny backbone and phantom radiographs in memory, for tests that tune."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from dinov2.layers import MemEffAttention
from dinov2.layers import NestedTensorBlock as Block
from dinov2.models.vision_transformer import DinoVisionTransformer
from vet_extensions.evaluation.backbones import read_vit
from vet_extensions.evaluation.cohort import MULTILABEL, Cohort, LabelledImages
from vet_extensions.evaluation.embedding import Backbone
from vet_extensions.evaluation.tuning_config import TuningConfig
from vet_extensions.phantom.render import render_view
from vet_extensions.phantom.studies import sample_study

WIDTH, DEPTH, SIZE_PX = 32, 3, 32
QUICK = TuningConfig(epochs=2, batch_size=8, rank=4, n_prompts=2, last_blocks=1)


def tiny_vit(*, seed: int = 0, block_chunks: int = 0, registers: int = 0, width: int = WIDTH) -> DinoVisionTransformer:
    """Three blocks of 32 channels on patches of 8 pixels; LayerScale and positions, so that nothing is left out."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DinoVisionTransformer(
            img_size=SIZE_PX,
            patch_size=8,
            embed_dim=width,
            depth=DEPTH,
            num_heads=2,
            block_fn=partial(Block, attn_class=MemEffAttention),
            init_values=0.5,
            block_chunks=block_chunks,
            num_register_tokens=registers,
        )


def as_backbone(build: Callable[[], nn.Module], **facts: Any) -> Backbone:
    """Whatever `build` gives, as the evaluation sees backbones; facts: fields that differ from the tiny one's."""
    known: dict[str, Any] = {
        "name": "tiny",
        "weights_hash": "0",
        "architecture": "tiny",
        "embed_dim": WIDTH,
        "patch_size": 8,
        "n_blocks": DEPTH,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "image_size_px": SIZE_PX,
        "read": read_vit,
    }
    return Backbone(**(known | facts), build=build)


def tiny_backbone(**options: Any) -> Backbone:
    """`tiny_vit`, as the evaluation sees backbones."""
    return as_backbone(partial(tiny_vit, **options))


class Pixels:
    """Images in memory, with the two methods of a ShardReader."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def read(self, row_index: int, /) -> np.ndarray:
        return self.images[row_index]

    def __len__(self) -> int:
        return len(self.images)


def cohort_of(pixels: np.ndarray, labels: np.ndarray, split: np.ndarray, *, task: str = MULTILABEL) -> LabelledImages:
    """One image a patient."""
    codes = np.arange(len(pixels))
    return LabelledImages(
        name="test",
        cohort=Cohort(split, np.full(len(pixels), "lateral"), codes, codes, labels.astype(np.int8)),
        label_names=tuple(f"label_{k}" for k in range(labels.shape[1])),
        reader=Pixels(pixels),
        content_hash="0",
        task=task,
    )


def phantom_images(n_images: int = 48) -> LabelledImages:
    """Lateral radiographs, half of them with effusion, a third with cardiomegaly; some labels missing, some uncertain."""
    effusion, heart = np.arange(n_images) % 2, (np.arange(n_images) // 2 % 3 == 0).astype(int)
    pixels = []
    for number in range(n_images):
        findings = {"effusion": bool(effusion[number]), "cardiomegaly": bool(heart[number])}
        study = sample_study(0, number, views=["LATERAL_LEFT"], findings=findings)
        pixels.append((render_view(study, study.exposures[0], SIZE_PX).image * 255).astype(np.uint8))
    labels = np.stack([effusion, heart], axis=1)
    labels[::7, 1], labels[::11, 0] = -128, -1
    split = np.array([("train", "train", "val", "test")[number // 6 % 4] for number in range(n_images)])
    return cohort_of(np.stack(pixels), labels, split)
