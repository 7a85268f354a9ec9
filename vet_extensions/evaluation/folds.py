"""Folds: one bank and one set of queries of a level, with the scores of its probe's candidates (`make_folds`).

`scoring` measures them, `chance` asks for them with shuffled labels. Shape legend: n images, L labels, D feature width.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vet_extensions.evaluation.bags import study_bags
from vet_extensions.evaluation.cohort import Cohort, LabelledImages, pool_scores
from vet_extensions.evaluation.feature_set import FeatureSet
from vet_extensions.evaluation.metrics import METRICS
from vet_extensions.evaluation.pooling import pooling_probe
from vet_extensions.evaluation.pooling_config import POOLING_LEVEL, POOLING_PROTOCOLS
from vet_extensions.evaluation.probes import Candidates, ProbeData
from vet_extensions.evaluation.protocols import REFITTED, frozen_candidates, refitted_scores
from vet_extensions.evaluation.statistics import LabelSamples, PatientBootstrap, concatenate
from vet_extensions.evaluation.suite_config import SuiteConfig
from vet_extensions.evaluation.tuning_config import TUNED_PROTOCOLS
from vet_extensions.schema import Split

SCORE_POOLING = {"study_mean": "mean", "study_max": "max"}
"""Levels that score images and pool the scores of a study's images."""

_FOLDS: dict[str, tuple[tuple[str | None, str | None], ...]] = {
    "lateral": (("lateral", "lateral"),),
    "frontal": (("frontal", "frontal"),),
    "cross_view": (("frontal", "lateral"), ("lateral", "frontal")),
}
"""Level -> (family of the bank, family of the queries) of each fold; other levels take all rows."""

Rows = NDArray[np.integer]
Refit = Callable[[int], NDArray[np.floating]]


class Fold:
    """The scores of one bank on one set of queries, for all labels and hyper-parameter candidates, and their resamples."""

    def __init__(
        self, candidates: Candidates, *, val: Cohort, test: Cohort, val_rows: Rows, test_rows: Rows, refit: Refit | None = None
    ) -> None:  # fmt: skip
        """val_rows, test_rows: the image in the archive that stands for each row. refit: gives a candidate's test scores
        [n_test, L] once it has been fitted anew on more than the bank."""
        self.candidates, self.val, self.test = candidates, val, test
        self.val_rows, self.test_rows = val_rows, test_rows
        self._refit = refit
        self._test_scores: dict[int, NDArray[np.floating]] = {}
        self._known: dict[tuple[int, int], dict[str, LabelSamples]] = {}

    def test_scores(self, place: int) -> NDArray[np.floating]:
        """What candidate `place` is judged by, [n_test, L]."""
        if self._refit is None:
            return self.candidates.test[place]
        if place not in self._test_scores:
            self._test_scores[place] = self._refit(place)
        return self._test_scores[place]

    def label_samples(
        self, place: int, columns: Sequence[int], *, bootstrap: PatientBootstrap
    ) -> dict[str, LabelSamples]:
        """Both metrics of candidate `place` for label columns; groups that share a label share its resamples."""
        new = [column for column in columns if (place, column) not in self._known]
        if new:
            found = bootstrap.label_samples(
                self.test_scores(place)[:, new],
                labels=self.test.labels[:, new],
                patient_codes=self.test.patient_codes,
            )
            for at, column in enumerate(new):
                self._known[place, column] = {metric: found[metric].select([at]) for metric in METRICS}
        return {metric: concatenate([self._known[place, column][metric] for column in columns]) for metric in METRICS}

    def class_samples(
        self, place: int, columns: Sequence[int], *, bootstrap: PatientBootstrap
    ) -> dict[str, LabelSamples]:
        """Accuracy and recalls of candidate `place`, the label columns being the classes."""
        return bootstrap.class_samples(
            self.test_scores(place)[:, columns],
            labels=self.test.labels[:, columns],
            patient_codes=self.test.patient_codes,
        )


