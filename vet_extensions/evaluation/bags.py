"""Bags: the images of a study, or the slices of a volume, that have one label together; and their mean and maximum.

A level of a suite that judges studies makes bags of them (`study_bags`); the protocols of `pooling` take them.

Shape legend: n images or slices, m bags, B bags of a batch, S slices of its longest bag, D feature width, L labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vet_extensions.errors import UserError
from vet_extensions.evaluation.cohort import Cohort

PADDING = -1
"""Stands in a table of rows where a bag has no more slices."""


@dataclass(frozen=True)
class Bags:
    """Features of images with the bag of each, and the labels of the bags.

    features: [n, D]; bag_of: [n] number of the bag, a row of labels: [m, L] int8. The images of a bag need not stand together;
    their order is that of the rows, and is the order of the slices where that matters. Raises `UserError` for a bag without
    images, images without a bag and features that are not finite.
    """

    features: NDArray[np.floating]
    bag_of: NDArray[np.integer]
    labels: NDArray[np.integer]

    def __post_init__(self) -> None:
        n_bags = len(self.labels)
        if self.features.ndim != 2 or self.bag_of.shape != (len(self.features),) or self.labels.ndim != 2:
            raise UserError(
                "Bags need features [images, width], the bag of each image and labels [bags, labels], got shapes "
                f"{list(self.features.shape)}, {list(self.bag_of.shape)} and {list(self.labels.shape)}."
            )
        if len(self.bag_of) and not 0 <= self.bag_of.min() <= self.bag_of.max() < n_bags:
            raise UserError(
                f"Images name bags {self.bag_of.min()} to {self.bag_of.max()}, and there are labels of bags 0 to "
                f"{n_bags - 1}. Number the bags by their label rows."
            )
        empty = np.flatnonzero(self.lengths == 0)
        if len(empty):
            raise UserError(
                f"{len(empty)} of {n_bags} bags have no image (the first is bag {empty[0]}), so there is nothing to judge them "
                "by. Leave them out of the labels."
            )
        n_bad = int((~np.isfinite(self.features).all(axis=1)).sum())
        if n_bad:
            raise UserError(f"The features of {n_bad} of {len(self.features)} images are not finite. Embed them again.")

    def __len__(self) -> int:
        """How many bags."""
        return len(self.labels)

    @cached_property
    def lengths(self) -> NDArray[np.intp]:
        """Images of each bag, [m]."""
        return np.bincount(self.bag_of, minlength=len(self.labels))

    @cached_property
    def _rows_by_bag(self) -> NDArray[np.intp]:
        """[n] row numbers, bag after bag."""
        return np.argsort(self.bag_of, kind="stable")

    @cached_property
    def _starts(self) -> NDArray[np.intp]:
        """[m] where each bag starts among `_rows_by_bag`."""
        return np.cumsum(self.lengths) - self.lengths

    def pooled(self, how: str) -> NDArray[np.float64]:
        """One feature a bag, [m, D]: the "mean" or the "max" of its images, each column by itself."""
        if not len(self):
            return np.empty((0, self.features.shape[1]))
        ordered = self.features[self._rows_by_bag].astype(np.float64)
        if how == "max":
            return np.maximum.reduceat(ordered, self._starts)
        assert how == "mean", f"bags are not pooled by {how!r}"
        return np.add.reduceat(ordered, self._starts) / self.lengths[:, None]

    def row_table(self, bags: Sequence[int] | NDArray[np.integer], *, max_slices: int) -> NDArray[np.intp]:
        """The feature rows of some bags, [B, S], `PADDING` behind the last slice of a bag that is shorter than others.

        A bag of more than max_slices gives so many of its slices, evenly spaced.
        """
        counts = np.minimum(self.lengths[bags], max_slices)
        table = np.full((len(counts), counts.max(initial=0)), PADDING, dtype=np.intp)
        for place, (bag, count) in enumerate(zip(bags, counts, strict=True)):
            spread = ((2 * np.arange(count) + 1) * self.lengths[bag]) // (2 * count)  # the middles of equal shares
            table[place, :count] = self._rows_by_bag[self._starts[bag] + spread]
        return table


def study_bags(features: NDArray[np.floating], cohort: Cohort) -> Bags:
    """The images of each study as a bag, in the order of `Cohort.by_study`, whose labels they have. features: [n, D]."""
    bag_of = np.unique(cohort.study_codes, return_inverse=True)[1]
    return Bags(features, bag_of, cohort.by_study().labels)
