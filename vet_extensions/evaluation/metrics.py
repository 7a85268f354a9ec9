"""AUROC and average precision of labels, accuracy of classes, from scores, for any number of weightings of the images at once.

`statistics` calls this with thousands of bootstrap weightings, so a label is sorted once (`rank_label`) and every
weighting is then scored by cumulative sums. A label value counts only if it is 0 or 1: missing (-128) and uncertain (-1)
images are left out of that label, never counted as negative.

Shape legend: n images, L labels, R weightings (bootstrap resamples).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

AUROC = "auroc"
AVERAGE_PRECISION = "average_precision"
METRICS = (AUROC, AVERAGE_PRECISION)
"""Of each label by itself; of the classes of a multi-class task, one against the rest."""

ACCURACY = "accuracy"
BALANCED_ACCURACY = "balanced_accuracy"
CLASS_METRICS = (ACCURACY, BALANCED_ACCURACY)
"""Of tasks with exactly one class a row."""

FloatArray = NDArray[np.floating]

_TINY = 1e-30
"""Below any sum of counts that is not zero: makes 0 / 0 a 0 whose weight is 0 as well."""

_WIDE = 64
"""Weightings from which a loop over rows is quicker than a cumulative sum down the columns."""


@dataclass(frozen=True)
class RankedLabel:
    """The images of one label in descending order of score; everything a weighting needs besides the weights.

    positives: [n_pos] rows; negatives: [n_neg] rows.
    n_above, n_at_least: [n_pos] negatives that score strictly higher than, or at least as high as, each positive.
    tie_end: [n_pos] place among `positives` of the last one with the same score.
    """

    positives: NDArray[np.intp]
    negatives: NDArray[np.intp]
    n_above: NDArray[np.intp]
    n_at_least: NDArray[np.intp]
    tie_end: NDArray[np.intp]


def is_known(labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Where a label is stated as present or absent; False for missing (-128) and uncertain (-1)."""
    return (labels == 0) | (labels == 1)


def rank_label(scores: FloatArray, labels: NDArray[np.integer]) -> RankedLabel | None:
    """Sort one label's images by score; None where no ranking metric is defined.

    scores: [n]; labels: [n]. Undefined means: no positive, no negative, or a score among the known images that is not finite.
    """
    positives = np.flatnonzero(labels == 1)
    negatives = np.flatnonzero(labels == 0)
    if not len(positives) or not len(negatives):
        return None
    if not (np.isfinite(scores[positives]).all() and np.isfinite(scores[negatives]).all()):
        return None
    positives = positives[np.argsort(-scores[positives], kind="stable")]
    negatives = negatives[np.argsort(-scores[negatives], kind="stable")]
    descending_positive, descending_negative = -scores[positives], -scores[negatives]
    return RankedLabel(
        positives=positives,
        negatives=negatives,
        n_above=np.searchsorted(descending_negative, descending_positive, side="left"),
        n_at_least=np.searchsorted(descending_negative, descending_positive, side="right"),
        tie_end=np.searchsorted(descending_positive, descending_positive, side="right") - 1,
    )


def weighted_metrics(ranked: RankedLabel, weights: FloatArray) -> dict[str, NDArray[np.float64]]:
    """Both metrics of one label under R weightings of the images.

    weights: [n, R], not negative. Integer counts stored as float32 are summed exactly up to 2**24.
    returns: metric name -> [R] float64; NaN where a weighting leaves the label without a positive or a negative.

    AUROC is the weighted share of (positive, negative) pairs in the right order, ties counting half. Average precision is
    sum over thresholds of (recall step) x precision, a tie group being one threshold, as scikit-learn defines it.
    """
    positive_weights = weights[ranked.positives]  # [n_pos, R]
    negatives_above = _running_sum(
        weights[ranked.negatives]
    )  # [n_neg + 1, R], row j: weight of the j highest negatives
    total_positive = positive_weights.sum(axis=0, dtype=np.float64)  # [R]
    total_negative = negatives_above[-1].astype(np.float64)  # [R]
    at_least = negatives_above[ranked.n_at_least]  # [n_pos, R]

    misordered = (negatives_above[ranked.n_above] + at_least) * 0.5
    misordered *= positive_weights
    found = _running_sum(positive_weights)[ranked.tie_end + 1]  # [n_pos, R] positive weight down to this threshold
    precision = found / np.maximum(found + at_least, _TINY)
    precision *= positive_weights

    with np.errstate(divide="ignore", invalid="ignore"):
        auroc = 1.0 - misordered.sum(axis=0, dtype=np.float64) / (total_positive * total_negative)
        average_precision = precision.sum(axis=0, dtype=np.float64) / total_positive
    average_precision = np.where(total_negative > 0, average_precision, np.nan)
    return {AUROC: auroc, AVERAGE_PRECISION: average_precision}


