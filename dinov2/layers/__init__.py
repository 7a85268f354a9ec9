"""Building blocks of the vision transformer and its heads, under their official names."""

from dinov2.layers.attention import Attention, MemEffAttention
from dinov2.layers.block import CausalAttentionBlock, NestedTensorBlock
from dinov2.layers.dino_head import DINOHead
from dinov2.layers.layer_scale import LayerScale
from dinov2.layers.mlp import Mlp
from dinov2.layers.patch_embed import ConvPatchEmbed, PatchEmbed
from dinov2.layers.swiglu_ffn import SwiGLUFFN, SwiGLUFFNAligned, SwiGLUFFNFused

__all__ = [
    "Attention",
    "CausalAttentionBlock",
    "ConvPatchEmbed",
    "DINOHead",
    "LayerScale",
    "MemEffAttention",
    "Mlp",
    "NestedTensorBlock",
    "PatchEmbed",
    "SwiGLUFFN",
    "SwiGLUFFNAligned",
    "SwiGLUFFNFused",
]
