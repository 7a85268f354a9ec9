"""Nothing of an archive's names, owners, addresses, dates, UIDs and paths comes out of intake, but for OUT/private.

Marks are planted in every attribute of pydicom's dictionary that holds text, in private tags, sequences, overlays, file meta
information, file and folder names of 200 files, sound and broken; then every byte that intake and check produced is searched.
"""

import io
import logging
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pydicom.config
import pytest
from factories import make_dataset, make_dicom, make_pixels
from pydicom import DataElement, Dataset, dcmwrite
from pydicom.datadict import DicomDictionary, dictionary_VR, tag_for_keyword
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID as UID_
from pydicom.uid import ExplicitVRLittleEndian
from typer.testing import CliRunner

from vet_extensions.cli import app
from vet_extensions.intake.deidentify import PIXEL_KEYWORDS, Pseudonyms
from vet_extensions.intake.header import HeaderReader
from vet_extensions.intake.options import IntakeOptions
from vet_extensions.intake.raw_values import RawViews, describe
from vet_extensions.intake.run import run_intake
from vet_extensions.intake.sources.dicom_folder import DicomFolder
from vet_extensions.manifest.validate import summarise
from vet_extensions.schema import IntakeFolder, Rejection

N_FILES = 200
N_BY_TURNS = 25
"""Each attribute is planted in every 25th file: 8 times in all."""

# A mark for each kind of value; every planted value holds one. Text comes in two scripts.
WORD, ACCENTED, DATE, TIME, AGE, NUMBER, UID = (
    "Zqxcanary",
    "Þórðqxä",
    "18430617",
    "918273",
    "183Y",
    "7391846250",
    "77918273",
)
MARKS = (WORD, ACCENTED, DATE, TIME, AGE, NUMBER, UID)

# What decides whether the pixels can be read at all: sound files keep these, and each has a broken file of its own.
NUMERIC = {name for name in PIXEL_KEYWORDS if dictionary_VR(tag_for_keyword(name) or 0) in ("DS", "IS")}
STRUCTURAL = (
    {"SOPClassUID", "SpecificCharacterSet", "PhotometricInterpretation", "PresentationIntentType", "VOILUTFunction"}
    | {"PresentationLUTShape", "PixelIntensityRelationship", "ShutterShape", "CollimatorShape"}
    | {"ModalityLUTSequence", "VOILUTSequence"}
    | NUMERIC
)


def planted(vr: str, number: int) -> str | None:
    """A value of this kind that holds a mark; None for kinds that hold no text."""
    uid = f"1.2.826.0.{UID}.{number + 1}"
    return {
        "AE": f"{WORD}{number}",
        "AS": AGE,
        "CS": f"{WORD.upper()}{number}",
        "DA": DATE,
        "DS": NUMBER,
        "DT": f"{DATE}235958.{TIME}",
        "IS": NUMBER,
        "LO": f"{WORD} {ACCENTED} {number}",
        "LT": f"{WORD} {ACCENTED} {number}\nElm Street",
        "PN": f"{WORD}^{ACCENTED}^{number}",
        "SH": f"{WORD}{number}",
        "ST": f"{WORD} {ACCENTED} {number}",
        "TM": f"235958.{TIME}",
        "UC": f"{WORD} {ACCENTED} {number}",
        "UI": uid,
        "UR": f"https://{WORD}.example/{number}",
        "UT": f"{WORD} {ACCENTED} {number}",
    }.get(vr)


@cache
def text_attributes() -> list[tuple[int, str, str]]:
    """(tag, VR, keyword) of the dictionary's attributes that hold text or items, but for command and file meta groups."""
    return [
        (tag, vr, keyword)
        for tag, (vr, _, _, _, keyword) in sorted(DicomDictionary.items())
        if tag >> 16 > 2 and keyword and (vr == "SQ" or planted(vr, 0) is not None)
    ]


def plant(dataset: Dataset, tag: int, vr: str, number: int) -> None:
    """Put a marked value, or a sequence of one marked item, into the data set."""
    value = [marked_item(number)] if vr == "SQ" else planted(vr, number)
    dataset.add(DataElement(tag, vr, value, validation_mode=pydicom.config.IGNORE))


def marked_item(number: int) -> Dataset:
    item = Dataset()
    for keyword in (
        "CodeValue",
        "CodingSchemeDesignator",
        "CodeMeaning",
        "PersonName",
        "ReferencedSOPInstanceUID",
        "StudyDate",
    ):
        tag = tag_for_keyword(keyword) or 0
        item.add(DataElement(tag, dictionary_VR(tag), planted(dictionary_VR(tag), number), validation_mode=0))
    return item


