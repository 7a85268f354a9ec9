"""Five decoders from patch features to class logits, each small enough to read beside its paper. `dense.Segmenter` runs them.

| name | what it adds to a linear layer |
|---|---|
| `linear` | nothing: one 1x1 convolution on the last block. What the features alone can say |
| `bn_linear` | four evenly spaced blocks side by side behind a batch norm ("+ms" of DINOv2, arXiv 2304.07193) |
| `unet` | a path from the last block to the first, twice as large each step, a block joins each (Ronneberger, arXiv 1505.04597) |
| `dpt` | blocks reassembled at four scales and fused from coarse to fine by residual units (Ranftl, arXiv 2103.13413) |
| `upernet` | pooled context on the last block, then a feature pyramid of all four, read together (Xiao, arXiv 1807.10221) |

A vision transformer has one scale: where a decoder wants a pyramid, early blocks are enlarged and the last one is halved.
Logits are
unbounded. Group norm stands where the papers have batch norm, except in `bn_linear`: few images a batch are the rule here.

Shape legend: B windows, D feature width, C classes, h and w patches, M channels inside a decoder.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vet_extensions.errors import UserError

N_LEVELS = 4
_SCALES = (4.0, 2.0, 1.0, 0.5)
"""Of the pyramid's levels, first block first, relative to the grid of patches."""
_POOLED_SIDES = (1, 2, 3, 6)
_MOST_GROUPS = 8


