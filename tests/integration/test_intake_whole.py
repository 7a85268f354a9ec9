"""Whole archives through intake with every policy open: the phantom's, and all files that pydicom ships for its own tests."""

import csv
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from factories import make_uid
from pydicom import Dataset, config, dcmread
from pydicom.data import get_testdata_files
from pydicom.pixels import apply_modality_lut, apply_voi_lut, pixel_array
from pydicom.uid import UID, MediaStorageDirectoryStorage

from vet_extensions.intake.options import IntakeOptions, IntakeSummary
from vet_extensions.intake.run import run_intake
from vet_extensions.manifest import Manifest
from vet_extensions.manifest.validate import summarise
from vet_extensions.phantom.archive import write_archive
from vet_extensions.schema import IntakeFolder
from vet_extensions.schema import RejectionCode as Code
from vet_extensions.shards import ShardReader

WIDEST = IntakeOptions(
    salt="a salt for tests",
    longest_side_px=1024,
    bits=16,
    accept_secondary_capture=True,
    colour="grey",
    for_processing="log",
    multi_frame="each",
    collimation="crop",
)
ACCEPTED = "ACCEPTED"
DX = "1.2.840.10008.5.1.4.1.1.1.1"
READ_CLASSES = {
    "Computed Radiography Image Storage",
    "Digital X-Ray Image Storage - For Presentation",
    "Secondary Capture Image Storage",
}
"""Classes of pydicom's files that are read, by their names in the standard."""

_STREAMS: dict[str, Code] = {
    # Code streams of 12 bits, for which there is no decoder under a free licence.
    "JPEG-lossy.dcm": Code.UNSUPPORTED_TRANSFER_SYNTAX,
    "JPGExtended.dcm": Code.UNSUPPORTED_TRANSFER_SYNTAX,
    # A delimiter's bytes are written over the size in the code stream.
    "JPEG2000-embedded-sequence-delimiter.dcm": Code.DECODE_FAILED,
    # Colour of 32 bits a sample.
    "SC_rgb_rle_32bit.dcm": Code.HEADER_MALFORMED,
    "SC_rgb_rle_32bit_2frame.dcm": Code.HEADER_MALFORMED,
}
REFUSED: dict[str, Code] = {
    **_STREAMS,
    # None of the attributes that intake reads.
    "UN_sequence.dcm": Code.HEADER_MALFORMED,
    "meta_missing_tsyntax.dcm": Code.HEADER_MALFORMED,
    "nested_priv_SQ.dcm": Code.HEADER_MALFORMED,
    "no_meta_group_length.dcm": Code.HEADER_MALFORMED,
    "priv_SQ.dcm": Code.HEADER_MALFORMED,
}
"""What pydicom's files are refused for beside what `expected_outcome` tells from their headers."""

REFUSED_PIXELS: dict[str, Code] = {
    **_STREAMS,
    "meta_missing_tsyntax.dcm": Code.UNSUPPORTED_TRANSFER_SYNTAX,
    "nested_priv_SQ.dcm": Code.UNSUPPORTED_PHOTOMETRIC,  # nothing but a private sequence and four bytes of pixels
    "badVR.dcm": Code.HEADER_MALFORMED,  # "1A" frames
    "MR_truncated.dcm": Code.PIXEL_DATA_TRUNCATED,
    # The window lies below every pixel.
    "17166": Code.CONSTANT_IMAGE,
    "17196": Code.CONSTANT_IMAGE,
    # 10 x 10, 45 x 10, 50 x 10 and 3 x 3 pixels.
    "rtdose.dcm": Code.TOO_SMALL,
    "rtdose_1frame.dcm": Code.TOO_SMALL,
    "rtdose_expb.dcm": Code.TOO_SMALL,
    "rtdose_expb_1frame.dcm": Code.TOO_SMALL,
    "rtdose_rle.dcm": Code.TOO_SMALL,
    "rtdose_rle_1frame.dcm": Code.TOO_SMALL,
    "JPEGLSNearLossless_08.dcm": Code.TOO_SMALL,
    "JPEGLSNearLossless_16.dcm": Code.TOO_SMALL,
    "SC_rgb_small_odd.dcm": Code.TOO_SMALL,
    "SC_rgb_small_odd_big_endian.dcm": Code.TOO_SMALL,
    "SC_rgb_small_odd_jpeg.dcm": Code.TOO_SMALL,
}
"""Of pydicom's files with pixels, called digital radiographs: those that are refused nevertheless. All others are accepted."""

LEAST_ACCEPTED = 73
"""Of the 95 files with pixels that pydicom 3.0.2 ships."""


def own_files() -> dict[str, Path]:
    """Relative path -> file, of all that ship with pydicom; external sources of test data are left out."""
    root = Path(get_testdata_files("CT_small.dcm")[0]).parent
    files = [Path(name) for name in get_testdata_files("**/*")]
    return {str(path.relative_to(root)): path for path in sorted(files) if path.is_file() and path.is_relative_to(root)}


