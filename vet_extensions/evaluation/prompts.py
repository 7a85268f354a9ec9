"""Visual prompts: tokens that are learnt in front of a frozen vision transformer; the method vpt of `tuning_methods.adapt`.

Source: Jia et al., "Visual prompt tuning" (arXiv 2203.12119): the prompts stand behind the class token; shallow ones enter at
the first block and pass through all of them, deep ones are put in anew before every block.
Shape legend: B images, T tokens of the backbone, R registers, M prompts, D channels, K blocks, h w patches.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dinov2.models.block_chunks import blocks_in_order
from dinov2.models.vision_transformer import DinoVisionTransformer
from vet_extensions.errors import UserError
from vet_extensions.evaluation.embedding import BlockTokens


class PromptedBackbone(nn.Module):
    """A vision transformer of this house with prompts between its tokens."""

    def __init__(self, backbone: nn.Module, *, n_prompts: int, is_deep: bool) -> None:
        """Prompts [K, M, D] if deep, else [1, M, D], drawn from torch's generator as the source draws them."""
        super().__init__()
        if not isinstance(backbone, DinoVisionTransformer):
            raise UserError(
                f"The method vpt puts tokens between the blocks of this project's vision transformers; {type(backbone).__name__} "
                "is none. Use lora, bitfit or norm for this backbone."
            )
        self.backbone = backbone
        n_layers = backbone.n_blocks if is_deep else 1
        reach = math.sqrt(6 / (3 * math.prod(backbone.patch_embed.patch_size) + backbone.embed_dim))
        self.prompts = nn.Parameter(torch.empty(n_layers, n_prompts, backbone.embed_dim).uniform_(-reach, reach))

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> normalised tokens [B, 1 + R + h w, D] after the last block, without the prompts."""
        tokens = self.backbone.prepare_tokens_with_masks(images)
        n_prompts = self.prompts.shape[1]
        for place, block in enumerate(blocks_in_order(self.backbone.blocks)):
            if place < len(self.prompts):
                behind = tokens[:, 1:] if place == 0 else tokens[:, 1 + n_prompts :]
                prompts = self.prompts[place].to(tokens.dtype).expand(len(images), -1, -1)
                tokens = torch.cat([tokens[:, :1], prompts, behind], dim=1)  # [B, 1 + M + R + h w, D]
            tokens = block(tokens)
        return self.backbone.norm(torch.cat([tokens[:, :1], tokens[:, 1 + n_prompts :]], dim=1))


def read_prompted(model: Any, images: Tensor, indices: Sequence[int]) -> tuple[BlockTokens, ...]:
    """The tokens of the last block, as `embedding.ReadTokens` wants them; prompts are not read after other blocks."""
    vit = model.backbone
    assert list(indices) == [vit.n_blocks - 1], "only the last block of a prompted backbone is read"
    tokens = model(images)
    height, width = vit.patch_embed.patch_size
    grid = (images.shape[-2] // height, images.shape[-1] // width)
    return (BlockTokens(tokens[:, 0], tokens[:, 1 + vit.num_register_tokens :].unflatten(1, grid)),)
