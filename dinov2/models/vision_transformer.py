"""The vision transformer of DINOv2 and its builders. Called by training, evaluation and the hub, mostly through `build_model`.

Source: ViT (arXiv 2010.11929) with the changes of DINOv2 (2304.07193) and, where asked, registers (2309.16588).
Shape legend: B images of H x W pixels, P patch side, h = H / P and w = W / P, N = h * w patches, R registers, D channels.
Token order: class token, registers, patches row by row.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.init import normal_, trunc_normal_, zeros_

from dinov2.layers import ConvPatchEmbed, MemEffAttention, Mlp, PatchEmbed, SwiGLUFFNFused
from dinov2.layers import NestedTensorBlock as Block
from dinov2.models.block_chunks import BlockChunk as BlockChunk  # its official place
from dinov2.models.block_chunks import blocks_in_order, chunk_blocks, rows_of_used_tokens
from dinov2.models.pos_embed import Grid, interpolate_grid, resample_pos_embed, square_grid
from dinov2.models.state_dicts import chunk_state_dict, dechunk_state_dict


def named_apply(
    fn: Callable[..., Any], module: nn.Module, name: str = "", depth_first: bool = True, include_root: bool = False
) -> nn.Module:
    """Call fn(module=..., name=...) on every submodule, children before parents unless `depth_first` is off."""
    if not depth_first and include_root:
        fn(module=module, name=name)
    for child_name, child in module.named_children():
        full_name = f"{name}.{child_name}" if name else child_name
        named_apply(fn, child, full_name, depth_first, include_root=True)
    if depth_first and include_root:
        fn(module=module, name=name)
    return module


def init_weights_vit_timm(module: nn.Module, name: str = "") -> None:
    """Linear layers: truncated normal of std 0.02, zero bias. Everything else keeps PyTorch's default."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            zeros_(module.bias)


