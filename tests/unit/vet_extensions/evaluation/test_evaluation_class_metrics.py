"""Metrics of tasks with one class a row, against scikit-learn, and weights as repeated rows."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

from vet_extensions.evaluation.metrics import ACCURACY, AUROC, BALANCED_ACCURACY, class_metrics, label_metrics, macro


def drawn(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores [80, 4], one-hot labels [80, 4] of uneven classes, and the classes [80]."""
    generator = np.random.default_rng(seed)
    truth = generator.choice(4, size=80, p=[0.6, 0.2, 0.1, 0.1])
    labels = np.eye(4, dtype=np.int8)[truth]
    return generator.normal(size=(80, 4)) + labels, labels, truth


def test_accuracy_and_balanced_accuracy_are_those_of_scikit_learn() -> None:
    scores, labels, truth = drawn()
    found = class_metrics(scores, labels=labels)
    predicted = scores.argmax(axis=1)
    assert found[ACCURACY][0, 0] == pytest.approx(accuracy_score(truth, predicted))
    assert macro(found[BALANCED_ACCURACY][:, 0])[0] == pytest.approx(balanced_accuracy_score(truth, predicted))


def test_the_macro_auroc_of_classes_is_the_one_versus_rest_mean() -> None:
    scores, labels, truth = drawn()
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    found, _ = macro(label_metrics(shares, labels=labels)[AUROC][:, 0])
    assert found == pytest.approx(roc_auc_score(truth, shares, multi_class="ovr", average="macro"))


def test_a_weight_of_two_is_a_row_twice_and_of_zero_none() -> None:
    scores, labels, truth = drawn()
    counts = np.random.default_rng(1).integers(0, 3, size=len(truth))
    rows = np.repeat(np.arange(len(truth)), counts)
    weighted = class_metrics(scores, labels=labels, weights=counts[:, None].astype(np.float32))
    repeated = class_metrics(scores[rows], labels=labels[rows])
    for metric in (ACCURACY, BALANCED_ACCURACY):
        np.testing.assert_allclose(weighted[metric], repeated[metric], rtol=1e-6)


def test_a_class_without_rows_is_undefined_and_one_without_a_model_is_never_predicted() -> None:
    scores, labels, _ = drawn()
    kept = labels[:, 3] == 0
    scores = scores.copy()
    scores[:, 1] = np.nan
    found = class_metrics(scores[kept], labels=labels[kept])[BALANCED_ACCURACY][:, 0]
    assert np.isnan(found[3])
    assert found[1] == 0


def test_rows_of_no_known_class_do_not_count() -> None:
    scores, labels, _ = drawn()
    more = np.concatenate([labels, np.full((5, 4), -128, dtype=np.int8)])
    found = class_metrics(np.concatenate([scores, np.full((5, 4), 1.0)]), labels=more)
    assert found[ACCURACY][0, 0] == class_metrics(scores, labels=labels)[ACCURACY][0, 0]
