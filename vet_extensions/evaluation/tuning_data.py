"""The images of a tuning: which rows count, in which order, and how they become batches. `finetune` calls it.

What is drawn for an image follows from (seed, its place in the run) alone, so that any number of workers, or a training that
was interrupted, sees the same pictures. Scored images are prepared exactly as frozen backbones see them (`prepare_image`).
Shape legend: B images, H = W = image_size_px, L labels, n images of the data set.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vet_extensions.data.radiograph_crop import CropSettings, RadiographCrop
from vet_extensions.errors import UserError
from vet_extensions.evaluation.cohort import MULTICLASS, LabelledImages
from vet_extensions.evaluation.features import PixelsSource, network_input, prepare_image
from vet_extensions.evaluation.metrics import is_known
from vet_extensions.schema import Split

MAX_WORKERS = 8
_AS_SCORED = -1
"""Place in the run of an image that is not varied."""

Item = tuple[int, int]
"""(row of the data set, place in the run or `_AS_SCORED`)."""


def rows_of(images: LabelledImages, split: Split) -> NDArray[np.intp]:
    """The rows of a split; of the training split only those with a label that counts.

    Raises `UserError` where the training split has none.
    """
    rows = np.flatnonzero(images.cohort.split == split)
    if split != Split.TRAIN:
        return rows
    labels = images.cohort.labels[rows]
    counts = (labels == 1).sum(axis=1) == 1 if images.task == MULTICLASS else is_known(labels).any(axis=1)
    if not counts.any():
        raise UserError(
            f"None of the {len(rows)} training images of {images.name} has a label to learn from: all are missing or "
            "uncertain. Check the split and the label columns."
        )
    return rows[counts]


def epoch_batches(
    rows: NDArray[np.integer], *, epoch: int, batch_size: int, seed: int, is_varied: bool
) -> list[list[Item]]:
    """One pass over the rows in an order of its own, in batches that differ by one image at most."""
    order = np.random.default_rng((seed, epoch)).permutation(len(rows))
    items = [(int(rows[i]), epoch * len(rows) + k if is_varied else _AS_SCORED) for k, i in enumerate(order)]
    return [
        list(map(items.__getitem__, part))
        for part in np.array_split(np.arange(len(items)), n_batches(rows, batch_size))
    ]


def n_batches(rows: NDArray[np.integer], batch_size: int) -> int:
    """Steps of an epoch."""
    return -(-len(rows) // batch_size)


def scored_batches(rows: NDArray[np.integer], *, batch_size: int) -> list[list[Item]]:
    """The rows in their order, to be prepared as frozen backbones see them."""
    return [[(int(row), _AS_SCORED) for row in rows[at : at + batch_size]] for at in range(0, len(rows), batch_size)]


class TuningImages(Dataset[NDArray[np.float32]]):
    """Images by (row, place in the run): grey [H, W] float32 in [0, 1]."""

    def __init__(self, reader: PixelsSource, *, image_size_px: int, seed: int) -> None:
        self._reader, self._size_px, self._seed = reader, image_size_px, seed
        self._crop = RadiographCrop(crop_settings(image_size_px))

    def __getitem__(self, item: Item) -> NDArray[np.float32]:
        row, place = item
        pixels = self._reader.read(row)
        if place == _AS_SCORED:
            return prepare_image(pixels, self._size_px)
        # Another first number than `epoch_batches` has: an order and a crop shall not come from the same stream.
        rng = np.random.default_rng((self._seed, 1, place))
        crop = self._crop(_as_square(pixels), is_global=True, rng=rng)
        return crop[0].numpy().astype(np.float32) / np.float32(255)


def crop_settings(image_size_px: int) -> CropSettings:
    """Changes that leave every finding what it is: most of the image, slightly turned, other exposure; never mirrored, since
    sides are findings."""
    area = (0.75, 1.0)
    return CropSettings(
        global_scale=area,
        local_scale=area,
        global_size_px=image_size_px,
        local_size_px=image_size_px,
        aspect_ratio=(0.95, 1 / 0.95),
        rotation_deg=4.0,
        gamma_sigma=0.1,
        contrast_sigma=0.1,
        brightness_sigma=0.03,
        noise_sigma=0.005,
        blur_probability=0.1,
        blur_sigma_px=(0.1, 0.5),
    )


def batches_of(
    images: TuningImages,
    batches: Sequence[list[Item]],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
) -> Iterator[tuple[NDArray[np.intp], Tensor]]:
    """(rows [B], normalised images [B, 3, H, W] on the device) of each batch; read by workers where a GPU waits for them."""
    n_workers = 0 if device.type == "cpu" else min(MAX_WORKERS, max(1, (os.cpu_count() or 1) - 1))
    loader: Iterable[Tensor] = DataLoader(
        images,
        batch_sampler=batches,  # type: ignore[arg-type]  # lists of items are all that a loader asks for
        collate_fn=partial(network_input, mean=mean, std=std),
        num_workers=n_workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # or each loader would take a number from the stream that draws dropout
    )
    for batch, pixels in zip(batches, loader, strict=True):
        yield np.array([row for row, _ in batch], dtype=np.intp), pixels.to(device, non_blocking=True)


def _as_square(pixels: np.ndarray) -> np.ndarray:
    """[H, W] -> [S, S] of the same type: black on both sides of the shorter side, as `prepare_image` fills it."""
    rows, columns = pixels.shape
    side = max(rows, columns)
    square = np.zeros((side, side), dtype=pixels.dtype)
    top, left = (side - rows) // 2, (side - columns) // 2
    square[top : top + rows, left : left + columns] = pixels
    return square
