"""What becomes of files that cannot be used: each kind has its reason code, and no detail quotes the file."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from factories import make_dataset, make_dicom, make_pixels
from pydicom import dcmread, dcmwrite
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from tests.source_files import DISK, opened_dicom
from vet_extensions.intake import decode
from vet_extensions.intake.decode import read_frame
from vet_extensions.intake.deidentify import Pseudonyms
from vet_extensions.intake.dicom import pixel_layout
from vet_extensions.intake.header import HeaderReader
from vet_extensions.intake.image import ImageReader, StoredImage
from vet_extensions.intake.options import IntakeOptions
from vet_extensions.schema import ImageRecord, Rejection, RejectionCode

SECRET = "SMITH"


def read(path: Path, **options) -> StoredImage | Rejection:
    """Both passes over one file, as in a run."""
    chosen = IntakeOptions(**options)
    records = HeaderReader(Pseudonyms("test salt"), chosen, DISK)((str(path), "file", None))
    return records if isinstance(records, Rejection) else ImageReader(chosen, DISK)((str(path), records[0].frame))


def header_of(path: Path) -> ImageRecord:
    records = HeaderReader(Pseudonyms("test salt"), IntakeOptions(), DISK)((str(path), "file-1", None))
    assert not isinstance(records, Rejection)
    return records[0]


def code_of(path: Path, **options) -> RejectionCode:
    answer = read(path, **options)
    assert isinstance(answer, Rejection), "the file was accepted"
    assert SECRET not in answer.detail
    return answer.code


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ({"SOPInstanceUID": ""}, RejectionCode.MISSING_IDENTIFIER),
        ({"StudyInstanceUID": None}, RejectionCode.MISSING_IDENTIFIER),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}, RejectionCode.UNSUPPORTED_SOP_CLASS),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.11"}, RejectionCode.UNSUPPORTED_SOP_CLASS),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, RejectionCode.UNSUPPORTED_SOP_CLASS),
        ({"SOPClassUID": "1.2.3.4.5"}, RejectionCode.UNSUPPORTED_SOP_CLASS),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1.1"}, RejectionCode.FOR_PROCESSING),
        ({"PresentationIntentType": "FOR PROCESSING"}, RejectionCode.FOR_PROCESSING),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 1}, RejectionCode.UNSUPPORTED_PHOTOMETRIC),
        ({"PhotometricInterpretation": "YBR_PARTIAL_420", "SamplesPerPixel": 3}, RejectionCode.UNSUPPORTED_PHOTOMETRIC),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, RejectionCode.INVALID_GREYSCALE_TRANSFORM),
        ({"PhotometricInterpretation": SECRET}, RejectionCode.UNSUPPORTED_PHOTOMETRIC),
        ({"NumberOfFrames": 12}, RejectionCode.MULTI_FRAME),
        ({"PixelData": None}, RejectionCode.NO_PIXEL_DATA),
        ({"PixelData": b""}, RejectionCode.NO_PIXEL_DATA),
        ({"PixelData": b"\0" * 100}, RejectionCode.PIXEL_DATA_TRUNCATED),
        ({"Rows": 65535, "Columns": 65535}, RejectionCode.TOO_LARGE),
        ({"Rows": 0}, RejectionCode.TOO_SMALL),
        ({"Rows": 1}, RejectionCode.TOO_SMALL),
        ({"Rows": None}, RejectionCode.HEADER_MALFORMED),
        ({"BitsAllocated": 32}, RejectionCode.HEADER_MALFORMED),
        ({"BitsStored": 17}, RejectionCode.HEADER_MALFORMED),
        ({"HighBit": 3}, RejectionCode.HEADER_MALFORMED),
        ({"WindowWidth": 0}, RejectionCode.INVALID_GREYSCALE_TRANSFORM),
        ({"PixelData": b"\x01\x00" * (32 * 40)}, RejectionCode.CONSTANT_IMAGE),
    ],
)
def test_a_file_that_cannot_be_used_gets_its_reason(tmp_path: Path, attributes: dict, code: RejectionCode) -> None:
    assert code_of(make_dicom(tmp_path / "image.dcm", PatientName=f"{SECRET}^JOHN", **attributes)) == code


def test_a_plain_radiograph_is_accepted(tmp_path: Path) -> None:
    assert isinstance(read(make_dicom(tmp_path / "image.dcm")), StoredImage)


def test_secondary_capture_is_accepted_on_request(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "image.dcm", SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    assert isinstance(read(path, accept_secondary_capture=True), StoredImage)


def test_text_is_not_dicom(tmp_path: Path) -> None:
    (tmp_path / "notes.dcm").write_text("patient " * 100)
    assert code_of(tmp_path / "notes.dcm") == RejectionCode.NOT_DICOM


def test_an_empty_file_is_not_dicom(tmp_path: Path) -> None:
    (tmp_path / "empty.dcm").touch()
    assert code_of(tmp_path / "empty.dcm") == RejectionCode.NOT_DICOM


def test_a_fifo_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.dcm")
    assert code_of(tmp_path / "pipe.dcm") == RejectionCode.NOT_A_REGULAR_FILE


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link.dcm").symlink_to(make_dicom(tmp_path / "image.dcm"))
    assert code_of(tmp_path / "link.dcm") == RejectionCode.NOT_A_REGULAR_FILE


def test_a_vanished_file_is_missing_and_its_path_stays_secret(tmp_path: Path) -> None:
    answer = read(tmp_path / f"{SECRET}.dcm")
    assert isinstance(answer, Rejection)
    assert answer.code == RejectionCode.FILE_MISSING
    assert SECRET not in answer.detail


def test_a_mark_followed_by_noise_is_malformed(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(4000)
    (tmp_path / "noise.dcm").write_bytes(bytes(128) + b"DICM" + noise)
    assert code_of(tmp_path / "noise.dcm") in (RejectionCode.HEADER_MALFORMED, RejectionCode.MISSING_IDENTIFIER)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_a_file_cut_in_its_pixels_is_truncated(tmp_path: Path, share: float) -> None:
    path = make_dicom(tmp_path / "image.dcm", pixels=make_pixels(100, 100))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert code_of(path) == RejectionCode.PIXEL_DATA_TRUNCATED


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless])
def test_a_compressed_stream_without_its_end_is_truncated(tmp_path: Path, syntax: str) -> None:
    path = make_dicom(tmp_path / "image.dcm", pixels=make_pixels(64, 64), transfer_syntax=syntax)
    dataset = dcmread(path)
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1)).rstrip(b"\0")
    dataset.PixelData = encapsulate([frame[: int(0.8 * len(frame)) & ~1]])
    dcmwrite(path, dataset)
    assert code_of(path) == RejectionCode.PIXEL_DATA_TRUNCATED


def test_a_stream_of_another_size_than_the_header_is_refused_before_decoding(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "image.dcm", pixels=make_pixels(64, 64), transfer_syntax=JPEG2000Lossless)
    data = path.read_bytes()
    start = data.index(b"\xff\x4f\xff\x51")
    path.write_bytes(data[: start + 8] + struct.pack(">II", 60000, 60000) + data[start + 16 :])
    answer = read(path)
    assert isinstance(answer, Rejection)
    assert answer == Rejection(
        RejectionCode.DECODE_FAILED, "the stream holds 60000 x 60000 pixels, the header says 64 x 64"
    )


def test_a_damaged_rle_stream_is_refused(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "image.dcm", pixels=make_pixels(64, 64), transfer_syntax=RLELossless)
    dataset = dcmread(path)
    dataset.PixelData = encapsulate([b"\x02\0\0\0" + b"\xff" * 200])
    dcmwrite(path, dataset)
    assert code_of(path) == RejectionCode.DECODE_FAILED


def test_a_panic_of_a_rust_decoder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """As pyo3's: no Exception."""

    class Panicking:
        def as_array(self, *_: object, **__: object) -> None:
            raise PanicException(SECRET)

    monkeypatch.setattr(decode, "get_decoder", lambda _: Panicking())
    assert code_of(make_dicom(tmp_path / "image.dcm")) == RejectionCode.DECODE_FAILED


