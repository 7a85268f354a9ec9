"""From stored images to frozen features: loading a backbone, preparing images, embedding, and the cache of embeddings.

The suite, the analysis room and the demo call it. `prepare_image` is the one preprocessing of a stored image, used by all.

Shape legend: n images, H = W = image_size_px, D feature width.
"""

import contextlib
import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor, nn

from dinov2.data.transforms import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from dinov2.eval.run_folder import find_run
from dinov2.models import build_model_from_cfg
from dinov2.utils.utils import read_checkpoint
from vet_extensions.errors import UserError

logger = logging.getLogger("vet_extensions")

HASH_DIGITS = 16
"""Digits of a SHA-256 that name a checkpoint or a setting in results and caches."""
TOKENS = ("cls", "cls+mean_patch")

OnProgress = Callable[[int, int], None]
"""Called with (done, total)."""


class PixelsSource(Protocol):
    """What `embed` reads from: a `ShardReader`, or anything with its two methods."""

    def read(self, row_index: int, /) -> np.ndarray:
        """Grey pixels [H, W], uint8 or uint16, of a row of the full manifest."""
        ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Features:
    """Embeddings. cls: [n, D] float32 (with tokens "cls+mean_patch": [n, 2D], the mean patch token behind); row_index: [n]
    int64, the row of each image in the full manifest."""

    cls: NDArray[np.float32]
    row_index: NDArray[np.int64]


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


def embed(
    backbone: nn.Module,
    pixels_source: PixelsSource,
    *,
    image_size_px: int,
    row_index: NDArray[np.integer] | None = None,
    batch_size: int = 64,
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
    device: torch.device | str = "cpu",
    amp_dtype: torch.dtype | None = None,
    tokens: str = "cls",
    on_progress: OnProgress | None = None,
) -> Features:
    """Features of the images `row_index` (None: all) in that order, without gradients, in evaluation mode.

    amp_dtype: autocast type, None for float32. tokens: "cls", or "cls+mean_patch" to append the mean patch token.
    Raises `UserError` for a size that the patches do not tile, unknown tokens, or features that are not finite.
    """
    _check_size(image_size_px, patch_size=int(backbone.patch_size))  # type: ignore[arg-type]
    if tokens not in TOKENS:
        raise UserError(f"Unknown tokens {tokens!r}; allowed are {', '.join(TOKENS)}.")
    device = torch.device(device)
    rows = np.arange(len(pixels_source)) if row_index is None else np.asarray(row_index)
    was_training = backbone.training
    backbone.eval().to(device)
    parts: list[Tensor] = []
    with torch.inference_mode(), torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
        for start in range(0, len(rows), batch_size):
            batch = [
                prepare_image(pixels_source.read(int(row)), image_size_px) for row in rows[start : start + batch_size]
            ]
            out: dict[str, Tensor] = backbone.forward_features(network_input(batch, mean=mean, std=std).to(device))  # type: ignore[operator]
            parts.append(_pick_tokens(out, tokens).float().cpu())
            if on_progress is not None:
                on_progress(start + len(batch), len(rows))
    backbone.train(was_training)
    cls = torch.cat(parts).numpy() if parts else np.empty((0, 0), dtype=np.float32)
    if not np.isfinite(cls).all():
        raise UserError(
            f"{int((~np.isfinite(cls)).any(axis=1).sum())} of {len(cls)} images got features that are not finite. The "
            "checkpoint has diverged, or amp_dtype is too narrow for it: use an earlier checkpoint, or float32."
        )
    return Features(cls=cls, row_index=rows.astype(np.int64))


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


class FeatureCache:
    """Embeddings on disk, one .npz per (checkpoint, preprocessing, images). Any file of it may be deleted at any time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: dict[str, Any], compute: Callable[[], Features]) -> Features:
        """The features under `key`, computed and kept if they are not there. key: JSON values that decide the features."""
        path = self.folder / f"{short_hash(key)}.npz"
        unreadable = (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile)  # absent, or cut off by a full disk
        with contextlib.suppress(*unreadable), path.open("rb") as file, np.load(file) as stored:
            return Features(cls=stored["cls"], row_index=stored["row_index"])
        features = compute()
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        with partial.open("wb") as file:
            np.savez(file, cls=features.cls, row_index=features.row_index)
        partial.replace(path)
        return features


def _check_size(image_size_px: int, *, patch_size: int) -> None:
    if image_size_px < patch_size or image_size_px % patch_size:
        lower = max(1, image_size_px // patch_size) * patch_size
        raise UserError(
            f"image_size_px is {image_size_px}, which is not a multiple of the backbone's patch size {patch_size}. "
            f"Use {lower} or {lower + patch_size}."
        )


def _pick_tokens(out: dict[str, Tensor], tokens: str) -> Tensor:
    """[n, D] or, with the mean patch token, [n, 2D]."""
    if tokens == "cls":
        return out["x_norm_clstoken"]
    return torch.cat([out["x_norm_clstoken"], out["x_norm_patchtokens"].mean(dim=1)], dim=1)


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
