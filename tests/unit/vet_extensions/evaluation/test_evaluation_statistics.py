"""Intervals over patients: whole patients are drawn, differences are paired, nothing is counted twice."""

import numpy as np
import pytest

from vet_extensions.errors import UserError
from vet_extensions.evaluation import statistics
from vet_extensions.evaluation.metrics import ACCURACY, AUROC, AVERAGE_PRECISION, label_metrics, macro
from vet_extensions.evaluation.statistics import (
    LabelSamples,
    PatientBootstrap,
    average,
    bootstrap_difference,
    bootstrap_macro,
    bootstrap_p,
    macro_difference,
    macro_estimate,
)

N_PATIENTS, N_LABELS = 80, 3


def scores_and_labels(*, signal: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two images a patient, labels by patient: scores [160, 3], labels [160, 3], patient codes [160] (not consecutive)."""
    generator = np.random.default_rng(seed)
    codes = np.repeat(np.arange(N_PATIENTS) * 7 + 3, 2)
    labels = np.repeat((generator.random((N_PATIENTS, N_LABELS)) < 0.3).astype(np.int8), 2, axis=0)
    return generator.normal(size=labels.shape) + signal * labels, labels, codes


def test_the_value_is_the_macro_average_on_the_images_as_they_are() -> None:
    scores, labels, codes = scores_and_labels()
    estimate = bootstrap_macro(scores, labels=labels, patient_codes=codes, metric=AVERAGE_PRECISION, n_resamples=50)
    expected, _ = macro(label_metrics(scores, labels=labels)[AVERAGE_PRECISION][:, 0])
    assert estimate.value == pytest.approx(expected)
    assert estimate.low < estimate.value < estimate.high
    assert estimate.n_labels == N_LABELS


def test_a_resample_is_the_metric_of_the_drawn_patients_images() -> None:
    scores, labels, codes = scores_and_labels()
    bootstrap = PatientBootstrap(codes, n_resamples=5, seed=3)
    samples = bootstrap.label_samples(scores, labels=labels, patient_codes=codes)[AUROC].samples
    for resample in range(5):
        counts = bootstrap.counts[:, resample].astype(int)
        assert counts.sum() == N_PATIENTS
        rows = np.concatenate([np.repeat(np.flatnonzero(codes == p), c) for p, c in zip(bootstrap.patients, counts)])
        by_hand = label_metrics(scores[rows], labels=labels[rows])[AUROC][:, 0]
        np.testing.assert_allclose(samples[resample], by_hand, atol=1e-6)


def test_copies_of_a_patients_images_do_not_narrow_the_interval() -> None:
    scores, labels, codes = scores_and_labels()
    once = bootstrap_macro(scores, labels=labels, patient_codes=codes, metric=AUROC, n_resamples=200)
    tripled = (np.tile(x, (3, 1)) for x in (scores, labels))
    scores_3, labels_3 = tripled
    thrice = bootstrap_macro(scores_3, labels=labels_3, patient_codes=np.tile(codes, 3), metric=AUROC, n_resamples=200)
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))


def test_the_difference_of_two_rankings_that_agree_is_exactly_zero() -> None:
    scores, labels, codes = scores_and_labels()
    estimate = bootstrap_difference(
        scores, second_scores=scores * 2 + 1, labels=labels, patient_codes=codes, metric=AUROC, n_resamples=100
    )
    assert (estimate.low, estimate.value, estimate.high) == (0, 0, 0)


def test_a_paired_difference_is_narrower_than_its_parts_where_the_scores_share_their_noise() -> None:
    scores, labels, codes = scores_and_labels()
    better = scores + 0.3 * labels
    given = {"labels": labels, "patient_codes": codes, "metric": AUROC, "n_resamples": 300}
    difference = bootstrap_difference(better, second_scores=scores, **given)
    alone = bootstrap_macro(better, **given)
    assert difference.low > 0
    assert difference.high - difference.low < alone.high - alone.low


def test_a_label_without_positives_is_left_out_and_reported() -> None:
    scores, labels, codes = scores_and_labels()
    labels[:, 1] = 0
    estimate = bootstrap_macro(scores, labels=labels, patient_codes=codes, metric=AUROC, n_resamples=20)
    assert estimate.skipped == (1,)
    assert estimate.n_labels == N_LABELS - 1


def test_no_measurable_label_gives_nan_instead_of_a_number() -> None:
    scores, labels, codes = scores_and_labels()
    estimate = bootstrap_macro(scores, labels=np.zeros_like(labels), patient_codes=codes, metric=AUROC, n_resamples=5)
    assert np.isnan([estimate.value, estimate.low, estimate.high]).all()


def test_seeds_are_averaged_within_each_resample() -> None:
    first = LabelSamples(np.array([0.5]), np.array([[0.4], [0.6]]))
    second = LabelSamples(np.array([0.7]), np.array([[0.8], [0.6]]))
    mean = average([first, second])
    estimate = macro_estimate(mean)
    assert mean.samples[:, 0] == pytest.approx([0.6, 0.6])
    assert estimate.high - estimate.low == pytest.approx(0)


def test_the_same_seed_draws_the_same_patients_and_another_seed_others() -> None:
    _, _, codes = scores_and_labels()
    counts = [PatientBootstrap(codes, n_resamples=3, seed=seed).counts for seed in (1, 1, 2)]
    assert (counts[0] == counts[1]).all()
    assert (counts[0] != counts[2]).any()


def test_working_in_blocks_changes_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, labels, codes = scores_and_labels()
    bootstrap = PatientBootstrap(codes, n_resamples=70)
    whole = bootstrap.label_samples(scores, labels=labels, patient_codes=codes)[AUROC].samples
    monkeypatch.setattr(statistics, "_BLOCK_ELEMENTS", 160 * 16)
    blocked = bootstrap.label_samples(scores, labels=labels, patient_codes=codes)[AUROC].samples
    np.testing.assert_allclose(blocked, whole, atol=1e-7)


def test_unknown_metrics_and_empty_test_sets_are_refused() -> None:
    scores, labels, codes = scores_and_labels()
    with pytest.raises(UserError, match="auroc, average_precision"):
        bootstrap_macro(scores, labels=labels, patient_codes=codes, metric="accuracy", n_resamples=2)
    with pytest.raises(UserError, match="no patient"):
        PatientBootstrap(np.array([], dtype=np.int64))


def test_the_p_value_of_two_rankings_that_agree_is_one() -> None:
    scores, labels, codes = scores_and_labels()
    first, second = (
        PatientBootstrap(codes, n_resamples=50).label_samples(given, labels=labels, patient_codes=codes)[AUROC]
        for given in (scores, 3 * scores)
    )
    assert bootstrap_p(first, second) == 1


def test_the_p_value_says_what_the_interval_says() -> None:
    generator = np.random.default_rng(5)
    noise = generator.normal(size=(4000, 1))
    for shift, is_told_apart in ((0.5, False), (3.5, True)):
        first = LabelSamples(np.array([shift]), noise + shift)
        second = LabelSamples(np.array([0.0]), np.zeros((4000, 1)))
        estimate = macro_difference(first, second)
        assert (estimate.low > 0) is is_told_apart
        assert (bootstrap_p(first, second) < 0.05) is is_told_apart


def test_without_a_difference_about_one_test_in_twenty_is_an_alarm() -> None:
    alarms, n_draws = 0, 300
    for seed in range(n_draws):
        generator = np.random.default_rng(seed)
        codes, labels = np.repeat(np.arange(60), 2), np.repeat((np.arange(60) % 2)[:, None], 2, axis=0)
        bootstrap = PatientBootstrap(codes, n_resamples=100, seed=seed)
        first, second = (
            bootstrap.label_samples(
                labels + np.repeat(generator.normal(size=(60, 1)), 2, axis=0), labels=labels, patient_codes=codes
            )[AUROC]
            for _ in range(2)
        )
        alarms += bootstrap_p(first, second) < 0.05
    assert 0.015 < alarms / n_draws < 0.095


def test_the_accuracy_of_classes_is_resampled_by_patient_too() -> None:
    generator = np.random.default_rng(0)
    truth, codes = generator.integers(0, 3, 90), np.repeat(np.arange(30), 3)
    scores = generator.normal(size=(90, 3)) + np.eye(3)[truth]
    bootstrap = PatientBootstrap(codes, n_resamples=3)
    found = bootstrap.class_samples(scores, labels=np.eye(3, dtype=np.int8)[truth], patient_codes=codes)
    for resample in range(3):
        counts = bootstrap.counts[:, resample].astype(int)
        rows = np.concatenate([np.repeat(np.flatnonzero(codes == p), c) for p, c in enumerate(counts)])
        right = scores[rows].argmax(axis=1) == truth[rows]
        assert found[ACCURACY].samples[resample, 0] == pytest.approx(right.mean())
