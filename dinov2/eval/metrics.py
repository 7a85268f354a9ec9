"""Top-k accuracies: over all samples, as the mean over classes, or per class; used by the k-NN and the linear evaluation."""

from enum import Enum

import torch
from torch import Tensor


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

    @property
    def accuracy_averaging(self) -> AccuracyAveraging:
        return AccuracyAveraging[self.name]

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
        hits, samples = self._hits.cpu().double(), self._samples.cpu().double()
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


def build_metric(metric_type: MetricType, *, num_classes: int, ks: tuple[int, ...] | None = None) -> TopKAccuracy:
    """The metric that a name selects; top-1 and top-5 unless ks says otherwise."""
    return build_topk_accuracy_metric(metric_type.accuracy_averaging, num_classes, ks or (1, 5))


def build_topk_accuracy_metric(
    average_type: AccuracyAveraging, num_classes: int, ks: tuple[int, ...] = (1, 5)
) -> TopKAccuracy:
    """A top-k accuracy with the given averaging."""
    return TopKAccuracy(average_type, num_classes=num_classes, ks=ks)
