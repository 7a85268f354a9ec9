"""What the evaluation's tests share: folders of red and of grey images, and a backbone that only sees colour."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

RED, GREY = (190, 70, 70), (128, 128, 128)
TINTS = {"red": RED, "grey": GREY, "crimson": RED, "silver": GREY}


def write_images(folder: Path, tints: tuple[str, ...], *, n_each: int, seed: int) -> None:
    """Noisy 32 px PNG files, one folder a tint."""
    generator = np.random.default_rng(seed)
    for tint in tints:
        (folder / tint).mkdir(parents=True)
        for i in range(n_each):
            pixels = np.array(TINTS[tint]) + generator.integers(-40, 40, size=(32, 32, 1))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / tint / f"{i}.png")


@pytest.fixture(scope="session")
def colour_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Splits `train` (6 grey, 6 red) and `val` (4, 4) of one separable task; `renamed`, whose class folders sort red first."""
    root = tmp_path_factory.mktemp("colours")
    write_images(root / "train", ("grey", "red"), n_each=6, seed=0)
    write_images(root / "val", ("grey", "red"), n_each=4, seed=1)
    write_images(root / "renamed", ("crimson", "silver"), n_each=2, seed=2)
    return root


class ColourBackbone(nn.Module):
    """Mean colours as features: of each 56 px square a patch token, of the whole image the cls token."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))

    def get_intermediate_layers(
        self, images: Tensor, n: int, return_class_token: bool
    ) -> tuple[tuple[Tensor, Tensor], ...]:
        assert return_class_token
        patches = F.avg_pool2d(images, 56).flatten(2).transpose(1, 2) * self.scale  # [B, N, 3]
        return tuple((patches, patches.mean(1)) for _ in range(n))

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) * self.scale


@pytest.fixture
def colour_backbone() -> Callable[..., ColourBackbone]:
    return ColourBackbone
