"""Areas under ROC curves of several score sets of the same rows, with their covariance: the analytic paired test of one label.

`compare` calls it beside the bootstrap. Without patients it is the estimate of DeLong, DeLong and Clarke-Pearson (Biometrics
1988), by ranks as in Sun and Xu (IEEE Signal Processing Letters 2014). That one takes rows for independent; images of one patient
are not, so with patients the estimate for clustered data is used (Obuchowski, Biometrics 1997), which is the same where every
patient has one row.

Shape legend: n rows, K score sets.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

_NO_VARIANCE = 1e-14
"""Variances below this are the rounding of a difference of equal rankings, which has none."""


@dataclass(frozen=True)
class ContrastTest:
    """A weighted sum of AUROCs with its normal interval, and the two-sided p of its being 0; NaN where it has no variance."""

    value: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class CorrelatedAurocs:
    """values: [K]; covariance: [K, K], NaN where it cannot be estimated; n_positive, n_negative: rows that were counted."""

    values: NDArray[np.float64]
    covariance: NDArray[np.float64]
    n_positive: int
    n_negative: int

    def contrast(self, weights: Sequence[float], *, confidence: float = 0.95) -> ContrastTest:
        """The sum of weights times AUROCs; (1, -1) is the difference of two."""
        w = np.asarray(weights, dtype=np.float64)
        value, variance = float(w @ self.values), float(w @ self.covariance @ w)
        if not variance > _NO_VARIANCE:
            return ContrastTest(value, math.nan, math.nan, 1.0 if value == 0 and not math.isnan(variance) else math.nan)
        error = math.sqrt(variance)
        half = float(ndtri(0.5 + confidence / 2)) * error
        return ContrastTest(value, value - half, value + half, 2.0 * float(ndtr(-abs(value) / error)))


def correlated_aurocs(
    scores: NDArray[np.floating], *, labels: NDArray[np.integer], patient_codes: NDArray[np.integer] | None = None
) -> CorrelatedAurocs:
    """AUROCs of the columns of `scores` and their covariance.

    scores: [n, K]; labels: [n], of which only 0 and 1 count; patient_codes: [n], rows that may depend on each other share one;
    None takes every row for independent. NaN without a positive and a negative, or with a score that is not finite; the
    covariance is NaN too with fewer than two patients (rows) of either kind.
    """
    from scipy.stats import rankdata  # late: it loads half of scipy, which reading kept scores has no use for

    positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    m, n = len(positive), len(negative)
    n_sets = scores.shape[1]
    undefined = np.full((n_sets, n_sets), np.nan)
    counted = np.concatenate([positive, negative])
    if not m or not n or not np.isfinite(scores[counted]).all():
        return CorrelatedAurocs(np.full(n_sets, np.nan), undefined, m, n)
    among_all = rankdata(scores[counted], axis=0)
    of_positive = (
        among_all[:m] - rankdata(scores[positive], axis=0)
    ) / n  # [m, K] share of negatives below each positive
    of_negative = 1.0 - (among_all[m:] - rankdata(scores[negative], axis=0)) / m  # [n, K] share of positives above
    values = of_positive.mean(axis=0)
    codes = np.arange(len(labels)) if patient_codes is None else np.asarray(patient_codes)
    patients, patient = np.unique(codes[counted], return_inverse=True)
    sums = np.zeros((2, len(patients), n_sets))  # of each patient: over its positives, over its negatives
    np.add.at(sums[0], patient[:m], of_positive - values)
    np.add.at(sums[1], patient[m:], of_negative - values)
    n_with = [len(np.unique(patient[:m])), len(np.unique(patient[m:]))]
    if min(n_with) < 2:
        return CorrelatedAurocs(values, undefined, m, n)
    within_positive = n_with[0] / (n_with[0] - 1) * sums[0].T @ sums[0] / m**2
    within_negative = n_with[1] / (n_with[1] - 1) * sums[1].T @ sums[1] / n**2
    across = len(patients) / (len(patients) - 1) * sums[0].T @ sums[1] / (m * n)  # patients with rows of both kinds
    return CorrelatedAurocs(values, within_positive + within_negative + across + across.T, m, n)
