"""Data sets wrapped around other data sets; made by the train loop and the evaluations.

A wrapper answers `__getitems__`, by which PyTorch's loader asks for a batch at once, so that a data set that can serve a batch
faster than its items one by one is asked for batches.
"""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from dinov2.data.samplers import PositionedIndex


class DatasetWithEnumeratedTargets(Dataset):
    """Items whose target is (index, target), so that an evaluation can put gathered features back in order."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def get_image_data(self, index: int) -> bytes:
        """The undecoded image at `index`."""
        return self._dataset.get_image_data(index)

    def get_target(self, index: int) -> tuple[int, Any]:
        """(index, target)."""
        return index, self._dataset.get_target(index)

    def __getitem__(self, index: int) -> tuple[Any, tuple[int, Any]]:
        """(image, (index, target)); an item without a target gets its index for one."""
        image, target = self._dataset[index]
        return image, (index, index if target is None else target)

    def __len__(self) -> int:
        return len(self._dataset)


class NumberedDataset(Dataset):
    """Notes in the crop dictionary of an item which item of the data set it is: `index`."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    @property
    def draws_by_position(self) -> bool:
        """See `PositionSeededDataset`."""
        return getattr(self._dataset, "draws_by_position", False)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        items = _items(self._dataset, indices)
        for item, index in zip(items, indices, strict=True):
            item[0]["index"] = int(index)
        return items

    def __len__(self) -> int:
        return len(self._dataset)


class PositionSeededDataset(Dataset):
    """Makes the randomness of an item depend only on (seed, position in the run), whichever process or worker makes it.

    For transforms that draw from the global generators of torch and `random`, such as `DataAugmentationDINO`. The generators
    are put back afterwards, so that nothing else notices. A crop dictionary without a `position` is given one, from which a
    collate function can seed its masks. Needs the indices of `SeededInfiniteSampler`; an index without a position is passed
    on as it is.

    A data set whose items are functions of index and position already says so by a true attribute `draws_by_position`. Nothing
    is seeded around it then, and it is asked for whole batches.
    """

    def __init__(self, dataset: Any, *, seed: int) -> None:
        self._dataset = dataset
        self._seed = seed

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        if getattr(self._dataset, "draws_by_position", False):
            items = _items(self._dataset, indices)
        else:
            items = [self._seeded_item(index) for index in indices]
        for item, index in zip(items, indices, strict=True):
            if isinstance(index, PositionedIndex) and isinstance(item[0], dict):
                item[0].setdefault("position", index.position)
        return items

    def _seeded_item(self, index: int) -> Any:
        if not isinstance(index, PositionedIndex):
            return self._dataset[index]
        (sample_seed,) = np.random.SeedSequence((self._seed, index.position)).generate_state(1, np.uint64)
        python_state = random.getstate()
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(int(sample_seed))
            random.seed(int(sample_seed))
            try:
                return self._dataset[index]
            finally:
                random.setstate(python_state)

    def __len__(self) -> int:
        return len(self._dataset)


def _items(dataset: Any, indices: Sequence[int]) -> list[Any]:
    """The items at several indices, at once where the data set can."""
    at_once = getattr(dataset, "__getitems__", None)
    return [dataset[index] for index in indices] if at_once is None else at_once(indices)
