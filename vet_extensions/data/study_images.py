"""`VetStudies:target=...`: the single images of an intake folder with a class each, for the evaluations of `dinov2.eval`.

`vet_studies` is what the name VetStudies stands for in a data set string: with `target` these images, without it the pairs of
views that pre-training takes. Images become 8-bit RGB, because the transforms of classification take what an image file gives.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vet_extensions.data.study_dataset import MultiViewStudyDataset
from vet_extensions.errors import UserError
from vet_extensions.manifest import Manifest
from vet_extensions.manifest.filter import where_true
from vet_extensions.schema import Split, View
from vet_extensions.shards import ShardReader

logger = logging.getLogger("vet_extensions")

VIEW_TARGET = "view"
LABEL_CLASSES = ("absent", "present")


def vet_studies(
    *,
    root: str,
    split: str = "train",
    target: str | None = None,
    pairing: str | None = None,
    seed: str | int | None = None,
    where: str | None = None,
    patients: str | float | None = None,
    views_per_study: str | int | None = None,
    transform: Callable[[Any], Any] | None = None,
    target_transform: Callable[[Any], Any] | None = None,
) -> "MultiViewStudyDataset | StudyImages":
    """`StudyImages` where a `target` is given, else `MultiViewStudyDataset`.

    The latter alone has the keys pairing, seed, patients and views_per_study. where: only the images for which an
    expression holds (`manifest.filter`).
    """
    of_pairs = {"pairing": pairing, "seed": seed, "patients": patients, "views_per_study": views_per_study}
    pair_keys: dict[str, Any] = {key: value for key, value in of_pairs.items() if value is not None}
    if target is None:
        return MultiViewStudyDataset(
            root=root, split=split, where=where, transform=transform, target_transform=target_transform, **pair_keys
        )
    if pair_keys:
        raise UserError(
            f"VetStudies with target={target} gives single images, for which {' and '.join(pair_keys)} have no meaning. "
            "Leave them away; or leave the target away to train on pairs of views."
        )
    return StudyImages(
        root=root, target=target, split=split, where=where, transform=transform, target_transform=target_transform
    )


class StudyImages(torch.utils.data.Dataset):
    """Images of an intake folder; an item is (transform(8-bit RGB image), target_transform(class)).

    target: a label of the manifest, whose classes are absent and present; or `view`, whose classes are the views that occur in
    the folder, the same in every split. split: train (default), val, test or all. An image whose label is uncertain or not
    stated, or whose view is unknown, is left out; the log counts them.

    Attributes: `classes`, the names; `get_targets()`, the class of every image.
    """

    def __init__(
        self,
        *,
        root: str,
        target: str,
        split: str = "train",
        where: str | None = None,
        transform: Callable[[Image.Image], Any] | None = None,
        target_transform: Callable[[int], Any] | None = None,
    ) -> None:
        whole = Manifest.open(Path(root))
        chosen = whole if split == "all" else whole.select(split=_checked_split(split))
        if where is not None:
            chosen = where_true(chosen, where)
        self.classes, targets = (
            _view_classes(whole, chosen) if target == VIEW_TARGET else _label_classes(chosen, target)
        )
        is_known = targets >= 0
        logger.info(
            "VetStudies split %s, target %s: %d images (%s); %d left out: uncertain, not stated or unknown",
            split,
            target,
            is_known.sum(),
            ", ".join(f"{name}: {(targets == c).sum()}" for c, name in enumerate(self.classes)),
            (~is_known).sum(),
        )
        if not is_known.any():
            raise UserError(
                f"The split '{split}' of {root} has {chosen.n_images} images, but none with a known class for "
                f"target={target}. See the counts with: vetdino check {root}"
            )
        self.transform, self.target_transform = transform, target_transform
        self._reader = ShardReader(Path(root))
        self._rows = chosen.row_index[is_known]
        self._targets = targets[is_known]

    def get_targets(self) -> NDArray[np.int64]:
        """The class of every image, [n]."""
        return self._targets

    def get_target(self, index: int) -> int:
        """The class of one image."""
        return int(self._targets[index])

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        index = int(index)
        image: Any = Image.fromarray(to_8_bit(self._reader.read(int(self._rows[index])))).convert("RGB")
        target: Any = self.get_target(index)
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            target = self.target_transform(target)
        return image, target

    def __len__(self) -> int:
        return len(self._rows)


def to_8_bit(pixels: np.ndarray) -> NDArray[np.uint8]:
    """Grey values [H, W] of a shard, uint8 or uint16, as uint8: by the full range of their type, as `prepare_image` does."""
    if pixels.dtype == np.uint8:
        return pixels
    return np.rint(pixels.astype(np.float32) * np.float32(255 / np.iinfo(pixels.dtype).max)).astype(np.uint8)


def _checked_split(split: str) -> Split:
    if split not in list(Split):
        raise UserError(f"Unknown split '{split}' for VetStudies. Allowed: {', '.join(Split)}, all.")
    return Split(split)


def _view_classes(whole: Manifest, chosen: Manifest) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The known views of the whole manifest in the vocabulary's order, and each chosen image's place among them (-1: unknown)."""
    occurring = set(whole.views)
    classes = tuple(view.value for view in View if view in occurring and view is not View.UNKNOWN)
    place = {name: c for c, name in enumerate(classes)}
    return classes, np.array([place.get(view, -1) for view in chosen.views], dtype=np.int64)


def _label_classes(chosen: Manifest, target: str) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Absent and present, and each chosen image's class, negative where it is uncertain or not stated."""
    if target not in chosen.label_names:
        known = ", ".join(chosen.label_names) or "none, for the intake was given no --labels"
        raise UserError(
            f"VetStudies has no target '{target}'. Labels of this folder: {known}. Allowed besides: {VIEW_TARGET}."
        )
    return LABEL_CLASSES, chosen.labels()[:, chosen.label_names.index(target)].astype(np.int64)
