"""Every kind of malformed and hostile input in one archive, good files between them: each ends as it must and costs no other."""

import csv
import logging
import os
import signal
import stat
import warnings
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from bad_archives import bad_archives
from bad_inputs import ACCEPTED, REPAIRED, BadInput, bad_inputs, bad_under_policies
from bad_tables import COLUMNS, REFUSED_TABLES, BadRow, bad_rows, picture
from factories import make_dicom

from tests.source_files import write_csv
from vet_extensions.errors import UserError
from vet_extensions.intake import passes
from vet_extensions.intake.image import ImageReader, StoredImage
from vet_extensions.intake.options import IntakeOptions
from vet_extensions.intake.run import run_intake
from vet_extensions.intake.sources.tables import TableSource
from vet_extensions.manifest.validate import summarise
from vet_extensions.schema import IntakeFolder, Rejection, RejectionCode

KINDS = [*bad_inputs(), *bad_archives()]
UNDER_POLICIES = bad_under_policies()
ROWS = bad_rows()
N_GOOD = 40
OUTSIDE_SEED = 99
"""Of the picture that lies beside a table's folder."""
OPTIONS = IntakeOptions(salt="a salt for tests", longest_side_px=32)
POLICIES = replace(
    OPTIONS,
    accept_secondary_capture=True,
    colour="grey",
    for_processing="log",
    multi_frame="each",
    collimation="crop",
)


def write(kind: BadInput, folder: Path) -> None:
    """pydicom warns of the values that it is made to write."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind.write(folder)


def write_archive(root: Path, kinds: list[BadInput], *, n_good: int) -> Path:
    """A folder of each kind and, between them in the listing, folders of one good file."""
    for kind in kinds:
        folder = root / kind.name
        folder.mkdir(parents=True)
        write(kind, folder)
    for kind in kinds[:: len(kinds) // n_good]:
        make_dicom(root / f"{kind.name}, then a good one" / f"good after {kind.name}.dcm")
    return root


def write_table(folder: Path, rows: Iterable[BadRow]) -> TableSource:
    """A table of bad rows with good ones between them; beside the source's folder lies a picture that no row may reach."""
    root = folder / "in"
    (root / "good").mkdir(parents=True)
    (folder / "outside").mkdir()
    (folder / "outside" / "1.png").write_bytes(picture(seed=OUTSIDE_SEED))
    cells = []
    for number, row in enumerate(rows):
        if row.write is not None:
            (root / row.path).parent.mkdir(exist_ok=True)
            row.write(root / row.path)
        good = f"good/{number}.png"
        (root / good).write_bytes(picture(seed=100 + number))
        cells += [row.row(), BadRow(good, good, ACCEPTED).row()]
    write_csv(root / "images.csv", COLUMNS, cells)
    return TableSource(root, "images.csv")


def outcomes_of(out: Path) -> dict[str, tuple[str, ...]]:
    """Key of an item -> what became of its images, sorted."""
    folder = IntakeFolder(out)
    with (folder.private / "sources.csv").open(newline="", errors="surrogateescape") as file:
        keys = {row["file_id"]: row["path"] for row in csv.DictReader(file)}
    found = defaultdict(list)
    with folder.rejected.open(newline="") as file:
        for row in csv.DictReader(file):
            found[keys[row["file_id"]]].append(row["code"])
    for record in pq.read_table(folder.manifest, columns=["source_id", "notes"]).to_pylist():
        found[keys[record["source_id"]]].append(REPAIRED if record["notes"] else ACCEPTED)
    return {key: tuple(sorted(codes)) for key, codes in found.items()}


def outcomes_by_folder(out: Path) -> dict[str, tuple[str, ...]]:
    """Folder below the source -> what became of all images in it, sorted."""
    found = defaultdict(list)
    for key, codes in outcomes_of(out).items():
        found[key.split("/")[0]] += codes
    return {name: tuple(sorted(codes)) for name, codes in found.items()}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The intake of one archive that holds all kinds."""
    root = write_archive(tmp_path_factory.mktemp("archive"), KINDS, n_good=N_GOOD)
    out = tmp_path_factory.mktemp("out") / "intake"
    run_intake(root, out, options=OPTIONS, n_workers=2)
    return out


@pytest.fixture(scope="module")
def outcomes(out: Path) -> dict[str, tuple[str, ...]]:
    return outcomes_by_folder(out)


@pytest.fixture(scope="module")
def outcomes_under_policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    """Of another archive, read under every policy that takes more than the default does."""
    root = write_archive(tmp_path_factory.mktemp("policies"), UNDER_POLICIES, n_good=5)
    out = tmp_path_factory.mktemp("out") / "intake"
    run_intake(root, out, options=POLICIES, n_workers=0)
    return outcomes_by_folder(out)


@pytest.fixture(scope="module")
def table_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The intake of one table that holds all bad rows."""
    source = write_table(tmp_path_factory.mktemp("table"), ROWS)
    out = tmp_path_factory.mktemp("out") / "intake"
    run_intake(source, out, options=OPTIONS, n_workers=0)
    return out


