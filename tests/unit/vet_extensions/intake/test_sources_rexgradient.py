"""ReXGradient-160K: a copy in small, with its traps, read as intake needs it."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tests.source_files import facts_of, items_of, problems_of, write_images
from vet_extensions.errors import UserError
from vet_extensions.intake.sources.rexgradient import ReXGradient
from vet_extensions.schema import Split, View

REPORT = "No acute cardiopulmonary process."


def path_of(patient: str, accession: str, number: int) -> str:
    return f"deid_png/{patient}/{accession}/studies/1.2.{accession}/series/1.3/instances/1.4.{number}.png"


def entry(patient: str, accession: str, views: list[Any], **others: Any) -> dict[str, Any]:
    paths = [f"../{path_of(patient, accession, number)}" for number in range(len(views))]
    shapes = [[10, 10]] * len(views)
    lists = {"ImagePath": paths, "ImageViewPosition": views, "ImageShape": shapes, "ImageModality": ["DX"] * len(views)}
    texts = {"PatientAge": float("nan"), "Findings": REPORT, "Impression": REPORT, "Indication": None}
    return {**lists, **texts, **others}


STUDIES: dict[str, dict[str, dict[str, Any]]] = {
    "train": {
        "GRDNB_A1": entry("GRDNB", "A1", ["PA", "LATERAL"], ImageBodyPart=["CHEST", None]),
        "GRDNB_A2": entry("GRDNB", "A2", ["POSTERO_ANTERIOR", "LL", None, "N/A"], ImageBodyPart=["ABDOMEN"] * 4),
    },
    "valid": {"GRDNA_B1": entry("GRDNA", "B1", ["LAO"])},
    "test": {"GRDNC_C1": entry("GRDNC", "C1", ["AP", "UNKNOWN"], ImageViewPosition=["AP"])},
}
COUNTS = {("GRDNB", "A1"): 2, ("GRDNB", "A2"): 4, ("GRDNA", "B1"): 1, ("GRDNC", "C1"): 2}
PATHS = [path_of(*study, number) for study, count in COUNTS.items() for number in range(count)]


def write_tables(root: Path, folder: str = "metadata") -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for split, studies in STUDIES.items():
        (root / folder / f"{split}_metadata_view_position.json").write_text(json.dumps(studies))


def make_copy(tmp_path: Path) -> Path:
    write_images(tmp_path, PATHS)
    write_tables(tmp_path)
    return tmp_path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_copy(tmp_path)


def test_every_image_of_a_study_s_lists_is_an_item(root: Path) -> None:
    items = items_of(ReXGradient(root))
    assert sorted(items) == sorted(PATHS)
    assert problems_of(ReXGradient(root)) == {}
    facts = items[path_of("GRDNB", "A1", 1)].facts
    assert facts is not None
    assert (facts.patient, facts.study, facts.species) == ("GRDNB", "GRDNB_A1", "human")


def test_images_of_one_entry_are_one_study_and_of_one_folder_one_patient(root: Path) -> None:
    studies, patients = facts_of(ReXGradient(root), "study"), facts_of(ReXGradient(root), "patient")
    assert {studies[path_of("GRDNB", "A2", number)] for number in range(4)} == {"GRDNB_A2"}
    assert len(set(studies.values())) == 4
    assert set(patients.values()) == {"GRDNA", "GRDNB", "GRDNC"}


def test_views_come_from_the_parallel_list(root: Path) -> None:
    views = facts_of(ReXGradient(root), "view")
    assert [views[path_of("GRDNB", "A1", number)] for number in range(2)] == [View.PA, View.LATERAL]
    found = [views[path_of("GRDNB", "A2", number)] for number in range(4)]
    assert found == [View.PA, View.LATERAL_LEFT, View.UNKNOWN, View.UNKNOWN]
    assert views[path_of("GRDNA", "B1", 0)] == View.OBLIQUE
    assert facts_of(ReXGradient(root), "view_source")[path_of("GRDNB", "A1", 0)] == "ImageViewPosition (ReXGradient)"


def test_a_list_of_another_length_tells_no_view(root: Path) -> None:
    views = facts_of(ReXGradient(root), "view")
    assert {views[path_of("GRDNC", "C1", number)] for number in range(2)} == {View.UNKNOWN}


def test_the_body_part_is_the_chest_unless_the_list_says_another(root: Path) -> None:
    parts = facts_of(ReXGradient(root), "body_part")
    assert [parts[path_of(*study, 0)] for study in COUNTS] == ["CHEST", "ABDOMEN", "CHEST", "CHEST"]


def test_splits_are_the_official_ones(root: Path) -> None:
    splits = facts_of(ReXGradient(root), "split")
    assert [splits[path_of(*study, 0)] for study in COUNTS] == [Split.TRAIN, Split.TRAIN, Split.VAL, Split.TEST]


def test_there_are_no_labels_and_nothing_of_the_report(root: Path) -> None:
    source = ReXGradient(root)
    assert (source.label_names, source.label_policy) == ((), {})
    assert set(map(str, facts_of(source, "labels").values())) == {"{}"}
    assert "cardiopulmonary" not in repr(items_of(source))


@pytest.mark.parametrize("folder", [".", "download/metadata"])
def test_tables_are_found_in_the_folders_where_downloads_put_them(tmp_path: Path, folder: str) -> None:
    write_images(tmp_path, PATHS)
    write_tables(tmp_path, folder)
    assert problems_of(ReXGradient(tmp_path)) == {}


def test_one_split_alone_is_enough(root: Path) -> None:
    for split in ("train", "test"):
        (root / "metadata" / f"{split}_metadata_view_position.json").unlink()
    assert list(items_of(ReXGradient(root))) == [path_of("GRDNA", "B1", 0)]


def test_missing_files_are_problems_and_others_are_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    missing = path_of("GRDNB", "A1", 0)
    (root / missing).rename(root / "deid_png" / "stray.png")
    with caplog.at_level(logging.INFO, logger="vet_extensions"):
        assert problems_of(ReXGradient(root)) == {missing: "FILE_MISSING"}
    assert "1 image files that no row names" in caplog.text


def test_a_path_that_climbs_out_is_a_problem(root: Path) -> None:
    studies = {"X_Y": {"ImagePath": ["../deid_png/X/Y/../../../../1.png"], "ImageViewPosition": ["PA"]}}
    (root / "metadata" / "valid_metadata_view_position.json").write_text(json.dumps(studies))
    assert list(problems_of(ReXGradient(root)).values()) == ["UNSAFE_PATH"]


def test_open_gives_the_picture(root: Path) -> None:
    with ReXGradient(root).open(PATHS[0]) as file:
        assert file.read(4) == b"\x89PNG"


@pytest.mark.parametrize("text", ['{"a": ', "[]", "{}", '["a"]', '{"GRDNA_B1": ["secret"]}', "\x00"])
def test_a_table_that_is_none_is_refused_without_its_words(root: Path, text: str) -> None:
    (root / "metadata" / "valid_metadata_view_position.json").write_text(text)
    with pytest.raises(
        UserError, match=r"'valid_metadata_view_position\.json' (cannot be read|holds no studies)"
    ) as error:
        ReXGradient(root).items()
    assert "secret" not in str(error.value)


def test_paths_of_another_form_are_refused_by_number(root: Path) -> None:
    studies = {"X_Y": {"ImagePath": ["Smith/1.png"], "ImageViewPosition": ["PA"]}}
    (root / "metadata" / "valid_metadata_view_position.json").write_text(json.dumps(studies))
    with pytest.raises(UserError, match="1 of 9 paths") as error:
        ReXGradient(root).items()
    assert "Smith" not in str(error.value)


def test_another_folder_is_refused_with_what_it_expects(tmp_path: Path) -> None:
    (tmp_path / "train_metadata.csv").touch()
    with pytest.raises(
        UserError, match=r"expected 'metadata/train_metadata_view_position\.json'.* found train_metadata\.csv"
    ):
        ReXGradient(tmp_path)
