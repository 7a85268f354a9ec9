"""From one set of features to its measurements: every level, group of labels, protocol and metric, and the scores behind them.

The suite calls `measure` for every subject. A fold is one bank and one set of queries; its probe's candidates are chosen among
on the validation rows, and the test rows of the chosen one are measured and kept (`Predictions`), so that results can be tested
against each other, calibrated and looked at by subgroup afterwards.

Shape legend: n images, L labels, D feature width, G candidates, m rows of a measurement (validation and test, all folds).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vet_extensions.evaluation.cohort import MULTICLASS, Cohort, LabelledImages, pool_scores
from vet_extensions.evaluation.curves import CURVE_LEVEL, CURVES, measure_curve
from vet_extensions.evaluation.finetune import Tuned
from vet_extensions.evaluation.metrics import ACCURACY, CLASS_METRICS, METRICS
from vet_extensions.evaluation.probes import Candidates, ProbeData
from vet_extensions.evaluation.protocols import frozen_candidates
from vet_extensions.evaluation.results import Measured, Measurement, SuiteConfig
from vet_extensions.evaluation.retrieval import RETRIEVAL, measure_retrieval
from vet_extensions.evaluation.statistics import LabelSamples, PatientBootstrap, average, concatenate
from vet_extensions.evaluation.tuning_config import TUNED_LEVELS, TUNED_PROTOCOLS
from vet_extensions.schema import FINDINGS, GROSS_FINDINGS, Split

logger = logging.getLogger("vet_extensions")

SCORE_POOLING = {"study_mean": "mean", "study_max": "max"}
"""Levels that score images and pool the scores of a study's images."""

_FOLDS: dict[str, tuple[tuple[str | None, str | None], ...]] = {
    "lateral": (("lateral", "lateral"),),
    "frontal": (("frontal", "frontal"),),
    "cross_view": (("frontal", "lateral"), ("lateral", "frontal")),
}
"""Level -> (family of the bank, family of the queries) of each fold; other levels take all rows."""

Rows = NDArray[np.integer]


@dataclass(frozen=True)
class Predictions:
    """The scores of one measurement, one row a case and fold, validation and test.

    split, case_ids, patient_ids: [m] texts; fold: [m]; rows: [m] the case's image in the archive (a study's first one);
    patient_codes: [m]; labels: [m, L] int8; scores: [m, L]. are_logits: else the scores are shares or votes.
    """

    level: str
    group: str
    protocol: str
    label_names: tuple[str, ...]
    are_logits: bool
    fold: NDArray[np.integer]
    rows: NDArray[np.integer]
    split: NDArray[np.str_]
    case_ids: NDArray[np.str_]
    patient_ids: NDArray[np.str_]
    patient_codes: NDArray[np.integer]
    labels: NDArray[np.integer]
    scores: NDArray[np.floating]

    def of_split(self, split: str) -> "Predictions":
        """The rows of one split."""
        return self.take(np.flatnonzero(self.split == split))

    def take(self, at: NDArray[np.integer]) -> "Predictions":
        """Some rows."""
        names = ("fold", "rows", "split", "case_ids", "patient_ids", "patient_codes", "labels", "scores")
        return replace(self, **{name: getattr(self, name)[at] for name in names})


class Fold:
    """The scores of one bank on one set of queries, for all labels and hyper-parameter candidates, and their resamples."""

    def __init__(self, candidates: Candidates, *, val: Cohort, test: Cohort, val_rows: Rows, test_rows: Rows) -> None:
        """val_rows, test_rows: the image in the archive that stands for each row."""
        self.candidates, self.val, self.test = candidates, val, test
        self.val_rows, self.test_rows = val_rows, test_rows
        self._known: dict[tuple[int, int], dict[str, LabelSamples]] = {}

    def label_samples(
        self, place: int, columns: Sequence[int], *, bootstrap: PatientBootstrap
    ) -> dict[str, LabelSamples]:
        """Both metrics of candidate `place` for label columns; groups that share a label share its resamples."""
        new = [column for column in columns if (place, column) not in self._known]
        if new:
            found = bootstrap.label_samples(
                self.candidates.test[place][:, new],
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
            self.candidates.test[place][:, columns],
            labels=self.test.labels[:, columns],
            patient_codes=self.test.patient_codes,
        )


