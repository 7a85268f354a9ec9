"""Shares of the patients and images a study, for runs that ask how much data is enough."""

import pickle

import numpy as np
import pyarrow as pa
import pytest
from study_factory import make_intake

from vet_extensions.data import MultiViewStudyDataset
from vet_extensions.data.study_images import vet_studies
from vet_extensions.errors import UserError
from vet_extensions.manifest import Manifest, write_manifest
from vet_extensions.schema import View
from vet_extensions.shards import mapped

N_STUDIES, VIEWS = 40, (View.LATERAL_LEFT, View.LATERAL_RIGHT, View.VD, View.DV, View.OBLIQUE)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_intake(tmp_path_factory.mktemp("subsets"), n_studies=N_STUDIES, views=VIEWS, size_px=8)


def rows(root, **keys) -> set[int]:
    return set(MultiViewStudyDataset(root=str(root), **keys)._rows.tolist())


def test_a_smaller_share_of_the_patients_lies_inside_a_larger_one(root):
    parts = [rows(root, patients=share) for share in ("0.1", 0.3, 0.55, 1)]
    assert [len(part) for part in parts] == [len(VIEWS) * n for n in (4, 12, 22, 40)]
    assert parts[0] < parts[1] < parts[2] < parts[3]


def test_a_share_keeps_all_images_of_its_patients(root):
    dataset = MultiViewStudyDataset(root=str(root), patients=0.25)
    assert np.diff(dataset._offsets).tolist() == [len(VIEWS)] * 10


def test_the_smallest_share_is_one_patient(root):
    assert len(MultiViewStudyDataset(root=str(root), patients=0.001)) == 1


def test_images_for_two_a_study_are_among_those_for_three(root):
    parts = [rows(root, views_per_study=n) for n in ("1", 2, 3, 9)]
    assert [len(part) for part in parts] == [N_STUDIES * n for n in (1, 2, 3, 5)]
    assert parts[0] < parts[1] < parts[2] < parts[3]


def test_which_images_a_study_keeps_is_not_a_matter_of_their_order(root):
    dataset = MultiViewStudyDataset(root=str(root), views_per_study=1)
    assert {dataset.read(study, position=0).views for study in range(N_STUDIES)} == {(view,) for view in VIEWS}


def test_a_study_keeps_its_images_whatever_the_other_studies_are(root):
    chosen, alone = rows(root, views_per_study=2), rows(root, views_per_study=2, patients=0.3)
    assert alone == chosen & rows(root, patients=0.3)


def test_a_share_is_of_the_patients_that_the_expression_leaves(root):
    table = Manifest.open(root).table
    species = pa.array(["canine" if i < len(VIEWS) * 20 else "feline" for i in range(len(table))], pa.string())
    changed = root.parent / "species"
    make_intake(changed, n_studies=N_STUDIES, views=VIEWS, size_px=8)
    write_manifest(
        table.set_column(table.column_names.index("species"), "species", species), changed / "manifest.parquet"
    )
    assert len(MultiViewStudyDataset(root=str(changed), where="species == 'canine'", patients=0.5)) == 10


def test_every_part_has_arrays_of_its_own_that_survive_a_pickle(tmp_path, monkeypatch):
    root = make_intake(tmp_path, n_studies=8, views=VIEWS, size_px=8)
    monkeypatch.setattr(mapped.mapped_arrays, "__kwdefaults__", {"min_bytes": 1})
    sizes = {}
    for keys in ({}, {"patients": 0.5}, {"views_per_study": 2}, {"patients": 0.5, "views_per_study": 2}):
        dataset = MultiViewStudyDataset(root=str(root), **keys)
        again = pickle.loads(pickle.dumps(dataset))
        assert isinstance(again._rows.base, np.memmap)
        np.testing.assert_array_equal(again._rows, dataset._rows)
        sizes[len(dataset._rows)] = len(dataset)
    assert sizes == {40: 8, 20: 4, 16: 8, 8: 4}


def test_pairs_of_one_body_part_survive_a_pickle(tmp_path):
    root = make_intake(tmp_path, n_studies=4, views=VIEWS, size_px=8)
    table = Manifest.open(root).table
    parts = pa.array([["thorax", "pelvis", "thorax", "pelvis", ""][i % 5] for i in range(len(table))], pa.string())
    write_manifest(
        table.set_column(table.column_names.index("body_part"), "body_part", parts), root / "manifest.parquet"
    )
    dataset = pickle.loads(pickle.dumps(MultiViewStudyDataset(root=str(root), pairing="same_body_part")))
    of_row = Manifest.open(root).column("body_part")
    found = dataset.pair_rows(np.arange(4).repeat(30), positions=np.arange(120))
    assert {tuple(of_row[pair]) for pair in found} == {("thorax", "thorax"), ("pelvis", "pelvis")}
    drawn = [dataset.read(study, position=30 * study + i).views for study in range(4) for i in range(30)]
    views = Manifest.open(root).views
    assert drawn == [tuple(views[pair]) for pair in found]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"patients": "0"}, "patients is '0'"),
        ({"patients": 1.5}, "above 0 and up to 1"),
        ({"patients": "10%"}, "0.1 for a tenth"),
        ({"patients": "nan"}, "above 0 and up to 1"),
        ({"views_per_study": "0"}, "views_per_study is '0'"),
        ({"views_per_study": "2.5"}, "whole number from 1 up"),
    ],
)
def test_mistakes_say_what_is_allowed(root, keys, said):
    with pytest.raises(UserError, match=said):
        MultiViewStudyDataset(root=str(root), **keys)


def test_single_images_with_a_target_take_neither_key(root):
    with pytest.raises(UserError, match="patients and views_per_study have no meaning"):
        vet_studies(root=str(root), target="view", patients="0.5", views_per_study="2")
