"""Backbone weights in any layout that is in use, brought to the layout of a given model. Called when weights are loaded.

Layouts: flat blocks (`blocks.3.norm1.weight`, the released files) or chunked (`blocks.1.3.norm1.weight`, training with
`block_chunks`); where the backbone sits in a file, and other packages' names, are the matter of `dinov2.utils.weight_layouts`.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dinov2.utils.weight_layouts import find_backbone

_CHUNKED = re.compile(r"^((?:.*\.)?blocks\.)\d+\.(\d+\.)")
_FLAT = re.compile(r"^((?:.*\.)?blocks\.)(\d+)\.(?!\d+\.)")


def dechunk_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Chunked block names to flat ones: `blocks.1.3.x` -> `blocks.3.x`. Flat names pass unchanged, and so does the order."""
    return {_CHUNKED.sub(r"\1\2", key): value for key, value in state.items()}


def chunk_state_dict(state: Mapping[str, Tensor], chunk_size: int) -> dict[str, Tensor]:
    """Flat block names to those of a model with `chunk_size` = depth // block_chunks blocks a chunk."""

    def add_chunk(match: re.Match[str]) -> str:
        return f"{match[1]}{int(match[2]) // chunk_size}.{match[2]}."

    return {_FLAT.sub(add_chunk, key): value for key, value in state.items()}


def extract_backbone_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of the backbone alone, with bare official names, from what `read_checkpoint` returned of any layout.

    Raises `UserError` when it holds no tensors, or one process's slices.
    """
    return find_backbone(checkpoint, source="the weights file").state
