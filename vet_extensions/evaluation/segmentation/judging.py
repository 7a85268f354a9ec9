"""Predictions of the test cases, scored: images one by one, and slices both one by one and stacked to the volumes they are of.

`run` calls `judge` once for every trained decoder, and for the truth on the patch grid. One volume is put together at a time.
Shape legend: n units of a level (images or volumes), Z slices of a volume from the feet up, H and W pixels of an image.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vet_extensions.evaluation.segmentation.scores import CaseScores, score_case, stack_scores
from vet_extensions.evaluation.segmentation.sets import SegmentationSet
from vet_extensions.schema import Split

IMAGE, VOLUME = "image", "volume"

Predict = Callable[[int], NDArray[np.int64]]
"""Number of a case -> classes [H, W]."""

Keep = Callable[[int, NDArray[np.uint8]], object]
"""Gets the number of an image or a volume in the order of the data set, and its predicted classes [H, W] or [Z, H, W]."""


@dataclass(frozen=True)
class Units:
    """What a level counts in the test split: patient_codes [n] and spacing_mm [n, 2 or 3] of images or volumes."""

    patient_codes: NDArray[np.integer]
    spacing_mm: NDArray[np.float64]


def scored_units(data: SegmentationSet) -> dict[str, Units]:
    """Level -> its units, in the order in which `judge` scores them. Of images there is one level, of slices there are two."""
    rows = data.rows(Split.TEST)
    found = {IMAGE: Units(data.patient_codes[rows], data.spacing_mm[rows])}
    if data.volumes is not None:
        numbers, first = np.unique(data.volumes.number[rows], return_index=True)
        found[VOLUME] = Units(data.patient_codes[rows[first]], data.volumes.spacing_mm[numbers])
    return found


def judge(
    predict: Predict, data: SegmentationSet, *, tolerance_mm: float, keep: Keep | None = None
) -> dict[str, CaseScores]:
    """Level -> the scores of its units. Every test case is predicted once; a volume is scored on its own grid, with its spacing.

    keep: what gets every prediction, for saving. Errors: UserError for a label map that does not fit its image.
    """
    n_classes = len(data.class_names)
    found: dict[str, list[dict[str, list[float]]]] = {level: [] for level in scored_units(data)}
    for number, rows in _units(data):
        predicted, truths = [], []
        for row in rows:
            one = predict(row)
            truth = data.checked_mask(row, shape=one.shape)
            mm = data.spacing_mm[row].tolist()
            found[IMAGE].append(score_case(one, truth, n_classes=n_classes, spacing_mm=mm, tolerance_mm=tolerance_mm))
            predicted.append(one.astype(np.uint8))
            truths.append(truth.astype(np.uint8))
        whole = predicted[0]
        if data.volumes is not None:
            whole, truth = np.stack(predicted), np.stack(truths)
            mm = data.volumes.spacing_mm[number].tolist()
            found[VOLUME].append(
                score_case(whole, truth, n_classes=n_classes, spacing_mm=mm, tolerance_mm=tolerance_mm)
            )
        if keep is not None:
            keep(number, whole)
    return {level: stack_scores(scores) for level, scores in found.items()}


def _units(data: SegmentationSet) -> Iterator[tuple[int, list[int]]]:
    """The test cases that belong together: the number of an image and itself, or that of a volume and its slices in order."""
    rows = data.rows(Split.TEST)
    if data.volumes is None:
        yield from ((row, [row]) for row in rows.tolist())
        return
    numbers = data.volumes.number[rows]
    for number in np.unique(numbers).tolist():
        yield number, rows[numbers == number].tolist()
