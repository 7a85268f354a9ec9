"""Top-k accuracies against counts made by hand."""

import math

import pytest
import torch

from dinov2.eval.metrics import AccuracyAveraging, MetricType, build_metric, build_topk_accuracy_metric

SCORES = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7]])
TARGETS = torch.tensor([0, 0, 0, 1])  # hits: yes, no, yes, no; class 2 does not occur


def value_of(metric_type: MetricType) -> torch.Tensor:
    metric = build_metric(metric_type, num_classes=3)
    metric.update(preds=SCORES, target=TARGETS)
    return metric.compute()["top-1"]


def test_mean_accuracy_is_the_share_of_hits():
    assert value_of(MetricType.MEAN_ACCURACY) == 0.5


def test_mean_per_class_accuracy_leaves_out_classes_that_do_not_occur():
    assert value_of(MetricType.MEAN_PER_CLASS_ACCURACY).item() == pytest.approx((2 / 3 + 0) / 2)


def test_per_class_accuracy_is_nan_for_a_class_that_does_not_occur():
    values = value_of(MetricType.PER_CLASS_ACCURACY).tolist()
    assert values[:2] == pytest.approx([2 / 3, 0])
    assert math.isnan(values[2])


def test_fewer_classes_than_five_make_top_five_certain():
    metric = build_topk_accuracy_metric(AccuracyAveraging.MEAN_ACCURACY, 3)
    metric.update(SCORES, TARGETS)
    assert metric.compute() == {"top-1": 0.5, "top-5": 1.0}


def test_a_target_among_the_first_k_is_a_hit():
    metric = build_topk_accuracy_metric(AccuracyAveraging.MEAN_ACCURACY, 3, ks=(1, 2))
    metric.update(SCORES, TARGETS)
    assert metric.compute()["top-2"] == 1.0
    metric.update(torch.tensor([[0.1, 0.2, 0.7]]), torch.tensor([0]))
    assert metric.compute()["top-2"] == 0.8


def test_batches_add_up_to_the_whole():
    whole = build_metric(MetricType.PER_CLASS_ACCURACY, num_classes=3)
    whole.update(SCORES, TARGETS)
    parts = build_metric(MetricType.PER_CLASS_ACCURACY, num_classes=3)
    for rows in (slice(0, 1), slice(1, 4)):
        parts.update(SCORES[rows], TARGETS[rows])
    torch.testing.assert_close(parts.compute(), whole.compute(), equal_nan=True)


def test_metric_names_are_those_of_the_command_line():
    assert [str(m) for m in MetricType] == ["mean_accuracy", "mean_per_class_accuracy", "per_class_accuracy"]
