"""Transformer blocks, and the three regimes of stochastic depth: dropped paths, sample subsets, and subsets of packed crops.

Called by the vision transformer. A block takes one tensor [B, N, C] or, for multi-crop training, a list of such tensors of
different B and N: norms, projections and the feed-forward branch then run once on all tokens packed together, and attention
runs group by group (`kernels.CropGroups`), which equals running each tensor on its own.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dinov2.layers.attention import Attention, MemEffAttention
from dinov2.layers.drop_path import DropPath
from dinov2.layers.kernels import XFORMERS_AVAILABLE, XFORMERS_ENABLED, CropGroups
from dinov2.layers.layer_scale import LayerScale
from dinov2.layers.mlp import Mlp
from dinov2.layers.sample_subsets import (
    Subset,
    add_branch_to_subsets,
    add_residual,
    get_attn_bias_and_cat,
    get_branges_scales,
    pick_subsets,
    places_of_rows,
)

__all__ = [
    "XFORMERS_AVAILABLE",
    "XFORMERS_ENABLED",
    "Block",
    "CausalAttentionBlock",
    "NestedTensorBlock",
    "add_residual",
    "get_attn_bias_and_cat",
    "get_branges_scales",
]


class Block(nn.Module):
    """Pre-norm transformer block: x + ls1(attn(norm1(x))), then x + ls2(mlp(norm2(x)))."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        proj_bias: bool = True,
        ffn_bias: bool = True,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        init_values: float | None = None,
        drop_path: float = 0.0,
        act_layer: Callable[..., nn.Module] = nn.GELU,
        norm_layer: Callable[..., nn.Module] = nn.LayerNorm,
        attn_class: Callable[..., nn.Module] = Attention,
        ffn_layer: Callable[..., nn.Module] = Mlp,
    ) -> None:
        """init_values: first value of LayerScale; 0 and None both mean no LayerScale. drop_path: stochastic depth rate."""
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = attn_class(
            dim, num_heads=num_heads, qkv_bias=qkv_bias, proj_bias=proj_bias, attn_drop=attn_drop, proj_drop=drop
        )
        self.ls1: LayerScale | nn.Identity = LayerScale(dim, init_values) if init_values else nn.Identity()
        self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = norm_layer(dim)
        self.mlp = ffn_layer(
            in_features=dim, hidden_features=int(dim * mlp_ratio), act_layer=act_layer, drop=drop, bias=ffn_bias
        )
        self.ls2: LayerScale | nn.Identity = LayerScale(dim, init_values) if init_values else nn.Identity()
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.sample_drop_ratio = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        if self.training and self.sample_drop_ratio > 0.1:
            # Above this rate, leaving samples out of the computation saves more than picking the subset costs.
            x = drop_add_residual_stochastic_depth(x, self._attention_branch, self.sample_drop_ratio)
            return drop_add_residual_stochastic_depth(x, self._ffn_branch, self.sample_drop_ratio)
        if self.training and self.sample_drop_ratio > 0.0:
            x = x + self.drop_path1(self._attention_branch(x))
            return x + self.drop_path1(self._ffn_branch(x))  # drop_path1 again, as in the official block
        x = x + self._attention_branch(x)
        return x + self._ffn_branch(x)

    def _attention_branch(self, x: Tensor) -> Tensor:
        return self.ls1(self.attn(self.norm1(x)))

    def _ffn_branch(self, x: Tensor) -> Tensor:
        return self.ls2(self.mlp(self.norm2(x)))