def test_ctrl_c_during_decoding_is_no_rejection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        def as_array(self, *_: object, **__: object) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(decode, "get_decoder", lambda _: Interrupted())
    with pytest.raises(KeyboardInterrupt):
        read(make_dicom(tmp_path / "image.dcm"))


def test_twelve_bit_jpeg_extended_is_unsupported_and_said_so() -> None:
    path = get_testdata_file("JPEG-lossy.dcm")
    assert path is not None
    answer = read(Path(path), accept_secondary_capture=True)
    assert answer == Rejection(
        RejectionCode.UNSUPPORTED_TRANSFER_SYNTAX, "JPEG Extended with 12 bits; up to 8 are read"
    )


@pytest.mark.parametrize("padding", [b"\0", b"\xff"])
def test_a_padding_byte_after_the_end_of_a_stream_is_no_truncation(tmp_path: Path, padding: bytes) -> None:
    path = make_dicom(tmp_path / "image.dcm", pixels=make_pixels(64, 64), transfer_syntax=JPEGLSLossless)
    dataset = dcmread(path)
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1)).rstrip(b"\0")
    dataset.PixelData = encapsulate([frame + padding * (1 + len(frame) % 2)])
    dcmwrite(path, dataset)
    assert isinstance(read(path), StoredImage)


