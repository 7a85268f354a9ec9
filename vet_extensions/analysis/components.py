"""Principal components of patch features as colours, jointly over a set of images. Called by `vetdino demo` and `analyze`.

Equal colours mean similar features, also across images and views, because one set of components serves all images of a call.
Shape legend: I images, h x w patches of an image, D feature dimension, H x W pixels. Source: DINOv2 (arXiv 2304.07193), fig. 1.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from vet_extensions.errors import UserError

_TINY = 1e-12


class Backbone(Protocol):
    """What the analyses ask of a vision transformer: the official attributes and methods, and its last attention."""

    training: bool
    patch_size: int
    num_register_tokens: int

    def get_intermediate_layers(
        self, x: torch.Tensor, n: int = 1, reshape: bool = False
    ) -> tuple[torch.Tensor, ...]: ...

    def get_last_self_attention(self, x: torch.Tensor) -> torch.Tensor: ...

    def train(self, mode: bool = True) -> Any: ...


@dataclass(frozen=True)
class PatchComponents:
    """Result of a joint PCA.

    colours: [I, h, w, 3] uint8, the first three components as red, green, blue; patches outside the foreground are black.
    scores: [I, h, w, 3] float32, the components before scaling (NaN outside the foreground).
    explained: [3] float64, share of the foreground's feature variance that each component carries.
    """

    colours: np.ndarray
    scores: np.ndarray
    explained: np.ndarray


@contextmanager
def evaluating(backbone: Backbone) -> Iterator[None]:
    """The backbone in evaluation mode and without gradients inside the block; afterwards in the mode it had."""
    was_training = backbone.training
    backbone.train(False)
    try:
        with torch.inference_mode():
            yield
    finally:
        backbone.train(was_training)


def patch_features(backbone: Backbone, images: torch.Tensor, *, batch_size: int = 16) -> np.ndarray:
    """Normalised patch features of the last block: images [I, 3, H, W] -> [I, h, w, D] float32."""
    with evaluating(backbone):
        parts = [
            backbone.get_intermediate_layers(batch, n=1, reshape=True)[0].float().cpu()  # [b, D, h, w]
            for batch in images.split(batch_size)
        ]
    return torch.cat(parts).permute(0, 2, 3, 1).contiguous().numpy()


def joint_components(
    features: np.ndarray,
    *,
    foreground: np.ndarray | None = None,
    percentiles: tuple[float, float] = (2.0, 98.0),
) -> PatchComponents:
    """The first three principal components of all foreground patches together, scaled robustly to colours.

    features: [I, h, w, D]; foreground: [I, h, w] bool (None: every patch). Each component is mapped from these percentiles of
    its foreground scores to 0..255. The sign is fixed: the loading of greatest magnitude is positive, so that the same
    features always give the same colours. Raises `UserError` for shapes that do not fit or fewer than four foreground patches.
    """
    if features.ndim != 4:
        raise UserError(f"Patch features must be [images, h, w, D]; got shape {features.shape}.")
    mask = np.ones(features.shape[:3], dtype=bool) if foreground is None else np.asarray(foreground, dtype=bool)
    if mask.shape != features.shape[:3]:
        raise UserError(f"The foreground must have shape {features.shape[:3]}; got {mask.shape}.")
    if mask.sum() < 4:
        raise UserError(f"Principal components need at least 4 foreground patches; got {int(mask.sum())}.")
    scores, explained = _principal_scores(features[mask].astype(np.float64))
    low, high = np.percentile(scores, percentiles, axis=0)
    span = high - low
    unit = np.where(span > _TINY, (scores - low) / np.maximum(span, _TINY), 0.5)  # a component without spread is grey
    colours = np.zeros((*mask.shape, 3), dtype=np.uint8)
    colours[mask] = np.round(np.clip(unit, 0.0, 1.0) * 255.0).astype(np.uint8)
    full_scores = np.full((*mask.shape, 3), np.nan, dtype=np.float32)
    full_scores[mask] = scores
    return PatchComponents(colours=colours, scores=full_scores, explained=explained)


def foreground_by_component(features: np.ndarray) -> np.ndarray:
    """[I, h, w, D] -> [I, h, w] bool: the patches on the side of the first component where image corners are rarer.

    The threshold is midway between the first component's 5th and 95th percentile. Which side is the body is not in the
    features; the corners of a radiograph are mostly background.
    """
    n_images, height, width, dim = features.shape
    scores, _ = _principal_scores(features.reshape(-1, dim).astype(np.float64))
    first = scores[:, 0].reshape(n_images, height, width)
    above = first > np.percentile(first, [5.0, 95.0]).mean()
    corners = above[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    return ~above if corners.mean() > 0.5 else above


def foreground_by_intensity(images: np.ndarray, grid: tuple[int, int], *, threshold: float = 0.05) -> np.ndarray:
    """Grey images [I, H, W] in [0, 1] -> [I, h, w] bool: the patches whose mean intensity exceeds `threshold` (air is dark).

    Raises `UserError` where the image is not a whole number of patches high and wide.
    """
    n_images, height, width = images.shape
    rows, columns = grid
    if height % rows or width % columns:
        raise UserError(f"Images of {height} x {width} pixels do not divide into {rows} x {columns} patches.")
    blocks = images.reshape(n_images, rows, height // rows, columns, width // columns)
    return blocks.mean(axis=(2, 4)) > threshold


def _principal_scores(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[n, D] -> scores [n, 3] (missing components are zero) and their shares of the variance [3]."""
    centred = rows - rows.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)  # ascending; D x D is small whatever the number of patches
    order = np.argsort(values)[::-1][:3]
    loadings = vectors[:, order]
    peaks = loadings[np.abs(loadings).argmax(axis=0), np.arange(loadings.shape[1])]
    loadings = loadings * np.where(peaks < 0, -1.0, 1.0)
    scores = np.zeros((len(rows), 3))
    scores[:, : loadings.shape[1]] = centred @ loadings
    explained = np.zeros(3)
    explained[: len(order)] = np.maximum(values[order], 0.0) / max(values.sum(), _TINY)
    return scores, explained
