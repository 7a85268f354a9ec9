"""The analytic test of AUROCs against loops over all pairs, against another package's numbers, and against the bootstrap."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from vet_extensions.evaluation.delong import CorrelatedAurocs, correlated_aurocs
from vet_extensions.evaluation.metrics import AUROC
from vet_extensions.evaluation.statistics import PatientBootstrap

WORKED_LABELS = np.array([1, 0, 1, 1, 0, 0, 1, 0, 1, 0, 0, 1, 0, 1, 0, 0])
WORKED_SCORES = np.array(
    [
        [0.9, 0.2, 0.6, 0.7, 0.4, 0.3, 0.8, 0.5, 0.35, 0.1, 0.45, 0.55, 0.65, 0.5, 0.15, 0.25],
        [0.6, 0.3, 0.5, 0.8, 0.7, 0.2, 0.4, 0.55, 0.3, 0.35, 0.1, 0.9, 0.6, 0.45, 0.5, 0.05],
    ]
).T


def noisy(
    n_patients: int = 60, *, per_patient: int = 3, seed: int = 0, signals: tuple[float, ...] = (1.0, 0.8)
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores [n, K] rounded to make ties, labels [n] that differ within patients, patient codes [n]."""
    generator = np.random.default_rng(seed)
    codes = np.repeat(np.arange(n_patients) * 5 + 2, per_patient)
    of_patient = np.repeat(generator.normal(size=(n_patients, 1)), per_patient, axis=0)
    labels = (generator.random(len(codes)) < 0.4).astype(np.int8)
    noise = generator.normal(size=(len(codes), len(signals)))
    return np.round(of_patient + noise + labels[:, None] * np.array(signals), 1), labels, codes


