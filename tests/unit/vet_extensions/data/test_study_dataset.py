"""VetStudies: studies of an intake folder as training samples."""

import logging
import pickle

import numpy as np
import pytest
from study_factory import make_intake

from dinov2.data.samplers import PositionedIndex
from vet_extensions.data import MultiViewStudyDataset
from vet_extensions.errors import UserError
from vet_extensions.schema import View

THREE = (View.LATERAL_LEFT, View.LATERAL_RIGHT, View.VD)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_intake(tmp_path_factory.mktemp("three"), n_studies=5, views=THREE)


def test_a_sample_holds_two_images_of_one_study_with_their_views(root):
    studies = MultiViewStudyDataset(root=str(root))
    assert len(studies) == 5
    sample, target = studies[PositionedIndex(3, 11)]
    assert target == 3
    assert (len(sample.pixels), sample.position) == (2, 11)
    assert sample.views[0] != sample.views[1]
    assert sample.pixels[0].dtype == np.uint8


def test_pixels_belong_to_the_views_that_are_named(root):
    studies = MultiViewStudyDataset(root=str(root), pairing="different_family")
    by_view: dict[str, bytes] = {}
    for position in range(20):
        sample = studies.read(2, position=position)
        for view, pixels in zip(sample.views, sample.pixels):
            assert by_view.setdefault(view, pixels.tobytes()) == pixels.tobytes()
    assert set(by_view) == set(THREE)
    assert len(set(by_view.values())) == 3


def test_the_pair_follows_from_the_position_alone(root):
    studies, copy = (
        MultiViewStudyDataset(root=str(root)),
        pickle.loads(pickle.dumps(MultiViewStudyDataset(root=str(root)))),
    )
    first = [studies.read(1, position=p).views for p in range(30)]
    assert first == [copy.read(1, position=p).views for p in range(30)]
    assert len(set(first)) > 2


def test_the_log_says_which_pairs_are_offered(root, caplog):
    logging.getLogger("vet_extensions").propagate = True
    with caplog.at_level(logging.INFO, logger="vet_extensions"):
        MultiViewStudyDataset(root=str(root), pairing="different_family")
    assert "LATERAL_LEFT + VD: 5" in caplog.text
    assert "LATERAL_RIGHT + VD: 5" in caplog.text


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"split": "tset"}, "train, val, test, all"),
        ({"split": "val"}, "holds no study"),
        ({"pairing": "opposite"}, "different_family"),
    ],
)
def test_mistakes_name_what_is_allowed(root, keys, said):
    with pytest.raises(UserError, match=said):
        MultiViewStudyDataset(root=str(root), **keys)
