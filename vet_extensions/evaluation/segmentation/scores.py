"""The scores of a test set, case by case, and their averages with intervals over patients. `run` makes rows of them.

Shape legend: n cases, C scored classes (without the background), R resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vet_extensions.evaluation.segmentation.metrics import dice, hd95_mm, surface_dice
from vet_extensions.evaluation.segmentation.sets import IGNORED
from vet_extensions.evaluation.statistics import LabelSamples, PatientBootstrap

CASE_DICE, POOLED_DICE, HD95, SURFACE_DICE = "case_dice", "pooled_dice", "hd95_mm", "surface_dice"
SCORES = (CASE_DICE, POOLED_DICE, HD95, SURFACE_DICE)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class CaseScores:
    """Scores [n, C] of each case and class, NaN where there is none; overlap, size: [n, C] pixels in both, and the sum of
    the pixels in each, of which the pooled Dice is made."""

    case_dice: Floats
    hd95_mm: Floats
    surface_dice: Floats
    overlap: Floats
    size: Floats

    def averages(self, *, weights: NDArray[np.floating] | None = None) -> dict[str, Floats]:
        """Score -> [C, R], one column for each weighting of the cases; weights: [n, R], None for every case once.

        Case-wise scores are the mean over the cases that have them. The pooled Dice counts all pixels of all cases as one
        picture, so that large organs of large images decide; it is there to compare with papers that report it so.
        """
        weights = np.ones((len(self.size), 1)) if weights is None else weights.astype(np.float64)
        pooled = _ratio(2 * self.overlap.T @ weights, self.size.T @ weights)
        by_case = {CASE_DICE: self.case_dice, HD95: self.hd95_mm, SURFACE_DICE: self.surface_dice}
        means = {
            name: _ratio(np.nan_to_num(values).T @ weights, (~np.isnan(values)).T.astype(np.float64) @ weights)
            for name, values in by_case.items()
        }
        return {POOLED_DICE: pooled, **means}

    def samples(self, bootstrap: PatientBootstrap, *, patient_codes: NDArray[np.integer]) -> dict[str, LabelSamples]:
        """All scores on the cases as they are and on every resample of the patients. patient_codes: [n]."""
        return bootstrap.resample(self.averages, patient_codes=patient_codes)


def score_case(
    predicted: NDArray[np.integer],
    truth: NDArray[np.integer],
    *,
    n_classes: int,
    spacing_mm: Sequence[float] | None,
    tolerance_mm: float,
    with_surfaces: bool = True,
) -> dict[str, list[float]]:
    """The scores of one case, name of a field of `CaseScores` -> a value for each class but the background.

    predicted, truth: label maps of one shape. Pixels that the truth ignores are background in both. spacing_mm: one value a
    dimension; without it (None or NaN) the two scores in millimetres are NaN, never in pixels.
    """
    known = truth != IGNORED
    has_mm = with_surfaces and spacing_mm is not None and bool(np.isfinite(spacing_mm).all())
    found: dict[str, list[float]] = {name: [] for name in CaseScores.__dataclass_fields__}
    for number in range(1, n_classes):
        one, other = (predicted == number) & known, truth == number
        found["overlap"].append(float((one & other).sum()))
        found["size"].append(float(one.sum() + other.sum()))
        found["case_dice"].append(dice(one, other))
        if has_mm and spacing_mm is not None:
            found["hd95_mm"].append(hd95_mm(one, other, spacing_mm=spacing_mm))
            found["surface_dice"].append(surface_dice(one, other, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm))
        else:
            found["hd95_mm"].append(float("nan"))
            found["surface_dice"].append(float("nan"))
    return found


def stack_scores(cases: Sequence[dict[str, list[float]]]) -> CaseScores:
    """The scores of several cases as one value."""
    return CaseScores(**{name: np.array([case[name] for case in cases]) for name in CaseScores.__dataclass_fields__})


def mean_case_dice(scores: CaseScores) -> float:
    """Mean over classes of the mean over cases: what a decoder is chosen by, on the validation split."""
    of_classes = scores.averages()[CASE_DICE][:, 0]
    return float(np.nanmean(of_classes)) if not np.isnan(of_classes).all() else float("nan")


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)
