"""For whom a score holds: the same metric on the test images of each view, species, body part and laterality, and on the rest.

The audit calls `subgroup_gaps`. A gap is the subgroup's macro AUROC minus that of all other test images, over the labels that
both can measure, paired over the same resampled patients. Subgroups of too few patients are counted and not judged. AUROC: it
does not move with how common a finding is, as average precision does.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vet_extensions.evaluation.metrics import AUROC
from vet_extensions.evaluation.scoring import Predictions
from vet_extensions.evaluation.statistics import (
    Estimate,
    PatientBootstrap,
    bootstrap_p,
    holm,
    macro_difference,
    macro_estimate,
)
from vet_extensions.schema import Split

MIN_PATIENTS = 20
MIN_PATIENTS_A_SIDE = 5
"""Patients with, and without, a finding below which it is left out of a subgroup's average."""


@dataclass(frozen=True)
class Subgroup:
    """One value of one fact among the test rows. score, rest, gap: None where it is not judged, `reason` then says why.

    p: two-sided, of no gap; p_holm: after Holm's correction over the judged subgroups of the measurement.
    """

    fact: str
    value: str
    n_rows: int
    n_patients: int
    score: Estimate | None = None
    rest: Estimate | None = None
    gap: Estimate | None = None
    p: float = math.nan
    p_holm: float = math.nan
    reason: str = ""


def subgroup_gaps(
    predictions: Predictions,
    facts: Mapping[str, NDArray[np.str_]],
    *,
    bootstrap: PatientBootstrap,
    min_patients: int = MIN_PATIENTS,
    confidence: float = 0.95,
) -> list[Subgroup]:
    """Every value of every fact that divides the test rows, facts and values in order.

    facts: name -> [n_images] texts, "" where not stated, which is no subgroup. Facts with one value have none to compare.
    """
    test = predictions.of_split(Split.TEST)
    found = list(_subgroups(test, facts, bootstrap=bootstrap, min_patients=min_patients, confidence=confidence))
    adjusted = holm([subgroup.p for subgroup in found])
    return [replace(subgroup, p_holm=p) for subgroup, p in zip(found, adjusted, strict=True)]


def _subgroups(
    test: Predictions,
    facts: Mapping[str, NDArray[np.str_]],
    *,
    bootstrap: PatientBootstrap,
    min_patients: int,
    confidence: float,
) -> Iterator[Subgroup]:
    for fact, texts in facts.items():
        values = texts[test.rows]
        names = [str(name) for name in np.unique(values) if name]
        for name in names if len(names) > 1 else []:
            inside, outside = test.take(np.flatnonzero(values == name)), test.take(np.flatnonzero(values != name))
            n_patients = [len(np.unique(part.patient_codes)) for part in (inside, outside)]
            subgroup = Subgroup(fact, name, len(inside.rows), n_patients[0])
            columns = np.flatnonzero(_is_measurable(inside) & _is_measurable(outside)).tolist()
            if min(n_patients) < min_patients:
                yield replace(subgroup, reason=f"fewer than {min_patients} patients")
                continue
            if not columns:
                yield replace(subgroup, reason=f"no label with {MIN_PATIENTS_A_SIDE} patients with and without it")
                continue
            samples = [
                bootstrap.label_samples(
                    part.scores[:, columns], labels=part.labels[:, columns], patient_codes=part.patient_codes
                )[AUROC]
                for part in (inside, outside)
            ]
            yield replace(
                subgroup,
                score=macro_estimate(samples[0], confidence=confidence),
                rest=macro_estimate(samples[1], confidence=confidence),
                gap=macro_difference(samples[0], samples[1], confidence=confidence),
                p=bootstrap_p(samples[0], samples[1]),
            )


def _is_measurable(part: Predictions) -> NDArray[np.bool_]:
    """[L], whether a label has enough patients on both sides."""
    return np.array(
        [
            min(len(np.unique(part.patient_codes[part.labels[:, column] == side])) for side in (0, 1))
            >= MIN_PATIENTS_A_SIDE
            for column in range(part.labels.shape[1])
        ]
    )