@contextmanager
def silent_pydicom() -> Iterator[None]:
    """It warns of its own files, and would not write the values that some hold."""
    mode = config.settings.writing_validation_mode
    config.settings.writing_validation_mode = config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        config.settings.writing_validation_mode = mode


def keys_of(out: Path) -> dict[str, str]:
    """file_id -> key of every item that was listed."""
    with (IntakeFolder(out).private / "sources.csv").open(newline="", errors="surrogateescape") as file:
        return {row["file_id"]: row["path"] for row in csv.DictReader(file)}


def outcomes_of(out: Path) -> dict[str, list[str]]:
    """Key -> what became of its images: codes, and `ACCEPTED` for each record."""
    keys, found = keys_of(out), defaultdict(list)
    with IntakeFolder(out).rejected.open(newline="") as file:
        for row in csv.DictReader(file):
            found[keys[row["file_id"]]].append(row["code"])
    for source_id in pq.read_table(IntakeFolder(out).manifest)["source_id"].to_pylist():
        found[keys[source_id]].append(ACCEPTED)
    return dict(found)


def assert_every_file_ends_once(out: Path, summary: IntakeSummary, files: dict[str, int]) -> None:
    """files: key -> number of its images."""
    outcomes = outcomes_of(out)
    assert set(outcomes) == set(files) == set(keys_of(out).values())
    assert {outcome for codes in outcomes.values() for outcome in codes} <= {ACCEPTED, *Code}
    for key, codes in outcomes.items():
        whole_file = len(codes) == 1 and codes != [ACCEPTED]
        assert whole_file or len(codes) == files[key], (key, codes)
    counts = Counter(outcome for codes in outcomes.values() for outcome in codes)
    assert summary.n_accepted == counts.pop(ACCEPTED)
    assert summary.rejected == counts
    assert summary.n_files == summary.n_accepted + summary.n_rejected == sum(map(len, outcomes.values()))
    assert not {Code.WORKER_DIED, Code.TIMED_OUT, Code.OUT_OF_MEMORY} & set(counts)


def frames_of(path: Path) -> int:
    """How many images a file holds; 1 where its header does not tell."""
    try:
        return int(dcmread(path, specific_tags=["NumberOfFrames"], stop_before_pixels=True).get("NumberOfFrames") or 1)
    except Exception:
        return 1


# --- files as they are


def expected_outcome(path: Path) -> str:
    """What a reader of the file's header would expect, by pydicom: a code or ACCEPTED."""
    with path.open("rb") as file:
        if file.read(132)[128:] != b"DICM":
            return Code.NOT_DICOM
    if path.name in REFUSED:
        return REFUSED[path.name]
    dataset = dcmread(path)
    if dataset.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        return Code.UNSUPPORTED_SOP_CLASS
    if "SOPClassUID" not in dataset:
        return Code.MISSING_IDENTIFIER
    if UID(dataset.SOPClassUID).name not in READ_CLASSES:
        return Code.UNSUPPORTED_SOP_CLASS
    if "StudyInstanceUID" not in dataset:
        return Code.MISSING_IDENTIFIER
    return Code.TOO_SMALL if min(dataset.Rows, dataset.Columns) < 16 else ACCEPTED


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom archive and pydicom's files, side by side."""
    root = tmp_path_factory.mktemp("archive")
    write_archive(root / "phantom", n_studies=6, seed=1, size_px=64)
    for name, path in own_files().items():
        (root / "pydicom" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "pydicom" / name).write_bytes(path.read_bytes())
    return root


@pytest.fixture(scope="module")
def done(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, IntakeSummary]:
    out = tmp_path_factory.mktemp("out") / "intake"
    with silent_pydicom():
        return out, run_intake(source, out, options=WIDEST, n_workers=0)


def test_every_file_of_both_archives_ends_exactly_once(source: Path, done: tuple[Path, IntakeSummary]) -> None:
    out, summary = done
    with silent_pydicom():
        files = {str(path.relative_to(source)): frames_of(path) for path in source.rglob("*") if path.is_file()}
    assert len(own_files()) >= 176
    assert_every_file_ends_once(out, summary, files)
    assert [problem for problem in summarise(out).problems if "equal pixels" not in problem] == []  # pydicom has some


def test_every_phantom_image_is_accepted(source: Path, done: tuple[Path, IntakeSummary]) -> None:
    found = {key: codes for key, codes in outcomes_of(done[0]).items() if key.startswith("phantom/")}
    images = {str(path.relative_to(source)) for path in (source / "phantom").rglob("*.dcm")}
    assert len(images) >= 12
    assert {key for key, codes in found.items() if codes == [ACCEPTED]} == images
    assert {code for key, codes in found.items() if key not in images for code in codes} == {str(Code.NOT_DICOM)}


