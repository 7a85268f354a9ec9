"""All that protocols on frozen features may ask of one subject (`FeatureSet`): vectors, tokens of several blocks, other sizes.

A subject of the suite makes one; `scoring` hands each protocol its part. Shape legend: n images, k blocks, D feature width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vet_extensions.evaluation.cohort import Cohort
from vet_extensions.evaluation.linear_grid import Inputs, block_inputs


@dataclass(frozen=True)
class FeatureSet:
    """Features of all images of the data.

    vectors: [n, D], what most protocols take. cls_by_block: [n, k, D] class tokens of the last k blocks, the earliest first, and
    mean_patch: [n, D] of the last one; None where they were not asked for, or there is nothing but the vectors. at_size: vectors
    of the images at another side in pixels, and the side that was used; None for what has no network.
    """

    vectors: NDArray[np.floating]
    cls_by_block: NDArray[np.floating] | None = None
    mean_patch: NDArray[np.floating] | None = None
    at_size: "Callable[[int], tuple[NDArray[np.floating], int]] | None" = None

    def pooled_by_study(self, cohort: Cohort) -> "tuple[FeatureSet, NDArray[np.intp]]":
        """A row a study, each kind of feature pooled by itself (`Cohort.pool_by_study`), and the families each study lacks."""
        vectors, n_missing = cohort.pool_by_study(self.vectors)
        if self.cls_by_block is None or self.mean_patch is None:
            return FeatureSet(vectors), n_missing
        blocks = [cohort.pool_by_study(self.cls_by_block[:, place])[0] for place in range(self.cls_by_block.shape[1])]
        return FeatureSet(vectors, np.stack(blocks, axis=1), cohort.pool_by_study(self.mean_patch)[0]), n_missing

    def grid_inputs(self) -> tuple[NDArray[np.floating], Inputs | None]:
        """What a grid of linear heads is fitted on, and the columns of its inputs; None: one input, the vectors."""
        if self.cls_by_block is None or self.mean_patch is None:
            return self.vectors, None
        return block_inputs(self.cls_by_block, mean_patch=self.mean_patch)
