"""MURA: what its paths say."""

from pathlib import Path

import pytest

from tests.source_files import facts_of, items_of, problems_of, write_images
from vet_extensions.errors import UserError
from vet_extensions.intake.sources.mura import Mura
from vet_extensions.schema import Split, View

TRAIN = [
    "train/XR_SHOULDER/patient00001/study1_positive/image1.png",
    "train/XR_SHOULDER/patient00001/study1_positive/image2.png",
    "train/XR_HAND/patient00001/study1_negative/image1.png",
    "train/XR_FINGER/patient00002/study2_negative/image1.png",
]
VALID = ["valid/XR_WRIST/patient11185/study1_negative/image1.png"]


def write_list(root: Path, split: str, paths: list[str], *, end: str = "\n") -> None:
    (root / f"{split}_image_paths.csv").write_bytes("".join(f"MURA-v1.1/{path}{end}" for path in paths).encode())


def make_copy(tmp_path: Path) -> Path:
    write_images(tmp_path, [*TRAIN, *VALID])
    write_list(tmp_path, "train", TRAIN)
    write_list(tmp_path, "valid", VALID, end=",\r\n")
    return tmp_path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_copy(tmp_path)


def test_the_images_of_a_study_are_grouped_and_studies_of_two_body_parts_are_two(root: Path) -> None:
    study = facts_of(Mura(root), "study")
    assert set(study) == {*TRAIN, *VALID}
    assert study[TRAIN[0]] == study[TRAIN[1]] != study[TRAIN[2]]
    patient = facts_of(Mura(root), "patient")
    assert patient[TRAIN[0]] == patient[TRAIN[2]] == "patient00001"
    assert problems_of(Mura(root)) == {}


def test_body_part_split_and_label_come_from_the_path_and_no_view_does(root: Path) -> None:
    source = Mura(root)
    assert facts_of(source, "body_part") == dict(
        zip([*TRAIN, *VALID], ["SHOULDER", "SHOULDER", "HAND", "FINGER", "WRIST"])
    )
    assert facts_of(source, "labels") == {path: {"abnormal": int("positive" in path)} for path in [*TRAIN, *VALID]}
    assert facts_of(source, "split") == dict.fromkeys(TRAIN, Split.TRAIN) | dict.fromkeys(VALID, Split.VAL)
    assert set(facts_of(source, "view").values()) == {View.UNKNOWN}


def test_an_image_opens_and_a_missing_one_is_an_item_with_a_problem(root: Path) -> None:
    with Mura(root).open(VALID[0]) as file:
        assert file.read(4) == b"\x89PNG"
    (root / TRAIN[3]).unlink()
    assert problems_of(Mura(root)) == {TRAIN[3]: "FILE_MISSING"}


def test_one_list_is_enough_and_its_first_line_is_an_image(root: Path) -> None:
    (root / "train_image_paths.csv").unlink()
    assert list(items_of(Mura(root))) == VALID


def test_no_list_and_a_list_of_something_else_are_users_mistakes(root: Path) -> None:
    write_list(root, "train", ["train/XR_HAND/someone/image1.png"])
    with pytest.raises(UserError, match="1 of 2 paths"):
        list(Mura(root).items())
    for path in root.glob("*.csv"):
        path.unlink()
    with pytest.raises(UserError, match=r"train_image_paths\.csv"):
        Mura(root)
