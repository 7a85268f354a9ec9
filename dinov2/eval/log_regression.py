"""Logistic regression on frozen features: `python -m dinov2.eval.log_regression --config-file ... --pretrained-weights ...`.

The strength C of the L2 penalty is the best of 45 on held-out images; the final classifier is fitted to all training images with
that C. With several processes each embeds its share of the images and fits its share of the 45. How the fit differs from the
official one: `dinov2.eval.log_regression_model`.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinov2 import distributed
from dinov2.data import make_dataset
from dinov2.data.transforms import make_classification_eval_transform
from dinov2.eval.log_regression_model import (
    C_POWER_RANGE,
    CPU,
    DEFAULT_MAX_ITER,
    LogRegModule,
    evaluate_model,
    sweep_C_values,
    train_and_evaluate,
    train_for_C,
)
from dinov2.eval.metrics import MetricType, build_metric
from dinov2.eval.setup import get_args_parser as get_setup_args_parser
from dinov2.eval.setup import positive_int, run_command_line, setup_and_build_model
from dinov2.eval.utils import (
    autocast_context,
    check_same_classes,
    count_classes,
    extract_features,
    share_of_batches,
)
from dinov2.utils.dtype import as_torch_dtype
from dinov2.utils.errors import UserError

logger = logging.getLogger("dinov2")

__all__ = [
    "C_POWER_RANGE",
    "DEFAULT_MAX_ITER",
    "LogRegModule",
    "eval_log_regression",
    "eval_log_regression_with_model",
    "evaluate_model",
    "get_args_parser",
    "main",
    "sweep_C_values",
    "train_and_evaluate",
    "train_for_C",
]

RESULTS_NAME = "results_eval_log_regression.json"
HELD_OUT = 10
"""One training image in ten is held out to choose C."""


def get_args_parser(
    description: str | None = None,
    parents: Sequence[argparse.ArgumentParser] | None = None,
    add_help: bool = True,
) -> argparse.ArgumentParser:
    """The official options, and `--batch-size` and `--num-workers`."""
    shared = get_setup_args_parser(parents=parents, add_help=False)
    parser = argparse.ArgumentParser(description=description, parents=[shared], add_help=add_help)
    add = parser.add_argument
    add("--train-dataset", dest="train_dataset_str", default="ImageNet:split=TRAIN", help="what the classifier learns")
    add("--val-dataset", dest="val_dataset_str", default="ImageNet:split=VAL", help="what it is evaluated on")
    add("--finetune-dataset-str", dest="finetune_dataset_str", help="what chooses C; none: a tenth of the training set")
    add("--finetune-on-val", action="store_true", help="let the validation set choose C, which flatters the result")
    add(
        "--metric-type",
        type=MetricType,
        choices=list(MetricType),
        default=MetricType.MEAN_ACCURACY,
        help="what chooses C and is reported",
    )
    add("--train-features-device", default="cpu", help="where features are kept; they are fitted on the CPU")
    add("--train-dtype", default="float64", choices=["float32", "float64"], help="in which the classifier is fitted")
    add("--max-train-iters", type=positive_int, default=DEFAULT_MAX_ITER, help="of L-BFGS")
    add("--batch-size", type=positive_int, default=256, help="images that go through the backbone at a time")
    add("--num-workers", type=int, default=5, help="processes that read images")
    return parser


def eval_log_regression(
    *,
    model: nn.Module,
    train_dataset: Any,
    val_dataset: Any,
    finetune_dataset: Any,
    metric_type: MetricType,
    batch_size: int,
    num_workers: int,
    finetune_on_val: bool = False,
    train_dtype: torch.dtype = torch.float64,
    train_features_device: torch.device | str = CPU,
    max_train_iters: int = DEFAULT_MAX_ITER,
) -> dict[str, Any]:
    """{"top-1": ..., "top-5": ..., "best_C": ...} on the validation set, accuracies in [0, 1].

    model: images -> features, which are not normalised. C is chosen on `finetune_dataset`; without one on the validation set if
    `finetune_on_val`, else on a tenth of the training set. The final classifier learns from the training images and from
    those that chose C, unless these are the validation set.
    """
    start = time.monotonic()
    keep_device = torch.device(train_features_device)

    def features_of(dataset: Any) -> tuple[Tensor, Tensor]:
        on_cpu = keep_device.type == "cpu"
        features, labels = extract_features(model, dataset, batch_size, num_workers, gather_on_cpu=on_cpu)
        if labels.ndim != 1:
            raise UserError("A logistic regression needs one class an image; the data set gives several labels.")
        return features, labels

    train_features, train_labels = features_of(train_dataset)
    val_features, val_labels = features_of(val_dataset)
    if finetune_dataset is not None:
        choose_features, choose_labels = features_of(finetune_dataset)
    elif finetune_on_val:
        choose_features, choose_labels = val_features, val_labels
    else:
        held_out, rest = _hold_out(len(train_features))
        choose_features, choose_labels = train_features[held_out], train_labels[held_out]
        train_features, train_labels = train_features[rest], train_labels[rest]
    num_classes = int(torch.cat([train_labels, choose_labels, val_labels]).max()) + 1
    options: dict[str, Any] = {"train_dtype": train_dtype, "train_features_device": keep_device}
    _, best_C = sweep_C_values(
        train_features=train_features,
        train_labels=train_labels,
        test_data_loader=share_of_batches(choose_features, choose_labels, batch_size),
        metric_type=metric_type,
        num_classes=num_classes,
        max_train_iters=max_train_iters,
        **options,
    )
    if not (finetune_dataset is None and finetune_on_val):
        train_features = torch.cat([train_features, choose_features])
        train_labels = torch.cat([train_labels, choose_labels])
    values = train_and_evaluate(
        C=best_C,
        max_iter=max_train_iters,
        train_features=train_features,
        train_labels=train_labels,
        logreg_metric=build_metric(metric_type, num_classes=num_classes),
        test_data_loader=share_of_batches(val_features, val_labels, batch_size),
        eval_device=val_features.device,
        **options,
    )
    logger.info("logistic regression done in %.0f s", time.monotonic() - start)
    return {**values, "best_C": best_C}


def _hold_out(n_train: int) -> tuple[Tensor, Tensor]:
    """Indices of the images that choose C, and of the others: the official draw, without touching the global generator."""
    if n_train < HELD_OUT:
        raise UserError(
            f"The training set has {n_train} images, of which no tenth can choose C. Give at least {HELD_OUT}, or images that "
            "choose it: --finetune-dataset-str."
        )
    order = torch.randperm(n_train, generator=torch.Generator().manual_seed(0))
    return order[: n_train // HELD_OUT], order[n_train // HELD_OUT :]


def eval_log_regression_with_model(
    model: nn.Module,
    train_dataset_str: str = "ImageNet:split=TRAIN",
    val_dataset_str: str = "ImageNet:split=VAL",
    finetune_dataset_str: str | None = None,
    autocast_dtype: torch.dtype = torch.float,
    finetune_on_val: bool = False,
    metric_type: MetricType = MetricType.MEAN_ACCURACY,
    train_dtype: torch.dtype = torch.float64,
    train_features_device: torch.device | str = CPU,
    max_train_iters: int = DEFAULT_MAX_ITER,
    *,
    transform: Callable[[Any], Any] | None = None,
    batch_size: int = 256,
    num_workers: int = 5,
    output_dir: str | Path | None = None,
) -> dict[str, float]:
    """{"top-1": percent, "top-5": percent, "best_C": C}; per-class accuracies count as their mean over classes that occur.

    transform: the official one (resize to 224 px) unless given. output_dir: where the result is also appended, as one JSON
    object a line, to `results_eval_log_regression.json`; the official code only logs it.
    """
    transform = transform or make_classification_eval_transform(resize_size=224)
    names = {"train": train_dataset_str, "validation": val_dataset_str, "finetune": finetune_dataset_str}
    datasets = {
        which: make_dataset(dataset_str=name, transform=transform) for which, name in names.items() if name is not None
    }
    if hasattr(datasets["train"], "get_targets"):  # before the long part
        count_classes(datasets["train"], train_dataset_str)
    for which, dataset in datasets.items():
        check_same_classes(datasets["train"], dataset, which)
    with autocast_context(model, autocast_dtype)():
        values = eval_log_regression(
            model=model,
            train_dataset=datasets["train"],
            val_dataset=datasets["validation"],
            finetune_dataset=datasets.get("finetune"),
            metric_type=metric_type,
            batch_size=batch_size,
            num_workers=num_workers,
            finetune_on_val=finetune_on_val,
            train_dtype=train_dtype,
            train_features_device=train_features_device,
            max_train_iters=max_train_iters,
        )
    results = {top: float(values[top].nanmean()) * 100.0 for top in ("top-1", "top-5")} | {"best_C": values["best_C"]}
    logger.info("logistic regression: top-1 %(top-1).2f, top-5 %(top-5).2f with C = %(best_C).5g", results)
    if output_dir is not None and distributed.is_main_process():
        with (Path(output_dir) / RESULTS_NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(results) + "\n")
    return results


def main(args: argparse.Namespace) -> dict[str, float]:
    """The evaluation of a command line; its results as `eval_log_regression_with_model` gives them."""
    with distributed.session():
        model, dtype = setup_and_build_model(args)
        return eval_log_regression_with_model(
            model=model,
            train_dataset_str=args.train_dataset_str,
            val_dataset_str=args.val_dataset_str,
            finetune_dataset_str=args.finetune_dataset_str,
            autocast_dtype=dtype,
            finetune_on_val=args.finetune_on_val,
            metric_type=args.metric_type,
            train_dtype=as_torch_dtype(args.train_dtype),
            train_features_device=args.train_features_device,
            max_train_iters=args.max_train_iters,
            batch_size=args.batch_size,
            num_workers=args.num_workers,
            output_dir=args.output_dir,
        )


if __name__ == "__main__":
    sys.exit(run_command_line(main, get_args_parser(description="DINOv2 logistic regression evaluation")))
