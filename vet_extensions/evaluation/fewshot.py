"""How few labels are enough: probes on a few patients a class, or on a share of the patients, over many random draws.

`curves` puts them into a suite. A draw is a random order of the training patients from which every size takes the first, so
that a larger size holds the smaller ones. Patients are drawn, never images: all rows of a drawn patient belong to the draw. All
draws of a size are solved side by side as one set of logistic regressions.

The labels of patients that were not drawn stay unseen; their features only tell the mean and the spread that features are
standardised with, as any archive without labels would. The penalty is given, for validation labels would be labels too.

Shape legend: n bank rows, m queries, L labels, S draws.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vet_extensions.errors import UserError
from vet_extensions.evaluation.logistic import fit_logistic
from vet_extensions.evaluation.metrics import METRICS, macro
from vet_extensions.evaluation.probes import ProbeData
from vet_extensions.evaluation.statistics import LabelSamples, PatientBootstrap, average, concatenate

_MISSING = -128

Rows = NDArray[np.integer]


@dataclass(frozen=True)
class CurvePoint:
    """One size of a curve. by_draw: metric -> the resamples of each draw. n_rows, n_patients: of the bank, mean over draws."""

    by_draw: dict[str, list[LabelSamples]]
    n_rows: float
    n_patients: float

    def samples(self, metric: str, *, columns: Sequence[int]) -> LabelSamples:
        """Mean over the draws within each resample of the patients; its interval says how the mean of exactly these draws varies
        with the patients. A label that some draws cannot fit is averaged over the others."""
        parts = []
        for column in columns:
            of_label = [draw.select([column]) for draw in self.by_draw[metric]]
            fitted = [draw for draw in of_label if not np.isnan(draw.values[0])]
            parts.append(average(fitted or of_label))
        return concatenate(parts)

    def draw_std(self, metric: str, *, columns: Sequence[int]) -> float:
        """Standard deviation of the macro average over the draws, which is not in that interval; NaN for a single draw."""
        macros = [macro(draw.values[list(columns)])[0] for draw in self.by_draw[metric]]
        return float(np.std(macros, ddof=1)) if len(macros) > 1 else float("nan")


def draw_shots(
    labels: NDArray[np.integer],
    *,
    patient_codes: NDArray[np.integer],
    shots: Sequence[int] = (1, 2, 4, 8, 16),
    n_draws: int = 20,
    seed: int = 0,
) -> dict[int, list[Rows]]:
    """Shots -> the rows of each draw: of every label that many patients who show it, and as many who show none.

    labels: [n, L]; patient_codes: [n]. A label with fewer patients gives all of them. A patient may stand for several labels.
    """
    _check(n_draws, sizes=shots, allowed=min(shots, default=0) >= 1, what="shots must be whole numbers from 1")
    patients, patient = np.unique(patient_codes, return_inverse=True)
    shows = np.zeros((len(patients), labels.shape[1]), dtype=bool)
    np.logical_or.at(shows, patient, labels == 1)
    stands_for = np.concatenate([shows, ~shows.any(axis=1, keepdims=True)], axis=1)  # [P, L + 1]
    draws: dict[int, list[Rows]] = {size: [] for size in shots}
    for order in _orders(len(patients), n_draws=n_draws, seed=seed):
        place = stands_for[order].cumsum(axis=0)  # [P, L + 1], how many of a label until here
        for size in shots:
            drawn = order[(stands_for[order] & (place <= size)).any(axis=1)]
            draws[size].append(np.flatnonzero(np.isin(patient, drawn)))
    return draws


def draw_shares(
    *,
    patient_codes: NDArray[np.integer],
    shares: Sequence[float] = (0.01, 0.03, 0.1, 0.3, 1.0),
    n_draws: int = 5,
    seed: int = 0,
) -> dict[float, list[Rows]]:
    """Share of the patients -> the rows of each draw; at least one patient, and of all patients a single draw."""
    allowed = bool(shares) and min(shares) > 0 and max(shares) <= 1
    _check(n_draws, sizes=shares, allowed=allowed, what="shares of patients must lie above 0 and not above 1")
    patients, patient = np.unique(patient_codes, return_inverse=True)
    draws: dict[float, list[Rows]] = {share: [] for share in shares}
    for order in _orders(len(patients), n_draws=n_draws, seed=seed):
        for share in shares:
            n_drawn = max(1, round(share * len(patients)))
            if n_drawn < len(patients) or not draws[share]:
                draws[share].append(np.flatnonzero(np.isin(patient, order[:n_drawn])))
    return draws


def solve_draws(
    bank: ProbeData, *, queries: NDArray[np.floating], draws: Sequence[Rows], c: float = 0.1, max_iterations: int = 100
) -> NDArray[np.float64]:
    """Scores (logits) of the queries [m, D] by a logistic regression on each draw's rows of the bank, [S, m, L].

    NaN where a draw has no positive or no negative of a label. c: inverse strength of the penalty, see `fit_logistic`.
    """
    rows = np.unique(np.concatenate(draws))  # only rows that some draw holds
    n_labels = bank.labels.shape[1]
    labels = np.full((len(rows), len(draws), n_labels), _MISSING, dtype=bank.labels.dtype)
    for number, draw in enumerate(draws):
        labels[np.searchsorted(rows, draw), number] = bank.labels[draw]
    model = fit_logistic(
        bank.features[rows],
        labels=labels.reshape(len(rows), -1),
        c_grid=(c,),
        max_iterations=max_iterations,
        standardise_by=bank.features,
    )
    return model.scores(queries)[0].reshape(len(queries), len(draws), n_labels).transpose(1, 0, 2)


def curve_points(
    bank: ProbeData,
    *,
    bank_patients: NDArray[np.integer],
    test: ProbeData,
    test_patients: NDArray[np.integer],
    draws: Mapping[Any, Sequence[Rows]],
    bootstrap: PatientBootstrap,
    c: float = 0.1,
) -> dict[Any, CurvePoint]:
    """The test scores of every size of `draw_shots` or `draw_shares`."""
    points = {}
    for size, of_size in draws.items():
        scores = solve_draws(bank, queries=test.features, draws=of_size, c=c)
        found = [bootstrap.label_samples(s, labels=test.labels, patient_codes=test_patients) for s in scores]
        points[size] = CurvePoint(
            by_draw={metric: [part[metric] for part in found] for metric in METRICS},
            n_rows=float(np.mean([len(rows) for rows in of_size])),
            n_patients=float(np.mean([len(np.unique(bank_patients[rows])) for rows in of_size])),
        )
    return points


def _orders(n_patients: int, *, n_draws: int, seed: int) -> list[Rows]:
    return [np.random.default_rng([seed, draw]).permutation(n_patients) for draw in range(n_draws)]


def _check(n_draws: int, *, sizes: Sequence[float], allowed: bool, what: str) -> None:
    if n_draws < 1 or not sizes or not allowed:
        raise UserError(f"A curve needs at least one draw, and {what}; got {n_draws} draws of {list(sizes)}.")