def measure(
    features: NDArray[np.floating],
    archive: LabelledImages,
    config: SuiteConfig,
    *,
    bootstrap: PatientBootstrap,
    on_predictions: Callable[[Predictions], None] | None = None,
    tuned: Callable[[str], Tuned] | None = None,
) -> dict[Measurement, Measured]:
    """Every level, group, protocol and metric of one set of features [n_images, D].

    on_predictions: gets the scores behind each level, group and protocol. tuned: asked for the training of each protocol that
    tunes the backbone, once a level that scores images; None where there is no backbone, which leaves these protocols out.
    """
    measured: dict[Measurement, Measured] = {}
    for level in config.levels:
        groups = label_groups(archive.label_names, config, level=level)
        for protocol in config.protocols:
            if protocol in CURVES:
                if level == CURVE_LEVEL:
                    measured |= measure_curve(
                        features, archive.cohort, config, protocol=protocol, label_names=archive.label_names,
                        groups=groups, bootstrap=bootstrap,
                    )  # fmt: skip
                continue
            if protocol == RETRIEVAL:
                measured |= measure_retrieval(
                    features, archive.cohort, level=level, label_names=archive.label_names, groups=groups, bootstrap=bootstrap
                )  # fmt: skip
                continue
            training = None
            if protocol in TUNED_PROTOCOLS:
                if tuned is None or level not in TUNED_LEVELS:
                    continue
                training = tuned(protocol)
            candidates = None if training is None else training.candidates
            folds, details = make_folds(
                features, archive, config, level=level, protocol=protocol, candidates=candidates
            )
            if not folds:
                logger.warning("level %s, %s: too few images of its views, not measured", level, protocol)
                continue
            for group, columns in groups.items():
                chosen = [fold.candidates.select(fold.val.labels, columns=columns) for fold in folds]
                if on_predictions is not None:
                    names = (level, group, protocol)
                    on_predictions(_predictions(folds, chosen, columns, archive=archive, names=names))
                values = [fold.candidates.values[place] for fold, place in zip(folds, chosen, strict=True)]
                facts = {} if training is None else training.row(chosen[0])
                found = _samples(folds, chosen, columns, task=archive.task, bootstrap=bootstrap)
                names = tuple(archive.label_names[column] for column in columns)
                for metric, samples in found.items():
                    measured[level, group, protocol, metric] = Measured(
                        samples=samples,
                        labels=("all classes",) if metric == ACCURACY else names,
                        n_images=sum(len(fold.test.labels) for fold in folds),
                        n_patients=len(np.unique(np.concatenate([fold.test.patient_codes for fold in folds]))),
                        chosen={folds[0].candidates.parameter: values, **facts},
                        config=details,
                    )
    return measured


def label_groups(label_names: Sequence[str], config: SuiteConfig, *, level: str) -> dict[str, list[int]]:
    """Group of labels -> its columns; without those that the archive or the level has no labels for."""
    columns = {name: column for column, name in enumerate(label_names)}
    members = {
        "gross": [columns[name] for name in GROSS_FINDINGS] if set(GROSS_FINDINGS) <= set(columns) else [],
        "all": list(columns.values()),
    }
    if level == "cross_view":  # other labels may belong to one image, and the other view cannot tell them
        members = {group: [c for c in members[group] if label_names[c] in FINDINGS] for group in members}
    return {group: members[group] for group in config.groups if members[group]}


