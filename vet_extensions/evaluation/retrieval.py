"""Retrieval with frozen features: does an image find its own study in the other view, and other patients with the same finding?

`measure_retrieval` is called by `scoring`; `rank_relevant` and `retrieval_values` are the maths. Similarity is the cosine. Every
figure comes with its chance level, what a random order of the gallery gives on average; equal similarities are put into a random
order, so that features that tell nothing stay at it. Nothing is fitted: queries and gallery are test images.

Shape legend: q queries, g gallery images, n images, L labels, R resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vet_extensions.evaluation.cohort import Cohort
from vet_extensions.evaluation.metrics import is_known
from vet_extensions.evaluation.results import Measured, Measurement
from vet_extensions.evaluation.statistics import LabelSamples, PatientBootstrap
from vet_extensions.schema import Split

RETRIEVAL = "retrieval"
CROSS_VIEW, SAME_FINDING, SAME_STUDY = "cross_view", "image", "same_study"
"""The levels on which the two questions are asked, and the group of the first."""
RECALL_AT = (1, 5, 10)
AVERAGE_PRECISION, MEDIAN_RANK = "retrieval_map", "median_rank"

_BLOCK = 256


@dataclass(frozen=True)
class Retrieved:
    """Where the relevant images of each query came. A query without a relevant image is left out.

    queries: [q] rows; first_rank: [q] rank of the first relevant one, from 1; average_precision: [q]; n_relevant, n_gallery: [q].
    """

    queries: NDArray[np.intp]
    first_rank: NDArray[np.intp]
    average_precision: NDArray[np.float64]
    n_relevant: NDArray[np.intp]
    n_gallery: NDArray[np.intp]


def rank_relevant(
    features: NDArray[np.floating],
    *,
    queries: NDArray[np.integer],
    gallery: NDArray[np.integer],
    relevant_key: NDArray[np.integer],
    left_out_key: NDArray[np.integer] | None = None,
    seed: int = 0,
) -> Retrieved:
    """Rank the gallery by similarity to each query.

    features: [n, D]; queries, gallery: rows; relevant_key: [n], equal for a query and what is relevant to it; left_out_key: [n],
    gallery images that share it with the query are not ranked (None: only the query itself is not). seed: order of equals.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    gallery = np.random.default_rng(seed).permutation(gallery)
    parts: list[tuple[NDArray, ...]] = []
    for start in range(0, len(queries), _BLOCK):
        rows = queries[start : start + _BLOCK]
        own = rows if left_out_key is None else left_out_key[rows]
        is_out = own[:, None] == (gallery if left_out_key is None else left_out_key[gallery])  # [b, g]
        distance = np.where(is_out, np.inf, -(unit[rows] @ unit[gallery].T))
        is_relevant = (relevant_key[rows][:, None] == relevant_key[gallery]) & ~is_out
        hit = np.take_along_axis(is_relevant, np.argsort(distance, axis=1, kind="stable"), axis=1)
        precision = hit.cumsum(axis=1) / np.arange(1, len(gallery) + 1)
        n_relevant = hit.sum(axis=1)
        found = n_relevant > 0
        average = (precision * hit).sum(axis=1) / np.maximum(n_relevant, 1)
        values = (rows, hit.argmax(axis=1) + 1, average, n_relevant, (~is_out).sum(axis=1))
        parts.append(tuple(value[found] for value in values))
    if not parts:
        parts = [tuple(np.empty(0, dtype=t) for t in (np.intp, np.intp, np.float64, np.intp, np.intp))]
    return Retrieved(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def retrieval_values(
    retrieved: Retrieved, weights: NDArray[np.floating] | None = None, *, ks: Sequence[int] = RECALL_AT
) -> dict[str, NDArray[np.float64]]:
    """Recall at k (share of queries with a relevant image among the first k), mean average precision and median rank of the
    first relevant image, [R] each. weights: [q, R] of the queries; None: each once. NaN where nothing has weight."""
    w = np.ones((len(retrieved.queries), 1)) if weights is None else weights.astype(np.float64)
    total = w.sum(axis=0)
    with np.errstate(invalid="ignore"):
        values = {f"recall_at_{k}": (retrieved.first_rank <= k) @ w / total for k in ks}
        values[AVERAGE_PRECISION] = retrieved.average_precision @ w / total
    order = np.argsort(retrieved.first_rank, kind="stable")
    running = w[order].cumsum(axis=0)
    median = np.full(w.shape[1], np.nan)
    for resample in np.flatnonzero(total > 0):
        median[resample] = retrieved.first_rank[order[np.searchsorted(running[:, resample], total[resample] / 2)]]
    return {**values, MEDIAN_RANK: median}


def chance_values(retrieved: Retrieved, *, ks: Sequence[int] = RECALL_AT) -> dict[str, float]:
    """What a random order gives on average, over the same queries; the median of the first ranks that it gives them all."""
    if not len(retrieved.queries):
        return {name: float("nan") for name in retrieval_values(retrieved, ks=ks)}
    sizes, counts = np.unique(np.stack([retrieved.n_gallery, retrieved.n_relevant], axis=1), axis=0, return_counts=True)
    share = counts / counts.sum()
    within = np.zeros(int(sizes[:, 0].max()) + 1)  # chance that the first relevant image has at most this rank
    precision = 0.0
    for (n_gallery, n_relevant), part in zip(sizes.tolist(), share, strict=True):
        drawn = np.arange(n_gallery)
        missed = np.cumprod(
            np.maximum(n_gallery - n_relevant - drawn, 0) / (n_gallery - drawn)
        )  # none in 1, 2, ... drawn
        within[1 : n_gallery + 1] += part * (1 - missed)
        within[n_gallery + 1 :] += part
        harmonic = (1 / (drawn + 1)).sum() / n_gallery
        precision += part * (harmonic + (1 - harmonic) * (n_relevant - 1) / max(1, n_gallery - 1))
    recalls = {f"recall_at_{k}": float(within[min(k, len(within) - 1)]) for k in ks}
    return {**recalls, AVERAGE_PRECISION: float(precision), MEDIAN_RANK: float(np.searchsorted(within, 0.5))}


def measure_retrieval(
    features: NDArray[np.floating],
    cohort: Cohort,
    *,
    level: str,
    label_names: Sequence[str],
    groups: Mapping[str, Sequence[int]],
    bootstrap: PatientBootstrap,
) -> dict[Measurement, Measured]:
    """The rows of one level: "cross_view" (same study, gallery of the other view family; both directions together) or "image"
    (same finding in other patients, label by label, gallery of images whose label is known). Other levels have none."""
    test = np.flatnonzero(cohort.split == Split.TEST)
    if level == CROSS_VIEW:
        lateral, frontal = (test[cohort.family[test] == family] for family in ("lateral", "frontal"))
        found = [
            rank_relevant(features, queries=one, gallery=other, relevant_key=cohort.study_codes)
            for one, other in ((lateral, frontal), (frontal, lateral))
        ]
        both = Retrieved(*(np.concatenate([getattr(part, name) for part in found]) for name in vars(found[0])))
        return _rows([both], cohort, names=("same study",), level=level, group=SAME_STUDY, bootstrap=bootstrap)
    if level != SAME_FINDING:
        return {}
    of_label = []
    for values in cohort.labels.T:
        known, positive = test[is_known(values[test])], test[values[test] == 1]
        of_label.append(
            rank_relevant(
                features, queries=positive, gallery=known, relevant_key=values, left_out_key=cohort.patient_codes
            )
        )
    measured: dict[Measurement, Measured] = {}
    for group, columns in groups.items():
        names = tuple(label_names[column] for column in columns)
        parts = [of_label[column] for column in columns]
        measured |= _rows(parts, cohort, names=names, level=level, group=group, bootstrap=bootstrap)
    return measured


def _rows(
    parts: Sequence[Retrieved],
    cohort: Cohort,
    *,
    names: tuple[str, ...],
    level: str,
    group: str,
    bootstrap: PatientBootstrap,
) -> dict[Measurement, Measured]:
    """Metric by metric, a column for each part; nothing where no query has a relevant image."""
    rows = np.unique(np.concatenate([part.queries for part in parts]))
    if not len(rows):
        return {}
    values, samples, chances = [], [], []
    for part in parts:
        patients = np.searchsorted(bootstrap.patients, cohort.patient_codes[part.queries])
        values.append(retrieval_values(part))
        samples.append(retrieval_values(part, bootstrap.counts[patients]))
        chances.append(chance_values(part))
    return {
        (level, group, RETRIEVAL, metric): Measured(
            samples=LabelSamples(
                np.array([value[metric][0] for value in values]),
                np.stack([sample[metric] for sample in samples], axis=1),
            ),
            labels=names,
            n_images=len(rows),
            n_patients=len(np.unique(cohort.patient_codes[rows])),
            chosen={},
            config={"chance": float(np.nanmean([chance[metric] for chance in chances]))},
        )
        for metric in values[0]
    }
