"""Features of a frozen backbone: wrappers around it, their extraction over a data set, and checks of a data set's classes.

With several processes, a data set is shared out in whole batches: process r takes batches r, r + world size, ... of the ones that
a single process would make. Every batch therefore holds the same images at any number of processes, and gives the same features.

Shape legend: n samples of a data set, B of a batch, D embedding width, N patches.
"""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from dinov2 import distributed
from dinov2.data import DatasetWithEnumeratedTargets, make_data_loader
from dinov2.logging import MetricLogger, SmoothedValue
from dinov2.utils.errors import UserError

logger = logging.getLogger("dinov2")


SHORT_PASS = 20
"""Batches below which a pass over a data set logs no progress."""


class Batches(Protocol):
    """A data loader, or a list of batches."""

    def __iter__(self) -> Iterator[Any]: ...

    def __len__(self) -> int: ...


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
    data_loader: Batches,
    postprocessors: Mapping[Any, nn.Module],
    metrics: Mapping[Any, Any],
    device: torch.device,
    criterion: nn.Module | None = None,
) -> tuple[dict[str, float], dict[Any, dict[str, Tensor]]]:
    """Run a model over a loader and update each metric with its postprocessor's output; (meter averages, metric values).

    data_loader: of this process's share; averages and metrics are over the shares of all processes.
    """
    model.eval()
    if criterion is not None:
        criterion.eval()
    meters = MetricLogger(delimiter="  ")
    if criterion is not None:
        meters.add_meter("loss", SmoothedValue())  # also where there is no batch: all processes add up the same meters
    for samples, targets, *_ in _with_progress(data_loader, meters, "Evaluation", len(data_loader)):
        outputs = model(samples.to(device))
        targets = targets.to(device)
        if criterion is not None:
            meters.update(loss=criterion(outputs, targets))
        for name, metric in metrics.items():
            metric.update(**postprocessors[name](outputs, targets))
    meters.synchronize_between_processes()
    stats = {name: meter.global_avg for name, meter in meters.meters.items()}
    return stats, {name: metric.compute() for name, metric in metrics.items()}


def make_share_loader(
    dataset: Any, batch_size: int, num_workers: int, collate_fn: Callable[[list[Any]], Any] | None = None
) -> DataLoader:
    """This process's share of the data set's batches, in order, each image once over all processes."""
    rank, size = distributed.get_global_rank(), distributed.get_global_size()
    if size > 1:
        starts = range(rank * batch_size, len(dataset), size * batch_size)
        dataset = Subset(dataset, [i for s in starts for i in range(s, min(s + batch_size, len(dataset)))])
    return make_data_loader(
        dataset=dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        sampler_type=None,
        drop_last=False,
        shuffle=False,
        collate_fn=collate_fn,
    )


def whole_dataset(loader: DataLoader) -> Any:
    """The data set of which a loader of `make_share_loader` gives a share."""
    return loader.dataset.dataset if isinstance(loader.dataset, Subset) else loader.dataset


