"""Stochastic depth by leaving samples out of a residual branch: picking the kept ones, and adding their residual back.

Called by the blocks, once a branch. What is picked is unique, so that both directions are plain copies and adds: nothing is
accumulated from several places, no tensor of zeros is filled, and kept samples are written where the packed batch wants them.

Shape legend: b_i samples of n_i tokens in crop group i, C channels, k_i kept samples, T = sum of k_i * n_i packed tokens.
Source: DINOv2 (arXiv 2304.07193, section 5, "efficient stochastic depth").
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dinov2.layers.kernels import CropGroups


class Subset(NamedTuple):
    """Kept samples of one crop group: their indices [k_i], and the factor b_i / k_i that makes up for the others."""

    samples: Tensor
    factor: float


def get_branges_scales(x: Tensor, sample_drop_ratio: float = 0.0) -> Subset:
    """Which samples of x [b, ...] keep their residual, drawn on x's device, and the factor b / kept that makes up for it."""
    batch = x.shape[0]
    kept = max(int(batch * (1 - sample_drop_ratio)), 1)
    return Subset(torch.randperm(batch, device=x.device)[:kept], batch / kept)


def add_residual(
    x: Tensor,
    brange: Tensor,
    residual: Tensor,
    residual_scale_factor: float,
    scaling_vector: Tensor | None = None,
) -> Tensor:
    """x [b, n, C] plus factor * residual [k, n, C] (times the vector [C]) on the samples `brange`; in x's dtype."""
    if scaling_vector is not None:
        residual = residual * scaling_vector
    return torch.index_add(x, 0, brange, residual.to(x.dtype), alpha=residual_scale_factor)


def get_attn_bias_and_cat(
    x_list: Sequence[Tensor], branges: Sequence[Tensor] | None = None
) -> tuple[CropGroups, Tensor]:
    """Pack the tensors, or the samples `branges` of each, into [1, T, C], and say where each group lies."""
    if branges is not None:
        x_list = [x.index_select(0, brange) for x, brange in zip(x_list, branges, strict=True)]
    return CropGroups(tuple((x.shape[0], x.shape[1]) for x in x_list)), CropGroups.pack(x_list)


def add_branch_to_subsets(
    x_list: Sequence[Tensor],
    branch: Callable[[Tensor, CropGroups], Tensor],
    subsets: Sequence[Subset],
    gamma: Tensor | None = None,
) -> list[Tensor]:
    """x_i [b_i, n_i, C] plus gamma * factor * branch, run once on the kept samples of all groups.

    branch: (packed [1, T, C], groups) -> [1, T, C]. gamma: [C] of LayerScale, or None.
    """
    groups, packed, x_list = pick_subsets(x_list, subsets)
    residual = branch(packed, groups)
    if not torch.compiler.is_compiling():
        return list(_AddToSubsets.apply(residual, gamma, groups, subsets, *x_list))
    return [
        add_residual(x, subset.samples, piece, subset.factor, gamma)
        for x, subset, piece in zip(x_list, subsets, groups.split(residual), strict=True)
    ]


def pick_subsets(x_list: Sequence[Tensor], subsets: Sequence[Subset]) -> tuple[CropGroups, Tensor, list[Tensor]]:
    """The kept samples of all groups, packed into [1, T, C], and the groups themselves.

    Only the groups returned may be used further: their gradient and that of the packed samples then meet in one place.
    """
    if torch.compiler.is_compiling():  # the compiler fuses plain operations itself
        return *get_attn_bias_and_cat(x_list, [subset.samples for subset in subsets]), list(x_list)
    groups = CropGroups(tuple((len(s.samples), x.shape[1]) for x, s in zip(x_list, subsets, strict=True)))
    packed, *passed = _PickSubsets.apply(groups, subsets, *x_list)
    return groups, packed, passed


def places_of_rows(
    x_list: Sequence[Tensor], subsets: Sequence[Subset], rows: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Where tokens of the groups lie among the packed ones [U], and by what their residual counts, [U, 1] fp32.

    rows: [u_i] each, places among the b_i * n_i tokens of a group; U is the sum of u_i. A token of a sample that was left out
    has no place: it gets that of another token and counts 0 times, so that no size depends on what was drawn.
    """
    places, factors, start = [], [], 0
    for x, subset, row in zip(x_list, subsets, rows, strict=True):
        n_samples, n_tokens = x.shape[:2]
        kept = len(subset.samples)
        order = torch.arange(kept, device=x.device)
        place_of = order.new_zeros(n_samples).index_copy_(0, subset.samples, order)
        factor_of = torch.zeros(n_samples, device=x.device).index_fill_(0, subset.samples, subset.factor)
        sample = row // n_tokens
        places.append(start + place_of[sample] * n_tokens + row % n_tokens)
        factors.append(factor_of[sample])
        start += kept * n_tokens
    return torch.cat(places), torch.cat(factors).unsqueeze(1)


class _PickSubsets(torch.autograd.Function):
    """(x_1, x_2, ...) -> (packed, x_1, x_2, ...).

    The groups pass through so that the backward pass gets both gradients of a group and makes one of them by adding on the kept
    samples. Autograd alone would spread the packed gradient over zeros and then add the two in full.
    """

    @staticmethod
    def forward(ctx: Any, groups: CropGroups, subsets: Sequence[Subset], *x_list: Tensor) -> tuple[Tensor, ...]:
        ctx.groups, ctx.subsets = groups, subsets
        return _gather(x_list, groups, subsets), *x_list

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_packed: Tensor, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pieces = ctx.groups.split(grad_packed.contiguous())
        joined = (
            grad.index_add(0, subset.samples, piece)
            for grad, subset, piece in zip(grads, ctx.subsets, pieces, strict=True)
        )
        return None, None, *joined


class _AddToSubsets(torch.autograd.Function):
    """(residual, gamma, x_1, x_2, ...) -> x_i with factor_i * gamma * residual added on its kept samples."""

    @staticmethod
    def forward(
        ctx: Any, residual: Tensor, gamma: Tensor | None, groups: CropGroups, subsets: Sequence[Subset], *x_list: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*((residual,) if gamma is None else (residual, gamma)))
        ctx.groups, ctx.subsets, ctx.dtype = groups, subsets, residual.dtype
        scaled = residual if gamma is None else residual * gamma
        return tuple(
            x.index_add(0, subset.samples, piece.to(x.dtype), alpha=subset.factor)
            for x, subset, piece in zip(x_list, subsets, groups.split(scaled), strict=True)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        residual, *gamma = ctx.saved_tensors
        grad = _gather(grads, ctx.groups, ctx.subsets)
        for piece, subset in zip(ctx.groups.split(grad), ctx.subsets, strict=True):
            piece.mul_(subset.factor)
        grad_gamma = None
        if gamma:
            grad_gamma = (grad * residual).sum((0, 1)).to(gamma[0].dtype)
            grad.mul_(gamma[0])
        return grad.to(ctx.dtype), grad_gamma, None, None, *grads


def _gather(x_list: Sequence[Tensor], groups: CropGroups, subsets: Sequence[Subset]) -> Tensor:
    """Kept samples, each written once, where the packed batch has it: [1, T, C]."""
    channels = x_list[0].shape[-1]
    packed = x_list[0].new_empty(1, sum(b * n for b, n in groups.shapes), channels)
    for x, subset, piece in zip(x_list, subsets, groups.split(packed), strict=True):
        torch.index_select(x, 0, subset.samples, out=piece)
    return packed