class DinoVisionTransformer(nn.Module):
    """Backbone whose `forward_features` returns the normed class, register and patch tokens."""

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        ffn_bias: bool = True,
        proj_bias: bool = True,
        drop_path_rate: float = 0.0,
        drop_path_uniform: bool = False,
        init_values: float | None = None,
        embed_layer: Callable[..., PatchEmbed] = PatchEmbed,
        act_layer: Callable[..., nn.Module] = nn.GELU,
        block_fn: Callable[..., nn.Module] = Block,
        ffn_layer: str = "mlp",
        block_chunks: int = 1,
        num_register_tokens: int = 0,
        interpolate_antialias: bool = False,
        interpolate_offset: float = 0.1,
    ) -> None:
        """
        img_size: pixels of the images whose patch grid `pos_embed` holds; other sizes are interpolated.
        drop_path_rate: stochastic depth, rising linearly from 0 over the blocks unless `drop_path_uniform`.
        init_values: first value of LayerScale; 0 or None for none.
        ffn_layer: "mlp", "swiglu" or "swiglufused" (the same), "identity".
        block_chunks: above 0, blocks are grouped and named `blocks.<chunk>.<block>`; 0 names them `blocks.<block>`.
        interpolate_antialias, interpolate_offset: see `pos_embed.interpolate_grid`.
        """
        super().__init__()
        self.num_features = self.embed_dim = embed_dim  # both names are read by other code bases
        self.num_tokens = 1
        self.n_blocks = depth
        self.num_heads = num_heads
        self.patch_size = patch_size
        self.num_register_tokens = num_register_tokens
        self.interpolate_antialias = interpolate_antialias
        self.interpolate_offset = interpolate_offset
        norm_layer = partial(nn.LayerNorm, eps=1e-6)

        self.patch_embed = embed_layer(img_size=img_size, patch_size=patch_size, in_chans=in_chans, embed_dim=embed_dim)
        n_positions = self.num_tokens + self.patch_embed.num_patches
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, n_positions, embed_dim))
        assert num_register_tokens >= 0, f"num_register_tokens must be 0 or more, got {num_register_tokens}"
        self.register_tokens = (
            nn.Parameter(torch.zeros(1, num_register_tokens, embed_dim)) if num_register_tokens else None
        )
        self.mask_token = nn.Parameter(torch.zeros(1, embed_dim))

        # numpy, not torch: on the meta device torch.linspace has no values to read.
        rates = (
            [drop_path_rate] * depth if drop_path_uniform is True else np.linspace(0, drop_path_rate, depth).tolist()
        )
        make_block = partial(
            block_fn,
            dim=embed_dim,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            proj_bias=proj_bias,
            ffn_bias=ffn_bias,
            norm_layer=norm_layer,
            act_layer=act_layer,
            ffn_layer=_find_ffn_layer(ffn_layer),
            init_values=init_values,
        )
        blocks = [make_block(drop_path=rate) for rate in rates]
        self.chunked_blocks = block_chunks > 0
        assert block_chunks <= depth, f"{depth} blocks cannot make {block_chunks} chunks"
        self._chunk_size = depth // block_chunks if self.chunked_blocks else depth
        self.blocks = chunk_blocks(blocks, self._chunk_size) if self.chunked_blocks else nn.ModuleList(blocks)
        self.norm = norm_layer(embed_dim)
        self.head = nn.Identity()
        self.init_weights()

    def init_weights(self) -> None:
        """Fresh random values for tokens, positions and linear layers; the patch projection keeps PyTorch's default."""
        trunc_normal_(self.pos_embed, std=0.02)
        normal_(self.cls_token, std=1e-6)
        if self.register_tokens is not None:
            normal_(self.register_tokens, std=1e-6)
        named_apply(init_weights_vit_timm, self)

    def interpolate_pos_encoding(self, x: Tensor, height: int, width: int) -> Tensor:
        """Positions [1, 1 + N, D] for images of height x width pixels, in x's dtype; `pos_embed` itself on its own grid."""
        old_grid = self._position_grid()
        patch_height, patch_width = self.patch_embed.patch_size
        new_grid = (height // patch_height, width // patch_width)
        if new_grid == old_grid:
            return self.pos_embed
        positions = self.pos_embed.float()
        patches = interpolate_grid(
            positions[:, 1:].unflatten(1, old_grid),
            new_grid,
            antialias=self.interpolate_antialias,
            offset=self.interpolate_offset,
        )
        return torch.cat([positions[:, :1], patches.flatten(1, 2)], dim=1).to(x.dtype)

    def prepare_tokens_with_masks(self, x: Tensor, masks: Tensor | None = None) -> Tensor:
        """[B, C, H, W] -> [B, 1 + R + N, D]. Where `masks` [B, N] bool is true the patch embedding becomes the mask token."""
        height, width = x.shape[-2:]
        x = self.patch_embed(x)
        if masks is not None:
            x = torch.where(masks.unsqueeze(-1), self.mask_token.to(x.dtype).unsqueeze(0), x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = x + self.interpolate_pos_encoding(x, height, width)
        if self.register_tokens is not None:  # registers have no position
            x = torch.cat([x[:, :1], self.register_tokens.expand(x.shape[0], -1, -1), x[:, 1:]], dim=1)
        return x

    def forward_features(self, x: Tensor | list[Tensor], masks: Any = None, *, used_patches: Any = None) -> Any:
        """One image batch [B, C, H, W] -> dictionary of features; a list of them, with a list of masks -> list of such.

        Keys: `x_norm_clstoken` [B, D], `x_norm_regtokens` [B, R, D], `x_norm_patchtokens` [B, N, D], `x_prenorm`
        [B, 1 + R + N, D], `masks` as passed.
        used_patches: places [M] among the B * N patches (of a list of batches, a list; None for no patch), where these and the
        class tokens are all that is wanted: most of the last block is left out, for the same result. Only `x_norm_clstoken`,
        `x_norm_usedpatchtokens` [M, D] and `masks` are given then.
        """
        if isinstance(x, list):
            return self.forward_features_list(x, masks, used_patches=used_patches)
        if used_patches is not None:
            return self.forward_features_list([x], [masks], used_patches=[used_patches])[0]
        tokens = self.prepare_tokens_with_masks(x, masks)
        for block in self.blocks:
            tokens = block(tokens)
        return self._features(tokens, masks)

    def forward_features_list(
        self, x_list: list[Tensor], masks_list: Sequence[Tensor | None], *, used_patches: Any = None
    ) -> list[dict[str, Any]]:
        """Crops of several sizes in one pass: each block gets the whole list."""
        tokens = [self.prepare_tokens_with_masks(x, masks) for x, masks in zip(x_list, masks_list, strict=True)]
        if used_patches is not None:
            return self._used_features(tokens, masks_list, used_patches)
        for block in self.blocks:
            tokens = block(tokens)
        return [self._features(x, masks) for x, masks in zip(tokens, masks_list, strict=True)]

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        norm: bool = True,
    ) -> tuple[Any, ...]:
        """Patch tokens [B, N, D] after the last `n` blocks, or after the blocks whose indices `n` lists; in block order.

        reshape: [B, D, h, w] instead. return_class_token: pairs (patches, class token [B, D]). norm: apply the final norm.
        """
        outputs = self._get_intermediate_layers_not_chunked(x, n)
        if norm:
            outputs = [self.norm(out) for out in outputs]
        patches = [out[:, 1 + self.num_register_tokens :] for out in outputs]
        if reshape:
            patch_height, patch_width = self.patch_embed.patch_size
            grid = (x.shape[-2] // patch_height, x.shape[-1] // patch_width)
            patches = [out.unflatten(1, grid).permute(0, 3, 1, 2).contiguous() for out in patches]
        if return_class_token:
            return tuple(zip(patches, [out[:, 0] for out in outputs], strict=True))
        return tuple(patches)

    def get_last_self_attention(self, x: Tensor, masks: Tensor | None = None) -> Tensor:
        """Attention of the last block, [B, heads, T, T] fp32 with T = 1 + R + N: how much row token attends to column token."""
        tokens = self.prepare_tokens_with_masks(x, masks)
        *earlier, last = blocks_in_order(self.blocks)
        for block in earlier:
            tokens = block(tokens)
        return last.attn.attention_probabilities(last.norm1(tokens))

    def forward(self, *args: Any, is_training: bool = False, **kwargs: Any) -> Any:
        """`forward_features`, whole if `is_training`; otherwise only the normed class token [B, D] (through `head`)."""
        features = self.forward_features(*args, **kwargs)
        return features if is_training else self.head(features["x_norm_clstoken"])

    def adapt_state_dict(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of this architecture in this model's own layout: block names chunked alike, positions on its grid."""
        adapted = dechunk_state_dict(state)
        positions = adapted.get("pos_embed")
        if positions is not None and positions.shape[1] != self.pos_embed.shape[1]:
            adapted["pos_embed"] = resample_pos_embed(
                positions,
                self._position_grid(),
                antialias=self.interpolate_antialias,
                round_trip_offset=self.interpolate_offset,
            )
        return chunk_state_dict(adapted, self._chunk_size) if self.chunked_blocks else adapted

    def _features(self, tokens: Tensor, masks: Tensor | None) -> dict[str, Any]:
        normed = self.norm(tokens)
        first_patch = 1 + self.num_register_tokens
        return {
            "x_norm_clstoken": normed[:, 0],
            "x_norm_regtokens": normed[:, 1:first_patch],
            "x_norm_patchtokens": normed[:, first_patch:],
            "x_prenorm": tokens,
            "masks": masks,
        }

    def _used_features(
        self, tokens: Any, masks_list: Sequence[Tensor | None], used_patches: Sequence[Tensor | None]
    ) -> list[dict[str, Any]]:
        first_patch = 1 + self.num_register_tokens
        rows = [rows_of_used_tokens(x, used, first_patch) for x, used in zip(tokens, used_patches, strict=True)]
        *earlier, last = self.blocks
        for block in earlier:
            tokens = block(tokens)
        normed = self.norm(torch.cat(last(tokens, rows))).split([len(r) for r in rows])
        return [
            {"x_norm_clstoken": x[: len(whole)], "x_norm_usedpatchtokens": x[len(whole) :], "masks": masks}
            for x, whole, masks in zip(normed, tokens, masks_list, strict=True)
        ]

    def _get_intermediate_layers_not_chunked(self, x: Tensor, n: int | Sequence[int] = 1) -> list[Tensor]:
        """All tokens after the wanted blocks; blocks after the last wanted one do not run."""
        wanted = set(range(self.n_blocks - n, self.n_blocks) if isinstance(n, int) else n)
        possible = range(self.n_blocks)
        assert wanted.issubset(possible), f"block indices must lie in 0..{self.n_blocks - 1}, wanted {sorted(wanted)}"
        tokens, outputs = self.prepare_tokens_with_masks(x), []
        for index, block in enumerate(blocks_in_order(self.blocks)):
            tokens = block(tokens)
            if index in wanted:
                outputs.append(tokens)
            if len(outputs) == len(wanted):
                break
        return outputs

    # Official code has two; here the order of blocks is known in one place. dino.txt code calls either.
    _get_intermediate_layers_chunked = _get_intermediate_layers_not_chunked

    def _position_grid(self) -> Grid:
        """(rows, columns) of `pos_embed`: the model's own, or a square when someone has set an embedding of another size."""
        n_patches = self.pos_embed.shape[1] - 1
        grid = self.patch_embed.patches_resolution
        return grid if math.prod(grid) == n_patches else square_grid(n_patches)


def _find_ffn_layer(name: str) -> Callable[..., nn.Module]:
    layers = {"mlp": Mlp, "swiglu": SwiGLUFFNFused, "swiglufused": SwiGLUFFNFused, "identity": nn.Identity}
    if name not in layers:
        raise NotImplementedError(f"Unknown ffn_layer '{name}'. Allowed: {', '.join(layers)}.")
    return layers[name]


def _build(
    embed_dim: int, depth: int, num_heads: int, patch_size: int, num_register_tokens: int, kwargs: dict[str, Any]
) -> DinoVisionTransformer:
    return DinoVisionTransformer(
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=4,
        block_fn=partial(Block, attn_class=MemEffAttention),
        num_register_tokens=num_register_tokens,
        **kwargs,
    )


def vit_micro(patch_size: int = 16, num_register_tokens: int = 0, **kwargs: Any) -> DinoVisionTransformer:
    """128 channels, 4 blocks, 4 heads: for tests and for demonstrations on a CPU. Not an official size."""
    return _build(128, 4, 4, patch_size, num_register_tokens, kwargs)


def vit_micro_conv(patch_size: int = 8, num_register_tokens: int = 0, **kwargs: Any) -> DinoVisionTransformer:
    """128 channels, 3 blocks, 4 heads behind a convolutional patch embedding: learns within minutes on a CPU. Not official."""
    return _build(128, 3, 4, patch_size, num_register_tokens, {"embed_layer": ConvPatchEmbed, **kwargs})


def vit_tiny(patch_size: int = 16, num_register_tokens: int = 0, **kwargs: Any) -> DinoVisionTransformer:
    """192 channels, 12 blocks, 3 heads, the size of DeiT-Ti (arXiv 2012.12877). Not an official size."""
    return _build(192, 12, 3, patch_size, num_register_tokens, kwargs)


def vit_small(patch_size: int = 16, num_register_tokens: int = 0, **kwargs: Any) -> DinoVisionTransformer:
    """384 channels, 12 blocks, 6 heads: 22 million parameters."""
    return _build(384, 12, 6, patch_size, num_register_tokens, kwargs)


def vit_base(patch_size: int = 16, num_register_tokens: int = 0, **kwargs: Any) -> DinoVisionTransformer:
    """768 channels, 12 blocks, 12 heads: 87 million parameters."""
    return _build(768, 12, 12, patch_size, num_register_tokens, kwargs)


def vit_large(patch_size: int = 16, num_register_tokens: int = 0, **kwargs: Any) -> DinoVisionTransformer:
    """1024 channels, 24 blocks, 16 heads: 304 million parameters."""
    return _build(1024, 24, 16, patch_size, num_register_tokens, kwargs)


def vit_giant2(patch_size: int = 16, num_register_tokens: int = 0, **kwargs: Any) -> DinoVisionTransformer:
    """1536 channels, 40 blocks, 24 heads: 1.1 billion parameters with `ffn_layer="swiglufused"`."""
    return _build(1536, 40, 24, patch_size, num_register_tokens, kwargs)