def test_each_of_pydicoms_files_is_accepted_or_refused_as_its_header_lets_expect(
    source: Path, done: tuple[Path, IntakeSummary]
) -> None:
    outcomes = outcomes_of(done[0])
    with silent_pydicom():
        expected = {name: expected_outcome(source / "pydicom" / name) for name in own_files()}
        copies: dict[str, list[str]] = defaultdict(list)
        for name, outcome in expected.items():
            if outcome == ACCEPTED:
                copies[dcmread(source / "pydicom" / name, stop_before_pixels=True).SOPInstanceUID].append(name)
    refused = {name: [str(code)] for name, code in expected.items() if code != ACCEPTED}
    assert {name: outcomes[f"pydicom/{name}"] for name in refused} == refused
    # Some hold one picture in several encodings under one UID: of those one is taken, and the others are called copies.
    for names in copies.values():
        found = {code for name in names for code in outcomes[f"pydicom/{name}"]}
        assert ACCEPTED in found, names
        assert found <= ({ACCEPTED} if len(names) == 1 else {ACCEPTED, str(Code.DUPLICATE)}), names
    assert sum(map(len, copies.values())) >= 26


# --- pixels of all kinds


def write_as_radiographs(root: Path) -> dict[str, Path]:
    """pydicom's files with pixels, each called a digital radiograph with identifiers of its own; key -> the original."""
    written = {}
    for name, path in own_files().items():
        try:
            dataset = dcmread(path, force=True)
        except Exception:  # no DICOM at all
            continue
        if "PixelData" not in dataset:
            continue
        dataset.SOPClassUID = DX
        dataset.SOPInstanceUID, dataset.StudyInstanceUID = make_uid(f"{name}/image"), make_uid(f"{name}/study")
        for tag in list(dataset.keys()):  # pydicom guesses the kind of a value when it is asked for
            if dataset.get_item(tag).VR is None:
                dataset[tag]
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(root / name, enforce_file_format="TransferSyntaxUID" in dataset.file_meta)
        written[name] = path
    return written


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], Path, IntakeSummary]:
    """(key -> original, the intake of all, its summary)."""
    root, out = tmp_path_factory.mktemp("radiographs"), tmp_path_factory.mktemp("out") / "intake"
    with silent_pydicom():
        originals = write_as_radiographs(root)
        return originals, out, run_intake(root, out, options=WIDEST, n_workers=0)


def test_every_file_with_pixels_becomes_records_or_a_refusal_with_its_reason(
    radiographs: tuple[dict[str, Path], Path, IntakeSummary],
) -> None:
    originals, out, summary = radiographs
    with silent_pydicom():
        assert_every_file_ends_once(out, summary, {name: frames_of(path) for name, path in originals.items()})
    outcomes = outcomes_of(out)
    expected = {name: str(REFUSED_PIXELS.get(Path(name).name, ACCEPTED)) for name in originals}
    assert {name: set(codes) for name, codes in outcomes.items()} == {name: {code} for name, code in expected.items()}
    assert set(REFUSED_PIXELS) <= {Path(name).name for name in originals}
    assert list(expected.values()).count(ACCEPTED) >= LEAST_ACCEPTED


def as_shown(dataset: Dataset, values: np.ndarray) -> np.ndarray:
    """One frame as pydicom shows it, grey: window and inversion applied, or the luminance."""
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        lut = [
            np.frombuffer(dataset[f"{name}PaletteColorLookupTableData"].value, "<u2")
            for name in ("Red", "Green", "Blue")
        ]
        values = np.stack(lut, axis=-1)[values]
    if values.ndim == 3:
        return values @ (0.299, 0.587, 0.114)
    values = apply_voi_lut(apply_modality_lut(values, dataset), dataset)
    return -values if dataset.PhotometricInterpretation == "MONOCHROME1" else values


def test_the_stored_pixels_are_those_that_pydicom_shows(
    radiographs: tuple[dict[str, Path], Path, IntakeSummary],
) -> None:
    originals, out, _ = radiographs
    keys, reader, likeness = keys_of(out), ShardReader(out), {}
    for number, row in enumerate(Manifest.open(out).table.to_pylist()):
        name = keys[row["source_id"]]
        with silent_pydicom():
            dataset = dcmread(originals[name])
            shown = as_shown(dataset, pixel_array(dataset, index=row["frame"])).astype(np.float64)
        if row["crop_top"] is not None:
            top, left = row["crop_top"], row["crop_left"]
            shown = shown[top : top + row["crop_rows"], left : left + row["crop_columns"]]
        stored = reader.read(number)
        assert stored.shape == shown.shape, name
        likeness[name, row["frame"]] = np.corrcoef(stored.ravel(), shown.ravel())[0, 1]
    assert len(likeness) >= LEAST_ACCEPTED
    assert {place: value for place, value in likeness.items() if not value > 0.98} == {}
