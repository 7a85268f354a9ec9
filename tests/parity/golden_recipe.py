"""How the golden numbers were made: closed-form weights and inputs, summaries of tensors, and the comparison.

The numbers were measured by running the official package; `golden/*.json` holds them. Used by the tests of this folder.
"""

import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

GOLDEN = Path(__file__).parent / "golden"


def load_golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / name).read_text())


def fill(module: nn.Module, scale: float = 0.05) -> nn.Module:
    """Every parameter a sine of its position, shifted by its name; norms centred on 1, weight_g exactly 1."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            shift = sum(name.encode()) % 97
            positions = torch.arange(parameter.numel(), dtype=torch.float64)
            values = scale * torch.sin(positions * 0.37 + shift).to(parameter.dtype).view_as(parameter)
            if name.endswith(("norm.weight", "norm1.weight", "norm2.weight")):
                values = values + 1
            parameter.copy_(torch.ones_like(parameter) if name.endswith("weight_g") else values)
    return module


def sines(*shape: int, k: float = 0.011, shift: float = 0.0) -> Tensor:
    positions = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(positions * k + shift).float().view(*shape)


def summary(tensor: Tensor) -> dict[str, Any]:
    values = tensor.detach().double().flatten()
    return {
        "n": values.numel(),
        "mean": float(values.mean()),
        "l2": float(values.norm()),
        "head": values[:4].tolist(),
        "tail": values[-4:].tolist(),
    }


def tiny_vit(**overrides: Any) -> nn.Module:
    from dinov2.layers import MemEffAttention, NestedTensorBlock
    from dinov2.models.vision_transformer import DinoVisionTransformer

    settings: dict[str, Any] = {
        "img_size": 56,
        "patch_size": 14,
        "embed_dim": 32,
        "depth": 4,
        "num_heads": 2,
        "init_values": 0.1,
        "block_chunks": 0,
        "block_fn": partial(NestedTensorBlock, attn_class=MemEffAttention),
    }
    return fill(DinoVisionTransformer(**{**settings, **overrides})).eval()


def crop_samples(n_images: int, n_local: int, *, local_px: int = 28, global_px: int = 56) -> list[Any]:
    """What a data set gives to the collate, with sines for pixels."""

    def image(size: int, k: int) -> Tensor:
        return sines(3, size, size, k=0.011 * (k + 1), shift=k)

    return [
        (
            {
                "global_crops": [image(global_px, 10 * b + i) for i in range(2)],
                "local_crops": [image(local_px, 10 * b + 2 + i) for i in range(n_local)],
                "offsets": (),
            },
            (),
        )
        for b in range(n_images)
    ]


def differences(want: Any, got: Any, *, rel: float = 1e-5, at: str = "") -> Iterator[str]:
    """A line for every leaf that disagrees: floats beyond `rel` (or 1e-6 absolute), anything else not equal."""
    if isinstance(want, dict):
        for key, value in want.items():
            if key in got:
                yield from differences(value, got[key], rel=rel, at=f"{at}/{key}")
            else:
                yield f"{at}/{key}: missing"
    elif isinstance(want, list):
        if len(want) != len(got):
            yield f"{at}: {len(want)} items wanted, got {len(got)}"
        for index, (a, b) in enumerate(zip(want, got)):
            yield from differences(a, b, rel=rel, at=f"{at}[{index}]")
    elif isinstance(want, float):
        if not math.isclose(want, float(got), rel_tol=rel, abs_tol=1e-6):
            yield f"{at}: wanted {want}, got {got}"
    elif want != got:
        yield f"{at}: wanted {want}, got {got}"


def assert_golden(want: Any, got: Any, *, rel: float = 1e-5) -> None:
    found = list(differences(want, got, rel=rel))
    assert not found, "\n".join(found[:20])
