"""From one set of features to its measurements: every level, group of labels, protocol and metric, and the scores behind them.

The suite calls `measure` for every subject. A fold is one bank and one set of queries; its probe's candidates are chosen among
on the validation rows, and the test rows of the chosen one are measured and kept (`Predictions`), so that results can be tested
against each other, calibrated and looked at by subgroup afterwards.

Shape legend: n images, L labels, D feature width, G candidates, m rows of a measurement (validation and test, all folds).
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vet_extensions.evaluation.cohort import MULTICLASS, LabelledImages
from vet_extensions.evaluation.curves import CURVE_LEVEL, CURVES, RESOLUTION, measure_curve
from vet_extensions.evaluation.feature_set import FeatureSet
from vet_extensions.evaluation.finetune import Tuned
from vet_extensions.evaluation.folds import Fold, make_folds
from vet_extensions.evaluation.metrics import ACCURACY, CLASS_METRICS, METRICS
from vet_extensions.evaluation.pooling_config import POOLING_LEVEL, POOLING_PROTOCOLS
from vet_extensions.evaluation.results import Measured, Measurement
from vet_extensions.evaluation.retrieval import RETRIEVAL, measure_retrieval
from vet_extensions.evaluation.statistics import LabelSamples, PatientBootstrap, average
from vet_extensions.evaluation.suite_config import SuiteConfig
from vet_extensions.evaluation.tuning_config import TUNED_LEVELS, TUNED_PROTOCOLS
from vet_extensions.schema import FINDINGS, GROSS_FINDINGS

logger = logging.getLogger("vet_extensions")


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


def measure(
    features: FeatureSet,
    archive: LabelledImages,
    config: SuiteConfig,
    *,
    bootstrap: PatientBootstrap,
    on_predictions: Callable[[Predictions], None] | None = None,
    tuned: Callable[[str], Tuned] | None = None,
) -> dict[Measurement, Measured]:
    """Every level, group, protocol and metric of the features of one subject.

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
                        features.vectors, archive.cohort, config, protocol=protocol, label_names=archive.label_names,
                        groups=groups, bootstrap=bootstrap,
                    )  # fmt: skip
                continue
            if protocol == RETRIEVAL:
                measured |= measure_retrieval(
                    features.vectors, archive.cohort, level=level, label_names=archive.label_names, groups=groups,
                    bootstrap=bootstrap,
                )  # fmt: skip
                continue
            if protocol in POOLING_PROTOCOLS and level != POOLING_LEVEL:
                continue
            training = None
            if protocol in TUNED_PROTOCOLS:
                if tuned is None or level not in TUNED_LEVELS:
                    continue
                training = tuned(protocol)
            for name, probe, of_probe, facts in _probes(features, config, level=level, protocol=protocol):
                folds, details = make_folds(
                    of_probe, archive, config, level=level, protocol=probe,
                    candidates=None if training is None else training.candidates,
                )  # fmt: skip
                if not folds:
                    logger.warning("level %s, %s: too few images of its views, not measured", level, name)
                    continue
                measured |= _measure_groups(
                    folds, groups, archive, names=(level, name), bootstrap=bootstrap, on_predictions=on_predictions,
                    details={**details, **facts}, training=training,
                )  # fmt: skip
    return measured


def _probes(
    features: FeatureSet, config: SuiteConfig, *, level: str, protocol: str
) -> Iterator[tuple[str, str, FeatureSet, dict[str, int]]]:
    """(name in rows, protocol, features, facts for rows) of a protocol: one, or one for each size of a resolution curve."""
    if protocol != RESOLUTION:
        yield protocol, protocol, features, {}
    elif level == CURVE_LEVEL and features.at_size is not None:
        for size_px in config.resolution.sizes_px:
            vectors, used_px = features.at_size(size_px)
            yield f"{RESOLUTION}_{size_px}", "linear", FeatureSet(vectors), {"image_size_px": used_px}


def _measure_groups(
    folds: Sequence[Fold],
    groups: Mapping[str, Sequence[int]],
    archive: LabelledImages,
    *,
    names: tuple[str, str],
    bootstrap: PatientBootstrap,
    on_predictions: Callable[[Predictions], None] | None,
    details: dict[str, Any],
    training: Tuned | None,
) -> dict[Measurement, Measured]:
    """Each group of labels by the candidates that validation chooses for it. names: level and protocol."""
    level, protocol = names
    measured: dict[Measurement, Measured] = {}
    for group, columns in groups.items():
        chosen = [fold.candidates.select(fold.val.labels, columns=columns) for fold in folds]
        if on_predictions is not None:
            on_predictions(_predictions(folds, chosen, columns, archive=archive, names=(level, group, protocol)))
        described = [fold.candidates.describe(place) for fold, place in zip(folds, chosen, strict=True)]
        found = _samples(folds, chosen, columns, task=archive.task, bootstrap=bootstrap)
        for metric, samples in found.items():
            measured[level, group, protocol, metric] = Measured(
                samples=samples,
                labels=("all classes",) if metric == ACCURACY else tuple(archive.label_names[c] for c in columns),
                n_images=sum(len(fold.test.labels) for fold in folds),
                n_patients=len(np.unique(np.concatenate([fold.test.patient_codes for fold in folds]))),
                chosen={
                    **{key: [one[key] for one in described] for key in described[0]},
                    **({} if training is None else training.row(chosen[0])),
                },
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
            (fold.test, fold.test_rows, fold.test_scores(place)),
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
