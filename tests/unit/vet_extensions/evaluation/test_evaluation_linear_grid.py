"""The heads of a grid are those that PyTorch trains one by one; unknown labels have no loss."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vet_extensions.errors import UserError
from vet_extensions.evaluation.cohort import MULTICLASS, MULTILABEL
from vet_extensions.evaluation.linear_grid import (
    LinearGrid,
    block_inputs,
    fit_linear_grid,
    linear_grid_probe,
)
from vet_extensions.evaluation.probes import ProbeData

RATES, EPOCHS, BATCH = (0.01, 1.0), 3, 16


def blocks(n: int = 50) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, 4, 6)).astype(np.float32)


def make_labels(cls: np.ndarray, task: str) -> np.ndarray:
    if task == MULTICLASS:
        return np.eye(3, dtype=np.int8)[cls[:, -1, :3].argmax(axis=1)]
    labels = (cls[:, -1, :3] > 0).astype(np.int8)
    labels[::4, 1], labels[1::5, 2], labels[7] = -1, -128, -128
    return labels


def train_alone(x: np.ndarray, labels: np.ndarray, *, rate: float, task: str) -> nn.Linear:
    """One head with autograd and torch.optim.SGD, on the grid's batches and initial weights."""
    head = nn.Linear(x.shape[1], labels.shape[1])
    start = torch.empty(x.shape[1], labels.shape[1]).normal_(std=0.01, generator=torch.Generator().manual_seed(0))
    head.weight.data, head.bias.data = start.T.clone(), torch.zeros(labels.shape[1])
    optimizer = torch.optim.SGD(head.parameters(), lr=rate * BATCH / 256, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * math.ceil(len(x) / BATCH))
    generator = torch.Generator().manual_seed(0)
    features, targets = torch.from_numpy(x), torch.from_numpy(labels.copy())
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x), generator=generator).split(BATCH):
            logits, target = head(features[rows]), targets[rows]
            if task == MULTICLASS:
                loss = F.cross_entropy(logits, target.argmax(dim=1))
            else:
                losses = F.binary_cross_entropy_with_logits(logits, (target == 1).float(), reduction="none")
                known = target >= 0
                loss = ((losses * known).sum(dim=1) / known.sum(dim=1).clamp(min=1)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return head


def fit(cls: np.ndarray, labels: np.ndarray, task: str) -> tuple[np.ndarray, LinearGrid]:
    features, inputs = block_inputs(cls, mean_patch=cls.mean(axis=1))
    grid = fit_linear_grid(
        features, labels=labels, inputs=inputs, learning_rates=RATES, epochs=EPOCHS, batch_size=BATCH, task=task
    )
    return features, grid


@pytest.mark.parametrize("task", [MULTICLASS, MULTILABEL])
def test_every_head_of_the_grid_equals_one_trained_alone(task: str) -> None:
    cls = blocks()
    labels = make_labels(cls, task)
    features, grid = fit(cls, labels, task)
    scores = grid.scores(features)
    places = [(name, rate) for name in grid.inputs for rate in RATES]
    assert len(scores) == len(grid.names) == 8
    for head_scores, (name, rate) in zip(scores, places, strict=True):
        x = np.ascontiguousarray(features[:, grid.inputs[name]])
        alone = train_alone(x, labels, rate=rate, task=task)
        expected = alone(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(head_scores, expected, rtol=1e-4, atol=1e-5)


def test_the_inputs_are_the_official_ones() -> None:
    cls = blocks(n=2)
    mean_patch = -cls[:, 0]
    features, inputs = block_inputs(cls, mean_patch=mean_patch)
    np.testing.assert_array_equal(features[:, inputs["1 block"]], cls[:, 3])
    np.testing.assert_array_equal(features[:, inputs["4 blocks"]], cls.reshape(2, 24))
    np.testing.assert_array_equal(features[:, inputs["1 block, mean patch"]], np.hstack([cls[:, 3], mean_patch]))
    np.testing.assert_array_equal(features[:, inputs["4 blocks, mean patch"]], features)


def test_the_probe_chooses_the_rate_that_is_best_on_validation() -> None:
    cls = blocks(n=120)
    data = ProbeData(cls[:, -1], make_labels(cls, MULTICLASS))
    found = linear_grid_probe(data, val=data, test=data, learning_rates=(1e-6, 1.0), epochs=20, task=MULTICLASS)
    assert found.parameter == "learning_rate"
    assert found.values[found.select(data.labels, columns=[0, 1, 2])] == 1.0


def test_heads_that_leave_finite_numbers_are_reported() -> None:
    cls = blocks()
    with pytest.raises(UserError, match="Use smaller learning rates"):
        fit_linear_grid(cls[:, -1] * np.inf, labels=make_labels(cls, MULTILABEL), epochs=1)