def by_pairs(scores: np.ndarray, labels: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Obuchowski's covariance as the paper writes it: loops over pairs for the components, and over patients for the sums."""
    positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    m, n, sets = len(positive), len(negative), scores.shape[1]
    wins = np.zeros((m, n, sets))
    for i, one in enumerate(positive):
        for j, other in enumerate(negative):
            wins[i, j] = (scores[one] > scores[other]) + 0.5 * (scores[one] == scores[other])
    area, v10, v01 = wins.mean(axis=(0, 1)), wins.mean(axis=1), wins.mean(axis=0)
    patients = sorted(set(codes.tolist()))
    with_positive, with_negative = len(set(codes[positive])), len(set(codes[negative]))
    covariance = np.zeros((sets, sets))
    for k in range(sets):
        for q in range(sets):
            s10 = s01 = s11 = s11_turned = 0.0
            for patient in patients:
                ours, others = codes[positive] == patient, codes[negative] == patient
                x = [(v10[ours, r] - area[r]).sum() for r in (k, q)]
                y = [(v01[others, r] - area[r]).sum() for r in (k, q)]
                s10, s01 = s10 + x[0] * x[1], s01 + y[0] * y[1]
                s11, s11_turned = s11 + x[0] * y[1], s11_turned + x[1] * y[0]
            s10 *= with_positive / ((with_positive - 1) * m)
            s01 *= with_negative / ((with_negative - 1) * n)
            both = len(patients) / (len(patients) - 1) * (s11 + s11_turned)
            covariance[k, q] = s10 / m + s01 / n + both / (m * n)
    return covariance


def test_the_areas_are_those_of_scikit_learn() -> None:
    scores, labels, codes = noisy()
    expected = [roc_auc_score(labels, column) for column in scores.T]
    np.testing.assert_allclose(correlated_aurocs(scores, labels=labels, patient_codes=codes).values, expected)


@pytest.mark.parametrize("per_patient", [1, 3])
def test_the_clustered_covariance_is_the_one_of_loops_over_all_pairs(per_patient: int) -> None:
    scores, labels, codes = noisy(30, per_patient=per_patient, signals=(1.0, 0.7, 0.0))
    found = correlated_aurocs(scores, labels=labels, patient_codes=codes).covariance
    np.testing.assert_allclose(found, by_pairs(scores, labels, codes), rtol=1e-10)


def test_with_one_row_a_patient_it_is_the_covariance_of_structural_components() -> None:
    scores, labels, codes = noisy(50, per_patient=1)
    wins = (scores[labels == 1][:, None] > scores[labels == 0]) + 0.5 * (
        scores[labels == 1][:, None] == scores[labels == 0]
    )
    v10, v01 = wins.mean(axis=1), wins.mean(axis=0)
    expected = np.cov(v10.T) / len(v10) + np.cov(v01.T) / len(v01)
    for patients in (None, codes):
        found = correlated_aurocs(scores, labels=labels, patient_codes=patients)
        np.testing.assert_allclose(found.covariance, expected, rtol=1e-10)


def test_the_p_value_of_two_rankings_is_the_one_that_another_package_gives() -> None:
    """MLstatkit 0.1.91, Delong_test, for the worked scores (its z counts the other way round)."""
    found = correlated_aurocs(WORKED_SCORES, labels=WORKED_LABELS)
    test = found.contrast((1.0, -1.0))
    z = test.value / math.sqrt(np.array([1, -1]) @ found.covariance @ np.array([1, -1]))
    assert z == pytest.approx(1.6218615177038689, abs=1e-9)
    assert test.p == pytest.approx(0.10483300285833884, abs=1e-9)


def test_copies_of_a_patients_rows_do_not_narrow_the_interval_but_do_where_rows_are_taken_for_independent() -> None:
    scores, labels, codes = noisy(40, per_patient=1)
    once = correlated_aurocs(scores, labels=labels, patient_codes=codes).covariance
    three = [np.repeat(x, 3, axis=0) for x in (scores, labels, codes)]
    clustered = correlated_aurocs(three[0], labels=three[1], patient_codes=three[2]).covariance
    np.testing.assert_allclose(clustered, once, rtol=1e-9)
    assert (np.diag(correlated_aurocs(three[0], labels=three[1]).covariance) < 0.4 * np.diag(once)).all()


def test_the_standard_error_of_a_difference_is_close_to_the_patient_bootstraps() -> None:
    scores, labels, codes = noisy(150, per_patient=4)
    covariance = correlated_aurocs(scores, labels=labels, patient_codes=codes).covariance
    bootstrap = PatientBootstrap(codes, n_resamples=2000)
    samples = bootstrap.label_samples(scores, labels=np.stack([labels, labels], axis=1), patient_codes=codes)[AUROC]
    analytic = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert analytic == pytest.approx(np.std(samples.samples[:, 0] - samples.samples[:, 1]), rel=0.08)


def test_under_no_difference_one_test_in_twenty_is_an_alarm_when_patients_are_known_and_more_when_they_are_not() -> (
    None
):
    alarms = np.zeros(2)
    n_draws = 400
    for seed in range(n_draws):
        generator = np.random.default_rng(seed)
        codes = np.repeat(np.arange(60), 4)
        labels = np.repeat(np.arange(60) % 2, 4)
        shared = np.repeat(generator.normal(size=(60, 2)), 4, axis=0)  # each score set errs on patients, not on rows
        scores = labels[:, None] + shared + 0.3 * generator.normal(size=(240, 2))
        for place, patients in enumerate((codes, None)):
            found = correlated_aurocs(scores, labels=labels, patient_codes=patients)
            alarms[place] += found.contrast((1, -1)).p < 0.05
    assert 0.02 < alarms[0] / n_draws < 0.09
    assert alarms[1] / n_draws > 0.2


def test_equal_rankings_differ_by_nothing_and_have_p_one() -> None:
    scores, labels, codes = noisy()
    twice = np.stack([scores[:, 0], 2 * scores[:, 0] + 1], axis=1)
    test = correlated_aurocs(twice, labels=labels, patient_codes=codes).contrast((1, -1))
    assert (test.value, test.p) == (0, 1)
    assert math.isnan(test.low)


def test_rows_that_are_uncertain_or_missing_do_not_count() -> None:
    scores, labels, codes = noisy()
    more = np.concatenate([labels, np.array([-1, -128])])
    extended = np.concatenate([scores, np.full((2, 2), 9.0)])
    found = correlated_aurocs(extended, labels=more, patient_codes=np.append(codes, [900, 901]))
    np.testing.assert_array_equal(
        found.covariance, correlated_aurocs(scores, labels=labels, patient_codes=codes).covariance
    )


@pytest.mark.parametrize("labels", [np.zeros(6, dtype=np.int8), np.array([1, 0, 0, 0, 0, 0], dtype=np.int8)])
def test_what_cannot_be_estimated_is_nan(labels: np.ndarray) -> None:
    found: CorrelatedAurocs = correlated_aurocs(np.random.default_rng(0).random((6, 2)), labels=labels)
    assert math.isnan(found.contrast((1, -1)).p)
