"""Training the grid of linear heads and evaluating it on data sets; `dinov2.eval.linear` calls it and offers its names.

Shape legend: B batch, C classes, H heads.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from dinov2 import distributed
from dinov2.data import make_dataset
from dinov2.data.transforms import make_classification_eval_transform
from dinov2.eval.linear_heads import AllClassifiers, LinearPostprocessor, remove_ddp_wrapper
from dinov2.eval.metrics import MetricType, build_metric
from dinov2.eval.probe_checkpoint import ProbeCheckpointer
from dinov2.eval.utils import Batches, device_of, evaluate, make_share_loader
from dinov2.logging import MetricLogger

logger = logging.getLogger("dinov2")

RUNNING_CHECKPOINT = "running_checkpoint_linear_eval"
LOG_PERIOD = 10

Heads = AllClassifiers | DistributedDataParallel
"""The grid of heads, in a data-parallel wrapper where there are several processes."""


def evaluate_linear_classifiers(
    feature_model: nn.Module,
    linear_classifiers: Heads,
    data_loader: Batches,
    metric_type: MetricType,
    metrics_file_path: str | Path,
    training_num_classes: int,
    iteration: int,
    prefixstring: str = "",
    class_mapping: np.ndarray | None = None,
    best_classifier_on_val: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Top-1 of the best head, or of the named one: {"best_classifier": {"name": ..., "accuracy": ...}}.

    Appends to the results file: a line `iter: <iteration>`, that dictionary as JSON, and an empty line. Per-class accuracies
    count as their mean over the classes that occur.
    """
    num_classes = training_num_classes if class_mapping is None else len(class_mapping)
    heads: Any = remove_ddp_wrapper(linear_classifiers).classifiers_dict
    postprocessors = {name: LinearPostprocessor(head, class_mapping) for name, head in heads.items()}
    metrics = {name: build_metric(metric_type, num_classes=num_classes) for name in heads}
    _, values = evaluate(feature_model, data_loader, postprocessors, metrics, device_of(linear_classifiers))
    accuracies = {name: float(value["top-1"].nanmean()) for name, value in values.items()}
    for name, accuracy in accuracies.items():
        logger.info("%s %s: top-1 %.4f", prefixstring, name, accuracy)
    best = best_classifier_on_val or max(accuracies, key=lambda name: accuracies[name])
    results: dict[str, dict[str, Any]] = {"best_classifier": {"name": best, "accuracy": accuracies[best]}}
    logger.info("best classifier: %s", results["best_classifier"])
    if distributed.is_main_process():
        with Path(metrics_file_path).open("a", encoding="utf-8") as file:
            file.write(f"iter: {iteration}\n{json.dumps(results)}\n\n")
    return results


def summed_cross_entropy(outputs: Mapping[str, Tensor], labels: Tensor) -> Tensor:
    """The sum over heads of the mean cross-entropy over the batch. outputs: name -> logits [B, C]; labels: [B]."""
    logits = torch.stack(list(outputs.values()))  # [H, B, C]
    return F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits))) * len(logits)