def share_of_batches(features: Tensor, labels: Tensor, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """This process's share of the batches of features [n, D] and labels [n] that every process holds as a whole."""
    batches = list(zip(features.split(batch_size), labels.split(batch_size), strict=True))
    return batches[distributed.get_global_rank() :: distributed.get_global_size()]


def extract_features(
    model: nn.Module, dataset: Any, batch_size: int, num_workers: int, gather_on_cpu: bool = False
) -> tuple[Tensor, Tensor]:
    """(features [n, D] float32, labels [n] or [n, A]) of a whole data set, in its order, the same in every process.

    Each process embeds its share. gather_on_cpu: keep them in main memory, once for every process of the machine.
    """
    loader = make_share_loader(DatasetWithEnumeratedTargets(dataset), batch_size, num_workers)
    return extract_features_with_dataloader(model, loader, len(dataset), gather_on_cpu)


@torch.inference_mode()
def extract_features_with_dataloader(
    model: nn.Module, data_loader: Batches, sample_count: int, gather_on_cpu: bool = False
) -> tuple[Tensor, Tensor]:
    """As `extract_features`, from a loader of (images, (indices, labels)); rows go to the place of their index.

    The loaders of all processes together must give every index of the data set; an index that comes twice does no harm, and
    loaders may differ in length.
    """
    model_device = device_of(model)
    device = torch.device("cpu") if gather_on_cpu else model_device
    features: Tensor | None = None
    labels: Tensor | None = None
    is_filled = torch.zeros(sample_count, dtype=torch.bool, device=device)
    n_rounds = _greatest(len(data_loader))
    rounds = _in_rounds(data_loader, n_rounds)
    for batch in _with_progress(rounds, MetricLogger(delimiter="  "), "Features", n_rounds):
        part: tuple[Tensor, Tensor, Tensor] | None = None
        if batch is not None:
            samples, (indices, batch_labels) = batch
            embedded = model(samples.to(model_device)).float().to(device)
            part = indices.to(device), embedded, batch_labels.to(device, torch.int64)
        all_indices, all_embedded, all_labels = _gather_part(part, device)
        if features is None or labels is None:
            features = all_embedded.new_zeros(sample_count, *all_embedded.shape[1:])
            labels = all_labels.new_full((sample_count, *all_labels.shape[1:]), -1)
        features.index_copy_(0, all_indices, all_embedded)
        labels.index_copy_(0, all_indices, all_labels)
        is_filled[all_indices] = True
    assert features is not None, "the loader gave no batch"
    assert labels is not None, "the loader gave no batch"
    assert bool(is_filled.all()), f"the loader left out {int((~is_filled).sum())} of {sample_count} indices"
    logger.info("features %s, labels %s", tuple(features.shape), tuple(labels.shape))
    return features, labels


def all_gather_and_flatten(tensor_rank: Tensor) -> Tensor:
    """[n, ...] of every process -> [sum of n, ...], in the order of ranks, in every process."""
    return distributed.all_gather(tensor_rank)


def _in_rounds(data_loader: Batches, n_rounds: int) -> Iterator[Any]:
    """The batches, then None until all processes have had `n_rounds`: gathering needs all of them every time."""
    batches = iter(data_loader)
    for _ in range(n_rounds):
        yield next(batches, None)


def _gather_part(part: tuple[Tensor, Tensor, Tensor] | None, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(indices, features, labels) of all processes in a round, of which those without a batch give None."""
    if distributed.get_global_size() == 1:
        assert part is not None, "a single process has a batch in every round"
        return part
    layouts = distributed.all_gather_objects(part and [(t.shape[1:], t.dtype) for t in part])
    layout = next(each for each in layouts if each is not None)
    tensors = part or tuple(torch.empty(0, *shape, dtype=dtype, device=device) for shape, dtype in layout)
    indices, features, labels = (all_gather_and_flatten(tensor) for tensor in tensors)
    return indices, features, labels


def _greatest(number: int) -> int:
    """The greatest of the numbers that the processes give."""
    box = torch.tensor(number)
    distributed.all_reduce_max(box)
    return int(box)


def _with_progress(batches: Iterable[Any], meters: MetricLogger, header: str, n_batches: int) -> Iterable[Any]:
    """The batches, with twenty log lines or one for every hundred batches; none for a short pass."""
    if n_batches < SHORT_PASS:
        return batches
    return meters.log_every(batches, min(100, n_batches // SHORT_PASS), header, n_batches)


def count_classes(dataset: Any, dataset_str: str) -> int:
    """How many classes a training set has: its greatest target plus one, or as many as it names in `classes`.

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
    if targets.min() == targets.max():
        raise UserError(
            f"All {len(targets)} images of the data set '{name}' have the target {targets[0]}; classification needs two classes. "
            "For ImageFolder, put the images of each class into a folder of their own: root/<class>/<image>."
        )
    return max(int(targets.max()) + 1, len(getattr(dataset, "classes", ())))


def check_same_classes(train_dataset: Any, other: Any, which: str) -> None:
    """Refuse a data set whose class folders are not those of the training set: equal indices would mean different classes.

    which: what the message calls the other data set, for example "validation". Compared is what both can tell: the names in
    `classes`, and the greatest target of `get_targets()`.
    """
    if hasattr(other, "get_targets") and other.get_targets() is None:
        raise UserError(
            f"The {which} data set has no targets, as ImageNet:split=TEST has none, and an evaluation needs them. "
            "Use another split."
        )
    ours, theirs = tuple(getattr(train_dataset, "classes", ())), tuple(getattr(other, "classes", ()))
    if ours and theirs and ours != theirs:
        n_extra, n_lacking = len(set(theirs) - set(ours)), len(set(ours) - set(theirs))
        raise UserError(
            f"The {which} data set has other classes than the training data set: {n_extra} of its {len(theirs)} are not among "
            f"the {len(ours)} of training, and {n_lacking} of those are missing. Indices follow the sorted folder names, so "
            "give both the same class folders; a folder without images does not count."
        )
    if hasattr(train_dataset, "get_targets") and hasattr(other, "get_targets"):
        known = max(_greatest_target(train_dataset), len(ours) - 1)
        greatest = _greatest_target(other)
        if greatest > known:
            raise UserError(
                f"The {which} data set has the target {greatest}, but training knows only 0 to {known}. "
                "Give both the same classes."
            )


def _greatest_target(dataset: Any) -> int:
    targets = dataset.get_targets()
    try:
        return int(np.max(targets))
    except ValueError:  # several labels an image, not equally many
        return max(int(np.max(labels)) for labels in targets if len(labels))
