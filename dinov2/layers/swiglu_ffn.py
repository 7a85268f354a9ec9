"""Gated feed-forward branches. Source: Shazeer, arXiv 2002.05202; the giant model uses `SwiGLUFFNFused`.

`act_layer` and `drop` are accepted, as in the official classes, so that all branches are built alike; neither is used here.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinov2.layers.kernels import XFORMERS_AVAILABLE, XFORMERS_ENABLED

__all__ = ["XFORMERS_AVAILABLE", "XFORMERS_ENABLED", "SwiGLUFFN", "SwiGLUFFNAligned", "SwiGLUFFNFused"]


class SwiGLUFFN(nn.Module):
    """w3(silu(gate) * value), where the first half of `w12`'s output is the gate."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Callable[..., nn.Module] | None = None,
        drop: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        hidden_features = hidden_features or in_features
        self.w12 = nn.Linear(in_features, 2 * hidden_features, bias=bias)
        self.w3 = nn.Linear(hidden_features, out_features or in_features, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class SwiGLUFFNFused(SwiGLUFFN):
    """SwiGLUFFN with two thirds of the asked width, rounded up to a multiple of 8: about as many weights as an `Mlp`."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Callable[..., nn.Module] | None = None,
        drop: float = 0.0,
        bias: bool = True,
    ) -> None:
        hidden_features = _aligned_width(hidden_features or in_features, 8)
        super().__init__(in_features, hidden_features, out_features, act_layer, drop, bias)


class SwiGLUFFNAligned(nn.Module):
    """w3(silu(w1 x) * w2 x) with separate gate and value layers, width aligned to `align_to`."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Callable[..., nn.Module] = nn.GELU,
        drop: float = 0.0,
        bias: bool = True,
        align_to: int = 8,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        width = _aligned_width(hidden_features or in_features, align_to)
        self.w1 = nn.Linear(in_features, width, bias=bias, device=device)
        self.w2 = nn.Linear(in_features, width, bias=bias, device=device)
        self.w3 = nn.Linear(width, out_features or in_features, bias=bias, device=device)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(F.silu(self.w1(x)) * self.w2(x))


def _aligned_width(hidden_features: int, align_to: int) -> int:
    """Two thirds of the width, rounded up to a multiple."""
    width = int(hidden_features * 2 / 3)
    return width + (-width % align_to)