def make_folds(
    features: NDArray[np.floating],
    archive: LabelledImages,
    config: SuiteConfig,
    *,
    level: str,
    protocol: str,
    candidates: Candidates | None = None,
) -> tuple[list[Fold], dict[str, int]]:
    """The probe's scores for each (bank, queries) of a level, and details for its rows; no fold where a part is empty.

    candidates: scores of all validation and test images, where no probe is to make them. A protocol that tunes the backbone has
    no folds without them.
    """
    cohort, rows, details = archive.cohort, np.arange(len(archive.cohort.split)), {}
    if candidates is None and protocol in TUNED_PROTOCOLS:
        return [], details
    if level == "study":
        features, n_missing = cohort.pool_by_study(features)
        rows = np.unique(cohort.study_codes, return_index=True)[1]
        cohort = cohort.by_study()
        details = {"n_missing_families": int(n_missing[cohort.split == Split.TEST].sum())}
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
        data = [ProbeData(features[of], cohort.labels[of]) for of in (bank, val, test)]
        probed = candidates or frozen_candidates(data, config, protocol=protocol, task=archive.task)
        if probed is None:
            return [], details
        parts, part_rows = [cohort.take(val), cohort.take(test)], [rows[val], rows[test]]
        if level in SCORE_POOLING:
            how, codes = SCORE_POOLING[level], [part.study_codes for part in parts]
            pooled = [pool_scores(s, study_codes=c, how=how) for s, c in zip((probed.val, probed.test), codes)]
            probed = replace(probed, val=pooled[0], test=pooled[1])
            part_rows = [of[np.unique(c, return_index=True)[1]] for of, c in zip(part_rows, codes)]
            parts = [part.by_study() for part in parts]
        folds.append(Fold(probed, val=parts[0], test=parts[1], val_rows=part_rows[0], test_rows=part_rows[1]))
    return folds, details


def _samples(
    folds: Sequence[Fold], chosen: Sequence[int], columns: Sequence[int], *, task: str, bootstrap: PatientBootstrap
) -> dict[str, LabelSamples]:
    """Metric -> its resamples for the label columns, mean over folds."""
    found = [fold.label_samples(place, columns, bootstrap=bootstrap) for fold, place in zip(folds, chosen, strict=True)]
    metrics = METRICS
    if task == MULTICLASS:
        classes = [fold.class_samples(place, columns, bootstrap=bootstrap) for fold, place in zip(folds, chosen)]
        found = [labels | extra for labels, extra in zip(found, classes, strict=True)]
        metrics = (*METRICS, *CLASS_METRICS)
    return {metric: average([part[metric] for part in found]) for metric in metrics}


def _predictions(
    folds: Sequence[Fold],
    chosen: Sequence[int],
    columns: Sequence[int],
    *,
    archive: LabelledImages,
    names: tuple[str, str, str],
) -> Predictions:
    """The scores of the chosen candidates on validation and test."""
    level, group, protocol = names
    rows, cohorts, scores, fold_numbers = [], [], [], []
    for number, (fold, place) in enumerate(zip(folds, chosen, strict=True)):
        for part, of_rows, found in (
            (fold.val, fold.val_rows, fold.candidates.val[place]),
            (fold.test, fold.test_rows, fold.candidates.test[place]),
        ):
            rows.append(of_rows)
            cohorts.append(part)
            scores.append(found[:, columns])
            fold_numbers.append(np.full(len(of_rows), number))
    at = np.concatenate(rows)
    return Predictions(
        level=level,
        group=group,
        protocol=protocol,
        label_names=tuple(archive.label_names[column] for column in columns),
        are_logits=folds[0].candidates.are_logits,
        fold=np.concatenate(fold_numbers),
        rows=at,
        split=np.concatenate([part.split for part in cohorts]),
        case_ids=archive.id_of("study" if level.startswith("study") else "image")[at],
        patient_ids=archive.id_of("patient")[at],
        patient_codes=np.concatenate([part.patient_codes for part in cohorts]),
        labels=np.concatenate([part.labels[:, columns] for part in cohorts]),
        scores=np.concatenate(scores),
    )