def make_folds(
    features: FeatureSet,
    archive: LabelledImages,
    config: SuiteConfig,
    *,
    level: str,
    protocol: str,
    candidates: Candidates | None = None,
) -> tuple[list[Fold], dict[str, Any]]:
    """The probe's scores for each (bank, queries) of a level, and details for its rows; no fold where a part is empty.

    candidates: scores of all validation and test images, where no probe is to make them. A protocol that tunes the backbone has
    no folds without them.
    """
    details: dict[str, Any] = {}
    cohort, rows = archive.cohort, np.arange(len(archive.cohort.split))
    if candidates is None and protocol in TUNED_PROTOCOLS:
        return [], details
    if protocol in POOLING_PROTOCOLS:
        return [_fold_of_bags(features, archive, config, protocol)] if level == POOLING_LEVEL else [], details
    if level == "study":
        needed = features if protocol == "linear_grid" else FeatureSet(features.vectors)  # only the grid reads blocks
        features, n_missing = needed.pooled_by_study(cohort)
        rows = np.unique(cohort.study_codes, return_index=True)[1]
        cohort = cohort.by_study()
        details["n_missing_families"] = int(n_missing[cohort.split == Split.TEST].sum())
    is_refitted = config.refit and protocol in REFITTED and candidates is None
    if is_refitted:
        details["fitted_on"] = "train, then train and val with what val chose"
    matrix, inputs = features.grid_inputs() if protocol == "linear_grid" else (features.vectors, None)
    folds = []
    for bank_family, query_family in _FOLDS.get(level, ((None, None),)):
        in_bank, in_query = (
            np.ones(len(cohort.split), dtype=bool) if family is None else cohort.family == family
            for family in (bank_family, query_family)
        )
        bank = in_bank & (cohort.split == Split.TRAIN)
        val, test = (in_query & (cohort.split == split) for split in (Split.VAL, Split.TEST))
        if not bank.any() or not test.any():
            return [], details
        data = [ProbeData(matrix[of], cohort.labels[of]) for of in (bank, val, test)]
        probe = {"protocol": protocol, "task": archive.task, "inputs": inputs}
        probed = candidates or frozen_candidates(data, config, **probe)
        if probed is None:
            return [], details
        refit = partial(refitted_scores, data, config, chosen=probed, **probe) if is_refitted else None
        parts, part_rows = [cohort.take(val), cohort.take(test)], [rows[val], rows[test]]
        if level in SCORE_POOLING:
            how, codes = SCORE_POOLING[level], [part.study_codes for part in parts]
            pooled = [pool_scores(s, study_codes=c, how=how) for s, c in zip((probed.val, probed.test), codes)]
            probed = replace(probed, val=pooled[0], test=pooled[1])
            refit = refit and partial(_pooled, refit, study_codes=codes[1], how=how)
            part_rows = [of[np.unique(c, return_index=True)[1]] for of, c in zip(part_rows, codes)]
            parts = [part.by_study() for part in parts]
        folds.append(
            Fold(probed, val=parts[0], test=parts[1], val_rows=part_rows[0], test_rows=part_rows[1], refit=refit)
        )
    return folds, details


def _fold_of_bags(features: FeatureSet, archive: LabelledImages, config: SuiteConfig, protocol: str) -> Fold:
    """Studies whose images are pooled by what the protocol learns, or by their mean or maximum."""
    cohort, settings = archive.cohort, config.linear
    rows_of = [np.flatnonzero(cohort.split == split) for split in (Split.TRAIN, Split.VAL, Split.TEST)]
    bank, val, test = (study_bags(features.vectors[rows], cohort.take(rows)) for rows in rows_of)
    probed = pooling_probe(
        bank, val=val, test=test, how=protocol, config=config.pooling, task=archive.task, c_grid=settings.c_grid,
        max_iterations=settings.max_iterations,
    )  # fmt: skip
    first = [rows[np.unique(cohort.study_codes[rows], return_index=True)[1]] for rows in rows_of[1:]]
    parts = [cohort.take(rows).by_study() for rows in rows_of[1:]]
    return Fold(probed, val=parts[0], test=parts[1], val_rows=first[0], test_rows=first[1])


def _pooled(refit: Refit, place: int, *, study_codes: NDArray[np.integer], how: str) -> NDArray[np.floating]:
    return pool_scores(refit(place)[None], study_codes=study_codes, how=how)[0]