def eval_linear(
    *,
    feature_model: nn.Module,
    linear_classifiers: Heads,
    train_data_loader: Iterable[Any],
    val_data_loader: Batches,
    metrics_file_path: str | Path,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    output_dir: str | Path,
    max_iter: int,
    checkpoint_period: int,
    running_checkpoint_period: int,
    eval_period: int,
    metric_type: MetricType,
    training_num_classes: int,
    resume: bool = True,
    classifier_fpath: str | None = None,
    val_class_mapping: np.ndarray | None = None,
    probe: Mapping[str, str | int] | None = None,
) -> tuple[dict[str, dict[str, Any]], nn.Module, Heads, int]:
    """Train all heads up to step `max_iter` and evaluate them; (validation results, feature model, heads, next iteration).

    train_data_loader: begins at the iteration that the newest checkpoint asks for. All periods are in steps: of checkpoints that
    are kept, of the one that is overwritten, of evaluations (0: only at the end). probe: see `ProbeCheckpointer`.
    """
    checkpointer = ProbeCheckpointer(
        output_dir, heads=linear_classifiers, optimizer=optimizer, scheduler=scheduler, probe=probe
    )
    iteration = checkpointer.resume_or_load(classifier_fpath, resume=resume)
    device = device_of(linear_classifiers)

    def validate(at: int) -> dict[str, dict[str, Any]]:
        return evaluate_linear_classifiers(
            feature_model,
            linear_classifiers,
            val_data_loader,
            metric_type,
            metrics_file_path,
            training_num_classes,
            at,
            prefixstring=f"iteration {at}:",
            class_mapping=val_class_mapping,
        )

    meters = MetricLogger(delimiter="  ")
    for images, labels in meters.log_every(train_data_loader, LOG_PERIOD, "Training", max_iter, iteration):
        features = feature_model(images.to(device, non_blocking=True))
        loss = summed_cross_entropy(linear_classifiers(features), labels.to(device, non_blocking=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if iteration % LOG_PERIOD == 0:
            meters.update(loss=_mean_over_processes(loss), lr=optimizer.param_groups[0]["lr"])
        done, is_last = iteration + 1, iteration + 1 == max_iter
        if done % running_checkpoint_period == 0 and not is_last:
            checkpointer.save(RUNNING_CHECKPOINT, iteration=iteration)
        if done % checkpoint_period == 0:
            checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
        if is_last:
            checkpointer.save("model_final", iteration=iteration)
        elif eval_period > 0 and done % eval_period == 0:
            validate(iteration)
        iteration = done
    return validate(iteration), feature_model, linear_classifiers, iteration


def make_eval_data_loader(
    test_dataset_str: str, batch_size: int, num_workers: int, metric_type: MetricType = MetricType.MEAN_ACCURACY
) -> DataLoader:
    """This process's share of a data set in its order, each image once, seen through the official evaluation transform.

    metric_type: with IMAGENET_REAL_ACCURACY an image's target may be a list of classes; a batch is padded with -1.
    """
    dataset = make_dataset(dataset_str=test_dataset_str, transform=make_classification_eval_transform())
    collate_fn = _pad_targets if metric_type is MetricType.IMAGENET_REAL_ACCURACY else None
    return make_share_loader(dataset, batch_size, num_workers, collate_fn)


def _pad_targets(samples: list[tuple[Tensor, Any]]) -> tuple[Tensor, Tensor]:
    """(images [B, ...], targets [B, A]), A the most labels that an image of the batch has."""
    labels = [torch.as_tensor(np.atleast_1d(target), dtype=torch.int64) for _, target in samples]
    padded = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-1)
    return torch.stack([image for image, _ in samples]), padded


def _mean_over_processes(loss: Tensor) -> Tensor:
    """The loss over the batch of all processes, whose shares are equally large."""
    total = loss.detach().clone()
    distributed.all_reduce_sum(total)
    return total / distributed.get_global_size()


def test_on_datasets(
    feature_model: nn.Module,
    linear_classifiers: Heads,
    test_dataset_strs: Sequence[str],
    batch_size: int,
    num_workers: int,
    test_metric_types: Sequence[MetricType],
    metrics_file_path: str | Path,
    training_num_classes: int,
    iteration: int,
    best_classifier_on_val: str,
    prefixstring: str = "",  # noqa: PT028 - the official name only looks like a test
    test_class_mappings: Sequence[np.ndarray | None] = (None,),  # noqa: PT028
) -> dict[str, float]:
    """The head that validation chose, on each test data set: {"<data set string>_accuracy": percent}.

    test_class_mappings: as many as data sets; `LinearPostprocessor` says what one is.
    """
    results = {}
    for dataset_str, class_mapping, metric_type in zip(
        test_dataset_strs, test_class_mappings, test_metric_types, strict=True
    ):
        loader = make_eval_data_loader(dataset_str, batch_size, num_workers, metric_type)
        values = evaluate_linear_classifiers(
            feature_model,
            linear_classifiers,
            loader,
            metric_type,
            metrics_file_path,
            training_num_classes,
            iteration,
            prefixstring=prefixstring,
            class_mapping=class_mapping,
            best_classifier_on_val=best_classifier_on_val,
        )
        results[f"{dataset_str}_accuracy"] = 100.0 * values["best_classifier"]["accuracy"]
    return results
