"""A grid of linear heads trained by SGD on frozen features, all heads side by side. `protocols` calls `linear_grid_probe`.

The optimisation is DINOv2's (dinov2/eval/linear*.py): momentum 0.9, no weight decay, a cosine to zero, weights from N(0, 0.01),
learning rates for a batch of 256. The heads of one input differ in their learning rate alone: their weights lie side by side,
one product gives all their logits and one their gradients, with the momentum added inside it. What a head becomes does not
depend on the others.

Shape legend: n images, B batch, W width of all features, D width of an input, L labels or classes, R learning rates, H heads.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vet_extensions.errors import UserError
from vet_extensions.evaluation.cohort import MULTICLASS, MULTILABEL
from vet_extensions.evaluation.metrics import is_known
from vet_extensions.evaluation.probes import Candidates, ProbeData

LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
"""The official grid, for a batch of 256 images."""
_MOMENTUM = 0.9
_INITIAL_STD = 0.01

Inputs = Mapping[str, slice]
"""Name of an input, such as "4 blocks, mean patch" -> its columns of the features [n, W]."""


@dataclass(frozen=True)
class LinearGrid:
    """Trained heads, input by input, as `names` says. weights: input -> [D, R, L]; biases: input -> [R, L]."""

    learning_rates: tuple[float, ...]
    inputs: Inputs
    weights: Mapping[str, Tensor]
    biases: Mapping[str, Tensor]

    @property
    def names(self) -> tuple[str, ...]:
        """Input and learning rate of each head."""
        return tuple(head_name(name, rate) for name in self.inputs for rate in self.learning_rates)

    def scores(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """Logits of all heads, [H, n, L]. features: [n, W]."""
        parts, x = [], torch.as_tensor(features, dtype=torch.float32)
        for name, columns in self.inputs.items():
            logits = torch.addmm(self.biases[name].flatten(), x[:, columns], self.weights[name].flatten(1))
            parts.append(logits.view(len(x), *self.biases[name].shape).transpose(0, 1))
        return torch.cat(parts).numpy()


def head_name(name: str, learning_rate: float) -> str:
    """What a head is called: its input and learning rate."""
    return f"{name}, lr {learning_rate:g}"


def block_inputs(
    cls_by_block: NDArray[np.floating], *, mean_patch: NDArray[np.floating]
) -> tuple[NDArray[np.floating], Inputs]:
    """The official inputs: class tokens of the last block or of the last k (4), with or without the last mean patch.

    cls_by_block: [n, k, D], the earliest block first; mean_patch: [n, D]. returns: the features [n, (k + 1) D] that hold all
    inputs, and the columns of each; of a single block there are two.
    """
    n, n_blocks, width = cls_by_block.shape
    features = np.concatenate([cls_by_block.reshape(n, -1), mean_patch], axis=1)
    last, behind = (n_blocks - 1) * width, n_blocks * width
    inputs = {"1 block": slice(last, behind), "1 block, mean patch": slice(last, behind + width)}
    if n_blocks > 1:
        inputs |= {f"{n_blocks} blocks": slice(0, behind), f"{n_blocks} blocks, mean patch": slice(0, behind + width)}
    return features, inputs


def linear_grid_probe(
    bank: ProbeData,
    *,
    val: ProbeData,
    test: ProbeData,
    inputs: Inputs | None = None,
    learning_rates: Sequence[float] = LEARNING_RATES,
    epochs: int = 10,
    batch_size: int = 128,
    seed: int = 0,
    task: str = MULTILABEL,
) -> Candidates:
    """A head for every input and learning rate: scores (logits) of the validation and test images.

    A learning rate is a candidate's value, its input what it `reads`.
    """
    grid = fit_linear_grid(
        bank.features, labels=bank.labels, inputs=inputs, learning_rates=learning_rates, epochs=epochs,
        batch_size=batch_size, seed=seed, task=task,
    )  # fmt: skip
    return Candidates(
        "learning_rate",
        grid.learning_rates * len(grid.inputs),
        grid.scores(val.features),
        grid.scores(test.features),
        are_logits=task == MULTILABEL,
        reads=() if inputs is None else tuple(name for name in inputs for _ in grid.learning_rates),
    )


def fit_linear_grid(
    features: NDArray[np.floating],
    *,
    labels: NDArray[np.integer],
    inputs: Inputs | None = None,
    learning_rates: Sequence[float] = LEARNING_RATES,
    epochs: int = 10,
    batch_size: int = 128,
    seed: int = 0,
    task: str = MULTILABEL,
) -> LinearGrid:
    """Train a head for every input and learning rate, on the same batches, those of an input from the same initial weights.

    features: [n, W]; labels: [n, L]; inputs: None for one, of all columns. The loss is the mean over the batch of the
    cross-entropy of the classes; or of the mean binary cross-entropy of the image's known labels (0 or 1), others having no
    loss. Deterministic in `seed`. Raises `UserError` for what does not fit together, and for heads that leave finite numbers.
    """
    if len(features) != len(labels) or not len(labels):
        raise UserError(
            f"A linear grid needs a label row for each image, got {len(features)} images, {len(labels)} rows."
        )
    if not learning_rates or min(learning_rates) <= 0 or epochs < 1 or batch_size < 1:
        raise UserError(
            "A linear grid needs positive learning rates, at least one epoch and a batch of at least one image."
        )
    x, inputs = torch.as_tensor(features, dtype=torch.float32), inputs or {"features": slice(0, features.shape[1])}
    positive, share = _targets(labels, task)
    n_labels, batch_size = labels.shape[1], min(batch_size, len(x))
    rates = (torch.tensor(learning_rates) * batch_size / 256).repeat_interleave(n_labels)  # [R * L]
    heads = [_Heads(x[:, columns].shape[1], len(learning_rates), n_labels, seed=seed) for columns in inputs.values()]
    n_steps = epochs * math.ceil(len(x) / batch_size)
    for step, rows in enumerate(_batches(len(x), epochs=epochs, batch_size=batch_size, seed=seed)):
        step_rates = rates * (0.5 * (1 + math.cos(math.pi * step / n_steps)))
        batch, present, weight = x[rows], positive[rows, None], share[rows, None] / len(rows)
        for part, columns in zip(heads, inputs.values(), strict=True):
            logits = torch.addmm(part.bias, batch[:, columns], part.weight).view(len(rows), -1, n_labels)  # [B, R, L]
            predicted = logits.softmax(dim=2) if task == MULTICLASS else logits.sigmoid_()
            part.step(batch[:, columns], predicted.sub_(present).mul_(weight).flatten(1), step_rates)
    for name, part in zip(inputs, heads, strict=True):
        if not torch.isfinite(part.weight).all():
            raise UserError(
                f"A head on '{name}' left finite numbers. Use smaller learning rates, or check the features."
            )
    shape = (len(learning_rates), n_labels)
    return LinearGrid(
        learning_rates=tuple(learning_rates),
        inputs=inputs,
        weights={name: part.weight.unflatten(1, shape) for name, part in zip(inputs, heads, strict=True)},
        biases={name: part.bias.view(shape) for name, part in zip(inputs, heads, strict=True)},
    )


class _Heads:
    """The heads of one input with their momenta. weight: [D, R * L]; every learning rate begins alike, with no bias."""

    def __init__(self, width: int, n_rates: int, n_labels: int, *, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.empty(width, n_labels).normal_(std=_INITIAL_STD, generator=generator).repeat(1, n_rates)
        self.bias = torch.zeros(n_rates * n_labels)
        self._weight_momentum, self._bias_momentum = torch.zeros_like(self.weight), torch.zeros_like(self.bias)

    def step(self, batch: Tensor, gradient: Tensor, rates: Tensor) -> None:
        """batch: [B, D]; gradient: of the loss by the logits, [B, R * L]; rates: [R * L]."""
        self._weight_momentum.addmm_(batch.T, gradient, beta=_MOMENTUM)
        self._bias_momentum.mul_(_MOMENTUM).add_(gradient.sum(dim=0))
        self.weight.addcmul_(self._weight_momentum, rates, value=-1)
        self.bias.addcmul_(self._bias_momentum, rates, value=-1)


def _targets(labels: NDArray[np.integer], task: str) -> tuple[Tensor, Tensor]:
    """Where a label is present, and its share in the image's loss, [n, L] float32 each."""
    known = is_known(labels).astype(np.float32)
    if task == MULTICLASS:
        wrong = int(((labels == 1).sum(axis=1) != 1).sum())
        if wrong:
            raise UserError(
                f"{wrong} of {len(labels)} rows have no class, or several; a row of a multi-class task has one."
            )
        known[:] = 1
    else:
        known /= np.maximum(known.sum(axis=1, keepdims=True), 1)
    return torch.from_numpy((labels == 1).astype(np.float32)), torch.from_numpy(known)


def _batches(n: int, *, epochs: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield from torch.randperm(n, generator=generator).split(batch_size)
