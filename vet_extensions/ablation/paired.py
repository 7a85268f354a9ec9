"""What a few seeds allow to say: paired differences with t-intervals over seeds. The table calls it.

Two arms trained with the same seed share the initial weights and the order of the data, so their scores are compared seed by
seed, and the spread that counts is the one of the differences (Student, 1908: the paired t-test). Nothing here knows of
patients: how a score varies with the test patients is the business of `vet_extensions.evaluation.statistics`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.special import stdtr, stdtrit

CONFIDENCE = 0.95
"""Of the intervals over seeds, and 1 minus the error that Holm's correction keeps over all comparisons of a table."""

_NO_SPREAD = 1e-12
"""Differences closer together than this are one number: what is left is the rounding of a subtraction of scores near 1."""


@dataclass(frozen=True)
class PairedDifference:
    """First minus second over the seeds that both have.

    per_seed: seed -> difference. mean: NaN without a seed. low, high: 95 % t-interval of the mean; p: two-sided, of the paired
    t-test. All three are NaN where there are fewer than two seeds, and where all seeds gave the very same difference: a spread
    of zero is no evidence that the next seed would give it too.
    """

    per_seed: Mapping[int, float]
    mean: float
    low: float
    high: float
    p: float

    @property
    def has_interval(self) -> bool:
        return not math.isnan(self.low)


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> PairedDifference:
    """The paired difference of two arms, each seed -> score; a seed that only one of them has is left out."""
    per_seed = {seed: first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())}
    differences, n = list(per_seed.values()), len(per_seed)
    mean = fmean(differences) if n else math.nan
    sd = spread(differences)
    if not sd > _NO_SPREAD:  # NaN, of a single seed, included
        return PairedDifference(per_seed, mean, math.nan, math.nan, math.nan)
    standard_error = sd / math.sqrt(n)
    half = float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2)) * standard_error
    p = 2.0 * float(stdtr(n - 1, -abs(mean) / standard_error))
    return PairedDifference(per_seed, mean, mean - half, mean + half, p)


def spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds (n - 1 in the denominator); NaN for fewer than two."""
    return stdev(values) if len(values) > 1 else math.nan
