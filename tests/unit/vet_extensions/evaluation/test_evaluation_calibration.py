"""Calibration against plain loops and scikit-learn: bins of equal mass, a temperature from validation alone, honest floors."""

import math

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import brier_score_loss

from vet_extensions.evaluation.calibration import (
    brier_scores,
    calibrate,
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


def test_true_probabilities_show_the_error_that_chance_alone_gives() -> None:
    log_odds, labels = drawn(600)
    given = predictions(log_odds, labels, n_val=100)
    found = calibrate(given, bootstrap=PatientBootstrap(given.patient_codes[100:], n_resamples=20))
    assert found is not None
    assert found.ece_if_perfect > 0.02
    assert found.ece == pytest.approx(found.ece_if_perfect, abs=0.03)


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
