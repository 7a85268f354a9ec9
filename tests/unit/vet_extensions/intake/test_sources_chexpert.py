"""CheXpert: a copy in small, with its traps, read as intake needs it."""

import logging
from pathlib import Path

import pytest

from tests.source_files import facts_of, items_of, problems_of, write_csv, write_images
from vet_extensions.errors import UserError
from vet_extensions.intake.sources.chexpert import CheXpert
from vet_extensions.intake.sources.labelling import CHEXPERT_FINDINGS
from vet_extensions.schema import Split, View

HEADER = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_FINDINGS]
A_FRONTAL = "train/patient00001/study1/view1_frontal.jpg"
A_LATERAL = "train/patient00001/study1/view2_lateral.jpg"
A_LATER = "train/patient00001/study2/view1_frontal.jpg"
A_ODD = "train/patient00002/study1/view1_frontal.jpg"
VALID = "valid/patient64541/study1/view1_frontal.jpg"
TEST = "test/patient64741/study1/view1_frontal.jpg"
TEST_LATERAL = "test/patient64741/study1/view2_lateral.jpg"


def row(path: str, side: str, position: str, **values: str) -> list[str]:
    labels = [values.get(name.replace(" ", "_"), "") for name in CHEXPERT_FINDINGS]
    return [f"CheXpert-v1.0-small/{path}", "Unknown", "68", side, position, *labels]


def make_copy(tmp_path: Path) -> Path:
    write_images(tmp_path, [A_FRONTAL, A_LATERAL, A_LATER, A_ODD, VALID, TEST, TEST_LATERAL])
    train = [
        row(A_ODD, "Frontal", "LL"),
        row(A_LATER, "Frontal", "PA", Cardiomegaly="-1.0", Edema="1.0", Fracture="0.0"),
        row(A_LATERAL, "Lateral", "", Support_Devices="1.0"),
        row(A_FRONTAL, "Frontal", "AP", Support_Devices="1.0"),
    ]
    write_csv(tmp_path / "train.csv", HEADER, train)
    write_csv(tmp_path / "valid.csv", HEADER, [row(VALID, "Frontal", "AP", No_Finding="0.0")])
    test = [[path, *["0"] * 14] for path in (TEST, TEST_LATERAL)]
    write_csv(tmp_path / "test_labels.csv", ["Path", *CHEXPERT_FINDINGS], test)
    return tmp_path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_copy(tmp_path)


def test_patient_and_study_come_from_the_path_whatever_folder_stands_before_it(root: Path) -> None:
    items = items_of(CheXpert(root))
    assert sorted(items) == sorted([A_FRONTAL, A_LATERAL, A_LATER, A_ODD, VALID, TEST, TEST_LATERAL])
    facts = {key: item.facts for key, item in items.items() if item.facts is not None and item.problem is None}
    assert len(facts) == 7
    assert facts[A_FRONTAL].study == facts[A_LATERAL].study == "patient00001/study1"
    assert facts[A_LATER].study == "patient00001/study2"
    assert facts[A_ODD].study == "patient00002/study1"
    assert {facts[key].patient for key in (A_FRONTAL, A_LATERAL, A_LATER)} == {"patient00001"}
    assert len({each.image for each in facts.values()}) == 7
    assert {(each.species, each.body_part) for each in facts.values()} == {("human", "CHEST")}


def test_views_come_from_the_columns_or_where_these_are_missing_from_the_file_name(root: Path) -> None:
    source = CheXpert(root)
    assert facts_of(source, "view") == {
        A_FRONTAL: View.AP,
        A_LATERAL: View.LATERAL,
        A_LATER: View.PA,
        A_ODD: View.UNKNOWN,
        VALID: View.AP,
        TEST: View.UNKNOWN,
        TEST_LATERAL: View.LATERAL,
    }
    rules = facts_of(source, "view_source")
    assert [rules[key] for key in (A_FRONTAL, A_LATERAL, A_ODD, TEST_LATERAL)] == [
        "AP/PA (CheXpert)",
        "Frontal/Lateral (CheXpert)",
        "none",
        "file name (CheXpert)",
    ]


def test_splits_are_the_official_ones(root: Path) -> None:
    splits = facts_of(CheXpert(root), "split")
    assert [splits[key] for key in (A_FRONTAL, VALID, TEST)] == [Split.TRAIN, Split.VAL, Split.TEST]


@pytest.mark.parametrize(("uncertain", "cardiomegaly"), [("keep", -1), ("to_positive", 1), ("to_negative", 0)])
def test_uncertain_labels_follow_the_policy(root: Path, uncertain: str, cardiomegaly: int) -> None:
    labels = facts_of(CheXpert(root, uncertain=uncertain), "labels")
    assert labels[A_LATER] == {"cardiomegaly": cardiomegaly, "edema": 1, "fracture": 0}


def test_uncertain_and_blank_labels_may_be_left_out_or_absent(root: Path) -> None:
    source = CheXpert(root, uncertain="missing", blank="absent")
    expected = {**dict.fromkeys(source.label_names, 0), "edema": 1}
    del expected["cardiomegaly"]
    assert facts_of(source, "labels")[A_LATER] == expected
    assert source.label_policy == {"uncertain": "missing", "blank": "absent"}


def test_one_split_alone_is_enough(root: Path) -> None:
    for name in ("train.csv", "test_labels.csv"):
        (root / name).unlink()
    assert list(items_of(CheXpert(root))) == [VALID]


def test_missing_files_are_problems_and_others_are_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / A_LATERAL).rename(root / "train" / "stray.jpg")
    with caplog.at_level(logging.INFO, logger="vet_extensions"):
        assert problems_of(CheXpert(root)) == {A_LATERAL: "FILE_MISSING"}
    assert "1 image files that no row names" in caplog.text


def test_open_gives_the_picture(root: Path) -> None:
    with CheXpert(root).open(VALID) as file:
        assert file.read(3) == b"\xff\xd8\xff"


def test_paths_of_another_form_are_refused_by_number(root: Path) -> None:
    write_csv(root / "valid.csv", HEADER, [row("valid/Smith/1.jpg", "Frontal", "AP")])
    with pytest.raises(UserError, match="1 of 7 paths") as error:
        CheXpert(root).items()
    assert "Smith" not in str(error.value)


def test_another_folder_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "df_chexpert_plus_240401.csv").touch()
    with pytest.raises(UserError, match=r"expected 'train\.csv' or .* found df_chexpert_plus_240401\.csv"):
        CheXpert(tmp_path)
