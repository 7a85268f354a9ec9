"""Linear probing of a frozen backbone: `python -m dinov2.eval.linear --config-file ... --pretrained-weights ...`.

A grid of linear heads (learning rate x number of last blocks x average pooling) is trained side by side on the same batches, and
the validation set chooses the best one. A run that was stopped goes on with the same command: order and crops of
the training images depend only on the step, so that it ends with the heads of a run that was never stopped. Processes share the
batch of a step: two with a batch of 64 train on the images, and at the learning rates, of one with a batch of 128.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from dinov2 import distributed
from dinov2.data import SamplerType, make_data_loader, make_dataset
from dinov2.data.adapters import PositionSeededDataset
from dinov2.data.transforms import make_classification_train_transform
from dinov2.eval.linear_data import check_classes, list_tests, load_class_mapping
from dinov2.eval.linear_heads import (
    AllClassifiers,
    LinearClassifier,
    LinearPostprocessor,
    Tokens,
    create_linear_input,
    has_ddp_wrapper,
    remove_ddp_wrapper,
    scale_lr,
    setup_linear_classifiers,
)
from dinov2.eval.linear_training import (
    Heads,
    eval_linear,
    evaluate_linear_classifiers,
    make_eval_data_loader,
    test_on_datasets,
)
from dinov2.eval.metrics import MetricType
from dinov2.eval.probe_checkpoint import ProbeCheckpointer, fingerprint
from dinov2.eval.setup import get_args_parser as get_setup_args_parser
from dinov2.eval.setup import positive_int, run_command_line, setup_and_build_model
from dinov2.eval.utils import (
    ModelWithIntermediateLayers,
    autocast_context,
    count_classes,
    device_of,
    whole_dataset,
)

logger = logging.getLogger("dinov2")

__all__ = [
    "AllClassifiers",
    "LinearClassifier",
    "LinearPostprocessor",
    "create_linear_input",
    "eval_linear",
    "evaluate_linear_classifiers",
    "get_args_parser",
    "has_ddp_wrapper",
    "main",
    "make_eval_data_loader",
    "remove_ddp_wrapper",
    "run_eval_linear",
    "scale_lr",
    "setup_linear_classifiers",
    "test_on_datasets",
]

RESULTS_NAME = "results_eval_linear.json"
LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
N_LAST_BLOCKS = (1, 4)
SEED = 0


def get_args_parser(
    description: str | None = None,
    parents: Sequence[argparse.ArgumentParser] | None = None,
    add_help: bool = True,
) -> argparse.ArgumentParser:
    """The official options with their defaults, and `--unique-names`."""
    shared = get_setup_args_parser(parents=parents, add_help=False)
    parser = argparse.ArgumentParser(description=description, parents=[shared], add_help=add_help)
    add = parser.add_argument
    metric: dict[str, Any] = {"type": MetricType, "choices": list(MetricType)}
    add("--train-dataset", dest="train_dataset_str", default="ImageNet:split=TRAIN", help="what the heads learn from")
    add("--val-dataset", dest="val_dataset_str", default="ImageNet:split=VAL", help="what chooses the best head")
    add(
        "--test-datasets",
        dest="test_dataset_strs",
        nargs="+",
        help="where the best head is tested; none: validation only",
    )
    add("--epochs", type=positive_int, default=10, help="epochs of training")
    add("--batch-size", type=positive_int, default=128, help="images of a step in each process")
    add("--num-workers", type=int, default=8, help="processes that read images")
    add("--epoch-length", type=positive_int, default=1250, help="steps of an epoch, whatever the size of the data set")
    add(
        "--save-checkpoint-frequency",
        type=positive_int,
        default=20,
        help="epochs between two checkpoints that are kept",
    )
    add("--eval-period-iterations", type=int, default=1250, help="steps between two evaluations; 0: only at the end")
    add(
        "--learning-rates",
        nargs="+",
        type=float,
        default=list(LEARNING_RATES),
        help="of the grid, for 256 images a step",
    )
    add("--no-resume", action="store_true", help="begin anew although the output folder holds a checkpoint")
    add("--val-metric-type", **metric, default=MetricType.MEAN_ACCURACY, help="what chooses the best head")
    add("--test-metric-types", **metric, nargs="+", help="one for each test data set; none: as for validation")
    add("--classifier-fpath", help="a checkpoint with heads to begin with; finished ones are only evaluated")
    add("--val-class-mapping-fpath", help=".npy file: the training class for each validation class")
    add("--test-class-mapping-fpaths", nargs="+", help="the same for each test data set; None: no mapping")
    add(
        "--unique-names",
        action="store_true",
        help="keep all heads of the grid, also those whose official names collide",
    )
    return parser


def run_eval_linear(
    model: nn.Module,
    output_dir: str | Path,
    train_dataset_str: str,
    val_dataset_str: str,
    batch_size: int,
    epochs: int,
    epoch_length: int,
    num_workers: int,
    save_checkpoint_frequency: int,
    eval_period_iterations: int,
    learning_rates: Sequence[float],
    autocast_dtype: torch.dtype,
    test_dataset_strs: Sequence[str] | None = None,
    resume: bool = True,
    classifier_fpath: str | None = None,
    val_class_mapping_fpath: str | None = None,
    test_class_mapping_fpaths: Sequence[str | None] | None = None,
    val_metric_type: MetricType = MetricType.MEAN_ACCURACY,
    test_metric_types: Sequence[MetricType] | None = None,
    *,
    unique_names: bool = False,
) -> dict[str, Any]:
    """The whole evaluation; {"best_classifier": name, "<data set string>_accuracy": percent, ...}.

    Test data sets that are just the validation set again are not evaluated twice. Everything random derives from a fixed seed.
    """
    tests = list_tests(
        test_dataset_strs, test_metric_types, test_class_mapping_fpaths, val_dataset_str, val_metric_type
    )
    val_mapping = load_class_mapping(val_class_mapping_fpath)
    train_dataset = make_dataset(dataset_str=train_dataset_str, transform=make_classification_train_transform())
    val_loader = make_eval_data_loader(val_dataset_str, batch_size, num_workers, val_metric_type)
    n_classes = count_classes(train_dataset, train_dataset_str)
    check_classes(train_dataset, whole_dataset(val_loader), val_mapping, tests, n_classes=n_classes)

    feature_model = ModelWithIntermediateLayers(model, max(N_LAST_BLOCKS), autocast_context(model, autocast_dtype))
    max_iter = epochs * epoch_length
    sample_output = feature_model(train_dataset[0][0].unsqueeze(0).to(device_of(model)))
    heads, optimizer, scheduler = _make_heads(
        sample_output, learning_rates, batch_size, n_classes, unique_names=unique_names, max_iter=max_iter
    )
    probe = _facts(model, n_images=len(train_dataset), batch_size=batch_size, max_iter=max_iter)
    checkpointer = ProbeCheckpointer(output_dir, heads=heads, optimizer=optimizer, scheduler=scheduler, probe=probe)
    start = checkpointer.resume_or_load(classifier_fpath, resume=resume)
    validation, _, _, iteration = eval_linear(
        feature_model=feature_model,
        linear_classifiers=heads,
        train_data_loader=_train_loader(train_dataset, batch_size, num_workers, n_done=start * batch_size),
        val_data_loader=val_loader,
        metrics_file_path=Path(output_dir) / RESULTS_NAME,
        optimizer=optimizer,
        scheduler=scheduler,
        output_dir=output_dir,
        max_iter=max_iter,
        checkpoint_period=save_checkpoint_frequency * epoch_length,
        running_checkpoint_period=epoch_length,
        eval_period=eval_period_iterations,
        metric_type=val_metric_type,
        training_num_classes=n_classes,
        resume=resume,
        classifier_fpath=classifier_fpath,
        val_class_mapping=val_mapping,
        probe=probe,
    )
    best = validation["best_classifier"]
    results = test_on_datasets(
        feature_model,
        heads,
        [test.dataset_str for test in tests],
        batch_size,
        num_workers,
        [test.metric_type for test in tests],
        Path(output_dir) / RESULTS_NAME,
        n_classes,
        iteration,
        best["name"],
        test_class_mappings=[test.class_mapping for test in tests],
    )
    return {**results, "best_classifier": best["name"], f"{val_dataset_str}_accuracy": 100.0 * best["accuracy"]}


def _facts(model: nn.Module, *, n_images: int, batch_size: int, max_iter: int) -> dict[str, str | int]:
    """What a checkpoint must agree with to be resumed; the number of processes may change if the batch of a step does not."""
    total_batch = batch_size * distributed.get_global_size()
    return {"backbone": fingerprint(model), "images": n_images, "batch size": total_batch, "steps": max_iter}


def _make_heads(
    sample_output: Tokens,
    learning_rates: Sequence[float],
    batch_size: int,
    n_classes: int,
    *,
    unique_names: bool,
    max_iter: int,
) -> tuple[Heads, Optimizer, LRScheduler]:
    """The grid of heads with the official optimiser and schedule."""
    heads, groups = setup_linear_classifiers(
        sample_output,
        N_LAST_BLOCKS,
        learning_rates,
        batch_size,
        n_classes,
        unique_names=unique_names,
        generator=torch.Generator().manual_seed(SEED),
    )
    optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=0)
    return heads, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max_iter, eta_min=0)


def _train_loader(dataset: Any, batch_size: int, num_workers: int, *, n_done: int) -> DataLoader:
    """An endless loader of this process's share of every step, which goes on after its first `n_done` images.

    An image's crop depends on its place among the images of all processes alone.
    """
    return make_data_loader(
        dataset=PositionSeededDataset(dataset, seed=SEED),
        batch_size=batch_size,
        num_workers=num_workers,
        shuffle=True,
        seed=SEED,
        sampler_type=SamplerType.SEEDED_INFINITE,
        sampler_advance=n_done,
        persistent_workers=True,
    )


def main(args: argparse.Namespace) -> dict[str, Any]:
    """The evaluation of a command line; its results as `run_eval_linear` gives them."""
    with distributed.session():
        model, dtype = setup_and_build_model(args)
        return run_eval_linear(
            model=model,
            output_dir=args.output_dir,
            train_dataset_str=args.train_dataset_str,
            val_dataset_str=args.val_dataset_str,
            test_dataset_strs=args.test_dataset_strs,
            batch_size=args.batch_size,
            epochs=args.epochs,
            epoch_length=args.epoch_length,
            num_workers=args.num_workers,
            save_checkpoint_frequency=args.save_checkpoint_frequency,
            eval_period_iterations=args.eval_period_iterations,
            learning_rates=args.learning_rates,
            autocast_dtype=dtype,
            resume=not args.no_resume,
            classifier_fpath=args.classifier_fpath,
            val_class_mapping_fpath=args.val_class_mapping_fpath,
            test_class_mapping_fpaths=args.test_class_mapping_fpaths,
            val_metric_type=args.val_metric_type,
            test_metric_types=args.test_metric_types,
            unique_names=args.unique_names,
        )


if __name__ == "__main__":
    sys.exit(run_command_line(main, get_args_parser(description="DINOv2 linear evaluation")))
