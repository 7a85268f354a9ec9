"""Features of a frozen backbone: wrappers around it, their extraction over a data set, and checks of a data set's classes.

Shape legend: n samples of a data set, B of a batch, D embedding width, N patches.
"""

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinov2.data import DatasetWithEnumeratedTargets, SamplerType, make_data_loader
from dinov2.logging import MetricLogger
from dinov2.utils.errors import UserError

logger = logging.getLogger("dinov2")


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters are; the CPU for a model without any."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def autocast_context(model: nn.Module, dtype: torch.dtype) -> Callable[[], contextlib.AbstractContextManager]:
    """A factory of autocast contexts for a model's device; float32 needs none."""
    device = device_of(model)
    if dtype == torch.float:
        return contextlib.nullcontext
    return lambda: torch.autocast(device_type=device.type, dtype=dtype)


class ModelWithNormalize(nn.Module):
    """[B, ...] -> L2-normalised class tokens [B, D]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, samples: Tensor) -> Tensor:
        return F.normalize(self.model(samples), dim=1, p=2)


class ModelWithIntermediateLayers(nn.Module):
    """Tokens of the last blocks, without gradients: a tuple of (patches [B, N, D], cls [B, D]), earliest block first."""

    def __init__(
        self,
        feature_model: nn.Module,
        n_last_blocks: int,
        autocast_ctx: Callable[[], contextlib.AbstractContextManager],
    ) -> None:
        super().__init__()
        self.feature_model: Any = feature_model.eval()
        self.n_last_blocks = n_last_blocks
        self.autocast_ctx = autocast_ctx

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Any:
        with self.autocast_ctx():
            return self.feature_model.get_intermediate_layers(images, self.n_last_blocks, return_class_token=True)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    data_loader: Iterable[Any],
    postprocessors: Mapping[Any, nn.Module],
    metrics: Mapping[Any, Any],
    device: torch.device,
    criterion: nn.Module | None = None,
) -> tuple[dict[str, float], dict[Any, dict[str, Tensor]]]:
    """Run a model over a loader and update each metric with its postprocessor's output; (meter averages, metric values)."""
    model.eval()
    if criterion is not None:
        criterion.eval()
    meters = MetricLogger(delimiter="  ")
    for samples, targets, *_ in data_loader:
        outputs = model(samples.to(device))
        targets = targets.to(device)
        if criterion is not None:
            meters.update(loss=criterion(outputs, targets))
        for name, metric in metrics.items():
            metric.update(**postprocessors[name](outputs, targets))
    stats = {name: meter.global_avg for name, meter in meters.meters.items()}
    return stats, {name: metric.compute() for name, metric in metrics.items()}


def extract_features(
    model: nn.Module, dataset: Any, batch_size: int, num_workers: int, gather_on_cpu: bool = False
) -> tuple[Tensor, Tensor]:
    """(features [n, D] float32, labels [n] or [n, A]) of a whole data set, in its order."""
    loader = make_data_loader(
        dataset=DatasetWithEnumeratedTargets(dataset),
        batch_size=batch_size,
        num_workers=num_workers,
        sampler_type=SamplerType.EPOCH,
        drop_last=False,
        shuffle=False,
    )
    return extract_features_with_dataloader(model, loader, len(dataset), gather_on_cpu)


@torch.inference_mode()
def extract_features_with_dataloader(
    model: nn.Module, data_loader: Iterable[Any], sample_count: int, gather_on_cpu: bool = False
) -> tuple[Tensor, Tensor]:
    """As `extract_features`, from a loader of (images, (indices, labels)); rows go to the place of their index."""
    device = torch.device("cpu") if gather_on_cpu else device_of(model)
    features: Tensor | None = None
    labels: Tensor | None = None
    for samples, (indices, batch_labels) in data_loader:
        batch = model(samples.to(device_of(model))).float()
        if features is None or labels is None:
            features = torch.zeros(sample_count, batch.shape[-1], device=device)
            labels = torch.full((sample_count, *batch_labels.shape[1:]), -1, dtype=torch.int64, device=device)
        features.index_copy_(0, indices.to(device), batch.to(device))
        labels.index_copy_(0, indices.to(device), batch_labels.to(device, torch.int64))
    assert features is not None, "the loader gave no batch"
    assert labels is not None, "the loader gave no batch"
    logger.info("features %s, labels %s", tuple(features.shape), tuple(labels.shape))
    return features, labels


def count_classes(dataset: Any, dataset_str: str) -> int:
    """How many classes a training set has: its greatest target plus one.

    Raises `UserError` when it cannot list its targets (`get_targets()`), when they are no class indices, or with one class only.
    """
    name = dataset_str.partition(":")[0]
    if not hasattr(dataset, "get_targets"):
        raise UserError(
            f"The data set '{name}' has no get_targets(), which tells how many classes to train for. Give it that method: all "
            "targets as an integer array."
        )
    targets = np.asarray(dataset.get_targets())
    if targets.ndim != 1 or targets.min() < 0 or not np.equal(np.mod(targets, 1), 0).all():
        raise UserError(
            f"The targets of the data set '{name}' are no class indices 0, 1, 2, ... of one class an image."
        )
    n_classes = int(targets.max()) + 1
    if n_classes < 2:
        raise UserError(
            f"All {len(targets)} images of the data set '{name}' have the target 0; classification needs two classes. "
            "For ImageFolder, put the images of each class into a folder of their own: root/<class>/<image>."
        )
    return n_classes


def check_same_classes(train_dataset: Any, other: Any, which: str) -> None:
    """Refuse a data set whose class folders are not those of the training set: equal indices would mean different classes.

    which: what the message calls the other data set, for example "validation". Compared is what both can tell: the names in
    `classes`, and the greatest target of `get_targets()`.
    """
    ours, theirs = tuple(getattr(train_dataset, "classes", ())), tuple(getattr(other, "classes", ()))
    if ours and theirs and ours != theirs:
        n_extra, n_lacking = len(set(theirs) - set(ours)), len(set(ours) - set(theirs))
        raise UserError(
            f"The {which} data set has other classes than the training data set: {n_extra} of its {len(theirs)} are not among "
            f"the {len(ours)} of training, and {n_lacking} of those are missing. Indices follow the sorted folder names, so "
            "give both the same class folders; a folder without images does not count."
        )
    if hasattr(train_dataset, "get_targets") and hasattr(other, "get_targets"):
        known, greatest = int(np.max(train_dataset.get_targets())), int(np.max(other.get_targets()))
        if greatest > known:
            raise UserError(
                f"The {which} data set has the target {greatest}, but training knows only 0 to {known}. "
                "Give both the same classes."
            )
