"""VinDr-Mammo: exams, sides and views, what BI-RADS, density and marked findings become, the official split."""

from pathlib import Path

import pydicom
import pytest
from factories import make_dicom, make_pixels

from tests.source_files import facts_of, items_of, problems_of, write_csv, write_images
from vet_extensions.errors import UserError
from vet_extensions.intake.sources.vindr_mammo import VinDrMammo
from vet_extensions.schema import Split, View

NAMES = [
    "study_id",
    "series_id",
    "image_id",
    "laterality",
    "view_position",
    "height",
    "width",
    "breast_birads",
    "breast_density",
    "split",
]
ROWS = [
    ("s2", "r", "i1", "L", "CC", 3518, 2800, "BI-RADS 2", "DENSITY B", "training"),
    ("s2", "r", "i2", "L", "MLO", 3518, 2800, "BI-RADS 2", "DENSITY B", "training"),
    ("s1", "r", "i3", "R", "CC", 3518, 2800, "BI-RADS 5", "DENSITY C", "test"),
    ("s1", "r", "i4", "R", "MLO", 3518, 2800, "BI-RADS 3", "DENSITY D", "test"),
]
FINDINGS = [
    ("i1", "['No Finding']"),
    ("i3", "['Mass', 'Suspicious Calcification']"),
    ("i3", "['Skin Thickening']"),
    ("i4", "['Mass']"),
]
PATHS = [f"images/{row[0]}/{row[2]}" for row in ROWS]


def make_tables(root: Path) -> Path:
    write_csv(root / "breast-level_annotations.csv", NAMES, ROWS)
    write_csv(root / "finding_annotations.csv", ["image_id", "finding_categories"], FINDINGS)
    return root


def make_copy(tmp_path: Path) -> Path:
    for number, path in enumerate(PATHS):
        make_dicom(tmp_path / f"{path}.dicom", Modality="MG", pixels=make_pixels(seed=number))
    return make_tables(tmp_path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_copy(tmp_path)


def test_exams_sides_views_and_split_are_the_tables(root: Path) -> None:
    source = VinDrMammo(root)
    assert facts_of(source, "study") == {f"{path}.dicom": row[0] for path, row in zip(PATHS, ROWS)}
    assert facts_of(source, "image") == {f"{path}.dicom": row[2] for path, row in zip(PATHS, ROWS)}
    assert facts_of(source, "laterality") == {f"{path}.dicom": row[3] for path, row in zip(PATHS, ROWS)}
    assert facts_of(source, "view") == {f"{path}.dicom": View(row[4]) for path, row in zip(PATHS, ROWS)}
    assert set(facts_of(source, "split").values()) == {Split.TRAIN, Split.TEST}
    assert set(facts_of(source, "body_part").values()) == {"BREAST"}
    assert problems_of(source) == {}


def test_the_items_are_the_dicom_files(root: Path) -> None:
    source = VinDrMammo(root)
    with source.open(next(iter(items_of(source)))) as file:
        assert pydicom.dcmread(file).Modality == "MG"


def test_birads_density_and_marked_findings_become_labels(root: Path) -> None:
    labels = facts_of(VinDrMammo(root), "labels")
    first, unlisted, third, fourth = (labels[f"{path}.dicom"] for path in PATHS)
    assert {name for name, value in first.items() if value} == {"no_finding"}
    assert unlisted == {"suspicious_birads": 0, "dense_breast": 0}
    assert {name for name, value in third.items() if value} == {
        "suspicious_birads",
        "dense_breast",
        "mass",
        "suspicious_calcification",
        "skin_thickening",
    }
    assert (fourth["suspicious_birads"], fourth["mass"], fourth["no_finding"]) == (-1, 1, 0)


def test_the_policies_are_followed(root: Path) -> None:
    labels = facts_of(VinDrMammo(root, uncertain="missing", blank="missing"), "labels")[f"{PATHS[3]}.dicom"]
    assert labels == {"dense_breast": 1, "mass": 1}


def test_a_mirror_of_png_files_is_read_too(tmp_path: Path) -> None:
    write_images(make_tables(tmp_path), [f"{path}.png" for path in PATHS])
    assert set(items_of(VinDrMammo(tmp_path))) == {f"{path}.png" for path in PATHS}
    assert problems_of(VinDrMammo(tmp_path)) == {}


def test_a_missing_file_is_an_item_with_a_problem(root: Path) -> None:
    (root / f"{PATHS[0]}.dicom").unlink()
    assert problems_of(VinDrMammo(root)) == {f"{PATHS[0]}.dicom": "FILE_MISSING"}


@pytest.mark.parametrize("name", ["breast-level_annotations.csv", "finding_annotations.csv"])
def test_a_missing_table_is_a_users_mistake(root: Path, name: str) -> None:
    (root / name).unlink()
    with pytest.raises(UserError, match=name):
        VinDrMammo(root)


@pytest.mark.parametrize("cell", ["Mass", "[1]", "__import__('os')", "[" * 200])
def test_a_list_of_findings_that_is_none_is_a_users_mistake_and_never_run(root: Path, cell: str) -> None:
    write_csv(root / "finding_annotations.csv", ["image_id", "finding_categories"], [("i1", cell)])
    with pytest.raises(UserError, match="no list of names"):
        list(VinDrMammo(root).items())
