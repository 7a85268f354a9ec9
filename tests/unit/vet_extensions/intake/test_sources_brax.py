"""BRAX: a copy in small, with its traps, read as intake needs it."""

import logging
from pathlib import Path

import pytest

from tests.source_files import facts_of, items_of, problems_of, write_csv, write_images
from vet_extensions.errors import UserError
from vet_extensions.intake.sources.brax import Brax
from vet_extensions.intake.sources.labelling import CHEXPERT_FINDINGS
from vet_extensions.schema import View

HEADER = [
    "DicomPath",
    "PngPath",
    "PatientID",
    "PatientSex",
    "PatientAge",
    "AccessionNumber",
    "StudyDate",
    *CHEXPERT_FINDINGS,
    "ViewPosition",
    "Rows",
    "Columns",
    "Manufacturer",
]
POSITIONS = {"PA": View.PA, "L": View.LATERAL, "RL": View.LATERAL_RIGHT, "AP LLD": View.AP, "LT-DECUB": View.UNKNOWN}
POSITIONS |= {"RLO": View.OBLIQUE, "": View.UNKNOWN}


def path_of(number: int) -> str:
    return f"images/id_0a{number // 2}/Study_1.2.{number // 2}/Series_1.3.{number}/image-1.4.{number}.png"


def row(number: int, position: str, **values: str) -> list[str]:
    labels = [values.get(name.replace(" ", "_"), "") for name in CHEXPERT_FINDINGS]
    dicom = path_of(number).replace("images", "Anonymized_DICOMs").replace(".png", ".dcm")
    identity = [f"0a{number // 2}", "M", "85 or more", f"00{number // 2}", "20090101"]
    return [dicom, path_of(number), *identity, *labels, position, "2000", "2000", "X"]


def make_copy(tmp_path: Path) -> Path:
    write_images(tmp_path, (path_of(number) for number in range(len(POSITIONS))))
    rows = [row(number, position) for number, position in enumerate(POSITIONS)]
    rows[0] = row(0, "PA", Edema="-1.0", Fracture="1.0", Pneumonia="0.0")
    write_csv(tmp_path / "master_spreadsheet_update.csv", HEADER, reversed(rows))
    (tmp_path / "master_spreadsheet.csv").write_text("the first release\n")
    return tmp_path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_copy(tmp_path)


def test_ids_keep_their_zeros_and_studies_their_images(root: Path) -> None:
    items = items_of(Brax(root))
    assert set(items) == {path_of(number) for number in range(len(POSITIONS))}
    first, second, third = (items[path_of(number)].facts for number in range(3))
    assert first is not None
    assert second is not None
    assert third is not None
    assert (first.patient, first.study) == (second.patient, second.study) == ("0a0", "000")
    assert (third.patient, third.study) == ("0a1", "001")
    assert first.image != second.image
    assert (first.species, first.body_part, first.split) == ("human", "CHEST", None)


def test_views_come_from_the_position_and_a_frontal_decubitus_stays_frontal(root: Path) -> None:
    views = facts_of(Brax(root), "view")
    assert [views[path_of(number)] for number in range(len(POSITIONS))] == list(POSITIONS.values())
    assert facts_of(Brax(root), "view_source")[path_of(0)] == "ViewPosition (BRAX)"


@pytest.mark.parametrize(
    ("uncertain", "edema"),
    [("keep", {"edema": -1}), ("to_positive", {"edema": 1}), ("to_negative", {"edema": 0}), ("missing", {})],
)
def test_uncertain_labels_follow_the_policy(root: Path, uncertain: str, edema: dict[str, int]) -> None:
    source = Brax(root, uncertain=uncertain)
    assert facts_of(source, "labels")[path_of(0)] == {**edema, "fracture": 1, "pneumonia": 0}
    assert source.label_policy == {"uncertain": uncertain, "blank": "missing"}


def test_blank_labels_may_mean_absent(root: Path) -> None:
    source = Brax(root, blank="absent")
    assert facts_of(source, "labels")[path_of(1)] == dict.fromkeys(source.label_names, 0)


def test_missing_files_are_problems_and_others_are_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / path_of(3)).rename(root / "images" / "stray.png")
    (root / "Anonymized_DICOMs").mkdir()
    (root / "Anonymized_DICOMs" / "image.dcm").touch()
    with caplog.at_level(logging.INFO, logger="vet_extensions"):
        assert problems_of(Brax(root)) == {path_of(3): "FILE_MISSING"}
    assert "1 image files that no row names" in caplog.text


def test_open_gives_the_picture(root: Path) -> None:
    with Brax(root).open(path_of(0)) as file:
        assert file.read(4) == b"\x89PNG"


def test_another_folder_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected 'master_spreadsheet_update\.csv' or .* found no table"):
        Brax(tmp_path)
    with pytest.raises(UserError, match="is no folder"):
        Brax(tmp_path / "nowhere")
