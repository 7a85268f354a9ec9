"""Which two images of a study make a pair."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from study_factory import make_intake

from vet_extensions.data.pairing import draw_pair, image_groups, pair_kinds, parse_policy
from vet_extensions.errors import UserError
from vet_extensions.manifest import Manifest, write_manifest
from vet_extensions.schema import View

LL, LR, VD, DV = View.LATERAL_LEFT, View.LATERAL_RIGHT, View.VD, View.DV


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


def kinds_of(studies, policy, groups=None):
    """pair_kinds of studies that are given as lists of views."""
    codes = np.array([list(View).index(view) for study in studies for view in study], dtype=np.uint8)
    offsets = np.append(0, np.cumsum([len(study) for study in studies]))
    of_image = None if groups is None else np.array([group for study in groups for group in study], dtype=np.uint8)
    return pair_kinds(codes, offsets=offsets, views=list(View), policy=policy, groups=of_image)


def test_kinds_of_pairs_are_counted_per_study():
    assert kinds_of([[LL, VD]] * 5 + [[LL]] * 3 + [[LL, LR, VD]], "different_family") == {
        "LATERAL_LEFT + VD": 6,
        "LATERAL_RIGHT + VD": 1,
        "single image": 3,
    }


def test_two_images_of_one_view_are_a_kind_where_the_policy_allows_them():
    assert kinds_of([[LL, LL], [LL, VD]], "any") == {"LATERAL_LEFT + LATERAL_LEFT": 1, "LATERAL_LEFT + VD": 1}


def test_kinds_count_a_study_once_however_many_groups_offer_them():
    studies, groups = [[LL, VD, LL, VD], [LL, VD], [LL, VD]], [[1, 1, 2, 2], [1, 2], [0, 0]]
    assert kinds_of(studies, "same_body_part", groups) == {"LATERAL_LEFT + VD": 1, "single image": 2}


@pytest.mark.parametrize("policy", ["LATERAL_LEFT+VD", "VD+LATERAL_LEFT"])
def test_named_views_pair_in_either_order_and_with_nothing_else(policy):
    assert set(draws([LL, LR, VD], policy)) == {(0, 2), (2, 0)}


def test_a_name_of_a_pair_may_be_a_family():
    assert set(draws([LL, LR, VD, DV], "lateral+VD")) == {(0, 2), (2, 0), (1, 2), (2, 1)}
    assert set(draws([LL, LR, VD], "lateral+lateral")) == {(0, 1), (1, 0)}


def test_conditions_with_commas_all_hold():
    assert set(draws([LL, LL, LR, VD], "lateral+lateral,different_view")) == {(0, 2), (2, 0), (1, 2), (2, 1)}


def test_images_pair_within_their_group_only_and_not_at_all_in_none():
    pairs = {
        draw_pair([LL, VD, LL, VD, VD], "any", np.random.default_rng(i), groups=[1, 1, 2, 2, 0]) for i in range(400)
    }
    assert pairs == {(0, 1), (1, 0), (2, 3), (3, 2)}


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("oposite", "different_family"),
        ("diferent_view", "Did you mean 'different_view'"),
        ("any,VD+DW", "'VD\\+DW'"),
        ("VD", "CC\\+MLO"),
        ("", "same_laterality"),
    ],
)
def test_an_unknown_policy_lists_the_known_ones(policy, said):
    with pytest.raises(UserError, match=said):
        parse_policy(policy)


def columns(root, name, values):
    """The manifest of a folder with one column changed."""
    table = Manifest.open(root).table
    changed = table.set_column(table.column_names.index(name), name, pa.array(values, pa.string()))
    write_manifest(changed, root / "manifest.parquet")
    return Manifest.open(root)


def test_an_image_without_a_body_part_has_no_partner_but_one_without_laterality_may(tmp_path):
    make_intake(tmp_path, n_studies=1, views=(LL, LR, VD, DV))
    columns(tmp_path, "laterality", ["L", "R", "", ""])
    manifest = columns(tmp_path, "body_part", ["thorax", "", "thorax", ""])
    parts = image_groups(manifest, ["body_part"]).tolist()
    sides = image_groups(manifest, ["laterality"]).tolist()
    assert (parts[0] == parts[2] != 0, parts[1], parts[3]) == (True, 0, 0)
    assert (sides[2] == sides[3] != 0, len(set(sides))) == (True, 3)


def test_a_column_that_says_nothing_is_no_ground_for_pairs(tmp_path):
    manifest = Manifest.open(make_intake(tmp_path, n_studies=1))
    with pytest.raises(UserError, match="same_laterality needs the column laterality"):
        image_groups(manifest, ["laterality"])
