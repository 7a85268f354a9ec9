"""Sources through the command line: the manifest says what the tables say, the shards hold the files' pixels."""

import csv
import importlib
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from factories import make_dicom, make_pixels
from typer.testing import CliRunner, Result

from tests.source_files import write_csv, write_images
from vet_extensions import cli
from vet_extensions.errors import UserError
from vet_extensions.intake.deidentify import Pseudonyms
from vet_extensions.intake.options import IntakeOptions
from vet_extensions.intake.run import run_intake
from vet_extensions.intake.sources.base import ImageFacts, SourceItem
from vet_extensions.intake.sources.registry import make_source
from vet_extensions.intake.sources.tables import TableSource
from vet_extensions.manifest import Manifest
from vet_extensions.manifest.validate import summarise
from vet_extensions.schema import Split, View
from vet_extensions.shards import ShardReader

SALT = "a salt for tests"
N_IMAGES = {
    "mimic_cxr": 7,
    "chexpert": 7,
    "padchest": 6,
    "brax": 7,
    "rexgradient": 9,
    "openi": 4,
    "vindr_mammo": 4,
    "rsna_mammo": 5,
    "mura": 5,
    "nih_cxr14": 4,
}
"""Images of each copy in small that the unit tests build."""

ROWS = [
    ("a/1.png", "Rex", "1", "VD", "dog", "train", "1", ""),
    ("a/2.png", "Rex", "1", "left lateral", "dog", "train", "-1", "0"),
    ("b/1.jpg", "Bella", "1", "PA", "", "test", "", "1"),
    ("b/2.png", "Mia", "1", "AP", "cat", "", "0", "0"),
    ("b/3.png", "Max", "1", "DV", "cat", "train", "0", "0"),
    ("b/4.png", "Max", "2", "DV", "cat", "test", "0", "0"),
]
COLUMNS = ("File", "patient", "study", "view", "species", "split", "label.effusion", "label.mass")


def vetdino(*arguments: Any) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def intake(source: Path, out: Path, *more: Any) -> Manifest:
    salt = out.parent / "salt"
    salt.write_text(SALT)
    result = vetdino("intake", source, out, "--salt-file", salt, "--workers", "0", *more)
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert summarise(out).problems == ()
    return Manifest.open(out)


def rows_of(manifest: Manifest) -> dict[str, dict[str, Any]]:
    return {row["image_id"]: row | {"row": number} for number, row in enumerate(manifest.table.to_pylist())}


def rejected(out: Path) -> dict[str, str]:
    with (out / "private" / "sources.csv").open(newline="", errors="surrogateescape") as file:
        keys = {row["file_id"]: row["path"] for row in csv.DictReader(file)}
    with (out / "rejected.csv").open(newline="") as file:
        return {keys[row["file_id"]]: row["code"] for row in csv.DictReader(file)}


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def make_table(root: Path) -> Path:
    """A table of one's own under an unusual column name, and the pictures."""
    write_images(root, [row[0] for row in ROWS])
    write_csv(root / "images.csv", COLUMNS, ROWS)
    (root / "columns.yaml").write_text("path: File\n")
    return root / "images.csv"


def assert_is_as_stated(row: dict[str, Any], item: SourceItem, names: tuple[str, ...]) -> None:
    facts = item.facts
    assert isinstance(facts, ImageFacts)
    pseudonyms = Pseudonyms(SALT)
    assert row["source_id"] == pseudonyms.file(item.key)
    assert row["study_id"] == pseudonyms.study(facts.study)
    assert row["patient_id"] == pseudonyms.patient(facts.patient)
    if facts.view is not View.UNKNOWN:
        assert (row["view"], row["view_source"]) == (str(facts.view), facts.view_source)
    for name in ("species", "body_part", "laterality"):
        assert row[name] == (getattr(facts, name) or row[name])
    assert {name: row[f"label.{name}"] for name in names} == {name: facts.labels.get(name) for name in names}
    if facts.split is not None:
        assert row["split"] == str(facts.split)


@pytest.mark.parametrize("name", N_IMAGES)
def test_the_manifest_says_what_the_data_set_says_and_the_shards_hold_its_pixels(tmp_path: Path, name: str) -> None:
    copy = importlib.import_module(f"tests.unit.vet_extensions.intake.test_sources_{name}")
    (tmp_path / "in").mkdir()
    root = copy.make_copy(tmp_path / "in")
    manifest = intake(root, tmp_path / "out", "--source", name)
    source, reader = make_source(name, str(root)), ShardReader(tmp_path / "out")
    rows, items = rows_of(manifest), list(source.items())
    assert len(rows) == len(items) == N_IMAGES[name]
    for item in items:
        assert item.facts is not None
        row = rows[Pseudonyms(SALT).image(item.facts.image)]
        assert_is_as_stated(row, item, source.label_names)
        stored = reader.read(row["row"])
        if item.key.endswith((".dcm", ".dicom")):
            assert stored.shape == (32, 40)
            continue
        picture = cv2.imread(str(root / item.key), cv2.IMREAD_UNCHANGED)
        assert picture is not None
        wanted = picture if picture.dtype == np.uint8 else np.rint(picture / 257)
        assert np.abs(stored.astype(float) - wanted).max() <= (2 if item.key.endswith(".jpg") else 0)
        assert row["bits_stored"] == 8 * picture.itemsize
    summary = json.loads((tmp_path / "out" / "intake.json").read_text())
    assert summary["source"] == {"name": source.name, "label_policy": dict(source.label_policy)}


