"""How good a segmentation is: Dice, HD95 and surface Dice of each case and class, and Dice over the pooled pixels of all cases.

`scores` collects them over a test set. Images and volumes alike: masks of any number of dimensions, with a spacing for each.

A class that neither the truth nor the prediction of a case holds says nothing there: NaN, left out of every mean. A class that
only one of them holds is a full miss: Dice 0, surface Dice 0, and for HD95, which no distance would describe, the diagonal of
the image, the largest distance there could be.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt

Mask = NDArray[np.bool_]

EMPTY_CLASS_POLICY = (
    "a class absent from truth and prediction of a case is not counted there; present in one of them only: Dice 0, "
    "surface Dice 0, HD95 the diagonal of the image"
)


def dice(predicted: Mask, truth: Mask) -> float:
    """2 |A and B| / (|A| + |B|) of two masks of one shape; NaN where both are empty. Source: Dice, Ecology 1945."""
    n_both = int(predicted.sum()) + int(truth.sum())
    return 2 * int((predicted & truth).sum()) / n_both if n_both else float("nan")


def hd95_mm(predicted: Mask, truth: Mask, *, spacing_mm: Sequence[float]) -> float:
    """95th percentile of the distances from the pixels of one surface to the other surface, the larger of both directions.

    A surface is the mask's pixels with a neighbour (sharing a side) outside it, or at the border of the image; distances are
    between centres of pixels. Source: Huttenlocher et al., 1993, with the percentile as in the segmentation challenges.
    """
    if not predicted.any() and not truth.any():
        return float("nan")
    if not predicted.any() or not truth.any():
        return float(np.linalg.norm(np.array(truth.shape) * np.array(spacing_mm)))
    return max(float(np.percentile(part, 95)) for part in surface_distances(predicted, truth, spacing_mm=spacing_mm))


def surface_dice(predicted: Mask, truth: Mask, *, spacing_mm: Sequence[float], tolerance_mm: float) -> float:
    """Share of both surfaces' pixels that lie within tolerance_mm of the other surface; NaN where both masks are empty.

    Every pixel of a surface counts alike. Source: Nikolov et al., arXiv 1809.04430 (who weigh by the surface's area instead).
    """
    if not predicted.any() and not truth.any():
        return float("nan")
    if not predicted.any() or not truth.any():
        return 0.0
    parts = surface_distances(predicted, truth, spacing_mm=spacing_mm)
    return sum(int((part <= tolerance_mm).sum()) for part in parts) / sum(map(len, parts))


def surface_distances(
    predicted: Mask, truth: Mask, *, spacing_mm: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distances in mm from each pixel of the predicted surface to the true one, and from each of the true one back."""
    around = predicted | truth
    box = tuple(slice(int(where.min()), int(where.max()) + 1) for where in np.nonzero(around))
    # The part that holds both masks: what is cut off holds no surface, and counts as outside just as the border does.
    one, other = (_surface(mask[box]) for mask in (predicted, truth))
    to_other, to_one = (np.asarray(distance_transform_edt(~mask, sampling=spacing_mm)) for mask in (other, one))
    return to_other[one], to_one[other]


def _surface(mask: Mask) -> Mask:
    return mask & ~np.asarray(binary_erosion(mask), dtype=bool)
