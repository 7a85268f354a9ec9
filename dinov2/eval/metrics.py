"""Top-k accuracies: over all samples, as the mean over classes, per class, or with several true labels an image.

Every evaluation counts with them. A process counts the samples that it sees; `compute` adds up the counts of all processes, so
all of them must call it, and equally often.

Shape legend: B batch, C classes, A labels an image.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor

from dinov2 import distributed
from dinov2.utils.errors import UserError


class Metric(Protocol):
    """What an evaluation needs of a metric."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count a batch. preds: [B, C] scores."""
        ...

    def compute(self) -> dict[str, Tensor]:
        """{"top-1": ..., "top-5": ...} over all batches of all processes."""
        ...


class AccuracyAveraging(Enum):
    """How hits are averaged; the official values."""

    MEAN_ACCURACY = "micro"
    MEAN_PER_CLASS_ACCURACY = "macro"
    PER_CLASS_ACCURACY = "none"


class MetricType(Enum):
    """Metrics by the names that the command lines take."""

    MEAN_ACCURACY = "mean_accuracy"
    MEAN_PER_CLASS_ACCURACY = "mean_per_class_accuracy"
    PER_CLASS_ACCURACY = "per_class_accuracy"
    IMAGENET_REAL_ACCURACY = "imagenet_real_accuracy"

    @property
    def accuracy_averaging(self) -> AccuracyAveraging | None:
        """None for the accuracy with several labels an image, which has one way only."""
        return AccuracyAveraging.__members__.get(self.name)

    def __str__(self) -> str:
        return self.value


class TopKAccuracy:
    """Counts hits and samples per class over batches; `compute` gives {"top-1": ..., "top-5": ...}.

    With fewer classes than k every answer is among the first k, so the accuracy is 1.
    """

    def __init__(self, averaging: AccuracyAveraging, *, num_classes: int, ks: tuple[int, ...] = (1, 5)) -> None:
        self.averaging, self.ks, self.num_classes = averaging, ks, num_classes
        self._hits = torch.zeros(len(ks), num_classes, dtype=torch.int64)
        self._samples = torch.zeros(num_classes, dtype=torch.int64)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """preds: [B, C] scores; target: [B] class indices below `num_classes`. Counts stay on the device of `preds`."""
        target = target.to(preds.device)
        self._hits, self._samples = self._hits.to(preds.device), self._samples.to(preds.device)
        ranked = preds.topk(min(max(self.ks), preds.shape[1]), dim=1).indices
        hit = ranked == target[:, None]
        self._samples.index_add_(0, target, torch.ones_like(target))
        for row, k in enumerate(self.ks):
            self._hits[row].index_add_(0, target, hit[:, :k].any(1).to(torch.int64))

    def compute(self) -> dict[str, Tensor]:
        """Accuracies in [0, 1], on the CPU. Classes without a sample do not enter the mean over classes and are NaN per class."""
        # On the CPU, because a process that saw no batch has never learned of another device.
        counts = torch.cat([self._hits, self._samples[None]]).cpu()  # [len(ks) + 1, C]
        distributed.all_reduce_sum(counts)
        hits, samples = counts[:-1].double(), counts[-1].double()
        values = {}
        for row, k in enumerate(self.ks):
            per_class = hits[row] / samples
            if self.averaging is AccuracyAveraging.MEAN_ACCURACY:
                value = hits[row].sum() / samples.sum()
            elif self.averaging is AccuracyAveraging.MEAN_PER_CLASS_ACCURACY:
                value = per_class[samples > 0].mean()
            else:
                value = per_class
            values[f"top-{k}"] = value
        return values


class ImageNetReaLAccuracy:
    """Share of images that have a true label among the `top_k` greatest scores, where an image may have several true labels.

    Source: "Are we done with ImageNet?", arXiv 2006.07159. Images without any label do not count.
    """

    def __init__(self, num_classes: int, top_k: int = 1) -> None:
        self.num_classes, self.top_k = num_classes, top_k
        self._counts = torch.zeros(2, dtype=torch.int64)  # hits, images with a label

    def update(self, preds: Tensor, target: Tensor) -> None:
        """preds: [B, C] scores; target: [B, A] class indices padded with -1, or [B] for one label an image.

        Raises `UserError` for a label that is no class.
        """
        target = target.to(preds.device).reshape(len(target), -1)
        if target.numel() and int(target.max()) >= self.num_classes:
            raise UserError(
                f"An image has the label {int(target.max())}, but the classes are 0 to {self.num_classes - 1}. Give labels "
                "within them, or -1 where an image has fewer labels than another."
            )
        ranked = preds.topk(min(self.top_k, preds.shape[1]), dim=1).indices
        hit = (ranked[:, :, None] == target[:, None, :]).any(2).any(1)  # the padding equals no class
        has_label = (target >= 0).any(1)
        self._counts = self._counts.to(preds.device) + torch.stack([hit.sum(), has_label.sum()])

    def compute(self) -> Tensor:
        """The accuracy in [0, 1], on the CPU; NaN without a labelled image."""
        counts = self._counts.cpu().clone()
        distributed.all_reduce_sum(counts)
        return counts[0].double() / counts[1]


class NamedMetrics:
    """Metrics that count the same batches, each with its name in the result."""

    def __init__(self, metrics: Mapping[str, ImageNetReaLAccuracy]) -> None:
        self.metrics = dict(metrics)

    def update(self, preds: Tensor, target: Tensor) -> None:
        for metric in self.metrics.values():
            metric.update(preds, target)

    def compute(self) -> dict[str, Tensor]:
        return {name: metric.compute() for name, metric in self.metrics.items()}


def build_metric(metric_type: MetricType, *, num_classes: int, ks: tuple[int, ...] | None = None) -> Metric:
    """The metric that a name selects; top-1 and top-5 unless ks says otherwise."""
    averaging = metric_type.accuracy_averaging
    if averaging is None:
        return build_topk_imagenet_real_accuracy_metric(num_classes, ks or (1, 5))
    return build_topk_accuracy_metric(averaging, num_classes, ks or (1, 5))


def build_topk_accuracy_metric(
    average_type: AccuracyAveraging, num_classes: int, ks: tuple[int, ...] = (1, 5)
) -> TopKAccuracy:
    """A top-k accuracy with the given averaging."""
    return TopKAccuracy(average_type, num_classes=num_classes, ks=ks)


def build_topk_imagenet_real_accuracy_metric(num_classes: int, ks: tuple[int, ...] = (1, 5)) -> NamedMetrics:
    """The top-k accuracies for images with several true labels."""
    return NamedMetrics({f"top-{k}": ImageNetReaLAccuracy(num_classes, top_k=k) for k in ks})
