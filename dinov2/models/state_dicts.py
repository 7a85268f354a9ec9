"""Backbone weights in any layout that is in use, brought to the layout of a given model. Called when weights are loaded.

Layouts: flat blocks (`blocks.3.norm1.weight`, the released files) or chunked (`blocks.1.3.norm1.weight`, training with
`block_chunks`); bare, or below `teacher`, `model` or a `backbone.` prefix; any position grid.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dinov2.utils.errors import UserError
from dinov2.utils.utils import strip_prefix

_CHUNKED = re.compile(r"^((?:.*\.)?blocks\.)\d+\.(\d+\.)")
_FLAT = re.compile(r"^((?:.*\.)?blocks\.)(\d+)\.(?!\d+\.)")
# Where a backbone sits inside the files of this package and of the official one, the most useful first.
_BACKBONE_PREFIXES = ("teacher.backbone.", "student.backbone.", "backbone.")


def dechunk_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Chunked block names to flat ones: `blocks.1.3.x` -> `blocks.3.x`. Flat names pass unchanged, and so does the order."""
    return {_CHUNKED.sub(r"\1\2", key): value for key, value in state.items()}


def chunk_state_dict(state: Mapping[str, Tensor], chunk_size: int) -> dict[str, Tensor]:
    """Flat block names to those of a model with `chunk_size` = depth // block_chunks blocks a chunk."""

    def add_chunk(match: re.Match[str]) -> str:
        return f"{match[1]}{int(match[2]) // chunk_size}.{match[2]}."

    return {_FLAT.sub(add_chunk, key): value for key, value in state.items()}


def extract_backbone_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of the backbone alone, with bare names, from a hub file, a teacher checkpoint or a training checkpoint.

    Raises `UserError` when the file holds no tensors at the top, under "teacher" or under "model".
    """
    state = checkpoint
    for key in ("teacher", "model"):
        if isinstance(state.get(key), Mapping):
            state = state[key]
            break
    state = strip_prefix(state, ("module.",))
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(
            f"No weights found: the file's top level holds {', '.join(map(str, list(checkpoint)[:8])) or 'nothing'}. "
            "A backbone's weights are looked for at the top, under 'teacher' and under 'model'."
        )
    for prefix in _BACKBONE_PREFIXES:
        below = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
        if below:
            return below
    return tensors
