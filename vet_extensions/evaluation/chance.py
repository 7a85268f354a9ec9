"""The control "shuffled_labels": the very same scoring after all labels that a probe sees were dealt out anew must find nothing.

The suite calls `shuffled_scores` with the features of its first backbone and warns where a row is not at chance. Labels are dealt
among the studies of a split, in train and in validation (where hyper-parameters are chosen); test keeps its own. One deal can
rank the test images well or badly by luck, whatever the number of test patients: a strong feature needs only to fall to one side.
So there are several, each scored together with its complement, present for absent: a probe that learned nothing but the luck
of the deal then ranks the other way round, one that knows the answers from elsewhere does not. The interval is over the deals.

Shape legend: n images, L labels, S deals.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from vet_extensions.evaluation.cohort import MULTICLASS, Cohort, LabelledImages
from vet_extensions.evaluation.curves import CURVES, RESOLUTION
from vet_extensions.evaluation.feature_set import FeatureSet
from vet_extensions.evaluation.folds import Fold, make_folds
from vet_extensions.evaluation.metrics import AUROC, is_known, label_metrics, macro
from vet_extensions.evaluation.results import Measurement
from vet_extensions.evaluation.retrieval import RETRIEVAL
from vet_extensions.evaluation.scoring import label_groups
from vet_extensions.evaluation.suite_config import SuiteConfig
from vet_extensions.schema import Split

SHUFFLED_LABELS = "shuffled_labels"
N_DEALS = 3
CHANCE = 0.5
TOLERANCE = 0.03
"""Nearer than this to one half is chance: votes of unequal sharpness can rank a little off without knowing anything."""


@dataclass(frozen=True)
class ShuffledScore:
    """Macro AUROC over the deals: mean, t-interval of the mean, and whether that is chance."""

    value: float
    low: float
    high: float
    n_deals: int
    n_images: int
    n_patients: int
    n_labels: int

    @property
    def is_at_chance(self) -> bool:
        """Near one half, or not told apart from it; what could not be measured passes."""
        return math.isnan(self.value) or abs(self.value - CHANCE) < TOLERANCE or self.low <= CHANCE <= self.high


def shuffled_scores(
    features: FeatureSet,
    images: LabelledImages,
    config: SuiteConfig,
    *,
    n_deals: int = N_DEALS,
    seed: int = 0,
) -> dict[Measurement, ShuffledScore]:
    """Macro AUROC of every level, group and probe under shuffled labels; not of curves, retrieval and tuned backbones.

    The interval is for all these rows together (Bonferroni): by luck, one suite in twenty has a row outside.
    """
    generator = np.random.default_rng(seed)
    deals = [_dealt(images.cohort, generator, task=images.task) for _ in range(n_deals)]
    n_each = len(deals[0])
    # The labels of several deals are scored as so many labels of one data set, at the cost of one; classes exclude each other.
    blocks = deals if images.task == MULTICLASS else [[labels for deal in deals for labels in deal]]
    found: dict[Measurement, list[float]] = {}
    extents: dict[Measurement, tuple[int, int, int]] = {}
    for block in blocks:
        cohort = replace(images.cohort, labels=np.concatenate(block, axis=1))
        dealt = replace(images, cohort=cohort, label_names=images.label_names * len(block))
        for level in config.levels:
            groups = label_groups(images.label_names, config, level=level)
            for protocol in (name for name in config.protocols if name not in (*CURVES, RESOLUTION, RETRIEVAL)):
                folds, _ = make_folds(features, dealt, config, level=level, protocol=protocol)
                for group, columns in groups.items() if folds else ():
                    key = (level, group, protocol, AUROC)
                    for number in range(0, len(block), n_each):
                        of_deal = [
                            [(number + part) * len(images.label_names) + column for column in columns]
                            for part in range(n_each)
                        ]
                        values = [_macro_auroc(fold, at) for fold in folds for at in of_deal]
                        found.setdefault(key, []).append(fmean(values))
                    n_patients = len(np.unique(np.concatenate([fold.test.patient_codes for fold in folds])))
                    extents[key] = sum(len(fold.test.labels) for fold in folds), n_patients, len(columns)
    quantile = 1 - 0.05 / 2 / max(1, len(found))
    return {
        key: ShuffledScore(*_interval(values, quantile), len(values), *extents[key]) for key, values in found.items()
    }


def _macro_auroc(fold: Fold, columns: Sequence[int]) -> float:
    place = fold.candidates.select(fold.val.labels, columns=columns)
    values = label_metrics(fold.test_scores(place)[:, columns], labels=fold.test.labels[:, columns])
    return macro(values[AUROC][:, 0])[0]


def _dealt(cohort: Cohort, generator: np.random.Generator, *, task: str) -> list[NDArray[np.integer]]:
    """Labels [n, L]: each study of train and val gets the labels of the first image of another study of its split; and the same
    with present and absent exchanged there, but for classes, which have no opposite."""
    labels = cohort.labels.copy()
    for split in (Split.TRAIN, Split.VAL):
        rows = np.flatnonzero(cohort.split == split)
        _, first, study = np.unique(cohort.study_codes[rows], return_index=True, return_inverse=True)
        labels[rows] = cohort.labels[rows[first]][generator.permutation(len(first))][study]
    if task == MULTICLASS:
        return [labels]
    is_dealt = (cohort.split != Split.TEST)[:, None] & is_known(labels)
    return [labels, np.where(is_dealt, 1 - labels, labels).astype(labels.dtype)]


def _interval(values: Sequence[float], quantile: float) -> tuple[float, float, float]:
    """Mean, and the ends of its t-interval; a single deal, or deals that all agree, have no width."""
    mean = fmean(values)
    if len(values) < 2:
        return mean, mean, mean
    half = float(stdtrit(len(values) - 1, quantile)) * stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half
