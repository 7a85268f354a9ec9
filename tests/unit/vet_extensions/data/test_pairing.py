"""Which two images of a study make a pair."""

from collections import Counter

import numpy as np
import pytest

from vet_extensions.data.pairing import check_policy, draw_pair, pair_kinds
from vet_extensions.errors import UserError
from vet_extensions.schema import View

LL, LR, VD = View.LATERAL_LEFT, View.LATERAL_RIGHT, View.VD


def draws(views, policy, n=400):
    return Counter(draw_pair(views, policy, np.random.default_rng((0, i))) for i in range(n))


def test_any_draws_all_ordered_pairs_of_different_images():
    assert set(draws([LL, LL, VD], "any")) == {(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)}


def test_different_view_never_pairs_a_projection_with_itself():
    assert set(draws([LL, LL, VD], "different_view")) == {(0, 2), (2, 0), (1, 2), (2, 1)}


def test_different_family_pairs_laterals_with_frontals_only():
    assert set(draws([LL, LR, VD], "different_family")) == {(0, 2), (2, 0), (1, 2), (2, 1)}


def test_a_study_without_a_pair_gives_one_image():
    assert set(draws([LL], "any")) == {(0,)}
    assert set(draws([LL, LR], "different_family")) == {(0,), (1,)}


def test_kinds_of_pairs_are_counted_per_study():
    assert pair_kinds([([LL, VD], 5), ([LL], 3), ([LL, LR, VD], 1)], "different_family") == {
        "LATERAL_LEFT + VD": 6,
        "LATERAL_RIGHT + VD": 1,
        "single image": 3,
    }


def test_unknown_policy_lists_the_known_ones():
    with pytest.raises(UserError, match="different_family"):
        check_policy("oposite")