def test_a_private_transfer_syntax_is_unsupported(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "image.dcm")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.99999.1.2.1\0"))
    assert code_of(path) == RejectionCode.UNSUPPORTED_TRANSFER_SYNTAX


def test_a_deflation_bomb_is_refused_without_being_inflated(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "image.dcm", transfer_syntax=DeflatedExplicitVRLittleEndian)
    data = path.read_bytes()
    meta_end = 144 + struct.unpack("<I", data[140:144])[0]
    squeezer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    bomb = b"".join([*(squeezer.compress(bytes(2**20)) for _ in range(80)), squeezer.flush()])
    path.write_bytes(data[:meta_end] + bomb)
    assert code_of(path, max_pixels=1000) == RejectionCode.TOO_LARGE


@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEGLSLossless,
        JPEG2000Lossless,
    ],
)
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_lossless_transfer_syntaxes_give_the_written_pixels(tmp_path: Path, syntax: str, bits: int) -> None:
    if bits == 8 and syntax == ExplicitVRBigEndian:
        pytest.skip("the factory writes 8-bit pixels as OW without the swap that big endian wants")
    pixels = make_pixels(48, 64, bits=bits)
    pixels = pixels.astype(np.uint8) if bits == 8 else pixels
    path = make_dicom(tmp_path / "image.dcm", pixels=pixels, transfer_syntax=syntax, BitsStored=bits, HighBit=bits - 1)
    with opened_dicom(path, max_pixels=10**6) as dataset:
        decoded = read_frame(dataset, pixel_layout(dataset, max_pixels=10**6))[0]
    np.testing.assert_array_equal(decoded, pixels)


def test_reading_is_silent_about_values(tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn) -> None:
    path = make_dicom(tmp_path / "image.dcm")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"TEST-1", b"\xff\xfe\x80SMI"))
    read(path)
    assert not caplog.records
    assert not recwarn.list


def test_the_header_gives_the_record(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "image.dcm", ViewPosition="RL", ImageLaterality="L", PixelSpacing=[0.2, 0.1])
    record = header_of(path)
    shown = (record.view, record.view_source, record.species, record.body_part, record.laterality, record.spacing_mm)
    assert shown == ("LATERAL_RIGHT", "ViewPosition", "canine", "CHEST", "L", (0.2, 0.1))
    assert (record.rows, record.columns, record.bits_stored, record.source_id) == (32, 40, 12, "file-1")


def test_spacing_falls_back_to_the_detectors(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "image.dcm", PixelSpacing=[0, 0], ImagerPixelSpacing=[0.14, 0.14])
    record = header_of(path)
    assert record.spacing_mm == (0.14, 0.14)


def test_a_file_without_patient_is_accepted(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "image.dcm", PatientID=None)
    record = header_of(path)
    assert record.patient_id == ""


def test_the_parser_sees_no_unlisted_attribute(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "image.dcm", PatientName=SECRET, ResponsiblePerson=SECRET, PatientAddress=SECRET)
    with opened_dicom(path, max_pixels=10**6) as dataset:
        assert SECRET not in str(dataset)


def test_make_dataset_is_valid_as_it_is() -> None:
    assert pixel_layout(make_dataset(), max_pixels=10**6).n_bits == 32 * 40 * 16
