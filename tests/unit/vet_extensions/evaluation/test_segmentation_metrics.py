"""Dice, HD95 and surface Dice: known answers on toy cases, and the answers of independent packages."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from vet_extensions.evaluation.segmentation.metrics import dice, hd95_mm, surface_dice, surface_distances
from vet_extensions.evaluation.segmentation.scores import POOLED_DICE, SCORES, score_case, stack_scores
from vet_extensions.evaluation.segmentation.sets import IGNORED
from vet_extensions.evaluation.statistics import PatientBootstrap, macro_estimate

SPACINGS = [(1.0, 1.0), (0.5, 2.0)]


def square(top: int, left: int, side: int = 8, *, size: int = 32) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def blobs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two ragged masks that resemble each other, inside the image."""
    generator = np.random.default_rng(seed)
    frame = np.zeros((60, 50))
    frame[6:-6, 6:-6] = 1
    first = gaussian_filter(generator.standard_normal(frame.shape), 5) * frame > 0.01
    noise = gaussian_filter(generator.standard_normal(frame.shape), 3)
    return first, (gaussian_filter(first.astype(float), 2) + noise) * frame > 0.5


def test_dice_of_half_overlapping_squares_is_a_half() -> None:
    assert dice(square(0, 0), square(0, 4)) == 0.5


def test_a_shift_of_three_columns_is_an_hd95_of_three_times_their_distance() -> None:
    assert hd95_mm(square(4, 4), square(4, 7), spacing_mm=(1.0, 0.5)) == 1.5
    assert hd95_mm(square(4, 4), square(7, 4), spacing_mm=(1.0, 0.5)) == 3.0


def test_surface_dice_counts_what_lies_within_the_tolerance_in_millimetres() -> None:
    one, other = square(4, 4), square(4, 5)
    assert surface_dice(one, other, spacing_mm=(1.0, 2.0), tolerance_mm=2.0) == 1.0
    # Of each square's 28 surface pixels 16 are within 1 mm of the other square's: 7 of each of its two rows, which the other one
    # has too, and the first and last one of the remaining 6 of the column that lies inside the other, 1 mm from its rows.
    assert surface_dice(one, other, spacing_mm=(1.0, 2.0), tolerance_mm=1.0) == pytest.approx(32 / 56)


def test_metrics_of_a_volume_know_the_distance_between_slices() -> None:
    one = np.stack([square(4, 4)] * 3)
    other = np.concatenate([one, one[:1]])[1:].copy()
    other[0] = False
    assert hd95_mm(one, other, spacing_mm=(5.0, 1.0, 1.0)) == 5.0


@pytest.mark.parametrize("spacing_mm", SPACINGS)
def test_hd95_and_surface_dice_equal_those_of_monai(spacing_mm: tuple[float, float]) -> None:
    pytest.importorskip("monai")
    import torch
    from monai.metrics import compute_hausdorff_distance
    from monai.metrics.utils import get_edge_surface_distance

    for seed in range(6):
        one, other = blobs(seed)
        tensors = [torch.from_numpy(mask)[None, None] for mask in (one, other)]
        theirs = compute_hausdorff_distance(*tensors, include_background=True, percentile=95, spacing=spacing_mm)
        assert hd95_mm(one, other, spacing_mm=spacing_mm) == pytest.approx(theirs.item(), abs=1e-3)
        _, distances, _ = get_edge_surface_distance(
            tensors[0][0, 0], tensors[1][0, 0], spacing=spacing_mm, use_subvoxels=False, symmetric=True
        )
        theirs = np.mean(np.concatenate([part.numpy() for part in distances]) <= 1.0)
        found = surface_dice(one, other, spacing_mm=spacing_mm, tolerance_mm=1.0)
        assert found == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("spacing_mm", SPACINGS)
