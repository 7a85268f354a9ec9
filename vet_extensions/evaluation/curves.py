"""Curves over the amount of labels as measurements of a suite: a row for every size of `fewshot`. `scoring.measure` calls it.

The protocol "few_shot" gives rows "few_shot_1", "few_shot_2", ... (patients a label), "label_share" gives "label_share_0.1", ...
(share of the training patients). Both judge images. A row's interval is over the test patients; the spread over the draws is its
`draw_std`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vet_extensions.evaluation.cohort import Cohort
from vet_extensions.evaluation.fewshot import curve_points, draw_shares, draw_shots
from vet_extensions.evaluation.metrics import METRICS
from vet_extensions.evaluation.probes import ProbeData
from vet_extensions.evaluation.results import Measured, Measurement
from vet_extensions.evaluation.statistics import PatientBootstrap
from vet_extensions.evaluation.suite_config import SuiteConfig
from vet_extensions.schema import Split

FEW_SHOT, LABEL_SHARE, RESOLUTION = "few_shot", "label_share", "resolution"
CURVES = (FEW_SHOT, LABEL_SHARE)
CURVE_LEVEL = "image"


def measure_curve(
    features: NDArray[np.floating],
    cohort: Cohort,
    config: SuiteConfig,
    *,
    protocol: str,
    label_names: Sequence[str],
    groups: Mapping[str, Sequence[int]],
    bootstrap: PatientBootstrap,
) -> dict[Measurement, Measured]:
    """Every size, group and metric of one curve; nothing where the training or the test split is empty."""
    bank, test = (cohort.split == split for split in (Split.TRAIN, Split.TEST))
    if not bank.any() or not test.any():
        return {}
    settings, patients = config.few_shot, cohort.patient_codes
    if protocol == FEW_SHOT:
        draws = draw_shots(
            cohort.labels[bank], patient_codes=patients[bank], shots=settings.shots, n_draws=settings.n_draws, seed=settings.seed
        )  # fmt: skip
    else:
        draws = draw_shares(
            patient_codes=patients[bank], shares=settings.shares, n_draws=settings.n_draws, seed=settings.seed
        )
    points = curve_points(
        ProbeData(features[bank], cohort.labels[bank]),
        bank_patients=patients[bank],
        test=ProbeData(features[test], cohort.labels[test]),
        test_patients=patients[test],
        draws=draws,
        bootstrap=bootstrap,
        c=settings.c,
    )
    measured: dict[Measurement, Measured] = {}
    for size, point in points.items():
        facts = {
            "n_draws": len(draws[size]),
            "bank_rows": point.n_rows,
            "bank_patients": point.n_patients,
            "C": settings.c,
        }
        for group, columns in groups.items():
            for metric in METRICS:
                spread = point.draw_std(metric, columns=columns)
                measured[CURVE_LEVEL, group, f"{protocol}_{size:g}", metric] = Measured(
                    samples=point.samples(metric, columns=columns),
                    labels=tuple(label_names[column] for column in columns),
                    n_images=int(test.sum()),
                    n_patients=len(np.unique(patients[test])),
                    chosen={} if np.isnan(spread) else {"draw_std": [spread]},
                    config=facts,
                )
    return measured
