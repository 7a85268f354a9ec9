"""What a backbone is worth on held-out images while it trains: RankMe and k-NN accuracy. Called by the train loop.

A probe looks and leaves no trace: neither random states nor the modes of modules are changed, so that a run with it and one
without draw the same crops and end with the same weights.

Shape legend: n images, D embedding width.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from dinov2 import distributed
from dinov2.data import make_dataset
from dinov2.data.transforms import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, make_classification_eval_transform
from dinov2.eval.knn import KnnModule
from dinov2.eval.utils import check_same_classes, count_classes, extract_features
from dinov2.fsdp import reshard_fsdp_model
from dinov2.train.precision import autocast, autocast_dtype
from dinov2.train.state import random_states, set_random_states
from dinov2.utils.device import resolve_device
from dinov2.utils.errors import UserError

logger = logging.getLogger("dinov2")

_RANKME_EPS = 1e-7
_QUERIES = 1024
"""Images classified at a time: similarities to every training image are held for that many."""


def rankme(features: Tensor) -> float:
    """Effective rank of features [n, D]: from 1 (all on a line) to min(n, D); 0 for all zeros, NaN for non-finite features.

    The exponential of the entropy of the singular values, which are scaled to sum to 1; columns are not centred.
    Source: RankMe (arXiv 2210.02885), eq. 1 and 2, epsilon 1e-7 as there for float32.
    """
    if not bool(torch.isfinite(features).all()):
        return float("nan")
    singular = torch.linalg.svdvals(features.detach().float())
    total = singular.sum()
    if total == 0:
        return 0.0
    p = singular / total + _RANKME_EPS
    return float(torch.exp(-(p * p.log()).sum()))


class HeldOutProbe:
    """RankMe of the validation images, and how many of them their nearest labelled training images classify rightly.

    Every process has to call it: the images are shared out, and the forward pass of a sharded backbone needs all processes.
    """

    def __init__(
        self,
        *,
        val_dataset_str: str,
        train_dataset_str: str = "",
        k: int = 20,
        temperature: float = 0.07,
        batch_size: int = 64,
        num_workers: int = 4,
        max_images: int = 10_000,
        image_size: int = 224,
        mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN,
        std: tuple[float, ...] = IMAGENET_DEFAULT_STD,
        dtype: torch.dtype | None = None,
    ) -> None:
        """
        val_dataset_str, train_dataset_str: data set strings of images with class indices as targets; without the second one,
            or without targets in the first, only RankMe is measured.
        k, temperature: of the vote; the weights are a softmax over the k nearest. batch_size: of one process.
        max_images: of either data set at most so many are looked at, evenly spaced over it.
        image_size: pixels of the central crop that the backbone gets. dtype: of the autocast region, None for float32.

        Raises `UserError` for data sets that cannot be probed.
        """
        transform = make_classification_eval_transform(
            resize_size=round(image_size * 256 / 224), crop_size=image_size, mean=mean, std=std
        )
        self._val = make_dataset(dataset_str=val_dataset_str, transform=transform)
        self._train = make_dataset(dataset_str=train_dataset_str, transform=transform) if train_dataset_str else None
        if self._train is not None and not _has_targets(self._val, like=self._train):
            logger.info("the probe's validation data set has no classes: only RankMe is measured")
            self._train = None
        if self._train is not None:
            count_classes(self._train, train_dataset_str)  # raises where there is nothing to classify
            check_same_classes(self._train, self._val, "probe's validation")
        self._k, self._temperature = k, temperature
        self._batch_size, self._num_workers = batch_size, num_workers
        self._max_images = max_images
        self._dtype = dtype

    @property
    def n_val_images(self) -> int:
        """How many images RankMe is measured on; it cannot be greater than that."""
        return min(len(self._val), self._max_images)

    def __call__(self, backbone: nn.Module) -> dict[str, float]:
        """{"rankme": value, "knn_top1": percent}, the second where there are labels; the same in every process.

        backbone: images [B, C, H, W] -> class tokens [B, D]; sharded or not.
        """
        began = time.perf_counter()
        reshard_fsdp_model(backbone)  # weights gathered before the last step would be out of date
        with _no_trace(backbone):
            val_features, val_labels = self._features(backbone, self._val)
            values = {"rankme": rankme(val_features)}
            if self._train is not None:
                train_features, train_labels = self._features(backbone, self._train)
                if val_labels.ndim == train_labels.ndim == 1:
                    values["knn_top1"] = self._top1(train_features, train_labels, val_features, val_labels)
        reshard_fsdp_model(backbone)
        told = ", ".join(f"{name} {value:.2f}" for name, value in values.items())
        logger.info("probe on %d held-out images: %s (%.1f s)", self.n_val_images, told, time.perf_counter() - began)
        return values

    def _features(self, backbone: nn.Module, dataset: Any) -> tuple[Tensor, Tensor]:
        """([n, D] float32, labels), whole and in order in every process."""
        n_images = min(len(dataset), self._max_images)
        n_processes = distributed.get_global_size()
        batch_size = min(self._batch_size, -(-n_images // n_processes))
        images = _EvenlySpaced(dataset, n_images, multiple_of=batch_size * n_processes)
        embed = _Embed(backbone, self._dtype)
        features, labels = extract_features(embed, images, batch_size, self._num_workers, False)
        return features[:n_images], labels[:n_images]

    def _top1(self, train: Tensor, train_labels: Tensor, val: Tensor, val_labels: Tensor) -> float:
        """Percent of the validation images whose class is that of most of the votes."""
        knn = KnnModule(
            F.normalize(train, dim=1),
            train_labels,
            [self._k],
            self._temperature,
            train.device,
            num_classes=int(torch.cat([train_labels, val_labels]).max()) + 1,
        )
        votes = [knn(part)[self._k].argmax(1) for part in F.normalize(val, dim=1).split(_QUERIES)]
        return 100.0 * float((torch.cat(votes) == val_labels).float().mean())


def build_probe(cfg: DictConfig) -> HeldOutProbe | None:
    """The probe that `evaluation.probe_*` asks for, None with a period of 0; raises `UserError` for settings that do not fit."""
    section = cfg.evaluation
    if section.probe_period_iterations <= 0:
        return None
    if not section.probe_val_dataset:
        raise UserError(
            f"evaluation.probe_period_iterations is {section.probe_period_iterations}, but evaluation.probe_val_dataset is "
            "empty. Name the held-out images, for example ImageFolder:root=FOLDER:split=val, or set the period to 0."
        )
    if section.probe_k < 1:
        raise UserError(f"evaluation.probe_k is {section.probe_k}. Allowed: 1 or more neighbours; 20 is usual.")
    return HeldOutProbe(
        train_dataset_str=section.probe_train_dataset,
        val_dataset_str=section.probe_val_dataset,
        k=section.probe_k,
        batch_size=cfg.train.batch_size_per_gpu,  # a forward pass alone: what trains fits
        num_workers=cfg.train.num_workers,
        image_size=cfg.crops.global_crops_size,
        mean=tuple(cfg.augmentation.mean),
        std=tuple(cfg.augmentation.std),
        dtype=autocast_dtype(cfg, resolve_device(cfg.train.device)),
    )


def _has_targets(dataset: Any, *, like: Any) -> bool:
    """Whether a data set has classes; one of folders without class folders gives every image the target 0."""
    is_flat_folder = bool(getattr(like, "classes", ())) and not getattr(dataset, "classes", True)
    return hasattr(dataset, "get_targets") and not is_flat_folder


class _EvenlySpaced:
    """`n_images` of a data set, evenly spaced, and then again from the first on until their number is a multiple.

    The forward pass of a sharded backbone is an exchange between processes: each must get as many batches as the others.
    """

    def __init__(self, dataset: Any, n_images: int, *, multiple_of: int) -> None:
        self._dataset = dataset
        self._n_images = n_images
        self._length = -(-n_images // multiple_of) * multiple_of

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        return self._dataset[index % self._n_images * len(self._dataset) // self._n_images]


class _Embed(nn.Module):
    """The backbone in its arithmetic, without gradients."""

    def __init__(self, backbone: nn.Module, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.backbone = backbone
        self._dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        # Not in inference mode, which evaluation uses: weights that FSDP gathers in it could never take part in training again.
        with torch.inference_mode(False), torch.no_grad(), autocast(images.device, self._dtype):
            return self.backbone(images)


@contextmanager
def _no_trace(backbone: nn.Module) -> Iterator[None]:
    """The backbone in evaluation mode for a block; afterwards modes and random states are what they were."""
    modes = {module: module.training for module in backbone.modules()}
    states = random_states()
    backbone.eval()
    try:
        yield
    finally:
        set_random_states(states)
        for module, was_training in modes.items():
            module.training = was_training