def test_the_labeller_decides_which_table_is_read_and_is_recorded(tmp_path: Path) -> None:
    copy = importlib.import_module("tests.unit.vet_extensions.intake.test_sources_mimic_cxr")
    (tmp_path / "in").mkdir()
    root = copy.make_copy(tmp_path / "in")
    table = root / "mimic-cxr-2.0.0-negbio.csv.gz"
    table.unlink()
    write_csv(table, ["study_id", "Fracture"], [("50414267", "1.0")])
    rows = rows_of(intake(root, tmp_path / "out", "--source", "mimic_cxr", "--labeller", "negbio"))
    stated = {name for row in rows.values() for name in row if name.startswith("label.") and row[name] is not None}
    assert stated == {"label.fracture"}
    summary = json.loads((tmp_path / "out" / "intake.json").read_text())
    assert summary["source"]["label_policy"]["labeller"] == "negbio"


def test_a_table_of_ones_own_with_columns_of_other_names(tmp_path: Path) -> None:
    table = make_table(tmp_path / "in")
    options = ("--source", "table", "--columns", tmp_path / "in" / "columns.yaml", "--uncertain", "to_positive")
    rows = rows_of(intake(table, tmp_path / "out", *options))
    assert len(rows) == len(ROWS)
    second = rows[Pseudonyms(SALT).image("a/2.png")]
    assert (second["view"], second["species"], second["transfer_syntax"]) == ("LATERAL_LEFT", "canine", "PNG")
    assert (second["label.effusion"], second["label.mass"], second["split"]) == (1, 0, "train")
    assert rows[Pseudonyms(SALT).image("b/1.jpg")]["label.effusion"] is None


def test_a_patient_with_two_prescribed_splits_is_tested_on_and_both_kinds_are_counted(tmp_path: Path) -> None:
    table = make_table(tmp_path / "in")
    options = ("--source", "table", "--columns", tmp_path / "in" / "columns.yaml")
    rows = rows_of(intake(table, tmp_path / "out", *options))
    assert {rows[Pseudonyms(SALT).image(key)]["split"] for key in ("b/3.png", "b/4.png")} == {str(Split.TEST)}
    summary = json.loads((tmp_path / "out" / "intake.json").read_text())
    assert summary["official_split"] == {"patients": 3, "patients_with_several": 1, "patients_without": 1}
    own = rows_of(intake(table, tmp_path / "own", *options, "--no-official-split", "--split-seed", "5"))
    assert {row["split"] for row in own.values()} == {"train", "val", "test"}
    assert json.loads((tmp_path / "own" / "intake.json").read_text())["official_split"] == {}


def test_a_missing_and_a_broken_picture_are_rejections(tmp_path: Path) -> None:
    table = make_table(tmp_path / "in")
    (tmp_path / "in" / "a" / "1.png").unlink()
    (tmp_path / "in" / "a" / "2.png").write_bytes(b"no picture")
    cut = tmp_path / "in" / "b" / "2.png"
    cut.write_bytes(cut.read_bytes()[:-20])
    intake(table, tmp_path / "out", "--source", "table", "--columns", tmp_path / "in" / "columns.yaml")
    assert rejected(tmp_path / "out") == {
        "a/1.png": "FILE_MISSING",
        "a/2.png": "NOT_AN_IMAGE",
        "b/2.png": "PIXEL_DATA_TRUNCATED",
    }


def test_an_archive_inside_a_folder_gives_the_images_that_it_holds(tmp_path: Path) -> None:
    make_dicom(tmp_path / "in" / "plain.dcm")
    packed = make_dicom(tmp_path / "packed.dcm", pixels=make_pixels(seed=1))
    with zipfile.ZipFile(tmp_path / "in" / "more.zip", "w") as archive:
        archive.write(packed, "deep/packed.dcm")
        archive.writestr("notes.txt", "not an image")
    manifest = intake(tmp_path / "in", tmp_path / "out")
    (tmp_path / "flat").mkdir()
    packed.rename(tmp_path / "flat" / "packed.dcm")
    (tmp_path / "in" / "plain.dcm").rename(tmp_path / "flat" / "plain.dcm")
    flat = intake(tmp_path / "flat", tmp_path / "out_flat")
    assert rejected(tmp_path / "out") == {"more.zip!/notes.txt": "NOT_DICOM"}
    columns = ["image_id", "study_id", "patient_id", "view", "pixel_hash", "split"]
    assert manifest.table.select(columns).equals(flat.table.select(columns))