def test_the_table_names_at_least_sixty_kinds_each_once_with_known_outcomes() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS) >= 60
    every = [*KINDS, *UNDER_POLICIES]
    assert {outcome for kind in every for outcome in kind.expected} <= {ACCEPTED, REPAIRED, *RejectionCode}
    assert {row.expected for row in ROWS} <= {None, ACCEPTED, REPAIRED, *RejectionCode}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_bad_file_ends_as_its_row_says(kind: BadInput, outcomes: dict[str, tuple[str, ...]]) -> None:
    assert outcomes.get(kind.name, ()) == tuple(sorted(kind.expected))


@pytest.mark.parametrize("kind", UNDER_POLICIES, ids=lambda kind: kind.name)
def test_a_bad_file_ends_as_its_row_says_under_the_widest_policies(
    kind: BadInput, outcomes_under_policies: dict[str, tuple[str, ...]]
) -> None:
    assert outcomes_under_policies.get(kind.name, ()) == tuple(sorted(kind.expected))


def test_every_good_file_between_the_bad_ones_is_accepted_under_the_widest_policies(
    outcomes_under_policies: dict[str, tuple[str, ...]],
) -> None:
    good = [codes for name, codes in outcomes_under_policies.items() if name.endswith(", then a good one")]
    assert len(good) >= 5
    assert set(good) == {(ACCEPTED,)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_bad_row_of_a_table_ends_as_it_must(row: BadRow, table_out: Path) -> None:
    found = outcomes_of(table_out)
    key = row.path.replace("\\", "/").replace("//", "/")
    assert found.get(key, ()) == (() if row.expected is None else (str(row.expected),))


def test_every_good_row_between_the_bad_ones_is_accepted(table_out: Path) -> None:
    good = [codes for key, codes in outcomes_of(table_out).items() if key.startswith("good/") and key[5:-4].isdigit()]
    assert len(good) == len(ROWS)
    assert set(good) == {(ACCEPTED,)}


def test_no_picture_outside_the_tables_folder_is_read(table_out: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    (root / "1.png").write_bytes(picture(seed=OUTSIDE_SEED))
    write_csv(root / "images.csv", COLUMNS, [BadRow("outside", "1.png", ACCEPTED).row()])
    run_intake(TableSource(root, "images.csv"), out, options=OPTIONS, n_workers=0)
    outside, inside = (
        set(pq.read_table(IntakeFolder(folder).manifest)["pixel_hash"].to_pylist()) for folder in (out, table_out)
    )
    assert len(outside) == 1
    assert not outside & inside


def test_no_output_of_a_bad_table_quotes_it(table_out: Path) -> None:
    text = IntakeFolder(table_out).rejected.read_text() + IntakeFolder(table_out).summary.read_text()
    assert [word for word in ("outside", "passwd", "Evil", "calc", "server", "one name", "\x1b") if word in text] == []


@pytest.mark.parametrize("name", REFUSED_TABLES)
def test_a_table_that_contradicts_itself_is_refused_whole_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    sentence, rows = REFUSED_TABLES[name]
    root = tmp_path / "in"
    (root / "good").mkdir(parents=True)
    (root / "good" / "0.png").write_bytes(picture())
    write_csv(root / "images.csv", COLUMNS, [BadRow("x", "", None, cells=cells).row() for cells in rows])
    with pytest.raises(UserError, match=sentence) as error:
        run_intake(TableSource(root, "images.csv"), tmp_path / "out", options=OPTIONS, n_workers=0)
    assert [word for word in ("0.png", "Bello") if word in str(error.value)] == []
    assert not IntakeFolder(tmp_path / "out").manifest.exists()


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
