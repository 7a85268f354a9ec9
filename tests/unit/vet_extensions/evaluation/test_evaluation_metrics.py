"""Ranking metrics: equal to scikit-learn's, weightable, and silent about no label."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from vet_extensions.evaluation.metrics import (
    AUROC,
    METRICS,
    auroc,
    average_precision,
    is_known,
    label_metrics,
    macro,
)


def scores_and_labels(*, n: int = 200, n_levels: int | None = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Informative scores of one label; n_levels: round the scores so that many are equal."""
    generator = np.random.default_rng(seed)
    labels = (generator.random(n) < 0.2).astype(np.int8)
    scores = generator.normal(size=n) + labels
    if n_levels is not None:
        scores = np.round(scores * n_levels / 6) / n_levels
    return scores, labels


@pytest.mark.parametrize("n_levels", [None, 20, 3, 1])
def test_auroc_equals_scikit_learn_with_and_without_ties(n_levels: int | None) -> None:
    scores, labels = scores_and_labels(n_levels=n_levels)
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)


@pytest.mark.parametrize("n_levels", [None, 20, 3, 1])
def test_average_precision_equals_scikit_learn_with_and_without_ties(n_levels: int | None) -> None:
    scores, labels = scores_and_labels(n_levels=n_levels)
    assert average_precision(scores, labels) == pytest.approx(average_precision_score(labels, scores), abs=1e-6)


@pytest.mark.parametrize("n_weightings", [3, 80])
def test_a_weight_of_two_is_the_same_as_the_image_twice(n_weightings: int) -> None:
    scores, labels = scores_and_labels(n=60, n_levels=10)
    counts = np.random.default_rng(1).integers(0, 3, size=(60, n_weightings))
    weighted = label_metrics(scores[:, None], labels=labels[:, None], weights=counts.astype(np.float32))
    for resample in range(n_weightings):
        rows = np.repeat(np.arange(60), counts[:, resample])
        repeated = label_metrics(scores[rows, None], labels=labels[rows, None])
        for metric in METRICS:
            assert weighted[metric][0, resample] == pytest.approx(repeated[metric][0, 0], abs=1e-6)


def test_missing_and_uncertain_images_count_neither_as_positive_nor_as_negative() -> None:
    scores, labels = scores_and_labels()
    unknown = np.array([-128, -1] * 5, dtype=np.int8)
    with_unknown = auroc(np.concatenate([scores, np.linspace(-9, 9, 10)]), np.concatenate([labels, unknown]))
    assert with_unknown == auroc(scores, labels)
    assert is_known(np.array([-128, -1, 0, 1])).tolist() == [False, False, True, True]


def test_labels_without_a_positive_or_a_negative_are_skipped_and_named() -> None:
    scores = np.random.default_rng(0).random((6, 3))
    labels = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1], [0, 0, -1], [0, 0, 1], [1, 0, -128]], dtype=np.int8)
    values = label_metrics(scores, labels=labels)[AUROC][:, 0]
    mean, skipped = macro(values)
    assert skipped == (1, 2)
    assert mean == values[0]


def test_a_label_whose_scores_are_not_finite_is_undefined() -> None:
    assert np.isnan(auroc(np.array([0.1, np.nan, 0.3]), np.array([0, 1, 1])))


def test_a_weighting_without_positives_is_undefined_for_both_metrics() -> None:
    values = label_metrics(np.array([[0.1], [0.9]]), labels=np.array([[0], [1]]), weights=np.array([[1.0], [0.0]]))
    assert all(np.isnan(values[metric][0, 0]) for metric in METRICS)
