"""Calibration against plain loops and scikit-learn: bins of equal mass, a temperature from validation alone, honest floors."""

import math

import numpy as np
import pytest
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from vet_extensions.evaluation.calibration import (
    brier_scores,
    calibrate,
    error_beyond_chance,
    expected_calibration_error,
    fit_temperature,
    reliability_curve,
)
from vet_extensions.evaluation.scoring import Predictions
from vet_extensions.evaluation.statistics import PatientBootstrap


def predictions(log_odds: np.ndarray, labels: np.ndarray, *, n_val: int, are_logits: bool = True) -> Predictions:
    n = len(labels)
    codes = np.arange(n)
    return Predictions(
        level="image",
        group="all",
        protocol="linear",
        label_names=tuple("abcdef"[: labels.shape[1]]),
        are_logits=are_logits,
        fold=np.zeros(n, dtype=int),
        rows=codes,
        split=np.array(["val"] * n_val + ["test"] * (n - n_val)),
        case_ids=codes.astype(str),
        patient_ids=codes.astype(str),
        patient_codes=codes,
        labels=labels,
        scores=log_odds,
    )


def drawn(n: int = 3000, *, overconfidence: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds [n, 2], too large by a factor, and labels [n, 2] drawn from the true ones."""
    generator = np.random.default_rng(seed)
    true = generator.normal(-0.5, 1.5, size=(n, 2))
    return overconfidence * true, (generator.random((n, 2)) < expit(true)).astype(np.int8)


def test_the_error_is_the_one_of_a_plain_loop_over_sorted_tenths() -> None:
    log_odds, labels = drawn(500, overconfidence=2.0)
    p, y = expit(log_odds[:, 0]), labels[:, 0]
    tenths = np.array_split(np.argsort(p), 10)
    expected = sum(len(rows) / 500 * abs(p[rows].mean() - y[rows].mean()) for rows in tenths)
    assert expected_calibration_error(p, y, n_bins=10) == pytest.approx(expected)


def test_the_error_is_the_mean_distance_of_scikit_learns_reliability_curve() -> None:
    log_odds, labels = drawn(600, overconfidence=2.0)
    p, y = expit(log_odds[:, 0]), labels[:, 0]
    observed, predicted = calibration_curve(y, p, n_bins=10, strategy="quantile")
    assert expected_calibration_error(p, y, n_bins=10) == pytest.approx(np.abs(observed - predicted).mean())


def plain_gaps(p: np.ndarray, y: np.ndarray, bins: list[np.ndarray], counts: np.ndarray) -> list[float]:
    """A label's gaps when each case is repeated as often as counts says, case by case."""
    n_known = sum(counts[rows].sum() for rows in bins)
    return [float(sum(counts[row] * (p[row] - y[row]) for row in rows) / n_known) for rows in bins]


def test_the_interval_of_the_error_is_the_one_of_a_plain_loop_over_resamples_and_factors() -> None:
    log_odds, labels = drawn(240, overconfidence=2.5)
    labels[::6, 0] = -128
    p, patients = expit(log_odds), np.repeat(np.arange(80), 3)
    bootstrap = PatientBootstrap(patients, n_resamples=80)
    resamples = [np.ones(240), *(bootstrap.counts[patients, r] for r in range(80))]
    found = error_beyond_chance(p, labels=labels, patient_codes=patients, bootstrap=bootstrap, n_bins=5)

    rows_of = [np.flatnonzero(labels[:, column] >= 0) for column in (0, 1)]
    bins = [np.array_split(rows[np.argsort(p[rows, column])], 5) for column, rows in enumerate(rows_of)]
    gaps = np.array(
        [[plain_gaps(p[:, c], labels[:, c], bins[c], counts) for c in (0, 1)] for counts in resamples]
    )  # [1 + R, 2, 5]
    noise, observed = gaps[1:] - gaps[0], np.abs(gaps[0]).sum(axis=1).mean()
    factors = np.linspace(0, 3, 3001)
    errors = [np.abs(factor * gaps[0] + noise).sum(axis=2).mean(axis=1) for factor in factors]
    for end, share in ((found.value, 0.5), (found.low, 0.975), (found.high, 0.025)):
        first = next(f for f, e in zip(factors, errors, strict=True) if np.quantile(e, share) >= observed)
        assert end == pytest.approx(first * observed, abs=0.002 * observed)
    assert found.low < found.value < found.high


@pytest.mark.parametrize(("overconfidence", "truth"), [(1.0, 0.0), (2.0, 0.0997)])
def test_the_interval_holds_the_true_error_where_percentiles_of_resamples_lie_above_it(
    overconfidence: float, truth: float
) -> None:
    n_held = n_percentiles_held = 0
    for seed in range(30):
        log_odds, labels = drawn(200, overconfidence=overconfidence, seed=seed)
        p, bootstrap = expit(log_odds), PatientBootstrap(np.arange(200), n_resamples=200, seed=seed)
        found = error_beyond_chance(p, labels=labels, patient_codes=np.arange(200), bootstrap=bootstrap)
        n_held += found.low <= truth <= found.high
        drawn_again = [np.repeat(np.arange(200), bootstrap.counts[:, r].astype(int)) for r in range(100)]
        errors = [
            np.mean([expected_calibration_error(p[rows, c], labels[rows, c]) for c in (0, 1)]) for rows in drawn_again
        ]
        n_percentiles_held += np.quantile(errors, 0.025) <= truth <= np.quantile(errors, 0.975)
    assert n_held >= 26
    assert n_percentiles_held <= 15


def test_the_error_beyond_chance_skips_labels_without_cases_or_probabilities() -> None:
    log_odds, labels = drawn(100, overconfidence=3.0)
    p, bootstrap = expit(log_odds), PatientBootstrap(np.arange(100), n_resamples=50)
    alone = error_beyond_chance(p[:, :1], labels=labels[:, :1], patient_codes=np.arange(100), bootstrap=bootstrap)
    p[3, 1] = np.nan
    beside = error_beyond_chance(p, labels=labels, patient_codes=np.arange(100), bootstrap=bootstrap)
    assert (beside.value, beside.low, beside.high, beside.skipped) == (alone.value, alone.low, alone.high, (1,))
    labels[:] = -1
    none = error_beyond_chance(p, labels=labels, patient_codes=np.arange(100), bootstrap=bootstrap)
    assert math.isnan(none.value)
    assert none.skipped == (0, 1)


def test_bins_of_the_curve_hold_equally_many_cases() -> None:
    log_odds, labels = drawn(300)
    curve = reliability_curve(expit(log_odds[:, 0]), labels[:, 0], n_bins=10)
    assert [b.n for b in curve] == [30] * 10
    assert [b.predicted for b in curve] == sorted(b.predicted for b in curve)


def test_equal_scores_share_a_bin_whatever_their_order() -> None:
    p, y = np.repeat([0.1, 0.6], 50), np.tile([0, 1], 50).astype(np.int8)
    for order in (np.arange(100), np.random.default_rng(0).permutation(100)):
        assert expected_calibration_error(p[order], y[order]) == pytest.approx(0.5 * 0.4 + 0.5 * 0.1)


def test_the_brier_score_is_scikit_learns_and_leaves_unknown_cases_out() -> None:
    log_odds, labels = drawn(200)
    labels[:20, 0] = -1
    labels[20:40, 1] = -128
    p = expit(log_odds)
    found = brier_scores(p, labels=labels)[:, 0]
    for column, known in ((0, slice(20, None)), (1, np.r_[0:20, 40:200])):
        assert found[column] == pytest.approx(brier_score_loss(labels[known, column], p[known, column]))


def test_the_temperature_is_the_best_of_a_fine_grid_and_recovers_the_overconfidence() -> None:
    log_odds, labels = drawn(overconfidence=3.0)
    grid = np.exp(np.linspace(-1, 2.5, 2001))
    losses = [(np.logaddexp(0, log_odds / t) - labels * log_odds / t).mean() for t in grid]
    found = fit_temperature(log_odds, labels=labels)
    assert found == pytest.approx(grid[np.argmin(losses)], rel=0.01)
    assert found == pytest.approx(3.0, rel=0.1)


def test_the_temperature_mends_the_test_scores_without_having_seen_them() -> None:
    log_odds, labels = drawn(overconfidence=4.0)
    given = predictions(log_odds, labels, n_val=1000)
    bootstrap = PatientBootstrap(given.patient_codes[given.split == "test"], n_resamples=50)
    found = calibrate(given, bootstrap=bootstrap)
    assert found is not None
    assert found.scaled_ece < 0.5 * found.ece
    assert found.scaled_brier.value < found.brier.low
    turned = labels.copy()
    turned[1000:] = 1 - turned[1000:]
    other = calibrate(predictions(log_odds, turned, n_val=1000), bootstrap=bootstrap)
    assert other is not None
    assert other.temperature == found.temperature


def test_the_error_of_true_probabilities_is_above_zero_and_none_of_it_is_beyond_chance() -> None:
    log_odds, labels = drawn(600)
    given = predictions(log_odds, labels, n_val=100)
    found = calibrate(given, bootstrap=PatientBootstrap(given.patient_codes[100:], n_resamples=200))
    assert found is not None
    assert found.ece > 0.02
    assert found.ece_beyond_chance.low == 0.0
    assert found.ece_beyond_chance.value < 0.5 * found.ece


def test_shares_are_probabilities_as_they_are_and_other_scores_are_not_judged() -> None:
    log_odds, labels = drawn(400)
    bootstrap = PatientBootstrap(np.arange(100, 400), n_resamples=20)
    shares = calibrate(predictions(expit(log_odds), labels, n_val=100, are_logits=False), bootstrap=bootstrap)
    logits = calibrate(predictions(log_odds, labels, n_val=100), bootstrap=bootstrap)
    assert shares is not None
    assert logits is not None
    assert shares.ece == pytest.approx(logits.ece, abs=1e-3)
    assert calibrate(predictions(10 * log_odds, labels, n_val=100, are_logits=False), bootstrap=bootstrap) is None


def test_without_both_outcomes_in_validation_there_is_no_temperature() -> None:
    assert math.isnan(fit_temperature(np.zeros((5, 1)), labels=np.zeros((5, 1), dtype=np.int8)))