def marked_dataset(number: int) -> Dataset:
    """A radiograph with its share of all attributes marked, and those that name someone in any case."""
    dataset = make_dataset(pixels=make_pixels(32, 32, seed=number))
    dataset.SpecificCharacterSet = "ISO_IR 192" if number % 2 else "ISO_IR 100"
    always = {"PatientID", "PatientName", "PatientComments", "ResponsiblePerson", "StudyDate", "SOPInstanceUID"}
    always |= {"StudyInstanceUID", "SeriesInstanceUID", "SeriesDescription", "ViewPosition", "BodyPartExamined"}
    for position, (tag, vr, keyword) in enumerate(text_attributes()):
        if keyword not in STRUCTURAL and (position % N_BY_TURNS == number % N_BY_TURNS or keyword in always):
            plant(dataset, tag, vr, number // 2 if keyword in ("PatientID", "StudyInstanceUID") else number)
    block = dataset.private_block(0x0011, f"{WORD} PRIVATE", create=True)
    for offset, vr in enumerate(("LO", "PN", "LT", "UI", "DA")):
        block.add_new(offset, vr, planted(vr, number))
    block.add_new(0x20, "UN", f"{WORD}{ACCENTED}".encode())
    for tag, vr, value in (
        (0x60000010, "US", 8),
        (0x60000011, "US", 16),
        (0x60000022, "LO", f"{WORD} overlay"),
        (0x60001500, "LO", f"{WORD} {ACCENTED} label"),
        (0x60003000, "OW", WORD.ljust(16).encode()),
    ):
        dataset.add_new(tag, vr, value)
    return dataset


def write(path: Path, dataset: Dataset, number: int, *, syntax: str = ExplicitVRLittleEndian) -> None:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.SourceApplicationEntityTitle = planted("AE", number)
    meta.ImplementationVersionName = planted("SH", number)
    meta.PrivateInformationCreatorUID = UID_(planted("UI", number) or "")
    meta.PrivateInformation = f"{WORD}{ACCENTED}".encode()
    dataset.file_meta, dataset.preamble = meta, WORD.ljust(128).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    data = buffer.getvalue()
    if syntax != ExplicitVRLittleEndian:
        data = data.replace(ExplicitVRLittleEndian.encode() + b"\0", syntax.encode().ljust(20, b"\0"), 1)
    path.write_bytes(data)


def break_it(dataset: Dataset, number: int, wrong: str) -> None:
    """Give one structural attribute a marked value that cannot be used there."""
    tag = tag_for_keyword(wrong) or 0
    vr = dictionary_VR(tag)
    value = [marked_item(number)] if vr == "SQ" else f"{WORD.upper()} {number}"
    if vr in ("DS", "IS"):  # pydicom refuses to write such a number; the bytes of the element are what is written
        dataset.add_new(tag, "LO", value)
    else:
        dataset.add(DataElement(tag, vr, value, validation_mode=0))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("archive") / f"{WORD} clinic"
    wrongs = sorted(STRUCTURAL)
    settings = pydicom.config.settings
    before, settings.writing_validation_mode = settings.writing_validation_mode, pydicom.config.IGNORE
    try:
        for number in range(N_FILES - 3):
            dataset = marked_dataset(number)
            if number < len(wrongs):
                break_it(dataset, number, wrongs[number])
            folder = root / f"{WORD} {ACCENTED} {number % 7}" / DATE
            syntax = f"1.2.3.{UID}" if number == len(wrongs) else ExplicitVRLittleEndian
            write(folder / f"{WORD}_{ACCENTED}_{number}.dcm", dataset, number, syntax=syntax)
    finally:
        settings.writing_validation_mode = before
    files = sorted(root.rglob("*.dcm"))
    (root / f"{WORD} half.dcm").write_bytes(files[-1].read_bytes()[:-900])
    (root / f"{WORD} torn.dcm").write_bytes(files[-2].read_bytes()[:700])
    (root / f"{WORD}.txt").write_text(f"{WORD} {ACCENTED} {DATE}")
    return root


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / f"{WORD}.csv"
    rows = [f"{planted('UI', number)},{number % 2},{WORD} {number}" for number in range(N_FILES)]
    path.write_text("\n".join(["StudyInstanceUID,mass,owner", *rows]), encoding="utf-8")
    return path


def found_in(data: bytes) -> list[str]:
    """The marks that these bytes hold, in any of the usual encodings and in either case."""
    found = []
    for mark in MARKS:
        forms = {mark, mark.upper(), mark.lower()} if mark in (WORD, ACCENTED) else {mark}
        for encoding in ("utf-8", "latin-1", "utf-16-le", "utf-16-be"):
            if any(form.encode(encoding) in data for form in forms):
                found.append(f"{mark} in {encoding}")
    return found


def produced(out: Path) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of everything below `out` that is not private; tables also as their decompressed values."""
    for path in sorted(out.rglob("*")):
        if path.is_relative_to(out / "private"):
            continue
        name = str(path.relative_to(out))
        yield f"the name {name}", name.encode()
        if not path.is_file():
            continue
        yield name, path.read_bytes()
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            yield f"{name}, values", repr(table.to_pydict()).encode()
            yield f"{name}, metadata", repr(table.schema.metadata).encode() + repr(pq.read_metadata(path)).encode()
        if path.suffix == ".tar":
            with tarfile.open(path) as tar:
                members = [np.load(io.BytesIO(tar.extractfile(member).read())) for member in tar]  # type: ignore[union-attr]
            yield f"{name}, pixels", b"".join(member.tobytes() for member in members)


def assert_nothing_of_anyone(out: Path) -> None:
    leaks = {name: found for name, data in produced(out) if (found := found_in(data))}
    assert leaks == {}


def test_the_search_finds_a_mark_in_every_encoding_and_case() -> None:
    for mark in MARKS:
        for encoding in ("utf-8", "latin-1", "utf-16-le", "utf-16-be"):
            assert found_in(b"x\0" + f"..{mark}..".encode(encoding))
    assert found_in(b"..ZQXCANARY..")
    assert found_in(b"nothing of anyone, 1843, 183y") == []


@pytest.mark.slow
def test_the_archive_marks_every_text_attribute_of_the_dictionary(archive: Path) -> None:
    written: set[str] = set()
    for path in archive.rglob("*.dcm"):
        assert found_in(path.read_bytes())
        if "half" not in path.name and "torn" not in path.name:
            written |= {element.keyword for element in pydicom.dcmread(path, force=True)}
    assert written >= {keyword for _, _, keyword in text_attributes()} - {"SpecificCharacterSet"}
    assert len(written) > 3000


@pytest.mark.slow
def test_no_byte_that_intake_writes_or_logs_holds_anything_of_anyone(
    archive: Path, labels: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with caplog.at_level(logging.DEBUG):
        summary = run_intake(archive, out, options=IntakeOptions(salt="a salt for tests", labels=labels), n_workers=0)
        said = [str(summary), str(summarise(out))]
    shown = capfd.readouterr()
    assert summary.n_files == N_FILES
    assert summary.n_accepted > 150
    assert len(summary.rejected) >= 6
    assert_nothing_of_anyone(out)
    assert found_in("\n".join([caplog.text, shown.out, shown.err, *said]).encode()) == []
    assert found_in((IntakeFolder(out).private / "sources.csv").read_bytes())


@pytest.mark.slow
def test_a_run_that_was_stopped_leaves_nothing_of_anyone_either(archive: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done > N_FILES // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_intake(
            archive, tmp_path / "out", options=IntakeOptions(salt="a salt for tests"), n_workers=0, on_progress=stop
        )
    assert any(path.is_file() for path in tmp_path.rglob(".unfinished/*"))
    assert_nothing_of_anyone(tmp_path / "out")


@pytest.mark.slow
def test_the_command_line_shows_and_writes_nothing_of_anyone(archive: Path, labels: Path, tmp_path: Path) -> None:
    def vetdino(*arguments: str) -> None:
        program = [sys.executable, "-c", "from vet_extensions.cli import main; main()", *arguments]
        done = subprocess.run(program, capture_output=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        assert found_in(done.stdout + done.stderr) == []

    vetdino("intake", str(archive), str(tmp_path / "out"), "--labels", str(labels), "--workers", "1")
    vetdino("check", str(tmp_path / "out"))
    assert_nothing_of_anyone(tmp_path / "out")


@pytest.mark.slow
def test_the_table_of_raw_values_shows_names_on_request_only(archive: Path) -> None:
    reader, table = HeaderReader(Pseudonyms("a salt for tests"), IntakeOptions(), DicomFolder(archive)), RawViews()
    for path in archive.rglob("*.dcm"):
        answer, texts = reader.with_raw_values((str(path.relative_to(archive)), "source", None))
        table.add(texts, () if isinstance(answer, Rejection) else answer)
    assert found_in("\n".join(describe(table)).encode()) == []
    assert found_in("\n".join(describe(table, show_all=True)).encode())


def test_check_shows_the_raw_values_and_names_among_them_on_request_only(tmp_path: Path) -> None:
    for number, position in enumerate(("LL", "LL", WORD.upper())):
        make_dicom(tmp_path / "in" / f"{number}.dcm", pixels=make_pixels(seed=number), ViewPosition=position)
    run_intake(tmp_path / "in", tmp_path / "out", n_workers=0)
    plain = CliRunner().invoke(app, ["check", str(tmp_path / "out")]).output
    assert "3 images, of which 1 stayed UNKNOWN" in plain
    assert "LATERAL_LEFT" in plain
    assert found_in(plain.encode()) == []
    assert found_in(CliRunner().invoke(app, ["check", "--raw", str(tmp_path / "out")]).output.encode())
