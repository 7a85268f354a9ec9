"""`VetStudies`: a training data set whose samples are studies, read from an intake folder."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vet_extensions.data.pairing import check_policy, draw_pair, pair_kinds
from vet_extensions.errors import UserError
from vet_extensions.manifest import Manifest
from vet_extensions.schema import Split, View
from vet_extensions.shards import ShardReader

logger = logging.getLogger("vet_extensions")


@dataclass(frozen=True)
class StudySample:
    """Two images of one study, or one where there is no pair.

    pixels: grey images [H, W], uint8 or uint16. position: place of this sample in the run, from which all of its randomness
    derives; -1 when the sampler does not count.
    """

    pixels: tuple[np.ndarray, ...]
    views: tuple[View, ...]
    position: int = -1


class MultiViewStudyDataset(torch.utils.data.Dataset):
    """Studies of an intake folder; an item is (transform(StudySample), target_transform(study number)).

    Dataset string: `VetStudies:root=OUT`, with the optional keys
    split: train (default), val, test or all; pairing: any (default), different_view or different_family; seed: of the pair
    drawing (0).
    """

    def __init__(
        self,
        *,
        root: str,
        split: str = "train",
        pairing: str = "any",
        seed: str | int = 0,
        transform: Callable[[StudySample], Any] | None = None,
        target_transform: Callable[[int], Any] | None = None,
    ) -> None:
        check_policy(pairing)
        manifest = Manifest.open(Path(root))
        if split != "all":
            if split not in list(Split):
                raise UserError(f"Unknown split '{split}' for VetStudies. Allowed: {', '.join(Split)}, all.")
            manifest = manifest.select(split=split)
        if manifest.n_studies == 0:
            raise UserError(f"The split '{split}' of {root} holds no study. See the counts with: vetdino check {root}")
        self.pairing, self.seed = pairing, int(seed)
        self.transform, self.target_transform = transform, target_transform
        self._reader = ShardReader(Path(root))
        self._rows = manifest.row_index
        self._offsets = manifest.study_offsets
        # One byte an image: workers get a copy, and archives have millions of images.
        names, codes = np.unique(manifest.views, return_inverse=True)
        self._view_names, self._view_codes = [View(name) for name in names], codes.astype(np.uint8)
        kinds = pair_kinds(self._compositions(), pairing).most_common()
        shown = ", ".join(f"{kind}: {n}" for kind, n in kinds)
        logger.info("VetStudies split %s: %d studies; pairs offered under '%s': %s", split, len(self), pairing, shown)

    def _compositions(self) -> Iterator[tuple[list[View], int]]:
        """Every combination of views that a study has, and how many studies have it."""
        n_of_view = np.zeros((len(self), len(self._view_names)), dtype=np.uint16)
        studies = np.repeat(np.arange(len(self)), np.diff(self._offsets))
        np.add.at(n_of_view, (studies, self._view_codes), 1)
        for row, n_studies in zip(*np.unique(n_of_view, axis=0, return_counts=True)):
            yield [view for view, n in zip(self._view_names, row) for _ in range(n)], int(n_studies)

    def _views_of(self, study: int) -> list[View]:
        return [self._view_names[code] for code in self._view_codes[self._offsets[study] : self._offsets[study + 1]]]

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        study, position = int(index), getattr(index, "position", -1)
        sample: Any = self.read(study, position=position)
        if self.transform is not None:
            sample = self.transform(sample)
        target: Any = study
        if self.target_transform is not None:
            target = self.target_transform(study)
        return sample, target

    def read(self, study: int, *, position: int = -1) -> StudySample:
        """The images of a study that the pairing draws for a position of the run."""
        views = self._views_of(study)
        chosen = draw_pair(views, self.pairing, sample_rng(self.seed, position))
        rows = [int(self._rows[self._offsets[study] + i]) for i in chosen]
        return StudySample(
            pixels=tuple(self._reader.read(row) for row in rows),
            views=tuple(views[i] for i in chosen),
            position=position,
        )


def sample_rng(seed: int, position: int) -> np.random.Generator:
    """The generator of one sample: from (seed, position), or from torch's state when the sampler does not count."""
    if position < 0:
        return np.random.default_rng(int(torch.randint(2**62, ())))
    return np.random.default_rng((seed, position))
