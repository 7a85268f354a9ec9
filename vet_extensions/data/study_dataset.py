"""`VetStudies`: a training data set whose samples are studies, read from an intake folder."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vet_extensions.data.pairing import draw_pair, draw_pairs, image_groups, pair_kinds, parse_policy
from vet_extensions.data.subsets import checked_count, checked_share, images_per_study, share_of_patients
from vet_extensions.errors import UserError
from vet_extensions.manifest import Manifest
from vet_extensions.manifest.filter import where_true
from vet_extensions.schema import Split, View
from vet_extensions.shards import ShardReader
from vet_extensions.shards.mapped import cache_key, mapped_arrays

logger = logging.getLogger("vet_extensions")

_WORTH_DRAWING_AT_ONCE = 10
"""Pairs: drawing at once costs about as much as drawing so many one by one, and little more for each further one."""


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
    split: train (default), val, test or all; pairing: any (default) or another policy of `pairing.parse_policy`, such as
    different_view or CC+MLO,same_laterality; seed: of the pair drawing (0); where: only the images for which an expression
    holds (`manifest.filter`), for example where=species == 'canine'; patients: a share of the patients that are left (0.1);
    views_per_study: at most so many images of each study. For the last two see `subsets`.
    Pickles without its columns, which all processes of a machine map from one file.
    """

    def __init__(
        self,
        *,
        root: str,
        split: str = "train",
        pairing: str = "any",
        seed: str | int = 0,
        where: str | None = None,
        patients: str | float | None = None,
        views_per_study: str | int | None = None,
        transform: Callable[[StudySample], Any] | None = None,
        target_transform: Callable[[int], Any] | None = None,
    ) -> None:
        self._same = parse_policy(pairing).same
        if split != "all" and split not in list(Split):
            raise UserError(f"Unknown split '{split}' for VetStudies. Allowed: {', '.join(Split)}, all.")
        self.root, self.split, self.where = Path(root), split, where
        self.patients = None if patients is None else checked_share(patients, key="patients")
        self.views_per_study = (
            None if views_per_study is None else checked_count(views_per_study, key="views_per_study")
        )
        self.pairing, self.seed = pairing, int(seed)
        self.transform, self.target_transform = transform, target_transform
        self._reader = ShardReader(self.root)
        self._load_studies(Manifest.open(self.root))
        if len(self) == 0:
            chosen = f"The split '{split}' of {root}" + ("" if where is None else f" where {where}")
            raise UserError(f"{chosen} holds no study. See the counts with: vetdino check {root}")
        kinds = pair_kinds(
            self._view_codes, offsets=self._offsets, views=self._view_names, policy=pairing, groups=self._groups
        )
        logger.info(
            "VetStudies split %s: %d studies, %d images; pairs offered under '%s': %s",
            split,
            len(self),
            len(self._rows),
            pairing,
            ", ".join(f"{kind}: {n}" for kind, n in kinds.most_common()),
        )

    def _load_studies(self, manifest: Manifest) -> None:
        """The columns that training needs, shared with all processes of the machine: row, study, view and group of each image."""
        self._content_hash = manifest.content_hash
        further = {"patients": self.patients, "views_per_study": self.views_per_study, "same": self._same or None}
        given = [f"{name}={value}" for name, value in further.items() if value is not None]
        arrays = mapped_arrays(
            self.root,
            "studies",
            key=cache_key(manifest.content_hash, self.split, self.where or "", *given),
            make=lambda: self._study_arrays(manifest),
        )
        # As plain arrays over the mapped pages: indexing `np.memmap` itself costs several times as much.
        self._rows, self._offsets, self._view_codes = (
            arrays[name].view(np.ndarray) for name in ("rows", "offsets", "view_codes")
        )
        self._groups = arrays["groups"].view(np.ndarray) if "groups" in arrays else None
        self._view_names = [view for view, is_used in zip(View, arrays["used_views"]) if is_used]

    def _study_arrays(self, manifest: Manifest) -> dict[str, np.ndarray]:
        chosen = manifest if self.split == "all" else manifest.select(split=self.split)
        if self.where is not None:
            chosen = where_true(chosen, self.where)
        if self.patients is not None:
            chosen = share_of_patients(chosen, self.patients)
        if self.views_per_study is not None:
            chosen = images_per_study(chosen, self.views_per_study)
        names, codes = chosen.codes("view")
        # The codes count the views that occur in the order of the vocabulary, one byte an image.
        used = [view for view in View if view in names]
        place = np.array([used.index(View(name)) for name in names], dtype=np.uint8)
        return {
            "rows": chosen.row_index,
            "offsets": chosen.study_offsets,
            "view_codes": place[codes],
            "used_views": np.array([view in used for view in View], dtype=np.uint8),
            **({"groups": image_groups(chosen, self._same)} if self._same else {}),
        }

    def __getstate__(self) -> dict[str, Any]:
        """Without the columns: they are mapped again in the other process."""
        left_out = ("_rows", "_offsets", "_view_codes", "_groups", "_view_names")
        return {name: value for name, value in self.__dict__.items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        manifest = Manifest.open(self.root)
        if manifest.content_hash != self._content_hash:
            raise UserError(f"The manifest of '{self.root}' was replaced while it was in use. Start again.")
        self._load_studies(manifest)

    def _views_of(self, study: int) -> list[View]:
        return [self._view_names[code] for code in self._view_codes[self._offsets[study] : self._offsets[study + 1]]]

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @property
    def draws_by_position(self) -> bool:
        """Whether an item is a function of its index and the index's position alone: nobody need seed anything around it.

        The pairs are; a transform must say the same of itself, by an attribute of this name.
        """
        return self.transform is None or getattr(self.transform, "draws_by_position", False)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        study = int(index)
        return self._item(study, self.read(study, position=getattr(index, "position", -1)))

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, Any]]:
        """The items of a batch, which PyTorch's loader asks for like this: their pairs are drawn at once."""
        positions = [getattr(index, "position", -1) for index in indices]
        # Without positions items draw from torch's state, one after the other.
        if len(indices) < _WORTH_DRAWING_AT_ONCE or min(positions) < 0:
            return [self[index] for index in indices]
        studies = [int(index) for index in indices]
        images = self._draw_pairs(np.array(studies), np.array(positions))  # [n, 2]; a pair of one image ends with -1
        n_images = (1 + (images[:, 1] >= 0)).tolist()
        rows, codes = self._rows[images].tolist(), self._view_codes[images].tolist()
        return [
            self._item(study, self._sample(rows[i][:n], codes[i][:n], position))
            for i, (study, position, n) in enumerate(zip(studies, positions, n_images))
        ]

    def _item(self, study: int, sample: StudySample) -> tuple[Any, Any]:
        return (
            sample if self.transform is None else self.transform(sample),
            study if self.target_transform is None else self.target_transform(study),
        )

    def pair_rows(self, studies: np.ndarray, *, positions: np.ndarray) -> np.ndarray:
        """Rows in the full manifest of the images that `read` gives for many studies and positions at once, int64 [n, 2].

        -1 in the second column stands for a study without a pair.
        """
        images = self._draw_pairs(np.asarray(studies, dtype=np.int64), np.asarray(positions, dtype=np.int64))
        return np.where(images >= 0, self._rows[images], -1)

    def _draw_pairs(self, studies: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """The images that `read` gives, as places in this data set's columns, int64 [n, 2]; -1 for none."""
        return draw_pairs(
            self._view_codes,
            offsets=self._offsets,
            studies=studies,
            positions=positions,
            views=self._view_names,
            policy=self.pairing,
            seed=self.seed,
            groups=self._groups,
        )

    def read(self, study: int, *, position: int = -1) -> StudySample:
        """The images of a study that the pairing draws for a position of the run."""
        begin = self._offsets[study]
        groups = None if self._groups is None else self._groups[begin : self._offsets[study + 1]].tolist()
        pair = draw_pair(self._views_of(study), self.pairing, sample_rng(self.seed, position), groups=groups)
        images = [begin + i for i in pair]
        return self._sample(self._rows[images].tolist(), self._view_codes[images].tolist(), position)

    def _sample(self, rows: Iterable[int], view_codes: Iterable[int], position: int) -> StudySample:
        pixels, views = map(self._reader.read, rows), map(self._view_names.__getitem__, view_codes)
        return StudySample(tuple(pixels), tuple(views), position)


def sample_rng(seed: int, position: int) -> np.random.Generator:
    """The generator of one sample: from (seed, position), or from torch's state when the sampler does not count."""
    if position < 0:
        return np.random.default_rng(int(torch.randint(2**62, ())))
    return np.random.default_rng((seed, position))
