"""Intervals by resampling patients, for single scores and for paired differences. The suite and the ablation room call it.

Images of one patient are not independent, so whole patients are drawn with replacement (a cluster bootstrap; Efron and
Tibshirani, 1993, section 8) and an image weighs as often as its patient was drawn. One `PatientBootstrap` draws the patients
once, by patient code, for all score sets of a comparison: two score sets then see the same resamples, whatever images
each level uses, and the difference of their metrics within each resample is the paired difference.

Seeds of training are combined by averaging the per-seed metric *within each resample* (`average`): the interval then says
how the average over exactly these seeds varies with the patients. The spread between seeds is not in it; it is read from
the per-seed rows.

Shape legend: n images, L labels, R resamples, P patients.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from vet_extensions.errors import UserError
from vet_extensions.evaluation.metrics import METRICS, class_metrics, label_metrics

_BLOCK_ELEMENTS = 8_000_000
"""Weights held at once: 32 MB, so that a test set of 100,000 images does not need gigabytes."""


@dataclass(frozen=True)
class LabelSamples:
    """One metric of one score set: `values` [L] on the images as they are, `samples` [R, L] on the resamples; NaN = undefined."""

    values: NDArray[np.float64]
    samples: NDArray[np.float64]

    def select(self, columns: Sequence[int]) -> "LabelSamples":
        """The same for a group of labels."""
        return LabelSamples(self.values[list(columns)], self.samples[:, list(columns)])


_NO_SPREAD = 1e-12
"""Differences closer together than this are one number: what is left is the rounding of a subtraction of scores near 1."""


class Measure(Protocol):
    """Metrics under weightings of the images."""

    def __call__(self, *, weights: NDArray[np.floating] | None) -> dict[str, NDArray[np.float64]]: ...


@dataclass(frozen=True)
class Estimate:
    """A macro average (or difference of two) with its percentile interval; `skipped` are the columns that were undefined."""

    value: float
    low: float
    high: float
    n_labels: int
    skipped: tuple[int, ...]


class PatientBootstrap:
    """Patients drawn with replacement, once, for every score set that is to be compared.

    patient_codes: integer code of every image (or study) of the whole test set; levels may later use any part of it.
    """

    def __init__(self, patient_codes: NDArray[np.integer], *, n_resamples: int = 1000, seed: int = 0) -> None:
        if n_resamples < 1:
            raise UserError(
                f"n_resamples is {n_resamples}; a bootstrap needs at least 1, and about 1000 for an interval."
            )
        self.patients = np.unique(patient_codes)
        if not len(self.patients):
            raise UserError(
                "There is no patient to resample: the test split is empty. Check the split of the manifest."
            )
        n_patients = len(self.patients)
        generator = np.random.default_rng(seed)
        self.counts = np.empty((n_patients, n_resamples), dtype=np.float32)  # [P, R]
        for resample in range(n_resamples):
            drawn = generator.integers(0, n_patients, size=n_patients)
            self.counts[:, resample] = np.bincount(drawn, minlength=n_patients)

    @property
    def n_resamples(self) -> int:
        return self.counts.shape[1]

    def label_samples(
        self, scores: NDArray[np.floating], *, labels: NDArray[np.integer], patient_codes: NDArray[np.integer]
    ) -> dict[str, LabelSamples]:
        """Both metrics of every label on every resample.

        scores, labels: [n, L]; patient_codes: [n], each a code that was given to the constructor.
        returns: metric name -> `LabelSamples`.
        """
        return self.resample(partial(label_metrics, scores, labels=labels), patient_codes=patient_codes)

    def class_samples(
        self, scores: NDArray[np.floating], *, labels: NDArray[np.integer], patient_codes: NDArray[np.integer]
    ) -> dict[str, LabelSamples]:
        """Accuracy (one value) and balanced accuracy (recalls of the classes) on every resample; see `class_metrics`."""
        return self.resample(partial(class_metrics, scores, labels=labels), patient_codes=patient_codes)

    def resample(self, measure: Measure, *, patient_codes: NDArray[np.integer]) -> dict[str, LabelSamples]:
        """Any metrics on the images as they are and on every resample.

        measure: called with weights=[n, R] (or None for the images as they are), returns metric name -> [L, R].
        """
        rows = np.searchsorted(self.patients, patient_codes)
        assert (self.patients[np.minimum(rows, len(self.patients) - 1)] == patient_codes).all(), "unknown patient code"
        values = measure(weights=None)
        block = max(1, _BLOCK_ELEMENTS // max(1, len(rows)))
        parts = [
            measure(weights=self.counts[:, start : start + block][rows]) for start in range(0, self.n_resamples, block)
        ]
        return {
            metric: LabelSamples(found[:, 0], np.concatenate([part[metric] for part in parts], axis=1).T)
            for metric, found in values.items()
        }


def average(parts: Sequence[LabelSamples]) -> LabelSamples:
    """Mean over seeds (or over the directions of a level), value by value and resample by resample.

    A label that is undefined in one part is undefined in the mean.
    """
    return LabelSamples(np.mean([p.values for p in parts], axis=0), np.mean([p.samples for p in parts], axis=0))


def concatenate(parts: Sequence[LabelSamples]) -> LabelSamples:
    """The labels of several parts side by side."""
    return LabelSamples(np.concatenate([p.values for p in parts]), np.concatenate([p.samples for p in parts], axis=1))


def macro_estimate(samples: LabelSamples, *, confidence: float = 0.95) -> Estimate:
    """Macro average over the defined labels, with its percentile interval.

    A resample that happens to hold no positive (or no negative) of a label averages over its other labels.
    """
    return _estimate(samples.values, samples.samples, confidence=confidence)


def macro_difference(first: LabelSamples, second: LabelSamples, *, confidence: float = 0.95) -> Estimate:
    """Macro average of first minus second, paired within each resample, over the labels defined in both."""
    return _estimate(first.values - second.values, first.samples - second.samples, confidence=confidence)


def bootstrap_p(first: LabelSamples, second: LabelSamples) -> float:
    """Two-sided p of no difference between two macro averages, over the labels defined in both.

    The difference over its standard deviation among the resamples, as a normal deviate: unlike a share of resamples it has no
    smallest value, which a correction for many comparisons would run into. Two score sets that never differ have p = 1.
    """
    value = macro_difference(first, second).value
    means = _macro_samples(first.values - second.values, first.samples - second.samples)
    spread = float(means.std(ddof=1)) if len(means) > 1 else math.nan
    if not spread > _NO_SPREAD:
        return 1.0 if abs(value) <= _NO_SPREAD else math.nan
    return 2.0 * float(ndtr(-abs(value) / spread))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for having looked at all of them (Holm, 1979): below 0.05 counts, whatever their dependence.

    NaN, of a comparison that could not be tested, stays NaN and is not counted.
    """
    tested = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    adjusted, largest = list(p_values), 0.0
    for rank, (p, place) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[place] = largest
    return adjusted


