"""Visual prompts: tokens that are learnt in front of a frozen vision transformer; the method vpt of `tuning_methods.adapt`.

Source: Jia et al., "Visual prompt tuning" (arXiv 2203.12119): the prompts stand behind the class token; shallow ones enter at
the first block and pass through all of them, deep ones are put in anew before every block.
Shape legend: B images, T tokens of the backbone, R registers, M prompts, D channels, K blocks.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from dinov2.models.block_chunks import blocks_in_order
from vet_extensions.errors import UserError


class PromptedBackbone(nn.Module):
    """A vision transformer of this house with prompts; its `forward_features` gives the same keys without them."""

    def __init__(self, backbone: nn.Module, *, n_prompts: int, is_deep: bool) -> None:
        """Prompts [K, M, D] if deep, else [1, M, D], drawn from torch's generator as the source draws them."""
        super().__init__()
        if not (hasattr(backbone, "prepare_tokens_with_masks") and hasattr(backbone, "blocks")):
            raise UserError(
                f"The method vpt puts tokens between the blocks of this project's vision transformers; {type(backbone).__name__} "
                "is none. Use lora, bitfit or norm for this backbone."
            )
        self.backbone: Any = backbone
        self.embed_dim, self.patch_size = self.backbone.embed_dim, self.backbone.patch_size
        n_layers = self.backbone.n_blocks if is_deep else 1
        reach = math.sqrt(6 / (3 * self.patch_size**2 + self.embed_dim))
        self.prompts = nn.Parameter(torch.empty(n_layers, n_prompts, self.embed_dim).uniform_(-reach, reach))

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        """[B, 3, H, W] -> `x_norm_clstoken` [B, D], `x_norm_regtokens` [B, R, D], `x_norm_patchtokens` [B, N, D]."""
        tokens = self.backbone.prepare_tokens_with_masks(x)
        n_prompts = self.prompts.shape[1]
        for place, block in enumerate(blocks_in_order(self.backbone.blocks)):
            if place < len(self.prompts):
                behind = tokens[:, 1:] if place == 0 else tokens[:, 1 + n_prompts :]
                prompts = self.prompts[place].to(tokens.dtype).expand(len(x), -1, -1)
                tokens = torch.cat([tokens[:, :1], prompts, behind], dim=1)  # [B, T + M, D]
            tokens = block(tokens)
        normed = self.backbone.norm(torch.cat([tokens[:, :1], tokens[:, 1 + n_prompts :]], dim=1))
        first_patch = 1 + self.backbone.num_register_tokens
        return {
            "x_norm_clstoken": normed[:, 0],
            "x_norm_regtokens": normed[:, 1:first_patch],
            "x_norm_patchtokens": normed[:, first_patch:],
        }
