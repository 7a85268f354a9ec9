"""The shortcut meter: can view, species, body part or laterality be read from the features, and do they alone predict the labels?

The audit calls `read_facts` for every subject; the suite judges `fact_features` as the control "metadata", as if they were the
features of a backbone. A fact that can be read is no fault by itself. It becomes a shortcut where the labels go with it: where
the metadata control scores well, a backbone's score may be the fact's.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vet_extensions.evaluation.cohort import Cohort
from vet_extensions.evaluation.logistic import fit_logistic
from vet_extensions.evaluation.metrics import BALANCED_ACCURACY
from vet_extensions.evaluation.statistics import Estimate, PatientBootstrap, macro_estimate
from vet_extensions.schema import Split

METADATA = "metadata"
MIN_PATIENTS = 10
"""Of a value, in train and in test, below which it is not asked for."""

_PENALTY_C = 0.01


@dataclass(frozen=True)
class FactReading:
    """How well one fact is read: balanced accuracy over its values on the test images. chance: 1 / number of values."""

    fact: str
    values: tuple[str, ...]
    n_images: int
    balanced_accuracy: Estimate
    chance: float


def fact_features(facts: Mapping[str, NDArray[np.str_]], *, is_bank: NDArray[np.bool_]) -> NDArray[np.float32] | None:
    """The facts of each image as ones and zeros [n, F], a column for each value that training images have.

    "" (not stated) is a value like others: that something was left out may tell. None where no fact differs among them.
    """
    columns = []
    for texts in facts.values():
        values = np.unique(texts[is_bank])
        if len(values) > 1:
            columns += [texts == value for value in values]
    return np.stack(columns, axis=1).astype(np.float32) if columns else None


def read_facts(
    features: NDArray[np.floating],
    cohort: Cohort,
    facts: Mapping[str, NDArray[np.str_]],
    *,
    bootstrap: PatientBootstrap,
    min_patients: int = MIN_PATIENTS,
    confidence: float = 0.95,
) -> list[FactReading]:
    """Read each fact by logistic regression (one value against the rest, C = 0.01, nothing tuned) fitted on train.

    features: [n, D]. Each value's log-odds are taken relative to how common it is in train, so that rare values are predicted
    too; facts with fewer than two values of enough patients are left out.
    """
    readings = []
    is_train, is_test = cohort.split == Split.TRAIN, cohort.split == Split.TEST
    for fact, texts in facts.items():
        values = [
            str(value)
            for value in np.unique(texts)
            if value
            and min(_n_patients(cohort, part & (texts == value)) for part in (is_train, is_test)) >= min_patients
        ]
        if len(values) < 2:
            continue
        counted = np.isin(texts, values)
        labels = (texts[:, None] == np.array(values)).astype(np.int8)
        train, test = is_train & counted, is_test & counted
        model = fit_logistic(features[train], labels=labels[train], c_grid=(_PENALTY_C,))
        share = labels[train].mean(axis=0)
        scores = model.scores(features[test])[0] - np.log(share / (1 - share))
        samples = bootstrap.class_samples(scores, labels=labels[test], patient_codes=cohort.patient_codes[test])
        estimate = macro_estimate(samples[BALANCED_ACCURACY], confidence=confidence)
        readings.append(FactReading(fact, tuple(values), int(test.sum()), estimate, 1 / len(values)))
    return readings


def _n_patients(cohort: Cohort, rows: NDArray[np.bool_]) -> int:
    return len(np.unique(cohort.patient_codes[rows]))