def shared_letters(names: Sequence[str], differs: Callable[[str, str], bool]) -> dict[str, str]:
    """Letters such that two names share one exactly where they do not differ. names: best first; "a" holds the best.

    Each letter is a largest set of names none of which differ from each other (Piepho, 2004, calls it a letter display).
    """
    groups: list[set[str]] = []
    for name in names:
        # Each set takes the name in, less those that differ from it; where it loses some this way, it also stays as it was.
        new = [{other for other in group if not differs(other, name)} | {name} for group in groups] or [{name}]
        new += [group for group in groups if any(differs(other, name) for other in group)]
        groups = [group for group in new if not any(group < other for other in new)]
        groups = [group for place, group in enumerate(groups) if group not in groups[:place]]
    place = {name: number for number, name in enumerate(names)}
    groups.sort(key=lambda group: sorted(place[name] for name in group))
    return {name: "".join(_letter(n) for n, group in enumerate(groups) if name in group) for name in names}


def _letter(number: int) -> str:
    return "abcdefghijklmnopqrstuvwxyz"[number % 26] + "'" * (number // 26)


def bootstrap_macro(
    scores: NDArray[np.floating],
    *,
    labels: NDArray[np.integer],
    patient_codes: NDArray[np.integer],
    metric: str,
    n_resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """Macro average of one score set with an interval over patients. scores, labels: [n, L]; patient_codes: [n]."""
    bootstrap = PatientBootstrap(patient_codes, n_resamples=n_resamples, seed=seed)
    samples = bootstrap.label_samples(scores, labels=labels, patient_codes=patient_codes)
    return macro_estimate(_of(samples, metric), confidence=confidence)


def bootstrap_difference(
    first_scores: NDArray[np.floating],
    *,
    second_scores: NDArray[np.floating],
    labels: NDArray[np.integer],
    patient_codes: NDArray[np.integer],
    metric: str,
    n_resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """Paired difference (first minus second) of two score sets of the same images, with an interval over patients."""
    bootstrap = PatientBootstrap(patient_codes, n_resamples=n_resamples, seed=seed)
    first, second = (
        _of(bootstrap.label_samples(scores, labels=labels, patient_codes=patient_codes), metric)
        for scores in (first_scores, second_scores)
    )
    return macro_difference(first, second, confidence=confidence)


def _of(samples: dict[str, LabelSamples], metric: str) -> LabelSamples:
    if metric not in samples:
        raise UserError(f"Unknown metric {metric!r}; known are {', '.join(METRICS)}.")
    return samples[metric]


def _estimate(values: NDArray[np.float64], samples: NDArray[np.float64], *, confidence: float) -> Estimate:
    defined = ~np.isnan(values)
    skipped = tuple(int(column) for column in np.flatnonzero(~defined))
    if not defined.any():
        return Estimate(float("nan"), float("nan"), float("nan"), 0, skipped)
    means = _macro_samples(values, samples)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail]) if len(means) else (np.nan, np.nan)
    return Estimate(float(values[defined].mean()), float(low), float(high), int(defined.sum()), skipped)


def _macro_samples(values: NDArray[np.float64], samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Macro averages over the defined labels of the resamples that have one, [at most R]."""
    with warnings.catch_warnings():
        # A resample without any positive of any label has no macro average, and is left out.
        warnings.filterwarnings("ignore", message="Mean of empty slice", category=RuntimeWarning)
        means = np.nanmean(samples[:, ~np.isnan(values)], axis=1)  # [R]
    return means[~np.isnan(means)]
