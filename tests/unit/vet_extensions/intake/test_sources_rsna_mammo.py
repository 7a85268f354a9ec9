"""RSNA screening mammography: patients as studies, views and sides, flags and grades as labels."""

from pathlib import Path

import pydicom
import pytest
from factories import make_dicom, make_pixels

from tests.source_files import facts_of, items_of, problems_of, write_csv
from vet_extensions.errors import UserError
from vet_extensions.intake.sources.rsna_mammo import RsnaMammo
from vet_extensions.schema import View

NAMES = [
    "site_id",
    "patient_id",
    "image_id",
    "laterality",
    "view",
    "age",
    "cancer",
    "biopsy",
    "invasive",
    "BIRADS",
    "implant",
    "density",
    "machine_id",
    "difficult_negative_case",
]
ROWS = [
    (2, "10006", "462822612", "L", "CC", 61.0, 0, 0, 0, "", 0, "", 29, "False"),
    (2, "10006", "1459541791", "L", "MLO", 61.0, 0, 0, 0, "", 0, "", 29, "False"),
    (1, "10011", "220375232", "R", "CC", 55.0, 1, 1, 0, "0.0", 1, "C", 21, "True"),
    (1, "10011", "270344397", "R", "ML", 55.0, 1, 1, 0, "2", 1, "A", 21, "True"),
    (1, "10011", "541722628", "R", "AT", 55.0, 1, 1, 0, "1", 1, "D", 21, "True"),
]
PATHS = [f"train_images/{row[1]}/{row[2]}.dcm" for row in ROWS]


def make_copy(tmp_path: Path) -> Path:
    write_csv(tmp_path / "train.csv", NAMES, ROWS)
    for number, path in enumerate(PATHS):
        make_dicom(tmp_path / path, Modality="MG", pixels=make_pixels(seed=number))
    return tmp_path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_copy(tmp_path)


def test_a_patients_images_are_one_study(root: Path) -> None:
    source = RsnaMammo(root)
    assert facts_of(source, "study") == {path: row[1] for path, row in zip(PATHS, ROWS)}
    assert facts_of(source, "patient") == facts_of(source, "study")
    assert facts_of(source, "image") == {path: row[2] for path, row in zip(PATHS, ROWS)}
    assert set(facts_of(source, "split").values()) == {None}
    assert problems_of(source) == {}
    with source.open(PATHS[0]) as file:
        assert pydicom.dcmread(file).Modality == "MG"


def test_views_and_sides_are_the_tables_and_a_rare_view_stays_open(root: Path) -> None:
    source = RsnaMammo(root)
    views = [View.CC, View.MLO, View.CC, View.LATERAL, View.UNKNOWN]
    assert facts_of(source, "view") == dict(zip(PATHS, views))
    assert facts_of(source, "laterality") == {path: row[3] for path, row in zip(PATHS, ROWS)}


def test_flags_and_grades_become_labels_and_what_a_site_does_not_state_is_left_out(root: Path) -> None:
    labels = facts_of(RsnaMammo(root), "labels")
    flags = {"biopsy": 0, "cancer": 0, "difficult_negative_case": 0, "implant": 0, "invasive": 0}
    assert labels[PATHS[0]] == flags
    positive = {"biopsy": 1, "cancer": 1, "difficult_negative_case": 1, "implant": 1, "invasive": 0}
    assert labels[PATHS[2]] == positive | {"recalled": 1, "dense_breast": 1}
    assert labels[PATHS[3]] == positive | {"recalled": 0, "dense_breast": 0}
    assert set(labels[PATHS[2]]) == set(RsnaMammo(root).label_names)


def test_a_missing_file_is_an_item_with_a_problem_and_the_keys_are_sorted(root: Path) -> None:
    (root / PATHS[1]).unlink()
    assert problems_of(RsnaMammo(root)) == {PATHS[1]: "FILE_MISSING"}
    assert list(items_of(RsnaMammo(root))) == sorted(PATHS)


def test_a_folder_that_is_something_else_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.csv"):
        RsnaMammo(tmp_path)
