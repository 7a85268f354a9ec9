"""Whether scores can be read as probabilities: Brier score, expected calibration error, reliability curve, temperature.

The audit calls `calibrate` on the predictions of a measurement. Every label (or class, one against the rest) is judged by itself
and averaged; the curve pools all. The temperature is fitted on validation alone, and the test scores are then judged with it too.

Bins hold equally many cases: rank (ties at their mean rank, so that equal scores share a bin) over n times the number of bins.
Even perfect probabilities have an error above 0 on few cases, so the error beyond chance is given beside, with its interval.

Shape legend: n cases, L labels, R resamples, B bins.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from vet_extensions.evaluation.metrics import is_known, macro
from vet_extensions.evaluation.scoring import Predictions
from vet_extensions.evaluation.statistics import Estimate, Measure, PatientBootstrap, macro_estimate
from vet_extensions.schema import Split

N_BINS = 15
BRIER = "brier"

_GAP = "gap"
_CLIP = 1e-4
"""Shares of 0 and 1 become log-odds of this and of its complement."""

_LOG_TEMPERATURES = (-3.0, 3.0)


@dataclass(frozen=True)
class Bin:
    """One point of a reliability curve: how many cases, their mean probability, the share of positives."""

    n: int
    predicted: float
    observed: float


@dataclass(frozen=True)
class Calibration:
    """brier: macro average with its interval over patients. ece: macro average; ece_beyond_chance: see `error_beyond_chance`.
    scaled_*: after the temperature; NaN where validation could not fit one."""

    brier: Estimate
    ece: float
    ece_beyond_chance: Estimate
    temperature: float
    scaled_brier: Estimate
    scaled_ece: float
    curve: tuple[Bin, ...]
    n_bins: int = N_BINS


def calibrate(
    predictions: Predictions, *, bootstrap: PatientBootstrap, n_bins: int = N_BINS, confidence: float = 0.95
) -> Calibration | None:
    """Judge the test rows; None where the scores are neither log-odds nor shares between 0 and 1."""
    log_odds = _log_odds(predictions)
    if log_odds is None:
        return None
    is_val, is_test = predictions.split == Split.VAL, predictions.split == Split.TEST
    temperature = fit_temperature(log_odds[is_val], labels=predictions.labels[is_val])
    labels, codes = predictions.labels[is_test], predictions.patient_codes[is_test]
    probabilities, scaled = expit(log_odds[is_test]), expit(log_odds[is_test] / temperature)

    def brier(given: NDArray[np.floating]) -> Estimate:
        def measure(*, weights: NDArray[np.floating] | None) -> dict[str, NDArray[np.float64]]:
            return {BRIER: brier_scores(given, labels=labels, weights=weights)}

        return macro_estimate(bootstrap.resample(measure, patient_codes=codes)[BRIER], confidence=confidence)

    return Calibration(
        brier=brier(probabilities),
        ece=_macro_ece(probabilities, labels, n_bins=n_bins),
        ece_beyond_chance=error_beyond_chance(
            probabilities,
            labels=labels,
            patient_codes=codes,
            bootstrap=bootstrap,
            n_bins=n_bins,
            confidence=confidence,
        ),
        temperature=temperature,
        scaled_brier=brier(scaled),
        scaled_ece=_macro_ece(scaled, labels, n_bins=n_bins),
        curve=reliability_curve(*_pooled(probabilities, labels), n_bins=n_bins),
        n_bins=n_bins,
    )


def brier_scores(
    probabilities: NDArray[np.floating], *, labels: NDArray[np.integer], weights: NDArray[np.floating] | None = None
) -> NDArray[np.float64]:
    """Mean squared distance of probability and truth of each label (Brier 1950), [L, R].

    probabilities, labels: [n, L]; weights: [n, R], or None for one that counts every case once. NaN where a label has no known
    case, or no probability.
    """
    given = np.ones((len(labels), 1)) if weights is None else weights
    known = is_known(labels)
    squares = np.where(known, np.square(probabilities - (labels == 1)), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (squares.T @ given).astype(np.float64) / (known.T.astype(np.float64) @ given)


def reliability_curve(
    probabilities: NDArray[np.floating], labels: NDArray[np.integer], *, n_bins: int = N_BINS
) -> tuple[Bin, ...]:
    """The bins that are not empty, in rising order. probabilities, labels: [n], known cases only."""
    if not len(probabilities):
        return ()
    n, predicted, observed = _bin_means(probabilities, labels, n_bins=n_bins)
    return tuple(Bin(int(a), float(b), float(c)) for a, b, c in zip(n, predicted, observed, strict=True) if a)


def expected_calibration_error(
    probabilities: NDArray[np.floating], labels: NDArray[np.integer], *, n_bins: int = N_BINS
) -> float:
    """Mean distance between probability and share of positives over the bins, by their cases; NaN without a case. [n] each.

    Source: Naeini, Cooper and Hauskrecht, AAAI 2015; here with bins of equal mass.
    """
    if not len(probabilities):
        return math.nan
    n, predicted, observed = _bin_means(probabilities, labels, n_bins=n_bins)
    return float((n * np.abs(predicted - observed)).sum() / n.sum())


def error_beyond_chance(
    probabilities: NDArray[np.floating],
    *,
    labels: NDArray[np.integer],
    patient_codes: NDArray[np.integer],
    bootstrap: PatientBootstrap,
    n_bins: int = N_BINS,
    confidence: float = 0.95,
) -> Estimate:
    """Macro expected calibration error less what few cases add to it, with its interval over patients; 0 is perfect.

    probabilities, labels: [n, L]; patient_codes: [n]. Labels without a case, or with a case without a probability, are skipped.

    The gap of a bin is the true one and noise, and noise of either sign adds to a mean of distances. So the observed error lies
    above the true one, and that of resamples, which have the noise twice, above the observed: their percentiles miss the truth
    (Kumar, Liang and Ma, NeurIPS 2019, correct for it; Sun et al., arXiv 2408.08998, show that calibrated and other models need
    different intervals). Here the test that an interval inverts is made: the noise of the resamples is added to the observed gaps
    times a factor. The interval has the errors of all factors under which the observed error is an ordinary one (factor 0 asks
    what the consistency resampling of Broecker and Smith, 2007, asks); the value is the error at which it is their median.
    """
    columns = [
        column
        for column, known in enumerate(is_known(labels).T)
        if known.any() and np.isfinite(probabilities[known, column]).all()
    ]
    skipped = tuple(sorted(set(range(labels.shape[1])) - set(columns)))
    if not columns:
        return Estimate(math.nan, math.nan, math.nan, 0, skipped)
    given, truth = probabilities[:, columns], labels[:, columns]
    found = bootstrap.resample(_gap_measure(given, truth, n_bins=n_bins), patient_codes=patient_codes)[_GAP]
    noise = found.samples - found.values
    noise = noise[np.isfinite(noise).all(axis=1)]  # a resample may hold no case of a label
    shares = (0.5, (1 + confidence) / 2, (1 - confidence) / 2)
    value, low, high = (_explained(found.values, noise, n_labels=len(columns), share=share) for share in shares)
    return Estimate(value, low, high, len(columns), skipped)


def fit_temperature(log_odds: NDArray[np.floating], *, labels: NDArray[np.integer]) -> float:
    """The one number that the log-odds of all labels are divided by for the least log loss (Guo et al., ICML 2017).

    log_odds, labels: [n, L]; searched between exp(-3) and exp(3). NaN without a known positive and a known negative.
    """
    from scipy.optimize import minimize_scalar  # late: it loads half of scipy, which reading kept scores has no use for

    known = is_known(labels) & np.isfinite(log_odds)
    z, y = log_odds[known].astype(np.float64), (labels == 1)[known]
    if not y.any() or y.all():
        return math.nan

    def loss(log_temperature: float) -> float:
        scaled = z * math.exp(-log_temperature)
        return float((np.logaddexp(0.0, scaled) - y * scaled).mean())

    return math.exp(minimize_scalar(loss, bounds=_LOG_TEMPERATURES, method="bounded").x)  # type: ignore[attr-defined]


def _log_odds(predictions: Predictions) -> NDArray[np.float64] | None:
    """[m, L]; shares become log-odds."""
    scores = predictions.scores.astype(np.float64)
    if predictions.are_logits:
        return scores
    finite = scores[np.isfinite(scores)]
    if not len(finite) or finite.min() < 0 or finite.max() > 1 + 1e-6:
        return None
    return logit(np.clip(scores, _CLIP, 1 - _CLIP))


def _bin_means(
    probabilities: NDArray[np.floating], labels: NDArray[np.integer], *, n_bins: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Cases, mean probability and share of positives of each bin, [B]; 0 in empty bins."""
    place = _bins(probabilities, n_bins)
    n = np.bincount(place, minlength=n_bins).astype(np.float64)
    sums = [np.bincount(place, weights=x, minlength=n_bins) for x in (probabilities, labels == 1)]
    return n, sums[0] / np.maximum(n, 1), sums[1] / np.maximum(n, 1)


