"""Every kind of malformed and hostile input in one archive, good files between them: each ends as it must and costs no other."""

import csv
import logging
import os
import signal
import stat
import warnings
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from bad_inputs import ACCEPTED, REPAIRED, BadInput, bad_inputs
from factories import make_dicom

from vet_extensions.intake import passes
from vet_extensions.intake.image import ImageReader, StoredImage
from vet_extensions.intake.options import IntakeOptions
from vet_extensions.intake.run import run_intake
from vet_extensions.manifest.validate import summarise
from vet_extensions.schema import IntakeFolder, Rejection, RejectionCode

KINDS = bad_inputs()
N_GOOD = 40
OPTIONS = IntakeOptions(salt="a salt for tests", longest_side_px=32)


def write(kind: BadInput, folder: Path) -> None:
    """pydicom warns of the values that it is made to write."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind.write(folder)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The intake of one archive that holds a folder of each kind and, between them in the listing, folders of one good file."""
    root = tmp_path_factory.mktemp("archive")
    for kind in KINDS:
        folder = root / kind.name
        folder.mkdir()
        write(kind, folder)
    for kind in KINDS[:: len(KINDS) // N_GOOD]:
        make_dicom(root / f"{kind.name}, then a good one" / f"good after {kind.name}.dcm")
    out = tmp_path_factory.mktemp("out") / "intake"
    run_intake(root, out, options=OPTIONS, n_workers=2)
    return out


@pytest.fixture(scope="module")
def outcomes(out: Path) -> dict[str, tuple[str, ...]]:
    """Folder -> what became of its files, sorted."""
    folder = IntakeFolder(out)
    with (folder.private / "sources.csv").open(newline="", errors="surrogateescape") as file:
        folders = {row["file_id"]: row["path"].split("/")[0] for row in csv.DictReader(file)}
    found = defaultdict(list)
    with folder.rejected.open(newline="") as file:
        for row in csv.DictReader(file):
            found[folders[row["file_id"]]].append(row["code"])
    for record in pq.read_table(folder.manifest, columns=["source_id", "notes"]).to_pylist():
        found[folders[record["source_id"]]].append(REPAIRED if record["notes"] else ACCEPTED)
    return {name: tuple(sorted(codes)) for name, codes in found.items()}


def test_the_table_names_at_least_sixty_kinds_each_once_with_known_outcomes() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS) >= 60
    assert {outcome for kind in KINDS for outcome in kind.expected} <= {ACCEPTED, REPAIRED, *RejectionCode}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_bad_file_ends_as_its_row_says(kind: BadInput, outcomes: dict[str, tuple[str, ...]]) -> None:
    assert outcomes.get(kind.name, ()) == tuple(sorted(kind.expected))


def test_every_good_file_between_the_bad_ones_is_accepted(outcomes: dict[str, tuple[str, ...]]) -> None:
    good = {name: codes for name, codes in outcomes.items() if name.endswith(", then a good one")}
    assert len(good) >= N_GOOD
    assert set(good.values()) == {(ACCEPTED,)}


def test_what_is_accepted_among_bad_files_is_sound(out: Path) -> None:
    problems = summarise(out).problems
    assert [problem for problem in problems if "equal pixels" not in problem] == []  # the archive has one picture


def test_no_detail_quotes_a_file(out: Path) -> None:
    text = IntakeFolder(out).rejected.read_text()
    assert [word for word in ("TEST-1", "TEST^", "Evil", "passwd", "2.25.", "\x1b") if word in text] == []


def test_bad_files_leave_the_log_and_the_terminal_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    for kind in KINDS:
        if kind.name.startswith(("UID", "names with", "unknown", "slope")):
            (tmp_path / "in" / kind.name).mkdir(parents=True)
            write(kind, tmp_path / "in" / kind.name)
    caplog.clear()
    capfd.readouterr()
    run_intake(tmp_path / "in", tmp_path / "out", options=OPTIONS, n_workers=0)
    assert {record.name for record in caplog.records if record.levelno >= logging.WARNING} == set()
    assert capfd.readouterr() == ("", "")


class CrashingReader(ImageReader):
    """Stands for a decoder that a file crashes."""

    def __call__(self, task: tuple[str, int]) -> StoredImage | Rejection:
        if Path(task[0]).name.startswith("deadly"):
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().__call__(task)


def test_a_file_that_crashes_its_decoder_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(12):
        make_dicom(tmp_path / "in" / f"{'deadly' if number in (3, 7) else 'good'} {number}.dcm")
    monkeypatch.setattr(passes, "ImageReader", CrashingReader)
    summary = run_intake(tmp_path / "in", tmp_path / "out", options=OPTIONS, n_workers=2)
    assert summary.rejected == {"WORKER_DIED": 2}
    assert summary.n_accepted == 10


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named_unreadable(tmp_path: Path) -> None:
    make_dicom(tmp_path / "in" / "good.dcm")
    make_dicom(tmp_path / "in" / "locked.dcm").chmod(stat.S_IWUSR)
    summary = run_intake(tmp_path / "in", tmp_path / "out", options=OPTIONS, n_workers=0)
    assert summary.rejected == {"UNREADABLE": 1}
