"""The one place that picks attention kernels. Everything else in the package calls `attention` and does not know what runs.

No xFormers operator is called: PyTorch's own attention reaches the same kernels on CUDA since 2.2, and nested (multi-crop)
attention needs no block-diagonal mask when each group of equal crops is attended on its own (`CropGroups`).

Shape legend: B sequences, H heads, N tokens of a sequence, D channels of a head, C = H * D.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

XFORMERS_AVAILABLE = False
"""Official name, republished by the modules that had it. False whatever is installed, since nothing here calls xFormers."""
XFORMERS_ENABLED = False

# Lengths for which keeping the probabilities beats the backward of CPU flash attention, which recomputes them. Measured
# forward and backward, 6 heads of 64 channels, one thread: bf16 5.3 times faster at 26 tokens, 3.7 at 50, 1.6 at 257, even
# near 1,400; fp32 1.2 to 1.8 times from 26 to 130, slower at 257. Below 24 tokens fp32 gains next to nothing, and there the
# official kernel's rounding is kept: nearly equal crops are near-ties in KoLeo, which rounding decides (golden step).
_SAVED_LENGTHS: dict[torch.dtype, range] = {torch.bfloat16: range(1, 1025), torch.float32: range(24, 131)}


@dataclass(frozen=True)
class CropGroups:
    """The crop groups inside a packed batch [1, sum of b*n, C]: group i holds `shapes[i] = (b, n)`, b sequences of n tokens.

    It stands where the official code has an xFormers block-diagonal mask: no token attends outside its own sequence.
    """

    shapes: tuple[tuple[int, int], ...]

    def split(self, packed: Tensor) -> list[Tensor]:
        """[1, tokens, C] -> one view [b, n, C] per group."""
        pieces = packed.squeeze(0).split([b * n for b, n in self.shapes])
        return [piece.view(b, n, -1) for piece, (b, n) in zip(pieces, self.shapes, strict=True)]

    @staticmethod
    def pack(groups: Sequence[Tensor]) -> Tensor:
        """[b_i, n_i, C] each -> [1, sum of b_i*n_i, C]; a view where there is one group."""
        if len(groups) == 1:
            return groups[0].flatten(0, 1).unsqueeze(0)
        return torch.cat([group.flatten(0, 1) for group in groups]).unsqueeze(0)


def split_heads(qkv: Tensor, groups: CropGroups, n_heads: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Packed projections [1, tokens, 3C] -> views q, k, v of each group, [b, H, n, D] each.

    The gradients of all groups are written once, into one packed tensor; autograd alone would stack those of q, k and v, and then
    join the groups.
    """
    if torch.compiler.is_compiling():
        return [(q, k, v) for q, k, v in (_head_views(piece, n_heads) for piece in groups.split(qkv))]
    views = _SplitHeads.apply(qkv, groups, n_heads)
    return list(zip(views[::3], views[1::3], views[2::3], strict=True))


def attention(q: Tensor, k: Tensor, v: Tensor, *, dropout_p: float = 0.0, is_causal: bool = False) -> Tensor:
    """Scaled dot-product attention by the fastest exact path for this device, dtype and length.

    q, k, v: [B, H, N, D]        returns: [B, H, N, D]
    dropout_p: probability of dropping an attention weight; the caller passes 0 outside training.
    """
    if dropout_p == 0.0 and not is_causal and _saving_pays(q):
        return _SavedProbabilityAttention.apply(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=is_causal)


def attention_probabilities(q: Tensor, k: Tensor) -> Tensor:
    """The attention weights themselves, for looking at: [B, H, N, D] twice -> [B, H, N, N] fp32, rows sum to 1."""
    with torch.autocast(q.device.type, enabled=False):
        scores = q.float() @ k.float().transpose(-2, -1)
        return torch.softmax(scores / math.sqrt(q.shape[-1]), dim=-1)


def _saving_pays(q: Tensor) -> bool:
    if q.device.type != "cpu" or not (torch.is_grad_enabled() and q.requires_grad) or torch.compiler.is_compiling():
        return False
    return q.shape[-2] in _SAVED_LENGTHS.get(q.dtype, ())


def _head_views(qkv: Tensor, n_heads: int) -> tuple[Tensor, ...]:
    """[b, n, 3C] -> q, k, v, [b, H, n, D] each."""
    return qkv.unflatten(-1, (3, n_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


class _SplitHeads(torch.autograd.Function):
    """The function behind `split_heads`: q, k and v of the first group, then of the second, and so on."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, groups: CropGroups, n_heads: int) -> tuple[Tensor, ...]:
        ctx.groups, ctx.n_heads, ctx.shape = groups, n_heads, qkv.shape
        return tuple(view for piece in groups.split(qkv) for view in _head_views(piece, n_heads))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        grad_qkv = grads[0].new_empty(ctx.shape)
        places = (view for piece in ctx.groups.split(grad_qkv) for view in _head_views(piece, ctx.n_heads))
        for place, grad in zip(places, grads, strict=True):
            place.copy_(grad)
        return grad_qkv, None, None


class _SavedProbabilityAttention(torch.autograd.Function):
    """softmax(q k^T / sqrt(D)) v that keeps the probabilities, in q's dtype, for the backward pass.

    Autocast is off inside: it would lift the softmax to fp32 and so double the memory and copies this path exists to avoid.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch_shape, scale = q.shape[:2], q.shape[-1] ** -0.5
        with torch.autocast("cpu", enabled=False):
            q, k, v = (t.flatten(0, 1) for t in (q, k, v))  # [B*H, N, D]
            p = torch.softmax(_scaled_product(q, k, scale), dim=-1)  # [B*H, N, N]
            ctx.save_for_backward(q, k, v, p)
            ctx.scale, ctx.batch_shape = scale, batch_shape
            return torch.bmm(p, v).unflatten(0, batch_shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, p = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            grad = grad.flatten(0, 1)
            grad_v = torch.bmm(p.transpose(1, 2), grad)
            grad_p = torch.bmm(grad, v.transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_p, p, -1, p.dtype)  # the kernel softmax itself uses
            grad_q = torch.bmm(grad_scores, k).mul_(ctx.scale)
            grad_k = torch.bmm(grad_scores.transpose(1, 2), q).mul_(ctx.scale)
        shape = ctx.batch_shape
        return grad_q.unflatten(0, shape), grad_k.unflatten(0, shape), grad_v.unflatten(0, shape)


def _scaled_product(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """scale * q k^T with one rounding at the end: [B*H, N, D] twice -> [B*H, N, N]."""
    out = q.new_empty(q.shape[0], q.shape[1], k.shape[1])
    return torch.baddbmm(out, q, k.transpose(1, 2), beta=0, alpha=scale)