def evenly_spaced_blocks(n_blocks: int) -> list[int]:
    """The blocks that a decoder of several levels reads: the ends of four equal parts, so that the last block is one. Of 12
    blocks: 2, 5, 8, 11. A network of fewer than four blocks gives some of them twice."""
    return [-(-(level + 1) * n_blocks // N_LEVELS) - 1 for level in range(N_LEVELS)]


def build_decoder(name: str, *, width: int, n_classes: int, channels: int = 64) -> nn.Module:
    """The decoder of that name: takes a list of four levels [B, D, h, w], first block first, gives logits [B, C, h', w'].

    width: D. channels: M, which `linear` and `bn_linear` have no use for. Raises `UserError` for an unknown name.
    """
    if name not in DECODERS:
        raise UserError(f"Unknown decoder '{name}'. Allowed: {', '.join(DECODERS)}.")
    return DECODERS[name](width, n_classes, channels)


def count_parameters(module: nn.Module) -> int:
    """Parameters that training may change."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


class LinearDecoder(nn.Module):
    """One linear classifier of patches, on the last block."""

    def __init__(self, width: int, n_classes: int, channels: int) -> None:
        super().__init__()
        self.classify = nn.Conv2d(width, n_classes, 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Logits [B, C, h, w]."""
        return self.classify(levels[-1])


class BnLinearDecoder(nn.Module):
    """One linear classifier of patches, on all levels side by side, each channel standardised."""

    def __init__(self, width: int, n_classes: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(N_LEVELS * width)
        self.classify = nn.Conv2d(N_LEVELS * width, n_classes, 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Logits [B, C, h, w]."""
        return self.classify(self.norm(torch.cat(list(levels), dim=1)))


class UNetDecoder(nn.Module):
    """From the last block up to eight times its grid; at each step the block before joins by concatenation."""

    def __init__(self, width: int, n_classes: int, channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for _ in range(N_LEVELS))
        self.join = nn.ModuleList(
            nn.Sequential(_conv(2 * channels, channels), _conv(channels, channels)) for _ in range(N_LEVELS - 1)
        )
        self.classify = nn.Conv2d(channels, n_classes, 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Logits [B, C, 8h, 8w]."""
        *earlier, x = (lateral(level) for lateral, level in zip(self.lateral, levels, strict=True))
        for skip, join in zip(reversed(earlier), self.join, strict=True):
            x = _enlarge(x, 2.0)
            x = join(torch.cat([x, _to_size(skip, x)], dim=1))
        return self.classify(x)


class DptDecoder(nn.Module):
    """Levels at four scales, fused from coarse to fine; every fusion ends twice as large."""

    def __init__(self, width: int, n_classes: int, channels: int) -> None:
        super().__init__()
        self.reassemble = nn.ModuleList(_Rescaled(width, channels, scale) for scale in _SCALES)
        self.fuse = nn.ModuleList(_Fusion(channels) for _ in range(N_LEVELS))
        self.head = nn.Sequential(_conv(channels, channels), nn.Conv2d(channels, n_classes, 1))

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Logits [B, C, 8h, 8w], or nearly where halving the grid rounds."""
        pyramid = [to_scale(level) for to_scale, level in zip(self.reassemble, levels, strict=True)]
        x: Tensor | None = None
        for level, fuse in zip(reversed(pyramid), self.fuse, strict=True):
            x = fuse(level, x)
        return self.head(x)


class UperNetDecoder(nn.Module):
    """Pooled context on the coarsest level, sums from coarse to fine, all levels read together at the finest."""

    def __init__(self, width: int, n_classes: int, channels: int) -> None:
        super().__init__()
        self.rescale = nn.ModuleList(_Rescaled(width, channels, scale) for scale in _SCALES)
        self.pooled = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in _POOLED_SIDES)
        self.context = _conv((1 + len(_POOLED_SIDES)) * channels, channels)
        self.smooth = nn.ModuleList(_conv(channels, channels) for _ in range(N_LEVELS - 1))
        self.merge = _conv(N_LEVELS * channels, channels)
        self.classify = nn.Conv2d(channels, n_classes, 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Logits [B, C, 4h, 4w]."""
        pyramid = [rescale(level) for rescale, level in zip(self.rescale, levels, strict=True)]
        coarsest = pyramid[-1]
        pools = [
            _to_size(F.relu(conv(F.adaptive_avg_pool2d(coarsest, side))), coarsest)
            for side, conv in zip(_POOLED_SIDES, self.pooled, strict=True)
        ]
        pyramid[-1] = self.context(torch.cat([coarsest, *pools], dim=1))
        for coarser, finer in pairwise(reversed(range(N_LEVELS))):
            pyramid[finer] = pyramid[finer] + _to_size(pyramid[coarser], pyramid[finer])
        smoothed = [smooth(level) for smooth, level in zip(self.smooth, pyramid[:-1], strict=True)]
        finest = smoothed[0]
        return self.classify(self.merge(torch.cat([_to_size(x, finest) for x in [*smoothed, pyramid[-1]]], dim=1)))


DECODERS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "linear": LinearDecoder,
    "bn_linear": BnLinearDecoder,
    "unet": UNetDecoder,
    "dpt": DptDecoder,
    "upernet": UperNetDecoder,
}


class _Rescaled(nn.Sequential):
    """Width D to M channels, and the grid of patches to `scale` times its size by learned steps of two."""

    def __init__(self, width: int, channels: int, scale: float) -> None:
        steps: list[nn.Module] = [nn.Conv2d(width, channels, 1)]
        while scale > 1:
            steps.append(nn.ConvTranspose2d(channels, channels, 2, stride=2))
            scale /= 2
        if scale < 1:
            steps.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
        super().__init__(*steps)


class _Fusion(nn.Module):
    """A level joined to what comes from below, refined, and enlarged twice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.of_level, self.of_sum = (_ResidualUnit(channels) for _ in range(2))

    def forward(self, level: Tensor, below: Tensor | None) -> Tensor:
        x = self.of_level(level)
        if below is not None:
            x = x + _to_size(below, x)
        return _enlarge(self.of_sum(x), 2.0)


class _ResidualUnit(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.norm = _norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.norm(self.first(F.relu(x)))))


def _conv(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), _norm(n_out), nn.ReLU())


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(next(n for n in range(_MOST_GROUPS, 0, -1) if channels % n == 0), channels)


def _enlarge(x: Tensor, factor: float) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def _to_size(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