def test_parts_of_a_data_set_are_merged_to_what_one_run_writes(tmp_path: Path) -> None:
    table = make_table(tmp_path / "in")
    options = ("--source", "table", "--columns", tmp_path / "in" / "columns.yaml")
    intake(table, tmp_path / "whole", *options)
    for number in (1, 2):
        result = vetdino("intake", table, tmp_path / f"part{number}", "--salt-file", tmp_path / "salt", *options,
                         "--part", f"{number}/2", "--workers", "0")  # fmt: skip
        assert result.exit_code == 0, result.stderr
    merged = vetdino("merge", tmp_path / "part1", tmp_path / "part2", "--into", tmp_path / "merged")
    assert merged.exit_code == 0, merged.stderr
    for name in ("manifest.parquet", "rejected.csv"):
        assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    whole, both = (json.loads((tmp_path / name / "intake.json").read_text()) for name in ("whole", "merged"))
    assert whole | {"run_key": ""} == both | {"run_key": ""}


PROGRAM = """
import os, sys
from pathlib import Path
from vet_extensions.intake.options import IntakeOptions
from vet_extensions.intake.run import run_intake
from vet_extensions.intake.sources.tables import TableSource

def die(done, total):
    if done == 4:
        os.kill(os.getpid(), 9)

source = TableSource(Path(sys.argv[1]), "images.csv", columns={"path": "File"})
run_intake(source, Path(sys.argv[2]), options=IntakeOptions(salt="a salt for tests"), on_progress=die, n_workers=0)
"""


def test_a_killed_run_over_a_table_goes_on_where_it_stood_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    make_table(tmp_path / "in")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "in"), str(tmp_path / "out")]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    source = TableSource(tmp_path / "in", "images.csv", columns={"path": "File"})
    options = IntakeOptions(salt=SALT)
    summary = run_intake(source, tmp_path / "out", options=options, n_workers=0)
    assert (summary.n_headers_taken_over, summary.n_images_taken_over) == (6, 4)
    run_intake(source, tmp_path / "whole", options=options, n_workers=2)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_run_with_another_label_policy_is_another_run(tmp_path: Path) -> None:
    table = make_table(tmp_path / "in")
    options = ("--source", "table", "--columns", tmp_path / "in" / "columns.yaml")
    intake(table, tmp_path / "out", *options)
    again = vetdino("intake", table, tmp_path / "out", *options, "--salt-file", tmp_path / "salt", "--blank", "absent")
    assert again.exit_code == 2
    assert "already holds a finished intake" in again.stderr


def test_a_label_table_that_states_the_same_findings_is_refused(tmp_path: Path) -> None:
    table = make_table(tmp_path / "in")
    write_csv(tmp_path / "labels.csv", ["SOPInstanceUID", "mass", "nodule"], [("a/1.png", 1, 0)])
    source = TableSource(table.parent, "images.csv", columns={"path": "File"})
    options = IntakeOptions(salt=SALT, labels=tmp_path / "labels.csv")
    with pytest.raises(UserError, match="both state mass"):
        run_intake(source, tmp_path / "out", options=options, n_workers=0)
    options = IntakeOptions(salt=SALT, labels=tmp_path / "labels.csv", label_columns=("nodule",))
    run_intake(source, tmp_path / "out2", options=options, n_workers=0)
    row = rows_of(Manifest.open(tmp_path / "out2"))[Pseudonyms(SALT).image("a/1.png")]
    assert (row["label.nodule"], row["label.mass"]) == (0, None)


def test_names_and_options_that_no_source_has_are_sentences(tmp_path: Path) -> None:
    make_table(tmp_path)
    for arguments, sentence in (
        (("--source", "mimic_cx"), "Did you mean 'mimic_cxr'?"),
        (("--blank", "absent"), "The source 'dicom' has no --blank."),
        (("--source", "rexgradient", "--uncertain", "keep"), "has no --uncertain. It has none"),
        (("--source", "table"), "is no file. With --source table give the table"),
        (("--source", "mura"), "train_image_paths.csv"),
        (
            ("--source", "mimic_cxr", "--query", "PatientID=1"),
            "'mimic_cxr' has no --query. It has --uncertain, --blank, --l",
        ),
        (
            ("--source", "chexpert", "--labeller", "negbio"),
            "has no --labeller. It has --uncertain, --blank. Leave it out.",
        ),
        (("--modality", "DX"), "The source 'dicom' has no --modality. It has none of these options."),
        (
            ("--source", "mimic_cxr", "--labeller", "negbo"),
            "'negbo' is no labeller of MIMIC-CXR-JPG. Did you mean 'negbio'?",
        ),
    ):
        result = vetdino("intake", tmp_path, tmp_path / "out", *arguments)
        assert result.exit_code == 2, result.output
        assert sentence in result.stderr
