"""Top-k accuracies against counts made by hand."""

import math

import pytest
import torch

from dinov2 import distributed
from dinov2.eval.metrics import (
    AccuracyAveraging,
    ImageNetReaLAccuracy,
    MetricType,
    build_metric,
    build_topk_accuracy_metric,
    build_topk_imagenet_real_accuracy_metric,
)
from dinov2.utils.errors import UserError

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
    names = ["mean_accuracy", "mean_per_class_accuracy", "per_class_accuracy", "imagenet_real_accuracy"]
    assert [str(m) for m in MetricType] == names


def test_a_hit_with_several_true_labels_is_any_of_them_and_images_without_one_do_not_count():
    metric = ImageNetReaLAccuracy(3)
    metric.update(SCORES, torch.tensor([[2, 0], [0, -1], [-1, -1], [0, 1]]))  # yes, no, does not count, no
    assert metric.compute().item() == pytest.approx(1 / 3)
    assert metric.compute().item() == pytest.approx(1 / 3)  # asking changes nothing


def test_several_true_labels_count_among_the_first_k_and_padding_is_no_class():
    metric = build_topk_imagenet_real_accuracy_metric(3, ks=(1, 2))
    metric.update(torch.tensor([[0.1, 0.2, 0.7], [0.1, 0.3, 0.6]]), torch.tensor([[1, -1], [0, -1]]))
    assert {name: value.item() for name, value in metric.compute().items()} == {"top-1": 0.0, "top-2": 0.5}


def test_the_real_accuracy_is_selected_by_its_name_with_top_one_and_five():
    metric = build_metric(MetricType("imagenet_real_accuracy"), num_classes=3)
    metric.update(torch.tensor([[0.1, 0.2, 0.7]]), torch.tensor([0]))  # one label an image will do
    assert {name: value.item() for name, value in metric.compute().items()} == {"top-1": 0.0, "top-5": 1.0}


def test_a_true_label_that_is_no_class_is_refused():
    with pytest.raises(UserError, match="has the label 3, but the classes are 0 to 2"):
        ImageNetReaLAccuracy(3).update(SCORES, torch.tensor([[3, -1]] * 4))


@pytest.mark.parametrize("metric_type", list(MetricType))
def test_counts_of_all_processes_are_added_before_accuracies_are_computed(metric_type, monkeypatch):
    whole, ours, theirs = (build_metric(metric_type, num_classes=3) for _ in range(3))
    whole.update(SCORES, TARGETS)
    ours.update(SCORES[:1], TARGETS[:1])
    theirs.update(SCORES[1:], TARGETS[1:])
    wanted, counts = whole.compute(), []
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda tensor: counts.append(tensor.clone()))
    theirs.compute()
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda tensor: tensor.add_(counts.pop(0)))
    torch.testing.assert_close(ours.compute(), wanted, rtol=0, atol=0, equal_nan=True)
