"""L2-regularised logistic regression of frozen features, all labels and all strengths of the penalty at once.

A label value counts only if it is 0 or 1: missing (-128) and uncertain (-1) images have no loss for that label. The suite calls
`linear_probe`; `fit_logistic` is the algorithm.

Shape legend: n images, D feature width, L labels, G candidates (values of C), P = G * L regression problems.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vet_extensions.errors import UserError
from vet_extensions.evaluation.metrics import is_known
from vet_extensions.evaluation.probes import Candidates, ProbeData

_LBFGS_MEMORY = 8
_MAX_HALVINGS = 20


def linear_probe(
    bank: ProbeData,
    *,
    val: ProbeData,
    test: ProbeData,
    c_grid: Sequence[float],
    max_iterations: int = 100,
) -> Candidates:
    """Logistic regression on the bank for every C, and its scores (logits) of the validation and test images."""
    model = fit_logistic(bank.features, labels=bank.labels, c_grid=c_grid, max_iterations=max_iterations)
    return Candidates("C", tuple(c_grid), model.scores(val.features), model.scores(test.features), True)


@dataclass(frozen=True)
class LogisticModel:
    """One logistic regression per (C, label), on standardised features.

    mean, scale: [D]; coefficients: [G, D, L]; intercepts: [G, L], NaN where the bank lacks a positive or a negative.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    coefficients: NDArray[np.float64]
    intercepts: NDArray[np.float64]
    n_iterations: int

    def scores(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Logits [G, n, L] of features [n, D]."""
        standardised = (features - self.mean) / self.scale
        return np.einsum("nd,gdl->gnl", standardised, self.coefficients, optimize=True) + self.intercepts[:, None]


def fit_logistic(
    features: NDArray[np.floating],
    *,
    labels: NDArray[np.integer],
    c_grid: Sequence[float],
    max_iterations: int = 100,
    tolerance: float = 1e-12,
    standardise_by: NDArray[np.floating] | None = None,
) -> LogisticModel:
    """Fit all labels and all C at once. Deterministic.

    features: [n, D], standardised here by their own mean and spread, or by those of the images `standardise_by`;
    labels: [n, L]; c_grid: inverse strengths of the penalty, as in scikit-learn:
    minimises |w|^2 / 2 + C * (sum of the log losses of the images whose label is known), the intercept being free.

    The features are rotated onto the eigenvectors of X'X, which leaves the penalty as it is and makes the curvature nearly
    diagonal: L-BFGS preconditioned by that diagonal then needs some ten steps, and a step is two matrix products.
    """
    if not c_grid or min(c_grid) <= 0:
        raise UserError(f"The grid of C must hold positive numbers, got {list(c_grid)}.")
    x = torch.as_tensor(features, dtype=torch.float64)
    reference = x if standardise_by is None else torch.as_tensor(standardise_by, dtype=torch.float64)
    mean, scale = reference.mean(dim=0), reference.std(dim=0, correction=0)
    scale = torch.where(scale > 1e-12, scale, 1.0)  # a constant feature stays 0
    eigenvalues, rotation = torch.linalg.eigh(((x - mean) / scale).T @ ((x - mean) / scale))  # [D], [D, D]
    design = torch.cat([((x - mean) / scale) @ rotation, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)  # [n, D + 1]

    n_grid = len(c_grid)
    known = torch.from_numpy(is_known(labels)).double().repeat(1, n_grid)  # [n, P], C outer, label inner
    positive = torch.from_numpy(labels == 1).double().repeat(1, n_grid)
    cost = torch.tensor(c_grid, dtype=torch.float64).repeat_interleave(labels.shape[1])  # [P]
    n_known, n_positive = known.sum(dim=0), positive.sum(dim=0)
    has_model = (n_positive > 0) & (n_positive < n_known)
    rate = torch.where(has_model, n_positive / n_known.clamp(min=1), 0.5)
    curvature = cost * rate * (1 - rate)
    share = n_known / max(1, len(x))
    diagonal = torch.cat([1 + curvature * share * eigenvalues.clamp(min=0)[:, None], (curvature * n_known)[None]])
    start = torch.zeros(design.shape[1], len(cost), dtype=torch.float64)
    start[-1] = torch.logit(rate)
    objective = _logistic_objective(design, known=known * cost, positive=positive * cost)
    solution, n_iterations = _minimise(
        objective,
        start=start,
        inverse_curvature=1 / diagonal.clamp(min=1e-12),
        tolerance=tolerance,
        n_max=max_iterations,
    )

    intercepts = torch.where(has_model, solution[-1], torch.nan).view(n_grid, -1)
    coefficients = (rotation @ solution[:-1]).view(len(rotation), n_grid, -1).transpose(0, 1)
    return LogisticModel(mean.numpy(), scale.numpy(), coefficients.numpy(), intercepts.numpy(), n_iterations)


Objective = Callable[[Tensor], tuple[Tensor, Tensor]]


def _logistic_objective(design: Tensor, *, known: Tensor, positive: Tensor) -> Objective:
    """Penalised log loss of P problems and its gradient; known and positive [n, P] carry the cost C of each image."""

    def objective(weights: Tensor) -> tuple[Tensor, Tensor]:
        logits = design @ weights  # [n, P]
        loss = (known * F.softplus(logits) - positive * logits).sum(dim=0)
        gradient = design.T @ (known * torch.sigmoid(logits) - positive)
        gradient[:-1] += weights[:-1]
        return loss + 0.5 * weights[:-1].square().sum(dim=0), gradient

    return objective


def _minimise(
    objective: Objective, *, start: Tensor, inverse_curvature: Tensor, tolerance: float, n_max: int
) -> tuple[Tensor, int]:
    """Preconditioned L-BFGS on P independent problems side by side, each with its own history and step length.

    start, inverse_curvature: [D + 1, P]. A problem rests once its predicted gain is below `tolerance` times its value.
    Source: Nocedal and Wright, Numerical Optimization (2006), algorithm 7.4, initial matrix = inverse_curvature.
    """
    point, (value, gradient) = start, objective(start)
    history: list[tuple[Tensor, Tensor, Tensor]] = []
    for iteration in range(n_max):
        direction = -_two_loop(gradient, history=history, inverse_curvature=inverse_curvature)
        slope = (gradient * direction).sum(dim=0)  # [P], negative
        active = -slope / 2 > tolerance * value.abs().clamp(min=1e-12)
        if not active.any():
            return point, iteration
        step = active.double()
        for _ in range(_MAX_HALVINGS):
            new_point = point + step * direction
            new_value, new_gradient = objective(new_point)
            too_far = new_value > value + 1e-4 * step * slope + 1e-13 * value.abs()
            if not too_far.any():
                break
            step = torch.where(too_far, step / 2, step)
        else:
            return point, iteration  # no descent left at the precision of the numbers
        moved, turned = new_point - point, new_gradient - gradient
        product = (moved * turned).sum(dim=0)
        history.append((moved, turned, torch.where(product > 1e-300, 1 / product.clamp(min=1e-300), 0.0)))
        history = history[-_LBFGS_MEMORY:]
        point, value, gradient = new_point, new_value, new_gradient
    return point, n_max


def _two_loop(gradient: Tensor, *, history: list[tuple[Tensor, Tensor, Tensor]], inverse_curvature: Tensor) -> Tensor:
    """Inverse-Hessian estimate times the gradient; a resting problem's empty step has rho 0 and changes nothing."""
    result, alphas = gradient.clone(), []
    for moved, turned, rho in reversed(history):
        alphas.append(rho * (moved * result).sum(dim=0))
        result -= alphas[-1] * turned
    result *= inverse_curvature
    for (moved, turned, rho), alpha in zip(history, reversed(alphas), strict=True):
        result += (alpha - rho * (turned * result).sum(dim=0)) * moved
    return result