class NestedTensorBlock(Block):
    """A block that also takes a list of tensors; the block class of the official builders."""

    def forward_nested(self, x_list: Sequence[Tensor]) -> list[Tensor]:
        """[b_i, n_i, C] each -> the same shapes. While training with any drop rate, each tensor keeps its own sample subset."""
        assert isinstance(self.attn, MemEffAttention), "a list of crops needs attn_class=MemEffAttention"
        if self.training and self.sample_drop_ratio > 0.0:
            # Branches run without LayerScale, which is applied while adding; whether branch 2 has one is read off
            # branch 1, as in the official block.
            gammas: Any = (self.ls1.gamma, self.ls2.gamma) if isinstance(self.ls1, LayerScale) else (None, None)
            x_list = drop_add_residual_stochastic_depth_list(
                x_list,
                lambda x, attn_bias: self.attn(self.norm1(x), attn_bias=attn_bias),
                self.sample_drop_ratio,
                gammas[0],
            )
            return drop_add_residual_stochastic_depth_list(
                x_list,
                lambda x, attn_bias: self.mlp(self.norm2(x)),
                self.sample_drop_ratio,
                gammas[1],
            )
        groups, x = get_attn_bias_and_cat(x_list)
        x = x + self.ls1(self.attn(self.norm1(x), attn_bias=groups))
        x = x + self._ffn_branch(x)
        return groups.split(x)

    def forward_rows(self, x_list: Sequence[Tensor], rows: Sequence[Tensor]) -> list[Tensor]:
        """As `forward_nested`, for some tokens only: [b_i, n_i, C] and [u_i] each -> [u_i, C] each.

        rows: the wanted tokens' places among the b_i * n_i of their tensor. All tokens are still attended to; what comes after
        (output projection, residuals, feed-forward branch) runs for the wanted ones. Same samples are drawn, same results.
        """
        attn = self.attn
        ours = type(self).forward_nested is NestedTensorBlock.forward_nested
        if not (ours and isinstance(attn, MemEffAttention) and type(attn).forward is MemEffAttention.forward):
            # A subclass has its own arithmetic, which only it knows how to cut short.
            outputs = self.forward_nested(x_list)
            return [out.flatten(0, 1).index_select(0, r) for out, r in zip(outputs, rows, strict=True)]
        subsets = self._draw_subsets(x_list)
        groups, packed, x_list = pick_subsets(x_list, subsets)
        attended = attn.attend_groups(self.norm1(packed), groups).squeeze(0)
        places, factors = places_of_rows(x_list, subsets, rows)
        x = torch.cat([x.flatten(0, 1).index_select(0, r) for x, r in zip(x_list, rows, strict=True)])
        residual = self.ls1(attn.project(attended.index_select(0, places)))
        x = (x + residual * factors).to(x.dtype)
        _, factors = places_of_rows(x_list, self._draw_subsets(x_list), rows)
        x = (x + self._ffn_branch(x) * factors).to(x.dtype)
        return list(x.split([len(r) for r in rows]))

    def _draw_subsets(self, x_list: Sequence[Tensor]) -> list[Subset]:
        """The samples that keep their residual; all, and nothing drawn, where no depth is dropped."""
        if self.training and self.sample_drop_ratio > 0.0:
            return [get_branges_scales(x, self.sample_drop_ratio) for x in x_list]
        return [Subset(torch.arange(x.shape[0], device=x.device), 1.0) for x in x_list]

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x_or_x_list: Tensor | list[Tensor], rows: Sequence[Tensor] | None = None
    ) -> Tensor | list[Tensor]:
        """A tensor [B, N, C] as `Block`, a list of them as `forward_nested`; a list with `rows` as `forward_rows`."""
        if isinstance(x_or_x_list, Tensor):
            assert rows is None, "rows of tokens are picked from a list of crops"
            return super().forward(x_or_x_list)
        assert isinstance(x_or_x_list, list), (
            f"expected a tensor or a list of tensors, got {type(x_or_x_list).__name__}"
        )
        return self.forward_nested(x_or_x_list) if rows is None else self.forward_rows(x_or_x_list, rows)


class CausalAttentionBlock(nn.Module):
    """Pre-norm block whose tokens see only earlier tokens (text towers)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ffn_ratio: float = 4.0,
        ls_init_value: float | None = None,
        is_causal: bool = True,
        act_layer: Callable[..., nn.Module] = nn.GELU,
        norm_layer: Callable[..., nn.LayerNorm] = nn.LayerNorm,
        dropout_prob: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.is_causal = is_causal
        self.ls1 = LayerScale(dim, init_values=ls_init_value) if ls_init_value else nn.Identity()
        self.attention_norm = norm_layer(dim)
        self.attention = Attention(dim, num_heads, attn_drop=dropout_prob, proj_drop=dropout_prob)
        self.ffn_norm = norm_layer(dim)
        self.feed_forward = Mlp(
            in_features=dim, hidden_features=int(dim * ffn_ratio), drop=dropout_prob, act_layer=act_layer
        )
        self.ls2 = LayerScale(dim, init_values=ls_init_value) if ls_init_value else nn.Identity()

    def init_weights(
        self,
        init_attn_std: float | None = None,
        init_proj_std: float | None = None,
        init_fc_std: float | None = None,
        factor: float = 1.0,
    ) -> None:
        """Normal weights; defaults: attention dim**-0.5, its output and fc2 `factor` times that, fc1 (2*dim)**-0.5."""
        attn_std = self.dim**-0.5 if init_attn_std is None else init_attn_std
        proj_std = attn_std * factor if init_proj_std is None else init_proj_std
        fc_std = (2 * self.dim) ** -0.5 if init_fc_std is None else init_fc_std
        self.attention.init_weights(attn_std, proj_std)
        for norm in (self.attention_norm, self.ffn_norm):
            norm.reset_parameters()
        nn.init.normal_(self.feed_forward.fc1.weight, std=fc_std)
        nn.init.normal_(self.feed_forward.fc2.weight, std=proj_std)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        x = x + self.ls1(self.attention(self.attention_norm(x), self.is_causal))
        return x + self.ls2(self.feed_forward(self.ffn_norm(x)))


def drop_add_residual_stochastic_depth(
    x: Tensor, residual_func: Callable[[Tensor], Tensor], sample_drop_ratio: float = 0.0
) -> Tensor:
    """x [B, N, C] plus the branch, computed only for a random subset of the samples."""

    def branch(packed: Tensor, groups: CropGroups) -> Tensor:
        (kept,) = groups.split(packed)
        return residual_func(kept).flatten(0, 1).unsqueeze(0)

    return add_branch_to_subsets([x], branch, [get_branges_scales(x, sample_drop_ratio)])[0]


def drop_add_residual_stochastic_depth_list(
    x_list: Sequence[Tensor],
    residual_func: Callable[..., Tensor],
    sample_drop_ratio: float = 0.0,
    scaling_vector: Tensor | None = None,
) -> list[Tensor]:
    """The subset regime for a list of crops: one subset per tensor, one call `residual_func(packed, attn_bias=groups)`."""
    subsets = [get_branges_scales(x, sample_drop_ratio) for x in x_list]
    return add_branch_to_subsets(
        x_list, lambda packed, groups: residual_func(packed, attn_bias=groups), subsets, scaling_vector
    )