def _bins(probabilities: NDArray[np.floating], n_bins: int) -> NDArray[np.intp]:
    """The bin of each case, [n]."""
    from scipy.stats import rankdata  # late: it loads half of scipy, which reading kept scores has no use for

    return np.floor((rankdata(probabilities) - 0.5) / len(probabilities) * n_bins).astype(np.intp)


def _macro_ece(probabilities: NDArray[np.floating], labels: NDArray[np.integer], *, n_bins: int) -> float:
    values = []
    for column in range(labels.shape[1]):
        known = is_known(labels[:, column])
        given = probabilities[known, column]
        ece = expected_calibration_error(given, labels[known, column], n_bins=n_bins)
        values.append(ece if np.isfinite(given).all() else math.nan)
    return macro(np.array(values))[0]


def _gap_measure(probabilities: NDArray[np.floating], labels: NDArray[np.integer], *, n_bins: int) -> Measure:
    """For a bootstrap: of every label and bin [L * B, R], the sum of probability minus truth over the label's known cases.

    The bins stay those of the cases as they are, which makes a resample one sum.
    """
    from scipy.sparse import csr_array  # late: it loads half of scipy, which reading kept scores has no use for

    known = is_known(labels)
    at = [np.flatnonzero(column) for column in known.T]
    places = [label * n_bins + _bins(probabilities[rows, label], n_bins) for label, rows in enumerate(at)]
    excess = np.concatenate([probabilities[rows, label] - labels[rows, label] for label, rows in enumerate(at)])
    entries = (excess, (np.concatenate(places), np.concatenate(at)))
    sums = csr_array(entries, shape=(labels.shape[1] * n_bins, len(labels)))

    def measure(*, weights: NDArray[np.floating] | None) -> dict[str, NDArray[np.float64]]:
        given = np.ones((len(labels), 1)) if weights is None else weights
        with np.errstate(divide="ignore", invalid="ignore"):
            return {_GAP: (sums @ given) / np.repeat(known.T.astype(np.float64) @ given, n_bins, axis=0)}

    return measure


def _explained(gaps: NDArray[np.floating], noise: NDArray[np.floating], *, n_labels: int, share: float) -> float:
    """The error whose resamples are below the observed one in this share of cases. gaps: [L * B]; noise: [R, L * B]."""
    from scipy.optimize import root_scalar  # late: it loads half of scipy, which reading kept scores has no use for

    if not len(noise):
        return math.nan

    def error(gaps: NDArray[np.floating]) -> NDArray[np.floating]:
        return np.abs(gaps).sum(axis=-1) / n_labels

    def excess(factor: float) -> float:
        return float(np.quantile(error(factor * gaps + noise), share)) - observed

    observed = float(error(gaps))
    if excess(0.0) >= 0:
        return 0.0
    highest = 1.0 + float(error(noise).max()) / observed  # the noise cannot take away more than itself
    return observed * root_scalar(excess, bracket=(0.0, highest), xtol=1e-4).root


def _pooled(
    probabilities: NDArray[np.floating], labels: NDArray[np.integer]
) -> tuple[NDArray[np.floating], NDArray[np.integer]]:
    """All known cases of all labels that have a probability, [any]."""
    counted = is_known(labels) & np.isfinite(probabilities)
    return probabilities[counted], labels[counted]
