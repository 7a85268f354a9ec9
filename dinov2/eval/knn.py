"""Weighted k-NN classification on frozen features: `python -m dinov2.eval.knn --config-file ... --pretrained-weights ...`.

Cosine similarities of L2-normalised class tokens; the weights are a softmax over the `max_k` nearest neighbours, of which the
first k vote. With several processes each embeds its share of the images and classifies its share of the validation set; all hold
the training features as a whole, so that neighbours and ties are those of a single process.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinov2 import distributed
from dinov2.data import make_dataset
from dinov2.data.transforms import make_classification_eval_transform
from dinov2.eval.metrics import AccuracyAveraging, build_topk_accuracy_metric
from dinov2.eval.setup import get_args_parser as get_setup_args_parser
from dinov2.eval.setup import positive_int, run_command_line, setup_and_build_model
from dinov2.eval.utils import (
    ModelWithNormalize,
    autocast_context,
    check_same_classes,
    count_classes,
    device_of,
    evaluate,
    extract_features,
    share_of_batches,
)
from dinov2.utils.errors import UserError

logger = logging.getLogger("dinov2")

RESULTS_NAME = "results_eval_knn.json"


def get_args_parser(
    description: str | None = None,
    parents: Sequence[argparse.ArgumentParser] | None = None,
    add_help: bool = True,
) -> argparse.ArgumentParser:
    """The official options, and `--num-workers`."""
    shared = get_setup_args_parser(parents=parents, add_help=False)
    parser = argparse.ArgumentParser(description=description, parents=[shared], add_help=add_help)
    add = parser.add_argument
    add("--train-dataset", dest="train_dataset_str", default="ImageNet:split=TRAIN", help="whose images vote")
    add("--val-dataset", dest="val_dataset_str", default="ImageNet:split=VAL", help="whose images are classified")
    add("--nb_knn", nargs="+", type=positive_int, default=[10, 20, 100, 200], help="numbers of neighbours")
    add("--temperature", type=float, default=0.07, help="of the softmax over similarities")
    add("--gather-on-cpu", action="store_true", help="keep the features in main memory; slower")
    add("--batch-size", type=positive_int, default=256, help="images that go through the backbone at a time")
    add("--num-workers", type=int, default=5, help="processes that read images")
    add("--n-per-class-list", nargs="+", type=int, default=[-1], help="training images a class; -1: all of them")
    add("--n-tries", type=positive_int, default=1, help="random draws for each number of images a class")
    return parser


class KnnModule(nn.Module):
    """Votes of the nearest training features, which it keeps on its device."""

    def __init__(
        self,
        train_features: Tensor,
        train_labels: Tensor,
        nb_knn: Sequence[int],
        T: float,
        device: torch.device | str,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        self.device = torch.device(device)
        self.train_features_rank_T = train_features.T.to(self.device)  # [D, n]
        self.candidates = train_labels.to(self.device)  # [n]
        self.nb_knn = list(nb_knn)
        self.max_k = min(max(self.nb_knn), len(train_labels))
        self.T = T
        self.num_classes = num_classes

    def forward(self, features: Tensor) -> dict[int, Tensor]:
        """Features [B, D] -> {k: votes [B, C]}.

        Weights are a softmax over the `max_k` nearest, whichever k is asked for: a smaller k only cuts the vote off (official).
        """
        similarities = features.to(self.device) @ self.train_features_rank_T  # [B, n]
        nearest, indices = similarities.topk(self.max_k, largest=True, sorted=True)
        weights = torch.softmax(nearest.float() / self.T, dim=1)  # [B, max_k]
        classes = self.candidates[indices]  # [B, max_k]
        votes = {}
        for k in self.nb_knn:
            empty = weights.new_zeros(len(features), self.num_classes)
            votes[k] = empty.scatter_add_(1, classes[:, :k], weights[:, :k])
        return votes


class DictKeysModule(nn.Module):
    """Picks an entry of nested dictionaries and pairs it with the target, in the form that a metric takes."""

    def __init__(self, keys: Sequence[Any]) -> None:
        super().__init__()
        self.keys = keys

    def forward(self, features_dict: dict[Any, Any], targets: Tensor) -> dict[str, Tensor]:
        for key in self.keys:
            features_dict = features_dict[key]
        return {"preds": features_dict, "target": targets}  # type: ignore[dict-item]


class ModuleDictWithForward(nn.ModuleDict):
    """Applies each of its modules to the same input."""

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {name: module(*args, **kwargs) for name, module in self.items()}


def create_class_indices_mapping(labels: Tensor) -> dict[int, Tensor]:
    """Class -> indices of its samples."""
    return {int(c): (labels == c).nonzero().flatten() for c in labels.unique()}


def filter_train(mapping: dict[int, Tensor], n_per_class: int, seed: int) -> Tensor:
    """Indices of `n_per_class` random samples of every class (fewer where a class has fewer), class by class; official draws."""
    generator = torch.Generator().manual_seed(seed)
    chosen = [
        indices[torch.randperm(len(indices), generator=generator)[:n_per_class].to(indices.device)]
        for indices in mapping.values()
    ]
    return torch.cat(chosen)


def create_module_dict(
    *,
    module: Callable[..., nn.Module],
    n_per_class_list: Sequence[int],
    n_tries: int,
    nb_knn: Sequence[int],
    train_features: Tensor,
    train_labels: Tensor,
) -> ModuleDictWithForward:
    """A k-NN module for every number of samples a class ("full" for all of them) and every try.

    With few samples a class, k goes up to that number, which is itself one of the ks (official).
    """
    mapping = create_class_indices_mapping(train_labels)
    modules: dict[str, nn.Module] = {}
    for n_per_class in n_per_class_list:
        if n_per_class < 0:
            only = {"1": module(train_features=train_features, train_labels=train_labels, nb_knn=nb_knn)}
            modules["full"] = ModuleDictWithForward(only)
            continue
        ks = sorted({k for k in (*nb_knn, n_per_class) if k <= n_per_class})
        tries: dict[str, nn.Module] = {}
        for t in range(n_tries):
            kept = filter_train(mapping, n_per_class, seed=t)
            tries[str(t)] = module(train_features=train_features[kept], train_labels=train_labels[kept], nb_knn=ks)
        modules[f"{n_per_class} per class"] = ModuleDictWithForward(tries)
    return ModuleDictWithForward(modules)


def eval_knn(
    model: nn.Module,
    train_dataset: Any,
    val_dataset: Any,
    accuracy_averaging: AccuracyAveraging,
    nb_knn: Sequence[int],
    temperature: float,
    batch_size: int,
    num_workers: int,
    gather_on_cpu: bool,
    n_per_class_list: Sequence[int] = (-1,),
    n_tries: int = 1,
) -> dict[tuple[str, int], dict[str, Tensor]]:
    """(samples a class, k) -> accuracies in [0, 1], averaged over the tries.

    model: images -> features, which are normalised here. A k beyond the number of training samples is left out, with a
    warning; raises `UserError` if none remains.
    """
    if 0 in n_per_class_list:
        raise UserError("--n-per-class-list has a 0. Give numbers of training images a class, or -1 for all of them.")
    usable = _usable_ks(nb_knn, n_train=len(train_dataset))
    model = ModelWithNormalize(model)
    train_features, train_labels = extract_features(model, train_dataset, batch_size, num_workers, gather_on_cpu)
    val_features, val_labels = extract_features(model, val_dataset, batch_size, num_workers, gather_on_cpu)
    num_classes = int(torch.cat([train_labels, val_labels]).max()) + 1
    device = train_features.device

    def module(**arguments: Any) -> KnnModule:
        return KnnModule(T=temperature, device=device, num_classes=num_classes, **arguments)

    tree = create_module_dict(
        module=module,
        n_per_class_list=n_per_class_list,
        n_tries=n_tries,
        nb_knn=usable,
        train_features=train_features,
        train_labels=train_labels,
    )
    postprocessors, metrics = {}, {}
    for name, tries in tree.items():
        for t, knn in tries.items():  # type: ignore[union-attr]
            for k in knn.nb_knn:
                postprocessors[name, t, k] = DictKeysModule([name, t, k])
                metrics[name, t, k] = build_topk_accuracy_metric(accuracy_averaging, num_classes)
    batches = share_of_batches(val_features, val_labels, batch_size)
    _, values = evaluate(tree, batches, postprocessors, metrics, device)  # type: ignore[arg-type]
    return _mean_over_tries(values)


def _usable_ks(nb_knn: Sequence[int], *, n_train: int) -> list[int]:
    usable = [k for k in nb_knn if k <= n_train]
    if not usable:
        raise UserError(
            f"Every number of neighbours ({', '.join(map(str, nb_knn))}) is greater than the number of training images, "
            f"{n_train}. Give smaller ones: --nb_knn {max(1, n_train // 10)}."
        )
    if len(usable) < len(nb_knn):
        logger.warning("k-NN: only k = %s, for there are %d training images", usable, n_train)
    return usable


def _mean_over_tries(values: dict[Any, dict[str, Tensor]]) -> dict[tuple[str, int], dict[str, Tensor]]:
    grouped: dict[tuple[str, int], list[dict[str, Tensor]]] = {}
    for (name, _, k), value in values.items():
        grouped.setdefault((name, k), []).append(value)
    return {
        key: {top: torch.stack([torch.as_tensor(v[top]) for v in tries]).mean(0) for top in tries[0]}
        for key, tries in grouped.items()
    }


def eval_knn_with_model(
    model: nn.Module,
    output_dir: str | Path,
    train_dataset_str: str = "ImageNet:split=TRAIN",
    val_dataset_str: str = "ImageNet:split=VAL",
    nb_knn: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    autocast_dtype: torch.dtype = torch.float,
    accuracy_averaging: AccuracyAveraging = AccuracyAveraging.MEAN_ACCURACY,
    transform: Callable[[Any], Any] | None = None,
    gather_on_cpu: bool = False,
    batch_size: int = 256,
    num_workers: int = 5,
    n_per_class_list: Sequence[int] = (-1,),
    n_tries: int = 1,
) -> dict[str, float]:
    """Evaluate and append to `results_eval_knn.json`, one JSON object `{"('full', 10) Top 1": percent}` a line.

    Returns the same percentages by these official names, in every process; the main one writes.
    transform: the official 224 px evaluation transform unless given.
    """
    transform = transform or make_classification_eval_transform()
    train_dataset = make_dataset(dataset_str=train_dataset_str, transform=transform)
    val_dataset = make_dataset(dataset_str=val_dataset_str, transform=transform)
    if hasattr(train_dataset, "get_targets"):  # before the long part
        count_classes(train_dataset, train_dataset_str)
    check_same_classes(train_dataset, val_dataset, "validation")
    with autocast_context(model, autocast_dtype)():
        accuracies = eval_knn(
            model,
            train_dataset,
            val_dataset,
            accuracy_averaging,
            nb_knn,
            temperature,
            batch_size,
            num_workers,
            gather_on_cpu or device_of(model).type == "cpu",
            n_per_class_list,
            n_tries,
        )
    results: dict[str, float] = {}
    for key, value in accuracies.items():
        for top in ("top-1", "top-5"):
            results[f"{key} {top.replace('top-', 'Top ')}"] = float(value[top].nanmean()) * 100.0
        logger.info("k-NN %s: top-1 %.2f, top-5 %.2f", key, results[f"{key} Top 1"], results[f"{key} Top 5"])
    if distributed.is_main_process():
        lines = [json.dumps({name: percent}) + "\n" for name, percent in results.items()]
        with (Path(output_dir) / RESULTS_NAME).open("a", encoding="utf-8") as file:
            file.write("".join(lines))
    return results


def main(args: argparse.Namespace) -> dict[str, float]:
    """The evaluation of a command line; its results as `eval_knn_with_model` gives them."""
    with distributed.session():
        model, dtype = setup_and_build_model(args)
        return eval_knn_with_model(
            model=model,
            output_dir=args.output_dir,
            train_dataset_str=args.train_dataset_str,
            val_dataset_str=args.val_dataset_str,
            nb_knn=args.nb_knn,
            temperature=args.temperature,
            autocast_dtype=dtype,
            gather_on_cpu=args.gather_on_cpu,
            batch_size=args.batch_size,
            num_workers=args.num_workers,
            n_per_class_list=args.n_per_class_list,
            n_tries=args.n_tries,
        )


if __name__ == "__main__":
    sys.exit(run_command_line(main, get_args_parser(description="DINOv2 k-NN evaluation")))
