"""The whole grid of linear heads on cached features (`vet_extensions.evaluation.linear_grid`) against single heads.

    python benchmarks/probe.py [--images 4000 --dim 768] [--labels 2 5 14] [--threads 2] [--smoke]

52 heads: 13 learning rates, one or four blocks, with or without the mean patch. A single head is trained twice over: as PyTorch
trains one (`nn.Linear`, autograd, `torch.optim.SGD`), and by our own code with a grid of one. Times of single heads are means
over the four inputs. All by turns in one process, so that the ratio holds on any machine. Prints a markdown table for each number
of classes, and how far the heads of the grid are from those trained alone.
"""

import argparse
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from side_by_side import by_turns, machine_facts
from torch import nn

from vet_extensions.evaluation.cohort import MULTICLASS
from vet_extensions.evaluation.linear_grid import LEARNING_RATES, Inputs, block_inputs, fit_linear_grid

GRID, OWN, TORCH = "the grid, 52 heads", "one head, own code", "one head, PyTorch"


def train_torch_head(
    features: torch.Tensor, classes: torch.Tensor, n_classes: int, *, rate: float, batch_size: int
) -> nn.Linear:
    """One epoch of one head on features in memory, as plainly as PyTorch does it."""
    head = nn.Linear(features.shape[1], n_classes)
    nn.init.normal_(head.weight, std=0.01, generator=torch.Generator().manual_seed(0))
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.SGD(head.parameters(), lr=rate * batch_size / 256, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, math.ceil(len(features) / batch_size))
    for rows in torch.randperm(len(features), generator=torch.Generator().manual_seed(0)).split(batch_size):
        loss = F.cross_entropy(head(features[rows]), classes[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return head


def main() -> None:
    """Reads the options, makes the features once, and shows one table for each number of classes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--labels", type=int, nargs="+", default=[2, 5, 14], help="numbers of classes")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="everything once, small; the figures mean nothing")
    args = parser.parse_args()
    if args.smoke:
        args.images, args.dim, args.labels, args.repeats = 300, 16, [3], 1
    torch.set_num_threads(args.threads)
    clock = "cpu" if args.threads == 1 else "wall"
    print(f"{machine_facts()}\none epoch of {args.images} images, {args.dim} features a block, batch {args.batch}")
    rng = np.random.default_rng(0)
    cls = rng.normal(size=(args.images, 4, args.dim)).astype(np.float32)
    features, inputs = block_inputs(cls, mean_patch=cls.mean(axis=1))
    for n_classes in args.labels:
        show(features, inputs, n_classes, args=args, clock=clock)


def show(features: np.ndarray, inputs: Inputs, n_classes: int, *, args: argparse.Namespace, clock: str) -> None:
    """Prints the times of the grid and of single heads, and how far their weights are apart. features: [n, all inputs side by
    side], inputs: name -> its columns; clock: as in `side_by_side.Timing.of`."""
    classes = np.random.default_rng(1).integers(0, n_classes, len(features))
    labels, rate = np.eye(n_classes, dtype=np.int8)[classes], LEARNING_RATES[-4]
    fit = partial(fit_linear_grid, features, labels=labels, epochs=1, batch_size=args.batch, task=MULTICLASS)

    def own(only: dict[str, slice]) -> np.ndarray:
        return fit(inputs=only, learning_rates=(rate,)).weights[next(iter(only))].numpy()

    ways: dict[str, Callable[[], object]] = {GRID: partial(fit, inputs=inputs)}
    for name, columns in inputs.items():
        ways[f"{OWN}: {name}"] = partial(own, {name: columns})
        x, y = torch.from_numpy(features[:, columns]), torch.from_numpy(classes)
        ways[f"{TORCH}: {name}"] = partial(train_torch_head, x, y, n_classes, rate=rate, batch_size=args.batch)
    timings = by_turns(ways, repeats=args.repeats)
    grid_s = timings[GRID].median(clock)
    print(f"\n## {n_classes} classes\n\n| what | median, ms ({clock}) | the grid takes, times as long |\n|---|---|---|")
    print(f"| {GRID} | {1000 * grid_s:.1f} | 1.0 |")
    for kind in (OWN, TORCH):
        one_s = float(np.mean([timing.median(clock) for name, timing in timings.items() if name.startswith(kind)]))
        print(f"| {kind} | {1000 * one_s:.1f} | {grid_s / one_s:.1f} |")
    grid, off = fit(inputs=inputs), 0.0
    for name, columns in inputs.items():
        alone = own({name: columns})[:, 0]
        off = max(off, float(np.abs(grid.weights[name][:, LEARNING_RATES.index(rate)].numpy() - alone).max()))
    print(f"\nA weight of the grid differs from that of a head trained alone by at most {off:.1e}.", flush=True)


if __name__ == "__main__":
    main()