def label_metrics(
    scores: FloatArray, *, labels: NDArray[np.integer], weights: FloatArray | None = None
) -> dict[str, NDArray[np.float64]]:
    """Both metrics of every label.

    scores, labels: [n, L]; weights: [n, R], or None for one weighting that counts every image once.
    returns: metric name -> [L, R] float64, NaN rows for labels that are undefined (see `rank_label`).
    """
    if weights is None:
        weights = np.ones((len(scores), 1), dtype=np.float32)
    values = {metric: np.full((scores.shape[1], weights.shape[1]), np.nan) for metric in METRICS}
    for column in range(scores.shape[1]):
        ranked = rank_label(scores[:, column], labels[:, column])
        if ranked is None:
            continue
        for metric, per_weighting in weighted_metrics(ranked, weights).items():
            values[metric][column] = per_weighting
    return values


def class_metrics(
    scores: FloatArray, *, labels: NDArray[np.integer], weights: FloatArray | None = None
) -> dict[str, NDArray[np.float64]]:
    """Accuracy and the recall of each class, the class with the highest score being predicted (first of equals).

    scores: [n, L], NaN in the columns of classes that no training row has: those are never predicted; labels: [n, L], one 1 a
    row, and rows without one are not counted; weights: [n, R], or None for one weighting that counts every row once.
    returns: ACCURACY -> [1, R]; BALANCED_ACCURACY -> recalls [L, R], whose macro average is the balanced accuracy. NaN where a
    class has no weight, and everywhere if a row has no finite score.
    """
    if weights is None:
        weights = np.ones((len(scores), 1), dtype=np.float32)
    truth, is_known = labels.argmax(axis=1), (labels == 1).sum(axis=1) == 1
    ranked = np.where(np.isnan(scores), -np.inf, scores)
    if not np.isfinite(ranked[is_known].max(axis=1, initial=-np.inf)).all():
        empty = np.full((scores.shape[1], weights.shape[1]), np.nan)
        return {ACCURACY: empty[:1], BALANCED_ACCURACY: empty}
    is_right = is_known & (ranked.argmax(axis=1) == truth)
    members = ((truth[:, None] == np.arange(scores.shape[1])) & is_known[:, None]).astype(weights.dtype)  # [n, L]
    total = members.T @ weights  # [L, R]
    right = (members * is_right[:, None]).T @ weights
    with np.errstate(divide="ignore", invalid="ignore"):
        accuracy = right.sum(axis=0, dtype=np.float64) / total.sum(axis=0, dtype=np.float64)
        return {ACCURACY: accuracy[None], BALANCED_ACCURACY: right.astype(np.float64) / total}


def auroc(scores: FloatArray, labels: NDArray[np.integer]) -> float:
    """Area under the ROC curve of one label, [n] each; NaN without a positive and a negative."""
    return float(label_metrics(scores[:, None], labels=labels[:, None])[AUROC][0, 0])


def average_precision(scores: FloatArray, labels: NDArray[np.integer]) -> float:
    """Average precision of one label, [n] each; NaN without a positive and a negative."""
    return float(label_metrics(scores[:, None], labels=labels[:, None])[AVERAGE_PRECISION][0, 0])


def macro(values: FloatArray) -> tuple[float, tuple[int, ...]]:
    """Mean over the labels on which a metric is defined, and the columns that were skipped.

    values: [L] with NaN for undefined labels. The mean is NaN if every label is undefined.
    """
    skipped = tuple(int(column) for column in np.flatnonzero(np.isnan(values)))
    defined = values[~np.isnan(values)]
    return (float(defined.mean()) if len(defined) else float("nan")), skipped


def _running_sum(rows: FloatArray) -> FloatArray:
    """[m, R] -> [m + 1, R]: row j is the sum of the first j rows."""
    sums = np.zeros((len(rows) + 1, rows.shape[1]), dtype=rows.dtype)
    if rows.shape[1] < _WIDE:
        np.cumsum(rows, axis=0, out=sums[1:])
        return sums
    # numpy's cumsum along the first axis walks down each column; adding row to row stays in cache, 8 times faster.
    for place, row in enumerate(rows):
        np.add(sums[place], row, out=sums[place + 1])
    return sums
