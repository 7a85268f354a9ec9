"""Two probes of frozen features, both multi-label: similarity-weighted k-NN and L2-regularised logistic regression.

A label value counts only if it is 0 or 1: missing (-128) and uncertain (-1) images have no vote and no loss for that label.
Both probes return the scores of every hyper-parameter candidate (`Candidates`); the choice is made on the validation split
alone. The suite calls `knn_probe` and `linear_probe`; `knn_scores` and `fit_logistic` are the two algorithms.

Shape legend: n images, D feature width, L labels, G candidates (values of k, or of C), P = G * L regression problems.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vet_extensions.errors import UserError
from vet_extensions.evaluation.metrics import AUROC, is_known, label_metrics, macro

_BANK_BLOCK = 65_536
"""Bank rows compared at once: with 1,024 queries, 256 MB of similarities."""

_LBFGS_MEMORY = 8
_MAX_HALVINGS = 20


@dataclass(frozen=True)
class ProbeData:
    """Features of some images (or studies) with their labels. features: [n, D] float32; labels: [n, L] int8."""

    features: NDArray[np.floating]
    labels: NDArray[np.integer]


@dataclass(frozen=True)
class Candidates:
    """Scores of every hyper-parameter candidate. val: [G, n_val, L], test: [G, n_test, L]; NaN columns have no model.

    are_logits: the scores are log-odds (of each label by itself); else shares of votes, or scores without a scale.
    """

    parameter: str
    values: tuple[float, ...]
    val: NDArray[np.floating]
    test: NDArray[np.floating]
    are_logits: bool = False

    def select(self, val_labels: NDArray[np.integer], *, columns: Sequence[int]) -> int:
        """The candidate with the highest macro AUROC on the validation split over the label `columns`; first of equals."""
        if len(self.values) == 1:
            return 0
        columns = list(columns)
        macros = [macro(label_metrics(s[:, columns], labels=val_labels[:, columns])[AUROC][:, 0])[0] for s in self.val]
        if np.isnan(macros).all():
            raise UserError(
                f"{self.parameter} cannot be chosen among {', '.join(f'{v:g}' for v in self.values)}: no label has both a "
                f"positive and a negative in the validation split ({len(val_labels)} rows). Use more studies, or give a "
                f"single value of {self.parameter} in the suite."
            )
        return int(np.nanargmax(macros))


def knn_probe(
    bank: ProbeData, *, val: ProbeData, test: ProbeData, ks: Sequence[int] = (20,), temperature: float = 0.07
) -> Candidates:
    """k-NN scores of the validation and test images against the bank, for every k."""
    val_scores, test_scores = (
        knn_scores(part.features, bank=bank.features, bank_labels=bank.labels, ks=ks, temperature=temperature)
        for part in (val, test)
    )
    return Candidates("k", tuple(float(k) for k in ks), val_scores, test_scores)


def knn_scores(
    queries: NDArray[np.floating],
    *,
    bank: NDArray[np.floating],
    bank_labels: NDArray[np.integer],
    ks: Sequence[int] = (20,),
    temperature: float = 0.07,
    block_rows: int = 1024,
    bank_block_rows: int = _BANK_BLOCK,
) -> NDArray[np.float32]:
    """Similarity-weighted vote of the k nearest bank images, label by label.

    queries: [n, D]; bank: [m, D]; bank_labels: [m, L]. Similarity is the cosine; a neighbour's weight is the softmax of
    similarity / temperature. returns: [G, n, L] scores in [0, 1], one slice for each k.

    As in DINOv2 (dinov2/eval/knn.py), with two differences that a ranking over images needs: the softmax runs over the k
    neighbours that vote (not over the largest k of the list), and for every label the weights of the neighbours whose label
    is known are rescaled to sum to 1. Where none of them is known the score is the label's prevalence in the bank; a label
    that nobody in the bank knows is NaN.
    """
    if not ks or min(ks) < 1 or max(ks) > len(bank):
        raise UserError(f"k must lie between 1 and the {len(bank)} images of the bank, got {', '.join(map(str, ks))}.")
    unit_queries, unit_bank = (F.normalize(torch.as_tensor(x, dtype=torch.float32), dim=1) for x in (queries, bank))
    known = torch.from_numpy(is_known(bank_labels)).float()  # [m, L]
    positive = torch.from_numpy(bank_labels == 1).float()  # [m, L]
    n_known = known.sum(dim=0)
    prevalence = torch.where(n_known > 0, positive.sum(dim=0) / n_known, torch.nan)  # [L]
    scores = torch.empty(len(ks), len(queries), bank_labels.shape[1])
    for start in range(0, len(queries), block_rows):
        rows = slice(start, start + block_rows)
        similarity, neighbours = _nearest(unit_queries[rows], unit_bank, k=max(ks), block_rows=bank_block_rows)
        for place, k in enumerate(ks):
            weights = F.softmax(similarity[:, :k] / temperature, dim=1)  # [b, k]
            votes = torch.einsum("bk,bkl->bl", weights, positive[neighbours[:, :k]])
            voters = torch.einsum("bk,bkl->bl", weights, known[neighbours[:, :k]])
            scores[place, rows] = torch.where(voters > 0, votes / voters, prevalence)
    return scores.numpy()


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
) -> LogisticModel:
    """Fit all labels and all C at once. Deterministic.

    features: [n, D], standardised here; labels: [n, L]; c_grid: inverse strengths of the penalty, as in scikit-learn:
    minimises |w|^2 / 2 + C * (sum of the log losses of the images whose label is known), the intercept being free.

    The features are rotated onto the eigenvectors of X'X, which leaves the penalty as it is and makes the curvature nearly
    diagonal: L-BFGS preconditioned by that diagonal then needs some ten steps, and a step is two matrix products.
    """
    if not c_grid or min(c_grid) <= 0:
        raise UserError(f"The grid of C must hold positive numbers, got {list(c_grid)}.")
    x = torch.as_tensor(features, dtype=torch.float64)
    mean, scale = x.mean(dim=0), x.std(dim=0, correction=0)
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


def _nearest(queries: Tensor, bank: Tensor, *, k: int, block_rows: int) -> tuple[Tensor, Tensor]:
    """The k highest inner products of each query with the bank, and their rows: [b, k] each, descending."""
    values, rows = [], []
    for start in range(0, len(bank), block_rows):
        similarity = queries @ bank[start : start + block_rows].T
        top, place = similarity.topk(min(k, similarity.shape[1]), dim=1)
        values.append(top)
        rows.append(place + start)
    if len(values) == 1:
        return values[0], rows[0]
    best, place = torch.cat(values, dim=1).topk(k, dim=1)
    return best, torch.cat(rows, dim=1).gather(1, place)


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
