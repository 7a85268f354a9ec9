"""From stored images to what a network takes: preparing images, and loading a run's backbone.

The evaluation, the analysis room and the demo call it. `prepare_image` is the one preprocessing of a stored image, used by all.

Shape legend: n images, H = W = image_size_px.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor, nn

from dinov2.eval.run_folder import find_run
from dinov2.models import build_model_from_cfg
from dinov2.utils.utils import read_checkpoint
from vet_extensions.errors import UserError

HASH_DIGITS = 16
"""Digits of a SHA-256 that name a checkpoint or a setting in results and caches."""
TOKENS = ("cls", "cls+mean_patch")
PREPARATION = "longest side, black border, 1"
"""Names what `prepare_image` does, in the keys of stored features: its number goes up when its result changes."""

OnProgress = Callable[[int, int], None]
"""Called with (done, total)."""


class PixelsSource(Protocol):
    """What is read from: a `ShardReader`, or anything with its two methods."""

    def read(self, row_index: int, /) -> np.ndarray:
        """Grey pixels [H, W], uint8 or uint16, of a row of the full manifest."""
        ...

    def __len__(self) -> int: ...


def prepare_image(pixels: np.ndarray, image_size_px: int) -> NDArray[np.float32]:
    """A stored grey image as a square the network can see: float32 [image_size_px, image_size_px] in [0, 1].

    pixels: [H, W], uint8 or uint16, scaled by the full range of its type. The longer side becomes image_size_px, the aspect
    is kept, and the rest is black, shared evenly between both sides. Shrinking averages areas, so that nothing aliases.
    """
    if pixels.ndim != 2 or pixels.dtype not in (np.uint8, np.uint16):
        raise UserError(
            f"An image must be uint8 or uint16 with shape [rows, columns], got {pixels.dtype} {list(pixels.shape)}. "
            "Write the shards again with `vetdino intake`."
        )
    grey = pixels.astype(np.float32) / np.iinfo(pixels.dtype).max
    ratio = image_size_px / max(grey.shape)
    rows, columns = (max(1, round(side * ratio)) for side in grey.shape)
    if (rows, columns) != grey.shape:
        grey = cv2.resize(grey, (columns, rows), interpolation=cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR)
    square = np.zeros((image_size_px, image_size_px), dtype=np.float32)
    top, left = (image_size_px - rows) // 2, (image_size_px - columns) // 2
    square[top : top + rows, left : left + columns] = grey
    return square


def network_input(images: Sequence[NDArray[np.float32]], *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Prepared images [n][H, W] -> normalised float32 [n, 3, H, W], the grey channel repeated."""
    grey = torch.from_numpy(np.stack(images))[:, None]  # [n, 1, H, W]
    centre, spread = (torch.tensor(list(values), dtype=torch.float32).view(1, -1, 1, 1) for values in (mean, std))
    return (grey - centre) / spread


def load_backbone(run_dir_or_checkpoint: str | Path) -> tuple[nn.Module, DictConfig]:
    """The teacher's backbone of a run folder (newest checkpoint) or of one checkpoint, in evaluation mode, and its config."""
    checkpoint, config = find_run(run_dir_or_checkpoint)
    backbone, _ = build_model_from_cfg(config, only_teacher=True)
    content = read_checkpoint(checkpoint)
    backbone.load_state_dict(_backbone_state(content, backbone, name=checkpoint.name), strict=True)
    return backbone.eval(), config


def short_hash(value: Any) -> str:
    """First hex digits of the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:HASH_DIGITS]


def _backbone_state(content: Any, backbone: nn.Module, *, name: str) -> dict[str, Tensor]:
    """The backbone's entries of a teacher checkpoint, checked against the model that the config builds."""
    teacher = content.get("teacher") if isinstance(content, dict) else None
    state = {k.removeprefix("backbone."): v for k, v in (teacher or {}).items() if k.startswith("backbone.")}
    if not state:
        raise UserError(
            f"'{name}' holds no teacher backbone (keys teacher -> backbone.*). Give a teacher_checkpoint.pth that training wrote."
        )
    wanted = backbone.state_dict()
    missing, surplus = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    other_shape = sorted(k for k in wanted.keys() & state.keys() if wanted[k].shape != state[k].shape)
    if missing or surplus or other_shape:
        raise UserError(
            f"'{name}' does not fit the model of its config.yaml: {len(missing)} keys missing ({', '.join(missing[:3])}), "
            f"{len(surplus)} unknown ({', '.join(surplus[:3])}), {len(other_shape)} of another shape "
            f"({', '.join(other_shape[:3])}). Give the config.yaml of the run that wrote this checkpoint."
        )
    return state