def test_surfaces_are_those_of_medpy(spacing_mm: tuple[float, float]) -> None:
    binary = pytest.importorskip("medpy.metric.binary")
    for seed in range(6):
        one, other = blobs(seed)
        # medpy takes the percentile of both directions together, so that the distances themselves are compared.
        to_truth, to_found = surface_distances(one, other, spacing_mm=spacing_mm)
        assert np.percentile(np.concatenate([to_truth, to_found]), 95) == pytest.approx(
            binary.hd95(one, other, voxelspacing=spacing_mm)
        )
        assert to_truth.mean() == pytest.approx(binary.asd(one, other, voxelspacing=spacing_mm))


def test_surface_dice_is_close_to_the_area_weighted_one_of_its_authors() -> None:
    package = pytest.importorskip("surface_distance")
    for seed in range(6):
        one, other = blobs(seed)
        distances = package.compute_surface_distances(one, other, (1.0, 1.0))
        theirs = package.compute_surface_dice_at_tolerance(distances, 1.0)
        assert surface_dice(one, other, spacing_mm=(1.0, 1.0), tolerance_mm=1.0) == pytest.approx(theirs, abs=0.05)


@pytest.mark.parametrize("turn", [lambda a, b: (a, b), lambda a, b: (b, a)])
def test_a_class_in_one_mask_only_is_a_full_miss(turn: Callable) -> None:
    one, other = turn(square(0, 0, size=30), np.zeros((30, 30), bool))
    assert dice(one, other) == 0
    assert surface_dice(one, other, spacing_mm=(1.0, 1.0), tolerance_mm=100.0) == 0
    assert hd95_mm(one, other, spacing_mm=(0.3, 0.4)) == pytest.approx(15.0)


def scored(predicted: np.ndarray, truth: np.ndarray, *, spacing_mm: tuple[float, float] | None = (1.0, 1.0)):
    return score_case(predicted, truth, n_classes=3, spacing_mm=spacing_mm, tolerance_mm=1.0)


def test_a_class_that_nobody_has_is_left_out_of_the_mean() -> None:
    truth = square(4, 4).astype(int)
    scores = stack_scores([scored(truth, truth), scored(truth * 2, truth * 2), scored(truth * 0, truth)])
    means = scores.averages()
    assert means["case_dice"][:, 0].tolist() == [0.5, 1.0]  # class 1: one hit, one miss; class 2: one hit


def test_without_spacing_nothing_is_said_in_millimetres() -> None:
    truth = square(4, 4).astype(int)
    means = stack_scores(
        [scored(truth, truth, spacing_mm=None), scored(truth, truth, spacing_mm=(np.nan, 1.0))]
    ).averages()
    assert np.isnan(means["hd95_mm"]).all()
    assert np.isnan(means["surface_dice"]).all()
    assert means["case_dice"][0, 0] == 1


def test_ignored_pixels_count_for_nobody() -> None:
    truth = square(4, 4).astype(int)
    truth[20:] = IGNORED
    predicted = square(4, 4).astype(int)
    predicted[25:] = 1
    assert scored(predicted, truth)["case_dice"][0] == 1


def test_pooled_dice_hides_a_missed_small_structure_and_case_dice_does_not() -> None:
    """The toy case of the study's review: one slice perfect on a large structure, one slice with a small one missed."""
    large, small = square(0, 0, 30).astype(int), square(0, 0, 1).astype(int)
    means = stack_scores([scored(large, large), scored(small * 0, small)]).averages()
    assert means["case_dice"][0, 0] == 0.5
    assert means[POOLED_DICE][0, 0] == pytest.approx(1800 / 1801)


def test_intervals_draw_patients_not_images() -> None:
    truth = square(4, 4).astype(int)
    cases = [scored(truth, truth)] * 4 + [scored(truth * 0, truth)] * 4
    codes = np.array([7, 7, 7, 7, 9, 9, 9, 9])
    bootstrap = PatientBootstrap(codes, n_resamples=200)
    samples = stack_scores(cases).samples(bootstrap, patient_codes=codes)
    assert set(samples) == set(SCORES)
    assert set(np.unique(samples["case_dice"].samples[:, 0])) == {0.0, 0.5, 1.0}  # two patients: none, one or both
    assert macro_estimate(samples["case_dice"]).skipped == (1,)
