"""Bags keep to their images: pooled features, padded tables of rows, studies as bags, and what is refused."""

import numpy as np
import pytest

from vet_extensions.errors import UserError
from vet_extensions.evaluation.bags import PADDING, Bags, study_bags
from vet_extensions.evaluation.cohort import Cohort

LENGTHS = (3, 1, 5)


def make_bags(*, shuffled: bool = True) -> Bags:
    """Three bags of 3, 1 and 5 images, which stand between each other."""
    rng = np.random.default_rng(0)
    bag_of = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    if shuffled:
        bag_of = rng.permutation(bag_of)
    return Bags(rng.normal(size=(len(bag_of), 4)), bag_of, np.array([[0], [1], [0]], dtype=np.int8))


@pytest.mark.parametrize(("how", "of"), [("mean", np.mean), ("max", np.max)])
def test_pooled_features_are_those_of_each_bag_by_itself(how: str, of) -> None:
    bags = make_bags()
    expected = np.stack([of(bags.features[bags.bag_of == bag], axis=0) for bag in range(3)])
    np.testing.assert_allclose(bags.pooled(how), expected)


@pytest.mark.parametrize("how", ["mean", "max"])
def test_pooled_features_do_not_depend_on_the_order_of_images(how: str) -> None:
    bags, order = make_bags(), np.random.default_rng(1).permutation(sum(LENGTHS))
    np.testing.assert_allclose(
        Bags(bags.features[order], bags.bag_of[order], bags.labels).pooled(how), bags.pooled(how)
    )


def test_half_precision_features_are_averaged_in_full_precision() -> None:
    features = np.full((3000, 1), 30.0, dtype=np.float16)  # their sum is beyond the largest half
    assert Bags(features, np.zeros(3000, dtype=int), np.array([[1]])).pooled("mean")[0, 0] == 30


def test_a_table_of_rows_holds_the_images_of_each_bag_in_their_order() -> None:
    bags = make_bags()
    table = bags.row_table([2, 0], max_slices=10)
    assert table.shape == (2, 5)
    np.testing.assert_array_equal(table[0], np.flatnonzero(bags.bag_of == 2))
    np.testing.assert_array_equal(table[1], [*np.flatnonzero(bags.bag_of == 0), PADDING, PADDING])


@pytest.mark.parametrize(("n", "max_slices", "expected"), [(9, 3, [1, 4, 7]), (5, 2, [1, 3]), (4, 3, [0, 2, 3])])
def test_long_bags_are_thinned_evenly(n: int, max_slices: int, expected: list[int]) -> None:
    bags = Bags(np.zeros((n, 1)), np.zeros(n, dtype=int), np.array([[1]]))
    np.testing.assert_array_equal(bags.row_table([0], max_slices=max_slices)[0], expected)


def test_a_bag_that_fits_is_not_thinned() -> None:
    bags = make_bags(shuffled=False)
    np.testing.assert_array_equal(bags.row_table([2], max_slices=5)[0], [4, 5, 6, 7, 8])


def test_studies_become_bags_in_the_order_of_their_labels() -> None:
    codes = np.array([7, 3, 7, 9, 3])
    labels = np.array([[0], [0], [1], [-1], [-128]], dtype=np.int8)
    cohort = Cohort(np.full(5, "train"), np.full(5, "lateral"), np.arange(5), codes, labels)
    bags = study_bags(np.arange(5.0)[:, None], cohort)
    np.testing.assert_array_equal(bags.labels, cohort.by_study().labels)
    np.testing.assert_array_equal(bags.labels[:, 0], [0, 1, -1])
    np.testing.assert_array_equal(bags.pooled("max")[:, 0], [4, 2, 3])


@pytest.mark.parametrize(
    ("features", "bag_of", "n_bags", "sentence"),
    [
        (np.zeros((2, 3)), [0, 2], 3, "1 of 3 bags have no image .the first is bag 1."),
        (np.zeros((2, 3)), [0, 2], 2, "name bags 0 to 2"),
        (np.zeros((2, 3)), [-1, 0], 1, "name bags -1 to 0"),
        (np.zeros((2, 3)), [0], 1, "got shapes"),
        (np.array([[0.0], [np.nan]]), [0, 0], 1, "features of 1 of 2 images are not finite"),
    ],
)
def test_what_makes_no_bags_is_refused(features: np.ndarray, bag_of: list[int], n_bags: int, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Bags(features, np.array(bag_of), np.zeros((n_bags, 1), dtype=np.int8))


def test_no_bags_at_all_are_an_empty_set() -> None:
    bags = Bags(np.empty((0, 4)), np.empty(0, dtype=int), np.empty((0, 2), dtype=np.int8))
    assert len(bags) == 0
    assert bags.pooled("mean").shape == (0, 4)
