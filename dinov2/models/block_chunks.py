"""Blocks in chunks, the layout of official checkpoints for sharded training, and which tokens a last block is asked for.

Called by the vision transformer. Shape legend: B images, T tokens each, D channels, M patches of the batch.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class BlockChunk(nn.ModuleList):
    """A run of blocks as one module, the unit that sharded training wraps."""

    def forward(self, x: Any, rows: Sequence[Tensor] | None = None) -> Any:
        """All blocks in turn; `rows` is for the last one (`NestedTensorBlock.forward_rows`)."""
        *earlier, last = self
        for block in earlier:
            x = block(x)
        return last(x) if rows is None else last(x, rows)


def chunk_blocks(blocks: list[nn.Module], size: int) -> nn.ModuleList:
    """Chunks padded in front with parameter-less identities, so that a block keeps its global index inside its chunk."""
    return nn.ModuleList(
        BlockChunk([nn.Identity() for _ in range(start)] + blocks[start : start + size])
        for start in range(0, len(blocks), size)
    )


def blocks_in_order(blocks: nn.ModuleList) -> Iterator[Any]:
    """The blocks themselves, whether chunked or not."""
    for item in blocks:
        if isinstance(item, BlockChunk):
            yield from (block for block in item if not isinstance(block, nn.Identity))
        else:
            yield item


def rows_of_used_tokens(tokens: Tensor, used_patches: Tensor | None, first_patch: int) -> Tensor:
    """Places of the class tokens, then of the used patches [M], among all tokens: [B, T, D] -> [B + M].

    used_patches: places among the B * (T - first_patch) patches, or None for none.
    """
    batch, n_tokens = tokens.shape[:2]
    class_rows = torch.arange(0, batch * n_tokens, n_tokens, device=tokens.device)
    if used_patches is None:
        return class_rows
    sample = used_patches // (n_tokens - first_patch)
    return torch.cat([class_rows, used_patches + (sample + 1) * first_patch])
