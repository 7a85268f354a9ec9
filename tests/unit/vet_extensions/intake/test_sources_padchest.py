"""PadChest: a copy in small, with its traps, read as intake needs it."""

import logging
from pathlib import Path

import numpy as np
import pytest

from tests.source_files import facts_of, items_of, problems_of, write_csv, write_images
from vet_extensions.errors import UserError
from vet_extensions.intake.sources.padchest import PadChest
from vet_extensions.schema import View

TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
HEADER = ["", "ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM"]
HEADER += ["ViewPosition_DICOM", "Projection", "MethodProjection", "Report", "Labels", "Localizations"]

PATIENT = "839860488694292331637988235681460987"
REPORT = 'sin "hallazgos",\r\nde interes'
IMAGES: dict[str, tuple[str, str, str, str, str]] = {
    "0/1_a.png": ("s1", PATIENT, "POSTEROANTERIOR", "PA", "['pulmonary edema', ' pleural effusion', '']"),
    "0/1_b.png": ("s1", PATIENT, "LATERAL", "L", "['pulmonary edema', ' pleural effusion', '']"),
    "10/2.png": ("s2", PATIENT, "", "AP_horizontal", "['normal']"),
    "2/3.png": ("s3", "007", "ANTEROPOSTERIOR", "COSTAL", "['exclude', 'suboptimal study']"),
    "2/4.png": ("s4", "", "LL", "EXCLUDE", "nan"),
    "54/5.png": ("s5", "", "GENERICA", "", ""),
}


def write_table(root: Path) -> None:
    rows = []
    for number, (path, (study, patient, position, projection, labels)) in enumerate(IMAGES.items()):
        folder, image = path.split("/")
        identity = [number, image, folder, "20140915", study, patient, "1930.0", "F"]
        rows.append([*identity, position, projection, "Manual review of DICOM fields", REPORT, labels, "['loc right']"])
    write_csv(root / f"{TABLE}.gz", HEADER, rows)


def make_copy(tmp_path: Path) -> Path:
    write_images(tmp_path, IMAGES, dtype=np.uint16)
    write_table(tmp_path)
    return tmp_path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_copy(tmp_path)


def test_ids_keep_every_digit_and_studies_their_images(root: Path) -> None:
    items = items_of(PadChest(root))
    assert set(items) == set(IMAGES)
    facts = {key: item.facts for key, item in items.items() if item.facts is not None and item.problem is None}
    assert len(facts) == len(IMAGES)
    assert (facts["0/1_a.png"].patient, facts["0/1_a.png"].study) == (PATIENT, "s1")
    assert facts["0/1_b.png"].study == "s1"
    assert facts["2/3.png"].patient == "007"
    assert {each.species for each in facts.values()} == {"human"}
    assert {each.split for each in facts.values()} == {None}


def test_a_study_without_a_patient_shares_none_with_another(root: Path) -> None:
    patients = facts_of(PadChest(root), "patient")
    assert patients["2/4.png"] != patients["54/5.png"]


def test_views_come_from_the_cleaned_projection_then_from_the_header(root: Path) -> None:
    source = PadChest(root)
    assert facts_of(source, "view") == {
        "0/1_a.png": View.PA,
        "0/1_b.png": View.LATERAL,
        "10/2.png": View.AP,
        "2/3.png": View.AP,
        "2/4.png": View.UNKNOWN,
        "54/5.png": View.UNKNOWN,
    }
    rules = facts_of(source, "view_source")
    assert (rules["0/1_b.png"], rules["2/3.png"]) == ("Projection (PadChest)", "ViewPosition_DICOM (PadChest)")


def test_what_is_no_chest_radiograph_is_not_called_one(root: Path) -> None:
    parts = facts_of(PadChest(root), "body_part")
    assert parts["2/4.png"] == ""
    assert set(parts.values()) == {"CHEST", ""}


def test_the_findings_are_those_that_the_lists_hold(root: Path) -> None:
    source = PadChest(root)
    assert source.label_names == ("exclude", "normal", "pleural_effusion", "pulmonary_edema", "suboptimal_study")


def test_findings_that_a_list_leaves_out_are_absent_unless_the_policy_says_missing(root: Path) -> None:
    source = PadChest(root)
    absent = dict.fromkeys(source.label_names, 0)
    labels = facts_of(source, "labels")
    assert labels["0/1_a.png"] == {**absent, "pleural_effusion": 1, "pulmonary_edema": 1}
    assert facts_of(PadChest(root, blank="missing"), "labels")["10/2.png"] == {"normal": 1}
    assert source.label_policy["blank"] == "absent"


def test_an_image_without_a_list_has_no_labels_and_is_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="vet_extensions"):
        labels = facts_of(PadChest(root), "labels")
    assert labels["2/4.png"] == labels["54/5.png"] == {}
    assert "2 images have no list of labels" in caplog.text


@pytest.mark.parametrize("place", ["images/{folder}/{file}", "images/{file}", "{file}"])
def test_mirrors_with_other_folders_are_read_too(tmp_path: Path, place: str) -> None:
    paths = {place.format(folder=path.split("/")[0], file=path.split("/")[1]) for path in IMAGES}
    write_images(tmp_path, paths, dtype=np.uint16)
    write_table(tmp_path)
    assert set(items_of(PadChest(tmp_path))) == paths
    assert problems_of(PadChest(tmp_path)) == {}


def test_missing_files_are_problems_and_others_are_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "2/4.png").rename(root / "2/stray.png")
    with caplog.at_level(logging.INFO, logger="vet_extensions"):
        assert problems_of(PadChest(root)) == {"2/4.png": "FILE_MISSING"}
    assert "1 image files that no row names" in caplog.text


def test_nothing_of_the_report_is_in_any_item(root: Path) -> None:
    assert "hallazgos" not in repr(items_of(PadChest(root)))


def test_open_gives_the_picture(root: Path) -> None:
    with PadChest(root).open("0/1_a.png") as file:
        assert file.read(4) == b"\x89PNG"


def test_a_list_that_is_code_is_not_run(root: Path) -> None:
    code = f"[open({str(root / 'made')!r}, 'w')]"
    row = ["0", "1_a.png", "0", "", "s", "p", "", "", "", "PA", "", "", code, ""]
    write_csv(root / f"{TABLE}.gz", HEADER, [row])
    with pytest.raises(UserError, match="holds no list of findings"):
        PadChest(root)
    assert not (root / "made").exists()


def test_another_folder_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "0.zip").touch()
    with pytest.raises(UserError, match=r"expected 'PADCHEST_.* found 0\.zip"):
        PadChest(tmp_path)
