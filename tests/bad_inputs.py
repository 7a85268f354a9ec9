"""Malformed and hostile input, one kind a table row, each with what intake must make of it. Used by the tests of bad input.

A kind is written into a folder of its own. `expected` holds the outcome of every file there: a rejection code, or ACCEPTED
where the fault does no harm (the file ends as a record, and what was wrong is masked, ignored or hashed away), or REPAIRED where
the record's notes say what was assumed in its place.
"""

import os
import re
import socket
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from factories import make_dicom, make_pixels, make_uid
from pydicom import Dataset, config, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    MediaStorageDirectoryStorage,
    RLELossless,
)

from vet_extensions.schema import RejectionCode as Code

ACCEPTED = "ACCEPTED"
REPAIRED = "REPAIRED"


@dataclass(frozen=True)
class BadInput:
    """One kind. write: fills the folder it is given. expected: the outcome of each file in it, sorted."""

    name: str
    write: Callable[[Path], None]
    expected: tuple[str, ...]


def bad_inputs() -> list[BadInput]:
    """The table, sorted by name; names are unique."""
    table = [*_no_dicom(), *_torn(), *_attributes(), *_sequences(), *_streams(), *_in_the_folder(), *_several()]
    return sorted(table, key=lambda kind: kind.name)


def _kind(name: str, expected: str, content: Callable[[Path], bytes]) -> BadInput:
    """A kind of one file; `content` is given the path it will have, so that each has identifiers of its own."""

    def write(folder: Path) -> None:
        path = folder / f"{name}.dcm"
        path.write_bytes(content(path))

    return BadInput(name, write, (str(expected),))


def _fixed(name: str, expected: str, content: bytes) -> BadInput:
    return _kind(name, expected, lambda _: content)


def _good(path: Path, **options: Any) -> bytes:
    return make_dicom(path, **options).read_bytes()


# --- no DICOM, or hardly


def _no_dicom() -> Iterable[BadInput]:
    noise = np.random.default_rng(0).bytes(4000)
    mark = bytes(128) + b"DICM"
    not_dicom = {
        "empty file": b"",
        "one byte": b"\0",
        "half a preamble": bytes(100),
        "text": b"hello world\n" * 50,
        "web page": b"<!DOCTYPE html><title>404 Not Found</title>" * 20,
        "picture under another name": b"\x89PNG\r\n\x1a\n" + bytes(300),
        "noise": noise,
        "encrypted with a password": b"Salted__" + noise,
        "encrypted envelope": b"\x30\x82\x0f\xa0\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x03" + noise,
        "mark one byte late": b"\0" + mark + bytes(400),
    }
    for name, content in not_dicom.items():
        yield _fixed(name, Code.NOT_DICOM, content)
    yield _kind("no preamble", Code.NOT_DICOM, lambda path: _good(path)[132:])
    yield _fixed("mark and nothing else", Code.HEADER_MALFORMED, mark)
    yield _fixed("mark and noise", Code.HEADER_MALFORMED, mark + noise)
    yield _fixed("mark and zeros", Code.MISSING_IDENTIFIER, mark + bytes(2000))


# --- cut, stretched and mislabelled files


def _torn() -> Iterable[BadInput]:
    yield _kind("cut in the file meta information", Code.HEADER_MALFORMED, lambda path: _good(path)[:180])
    yield _kind("cut in the header", Code.MISSING_IDENTIFIER, lambda path: _good(path)[:500])
    yield _kind("cut in the pixels", Code.PIXEL_DATA_TRUNCATED, lambda path: _good(path)[:-1000])
    yield _kind("cut by one byte", Code.PIXEL_DATA_TRUNCATED, lambda path: _good(path)[:-1])
    yield _kind("bytes after the end", ACCEPTED, lambda path: _good(path) + bytes(10))
    yield _kind("pixels of 4 GiB announced", ACCEPTED, _length_of_pixels(0xFFFFFFF0))
    yield _kind("pixels of undefined length", Code.PIXEL_DATA_TRUNCATED, _length_of_pixels(0xFFFFFFFF))
    yield _kind("pixels of odd length", Code.PIXEL_DATA_TRUNCATED, _length_of_pixels(2559))
    yield _kind(
        "attribute of 64 kB announced", Code.MISSING_IDENTIFIER, _replaced(b"LO\x06\x00TEST-1", b"LO\xff\xffTEST-1")
    )
    yield _kind("unknown kind of value", Code.HEADER_MALFORMED, _replaced(b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00ZZ"))
    yield _kind("length of the file meta information too great", ACCEPTED, _meta_length(0x7FFFFFFF))
    yield _kind("length of the file meta information too small", ACCEPTED, _meta_length(4))
    yield _kind(
        "implicit syntax, explicit data",
        ACCEPTED,
        _other_syntax(ExplicitVRLittleEndian, ImplicitVRLittleEndian),
    )
    yield _kind(
        "big-endian syntax, little-endian data",
        Code.HEADER_MALFORMED,
        _other_syntax(ExplicitVRLittleEndian, "1.2.840.10008.1.2.2"),
    )
    yield _kind("no transfer syntax", Code.UNSUPPORTED_TRANSFER_SYNTAX, _other_syntax(ExplicitVRLittleEndian, ""))
    yield _kind(
        "private transfer syntax", Code.UNSUPPORTED_TRANSFER_SYNTAX, _other_syntax(ExplicitVRLittleEndian, "1.2.3.4")
    )
    yield _kind(
        "video", Code.UNSUPPORTED_TRANSFER_SYNTAX, _other_syntax(ExplicitVRLittleEndian, "1.2.840.10008.1.2.4.102")
    )
    deflated = {"transfer_syntax": DeflatedExplicitVRLittleEndian}
    yield _kind("deflated and cut", Code.UNREADABLE, lambda path: _good(path, **deflated)[:-700])
    yield _kind("deflated and damaged", Code.UNREADABLE, _damaged(500, 40, **deflated))
    long = {"pixels": np.tile(make_pixels(), (25, 25)), **deflated}  # more than is inflated in one go
    yield _kind("deflated, with bytes after the end", ACCEPTED, lambda path: _good(path, **long) + bytes(400))
    yield _kind("deflated bomb", Code.TOO_LARGE, _deflated_bomb)
    yield _kind(
        "deflated syntax, plain data",
        Code.UNREADABLE,
        _other_syntax(ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian),
    )


def _length_of_pixels(length: int) -> Callable[[Path], bytes]:
    def content(path: Path) -> bytes:
        data = _good(path)
        place = data.rindex(b"\xe0\x7f\x10\x00OW\0\0") + 8
        return data[:place] + struct.pack("<I", length) + data[place + 4 :]

    return content


def _replaced(old: bytes, new: bytes, **options: Any) -> Callable[[Path], bytes]:
    def content(path: Path) -> bytes:
        data = _good(path, **options)
        assert data.count(old) == 1, f"{old!r} occurs {data.count(old)} times in {path.name}"
        return data.replace(old, new)

    return content


def _meta_length(length: int) -> Callable[[Path], bytes]:
    def content(path: Path) -> bytes:
        data = _good(path)
        return data[:140] + struct.pack("<I", length) + data[144:]

    return content


def _other_syntax(old: str, new: str, **options: Any) -> Callable[[Path], bytes]:
    """The file says `new`, its bytes are in `old`."""

    def content(path: Path) -> bytes:
        data = _good(path, transfer_syntax=old, **options)
        meta_end = 144 + struct.unpack("<I", data[140:144])[0]
        before = _ui(b"\x02\x00\x10\x00", old)
        after = _ui(b"\x02\x00\x10\x00", new) if new else b""
        assert before in data[:meta_end]
        meta = data[144:meta_end].replace(before, after)
        return data[:140] + struct.pack("<I", len(meta)) + meta + data[meta_end:]

    return content


def _ui(tag: bytes, uid: str) -> bytes:
    value = uid.encode() + b"\0" * (len(uid) % 2)
    return tag + b"UI" + struct.pack("<H", len(value)) + value


def _damaged(place: int, n_bytes: int, **options: Any) -> Callable[[Path], bytes]:
    def content(path: Path) -> bytes:
        data = _good(path, **options)
        return data[:place] + b"\xff" * n_bytes + data[place + n_bytes :]

    return content


def _deflated_bomb(path: Path) -> bytes:
    """Half a gigabyte of zeros in half a megabyte."""
    plain = _other_syntax(ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)(path)
    end = 144 + struct.unpack("<I", plain[140:144])[0]
    n_bytes = 2**29
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    parts = [packer.compress(plain[end:-2568] + b"\xe0\x7f\x10\x00OW\0\0" + struct.pack("<I", n_bytes))]
    block = bytes(2**24)
    parts += [packer.compress(block) for _ in range(n_bytes // len(block))]
    return plain[:end] + b"".join(parts) + packer.flush()


# --- attributes that lie


def _in_channels(*channels: int) -> dict[str, Any]:
    """Colour of 8 bits: the grey picture in the channels that are 1, zeros in the others."""
    grey = make_pixels(bits=8).astype(np.uint8)
    eight_bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "WindowCenter": None, "WindowWidth": None}
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    return {**eight_bits, **colour, "PixelData": np.stack([grey * k for k in channels], axis=-1).tobytes()}


_OVERRIDES: dict[str, tuple[str, dict[str, Any]]] = {
    "no instance UID": (Code.MISSING_IDENTIFIER, {"SOPInstanceUID": None}),
    "no study UID": (Code.MISSING_IDENTIFIER, {"StudyInstanceUID": None}),
    "empty study UID": (Code.MISSING_IDENTIFIER, {"StudyInstanceUID": ""}),
    "no SOP class": (Code.MISSING_IDENTIFIER, {"SOPClassUID": None}),
    "structured report": (Code.UNSUPPORTED_SOP_CLASS, {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.11", "PixelData": None}),
    "presentation state": (Code.UNSUPPORTED_SOP_CLASS, {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.11.1", "PixelData": None}),
    "PDF": (Code.UNSUPPORTED_SOP_CLASS, {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1", "PixelData": None}),
    "CT": (Code.UNSUPPORTED_SOP_CLASS, {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}),
    "private SOP class": (Code.UNSUPPORTED_SOP_CLASS, {"SOPClassUID": "1.2.3.4.5"}),
    "raw detector values": (Code.FOR_PROCESSING, {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1.1"}),
    "no Rows": (Code.HEADER_MALFORMED, {"Rows": None}),
    "no Columns": (Code.HEADER_MALFORMED, {"Columns": None}),
    "no BitsAllocated": (Code.HEADER_MALFORMED, {"BitsAllocated": None}),
    "no PhotometricInterpretation": (Code.UNSUPPORTED_PHOTOMETRIC, {"PhotometricInterpretation": None}),
    "no SamplesPerPixel": (ACCEPTED, {"SamplesPerPixel": None}),
    "no PixelRepresentation": (Code.HEADER_MALFORMED, {"PixelRepresentation": None}),
    "no HighBit": (ACCEPTED, {"HighBit": None}),
    "Rows 0": (Code.TOO_SMALL, {"Rows": 0}),
    "one row": (Code.TOO_SMALL, {"Rows": 1}),
    "65535 x 65535 pixels": (Code.TOO_LARGE, {"Rows": 65535, "Columns": 65535}),
    "two values of Rows": (Code.PIXEL_DATA_TRUNCATED, {"Rows": [64, 40]}),
    "one row more than there is": (Code.PIXEL_DATA_TRUNCATED, {"Rows": 33}),
    "2 milliard frames": (Code.MULTI_FRAME, {"NumberOfFrames": 2**31 - 1}),
    "negative frames": (Code.HEADER_MALFORMED, {"NumberOfFrames": -1}),
    "13 bits allocated": (Code.HEADER_MALFORMED, {"BitsAllocated": 13}),
    "32 bits allocated": (Code.HEADER_MALFORMED, {"BitsAllocated": 32}),
    "more bits stored than allocated": (Code.HEADER_MALFORMED, {"BitsStored": 20}),
    "no bit stored": (Code.HEADER_MALFORMED, {"BitsStored": 0}),
    "high bit below the stored bits": (Code.HEADER_MALFORMED, {"HighBit": 3}),
    "high bit beyond the allocated": (Code.HEADER_MALFORMED, {"HighBit": 16}),
    "PixelRepresentation 7": (Code.HEADER_MALFORMED, {"PixelRepresentation": 7}),
    "unknown photometric interpretation": (Code.UNSUPPORTED_PHOTOMETRIC, {"PhotometricInterpretation": "SEPIA"}),
    "palette without its tables": (Code.INVALID_GREYSCALE_TRANSFORM, {"PhotometricInterpretation": "PALETTE COLOR"}),
    "no pixel data": (Code.NO_PIXEL_DATA, {"PixelData": None}),
    "empty pixel data": (Code.NO_PIXEL_DATA, {"PixelData": b""}),
    "twice the pixel data": (ACCEPTED, {"PixelData": 2 * make_pixels().tobytes()}),
    "rubbish in the unused bits": (ACCEPTED, {"PixelData": (make_pixels() | 0xF000).tobytes()}),
    "one grey value": (Code.CONSTANT_IMAGE, {"PixelData": bytes(2560)}),
    "all padding": (Code.CONSTANT_IMAGE, {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 65535}),
    "window of width 0": (Code.INVALID_GREYSCALE_TRANSFORM, {"WindowWidth": 0}),
    "window of negative width": (Code.INVALID_GREYSCALE_TRANSFORM, {"WindowWidth": -5}),
    "window without a centre": (Code.INVALID_GREYSCALE_TRANSFORM, {"WindowCenter": None}),
    "window beside the values": (Code.CONSTANT_IMAGE, {"WindowCenter": 60000}),
    "unknown window function": (Code.INVALID_GREYSCALE_TRANSFORM, {"VOILUTFunction": "CUBIC"}),
    "slope 0": (Code.INVALID_GREYSCALE_TRANSFORM, {"RescaleSlope": 0, "RescaleIntercept": 0}),
    "huge slope": (Code.INVALID_GREYSCALE_TRANSFORM, {"RescaleSlope": "1e308", "RescaleIntercept": "1e308"}),
    "names with line breaks and terminal codes": (ACCEPTED, {"PatientName": "Evil\r\n\x1b[2JName", "PatientID": "a\n\x1b[31mb"}),
    "UIDs like paths": (ACCEPTED, {"SOPInstanceUID": "../../../../etc/passwd", "StudyInstanceUID": "/etc"}),
    "UID of 1,001 characters": (ACCEPTED, {"SOPInstanceUID": "1." * 500 + "1"}),
    "unknown character set": (ACCEPTED, {"SpecificCharacterSet": "ISO_IR 999"}),
    "formula as patient": (ACCEPTED, {"PatientID": "=cmd|'/C calc'!A0"}),
    "negative spacing": (ACCEPTED, {"ImagerPixelSpacing": [-1, 0]}),
    "names burned into the pixels": (REPAIRED, {"BurnedInAnnotation": "YES"}),
    "recognisable face": (REPAIRED, {"RecognizableVisualFeatures": "yes"}),
    "species not stated, breed known": (REPAIRED, {"PatientSpeciesDescription": None, "PatientBreedDescription": "Beagle"}),
    "grey in three channels": (REPAIRED, _in_channels(1, 1, 1)),
    "painted": (Code.UNSUPPORTED_PHOTOMETRIC, _in_channels(1, 0, 0)),
    "two channels of three": (Code.PIXEL_DATA_TRUNCATED, _in_channels(1, 1)),
}  # fmt: skip


def _attributes() -> Iterable[BadInput]:
    for name, (expected, overrides) in _OVERRIDES.items():
        yield _kind(name, expected, _with_overrides(overrides))
    # DS values that pydicom would not write.
    for name, keyword_tag, old, new in (
        ("slope that is no number", b"\x28\x00\x53\x10DS", b"1.25", b"nan "),
        ("infinite slope", b"\x28\x00\x53\x10DS", b"1.25", b"inf "),
        ("slope of letters", b"\x28\x00\x53\x10DS", b"1.25", b"abcd"),
    ):
        expected = Code.HEADER_MALFORMED if new == b"abcd" else Code.INVALID_GREYSCALE_TRANSFORM
        swap = _replaced(keyword_tag + b"\x04\0" + old, keyword_tag + b"\x04\0" + new, RescaleSlope="1.25")
        yield _kind(name, expected, swap)
    yield _kind(
        "bytes outside the character set",
        ACCEPTED,
        _replaced(b"TEST^ANIMAL", b"\xff\xfe\xfd^\x80\x81NIMAL", SpecificCharacterSet="ISO_IR 192"),
    )
    yield _kind("UID in unicode", ACCEPTED, _unicode_uid)
    yield _kind("pixels as floats that are no numbers", Code.HEADER_MALFORMED, _float_pixels)


def _with_overrides(overrides: dict[str, Any]) -> Callable[[Path], bytes]:
    def content(path: Path) -> bytes:
        mode = config.settings.writing_validation_mode
        config.settings.writing_validation_mode = config.IGNORE
        try:
            return _good(path, **overrides)
        finally:
            config.settings.writing_validation_mode = mode

    return content


def _edited(path: Path, edit: Callable[[Dataset], None], **options: Any) -> bytes:
    dataset = dcmread(make_dicom(path, **options))
    edit(dataset)
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _unicode_uid(path: Path) -> bytes:
    data, uid = _good(path), make_uid(f"{path.stem}/instance").encode()
    return data.replace(uid, "\u202e\u0663".encode() + uid[5:])


def _float_pixels(path: Path) -> bytes:
    def edit(dataset: Dataset) -> None:
        dataset.FloatPixelData = np.full((32, 40), np.nan, np.float32).tobytes()

    overrides = {"PixelData": None, "BitsAllocated": 32, "BitsStored": None, "HighBit": None}
    return _edited(path, edit, **overrides)


# --- look-up tables, nesting and numbers of elements


def _sequences() -> Iterable[BadInput]:
    for name, descriptor, data in (
        ("look-up table too short", [4096, 0, 16], bytes(20)),
        ("look-up table without entries", [0, 0, 16], b""),
        ("look-up table of 99 bits", [4096, 0, 99], bytes(8192)),
        ("look-up table of one value", [4096, 0, 16], b"\7\0" * 4096),
    ):
        expected = Code.CONSTANT_IMAGE if "one value" in name else Code.INVALID_GREYSCALE_TRANSFORM
        yield _kind(name, expected, _with_lut(descriptor, data))
    yield _kind("5,000 nested sequences", Code.HEADER_MALFORMED, _nested(5000))
    yield _kind("20,000 private attributes", ACCEPTED, _crowded)


def _with_lut(descriptor: list[int], data: bytes) -> Callable[[Path], bytes]:
    def edit(dataset: Dataset) -> None:
        item = Dataset()
        item.add_new(0x00283002, "US", descriptor)
        item.add_new(0x00283006, "OW", data)
        dataset.VOILUTSequence = [item]

    return lambda path: _edited(path, edit)


def _nested(depth: int) -> Callable[[Path], bytes]:
    """Before the pixels, in an attribute that intake reads, so that it cannot be skipped."""
    level = b"\x08\x00\x18\x22SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"

    def content(path: Path) -> bytes:
        data = _good(path)
        place = data.index(b"\x10\x00\x10\x00PN")
        return data[:place] + depth * level + data[place:]

    return content


def _crowded(path: Path) -> bytes:
    def edit(dataset: Dataset) -> None:
        for block in range(0x10, 0x60):
            dataset.add_new((0x0029, block), "LO", "VENDOR")
            for place in range(250):
                dataset.add_new((0x0029, block * 256 + place), "LO", "value")

    return _edited(path, edit)


# --- compressed streams


def _streams() -> Iterable[BadInput]:
    torn, failed = Code.PIXEL_DATA_TRUNCATED, Code.DECODE_FAILED
    syntaxes = {
        "JPEG-LS": JPEGLSLossless,
        "JPEG 2000": JPEG2000Lossless,
        "JPEG lossless": JPEGLosslessSV1,
        "JPEG": JPEGBaseline8Bit,
    }
    for name, syntax in syntaxes.items():
        yield _kind(f"{name} cut", torn, _stream(syntax, lambda frame: frame[: len(frame) // 2]))
        yield _kind(f"{name} with a hole", failed, _stream(syntax, _hollow))
        yield _kind(f"{name} of another size", failed, _stream(syntax, lambda frame: frame, Rows=80))
        yield _kind(f"noise as {name}", torn, _stream(syntax, lambda frame: np.random.default_rng(1).bytes(len(frame))))
        yield _kind(f"zeros as {name}", torn, _stream(syntax, lambda frame: bytes(len(frame))))
        yield _kind(f"{name} of one mark", failed, _stream(syntax, lambda _: b"\xff\xd8\xff\xd9"))
    for name, syntax in syntaxes.items():
        if name != "JPEG 2000":  # gdcm ends its process at these
            yield _kind(
                f"{name} without a scan", failed, _stream(syntax, lambda frame: frame.replace(b"\xff\xda", b"@@", 1))
            )
            yield _kind(f"{name} of 97 bits", failed, _stream(syntax, _of_97_bits))
    yield _kind("RLE cut", failed, _stream(RLELossless, lambda frame: frame[: len(frame) // 2]))
    yield _kind(
        "RLE with offsets beyond its end",
        failed,
        _stream(RLELossless, lambda frame: struct.pack("<16I", 2, *[2**31] * 15) + frame[64:]),
    )
    yield _kind(
        "RLE of 16 segments",
        failed,
        _stream(RLELossless, lambda frame: struct.pack("<16I", 16, *range(64, 79)) + frame[64:]),
    )
    yield _kind("RLE shorter than its header", failed, _stream(RLELossless, lambda frame: frame[:10]))
    yield _kind("RLE bomb", Code.CONSTANT_IMAGE, _stream(RLELossless, _rle_bomb))
    yield _kind("JPEG 2000 bomb", failed, _stream(JPEG2000Lossless, _j2k_size(60000)))
    yield _kind(
        "JPEG 2000 bomb, header alike",
        Code.TOO_LARGE,
        _stream(JPEG2000Lossless, _j2k_size(60000), Rows=60000, Columns=60000),
    )
    yield _kind("JPEG 2000 of size 0", failed, _stream(JPEG2000Lossless, _j2k_size(0)))
    yield _kind(
        "JPEG in a JPEG 2000 syntax", ACCEPTED, _stream(JPEGBaseline8Bit, lambda frame: frame, says=JPEG2000Lossless)
    )
    yield _kind(
        "JPEG-LS in a lossless JPEG syntax", failed, _stream(JPEGLSLossless, lambda frame: frame, says=JPEGLosslessSV1)
    )
    yield _kind("8-bit stream, 16-bit header", failed, _stream(JPEGBaseline8Bit, lambda frame: frame, BitsAllocated=16))
    yield _kind("plain pixels in a compressed syntax", torn, _other_syntax(ExplicitVRLittleEndian, JPEGLSLossless))
    yield _kind("compressed pixels in a plain syntax", torn, _other_syntax(JPEGLSLossless, ExplicitVRLittleEndian))
    for name, pixel_data in (
        ("no fragment", b"\xfe\xff\x00\xe0\0\0\0\0"),
        ("one empty fragment", b"\xfe\xff\x00\xe0\0\0\0\0" * 2),
        ("fragment of 2 GiB", b"\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\x00\xe0\xf0\xff\xff\x7f" + bytes(40)),
        ("offset table of 4 GiB", b"\xfe\xff\x00\xe0\xfc\xff\xff\xff" + bytes(40)),
        ("fragments of noise", b"\xfe\xff\x00\xe0" + np.random.default_rng(2).bytes(400)),
    ):
        yield _kind(name, torn, _stream(JPEGLSLossless, lambda frame: frame, pixel_data=pixel_data))


def _stream(
    syntax: str,
    change: Callable[[bytes], bytes],
    *,
    says: str | None = None,
    pixel_data: bytes | None = None,
    **attributes: Any,
) -> Callable[[Path], bytes]:
    """A file in `syntax` with its code stream changed. says: the syntax it claims. pixel_data: instead, fragments and all."""

    def content(path: Path) -> bytes:
        dataset = dcmread(make_dicom(path, pixels=make_pixels(64, 48)))
        frame = encoded(dataset, syntax)
        dataset.file_meta.TransferSyntaxUID = says or syntax
        dataset.PixelData = encapsulate([change(frame)]) if pixel_data is None else pixel_data
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)
        buffer = BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        return buffer.getvalue()

    return content


def encoded(dataset: Dataset, syntax: str) -> bytes:
    """The pixels of an uncompressed dataset as one code stream; its attributes are changed to 8 bits for JPEG baseline."""
    if syntax == JPEGBaseline8Bit:
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit, dataset.WindowCenter, dataset.WindowWidth = 7, 128, 256
        grey = (np.frombuffer(dataset.PixelData, "<u2") >> 4).astype(np.uint8).reshape(dataset.Rows, dataset.Columns)
        return cv2.imencode(".jpg", grey)[1].tobytes()
    if syntax == JPEGLosslessSV1:
        return lossless_jpeg(np.frombuffer(dataset.PixelData, "<u2").reshape(dataset.Rows, dataset.Columns))
    plugin = "gdcm" if syntax == RLELossless else ""
    dataset.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)
    return next(generate_frames(dataset.PixelData, number_of_frames=1))


def lossless_jpeg(pixels: np.ndarray) -> bytes:
    """A JPEG lossless stream of 16 bits, predictor 1, every length of difference in 5 bits (ISO 10918-1 Annex H)."""
    rows, columns = pixels.shape
    left = np.empty((rows, columns), dtype=np.int64)
    left[:, 1:] = pixels[:, :-1]
    left[1:, 0], left[0, 0] = pixels[:-1, 0], 2**15
    bits = []
    for difference in (pixels.astype(np.int64) - left).ravel().tolist():
        length = abs(difference).bit_length()
        bits.append(f"{length:05b}")
        if length:
            bits.append(f"{difference if difference > 0 else difference + 2**length - 1:0{length}b}")
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    scan = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")
    frame_header = b"\xff\xc3" + struct.pack(">HBHHBBBB", 11, 16, rows, columns, 1, 1, 0x11, 0)
    table = b"\xff\xc4" + struct.pack(">HB", 19 + 17, 0) + bytes([0, 0, 0, 0, 17, *[0] * 11]) + bytes(range(17))
    return (
        b"\xff\xd8"
        + frame_header
        + table
        + b"\xff\xda"
        + struct.pack(">HBBBBBB", 8, 1, 1, 0, 1, 0, 0)
        + scan
        + b"\xff\xd9"
    )


def _hollow(frame: bytes) -> bytes:
    """The middle fifth is missing; beginning and end mark are there."""
    return frame[: 2 * len(frame) // 5] + frame[3 * len(frame) // 5 :]


def _of_97_bits(frame: bytes) -> bytes:
    place = re.search(rb"\xff[\xc0\xc3\xf7]\0\x0b", frame)  # SOFn of one component: marker, length, then the precision
    assert place is not None
    return frame[: place.end()] + b"\x61" + frame[place.end() + 1 :]


def _rle_bomb(_: bytes) -> bytes:
    """Runs of 128 zeros: 256 MiB a segment out of 4 MiB."""
    segment = b"\x81\0" * 2**21
    return struct.pack("<16I", 2, 64, 64 + len(segment), *[0] * 13) + segment + segment


def _j2k_size(side: int) -> Callable[[bytes], bytes]:
    def change(frame: bytes) -> bytes:
        place = (
            frame.index(b"\xff\x51") + 6
        )  # SIZ: marker, length, capabilities; then width and height (ISO 15444-1 A.5.1)
        return frame[:place] + struct.pack(">II", side, side) + frame[place + 8 :]

    return change


# --- what is no regular file, and strange names


def _in_the_folder() -> Iterable[BadInput]:
    odd = str(Code.NOT_A_REGULAR_FILE)
    yield BadInput("link to a file", lambda folder: _link(folder, make_dicom(folder / "target.dcm")), (ACCEPTED, odd))
    yield BadInput("link that leads nowhere", lambda folder: _link(folder, folder / "nowhere"), (odd,))
    yield BadInput("link to itself", lambda folder: _link(folder, folder / "link"), (odd,))
    yield BadInput("link to the folder above", lambda folder: _link(folder, folder.parent), (odd,))
    yield BadInput("link out of the archive", lambda folder: _link(folder, Path("/etc/passwd")), (odd,))
    yield BadInput("pipe", lambda folder: os.mkfifo(folder / "pipe.dcm"), (odd,))
    yield BadInput("socket", _socket, (odd,))
    yield BadInput("folder that looks like a file", lambda folder: (folder / "image.dcm").mkdir(), ())
    yield BadInput("name that is no text", lambda folder: _named(folder, os.fsdecode(b"caf\xe9 \xff.dcm")), (ACCEPTED,))
    yield BadInput("name with line breaks and quotes", lambda folder: _named(folder, 'a\n"b";=c,d\r.dcm'), (ACCEPTED,))
    yield BadInput("name of 255 bytes", lambda folder: _named(folder, 251 * "x" + ".dcm"), (ACCEPTED,))


def _link(folder: Path, target: Path) -> None:
    (folder / "link").symlink_to(target)


def _socket(folder: Path) -> None:
    """Bound by a relative name, since a socket's path may have 107 bytes at most."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{handle}/socket.dcm")
    finally:
        os.close(handle)


def _named(folder: Path, name: str) -> None:
    make_dicom(
        folder / "plain.dcm", SOPInstanceUID=make_uid(repr(name)), StudyInstanceUID=make_uid(f"study {name!r}")
    ).rename(folder / name)


# --- files that contradict each other


def _several() -> Iterable[BadInput]:
    yield BadInput("the same file twice", _twice({}, {}), (ACCEPTED, str(Code.DUPLICATE)))
    yield BadInput("one UID, two pictures", _twice({}, {"seed": 1}), (str(Code.CONFLICTING_DUPLICATE),) * 2)
    other_study = {"StudyInstanceUID": make_uid("elsewhere")}
    yield BadInput("one UID in two studies", _twice({}, other_study), (str(Code.CONFLICTING_DUPLICATE),) * 2)
    strangers = {"PatientID": "TEST-2", "SOPInstanceUID": make_uid("stranger")}
    yield BadInput("two patients in one study", _twice({}, strangers), (str(Code.CONFLICTING_PATIENT),) * 2)
    yield BadInput("disc with a table of contents", _disc, (ACCEPTED, str(Code.UNSUPPORTED_SOP_CLASS)))
    yield BadInput("one of two copies cut", _whole_and_cut, (ACCEPTED, str(Code.PIXEL_DATA_TRUNCATED)))


def _twice(first: dict[str, Any], second: dict[str, Any]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for number, options in enumerate((first, second)):
            shared = {name: make_uid(f"{folder.name} {name}") for name in ("StudyInstanceUID", "SOPInstanceUID")}
            options: dict[str, Any] = shared | options
            pixels = make_pixels(seed=options.pop("seed", 0))
            make_dicom(folder / f"{number}.dcm", pixels=pixels, **options)

    return write


def _whole_and_cut(folder: Path) -> None:
    whole = make_dicom(folder / "whole.dcm", SOPInstanceUID=make_uid("copy"), StudyInstanceUID=make_uid("copy study"))
    (folder / "cut.dcm").write_bytes(whole.read_bytes()[:-500])


def _disc(folder: Path) -> None:
    """As a viewer's export: an image under a number for a name, and a DICOMDIR, which holds no attribute of an image."""
    make_dicom(folder / f"{folder.name}.dcm").rename(folder / "IM000000")
    contents = Dataset()
    contents.FileSetID, contents.FileSetConsistencyFlag = "DISC", 0
    contents.DirectoryRecordSequence = [Dataset()]
    contents.DirectoryRecordSequence[0].DirectoryRecordType = "PATIENT"
    contents.file_meta = FileMetaDataset()
    contents.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    contents.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    contents.file_meta.MediaStorageSOPInstanceUID = UID(make_uid("disc"))
    contents.save_as(folder / "DICOMDIR", enforce_file_format=True)


# --- what only the policies beside the defaults take

_RAW: dict[str, Any] = {
    "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1.1",
    "PresentationIntentType": "FOR PROCESSING",
    "PixelIntensityRelationship": "LIN",
    "PixelIntensityRelationshipSign": 1,
    "WindowCenter": None,
    "WindowWidth": None,
}
_SHUTTER: dict[str, Any] = {
    "ShutterShape": "RECTANGULAR",
    "ShutterLeftVerticalEdge": 5,
    "ShutterRightVerticalEdge": 36,
    "ShutterUpperHorizontalEdge": 3,
    "ShutterLowerHorizontalEdge": 30,
}


def bad_under_policies() -> list[BadInput]:
    """A second table: what becomes of a file where raw values, every frame, all colour and secondary captures are taken and
    images are cropped. Names are none of the first table's."""
    several = {"frames": 3}
    overrides: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
        "raw": ((REPAIRED,), _RAW),
        "raw, sign not stated": ((REPAIRED,), _RAW | {"PixelIntensityRelationshipSign": None}),
        "raw, sign of nought": ((REPAIRED,), _RAW | {"PixelIntensityRelationshipSign": 0}),
        "raw, relationship not stated": ((Code.FOR_PROCESSING,), _RAW | {"PixelIntensityRelationship": None}),
        "raw, unknown relationship": ((Code.FOR_PROCESSING,), _RAW | {"PixelIntensityRelationship": "CUBIC"}),
        "raw, no beam": ((Code.CONSTANT_IMAGE,), _RAW | {"PixelData": bytes(2560)}),
        "raw frames": ((REPAIRED,) * 3, _RAW | several),
        "frames": ((REPAIRED,) * 3, several),
        "frames, the last constant": ((REPAIRED, REPAIRED, Code.CONSTANT_IMAGE), several | {"blank": 2}),
        "frames, the last missing": ((Code.PIXEL_DATA_TRUNCATED,) * 4, several | {"NumberOfFrames": 4}),
        "frames, 1,001 announced": ((Code.TOO_LARGE,), several | {"NumberOfFrames": 1001}),
        "frames, none announced": ((Code.HEADER_MALFORMED,), several | {"NumberOfFrames": 0}),
        "shutter": ((REPAIRED,), _SHUTTER),
        "shutter that opens nothing": ((ACCEPTED,), _SHUTTER | {"ShutterRightVerticalEdge": 2}),
        "shutter beyond the image": ((ACCEPTED,), _SHUTTER | {"ShutterLeftVerticalEdge": 2**31 - 1}),
        "shutter larger than the image": (
            (ACCEPTED,),
            {name: 5000 if "Right" in name or "Lower" in name else value for name, value in _SHUTTER.items()}
            | {"ShutterLeftVerticalEdge": -5000, "ShutterUpperHorizontalEdge": -5000},
        ),
        "shutter without edges": ((ACCEPTED,), {"ShutterShape": "RECTANGULAR"}),
        "shutter of an unknown shape": ((ACCEPTED,), _SHUTTER | {"ShutterShape": "HEART"}),
        "shutter of one vertex": (
            (ACCEPTED,),
            {"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [3, 3, 3]},
        ),
        "shutter of a negative radius": (
            (ACCEPTED,),
            {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [9, 9], "RadiusOfCircularShutter": -9},
        ),
        "colour": ((REPAIRED,), _in_channels(1, 0, 1)),
        "secondary capture": ((ACCEPTED,), {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}),
        "secondary capture in colour": (
            (REPAIRED,),
            {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.4"} | _in_channels(1, 0, 1),
        ),
        "secondary capture without pixels": (
            (Code.NO_PIXEL_DATA,),
            {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "PixelData": None},
        ),
    }
    return sorted((_of_frames(name, *row) for name, row in overrides.items()), key=lambda kind: kind.name)


def _of_frames(name: str, expected: tuple[str, ...], overrides: dict[str, Any]) -> BadInput:
    """A kind whose one file may have several frames, and so several outcomes. frames: how many. blank: one that is black."""

    def write(folder: Path) -> None:
        given = dict(overrides)
        n_frames, blank = given.pop("frames", 0), given.pop("blank", None)
        if n_frames:
            frames = np.stack([make_pixels(seed=seed) for seed in range(n_frames)])
            if blank is not None:
                frames[blank] = 0
            given = {"NumberOfFrames": n_frames, "pixels": frames} | given
        path = folder / f"{name}.dcm"
        path.write_bytes(_with_overrides(given)(path))

    return BadInput(name, write, tuple(str(outcome) for outcome in expected))


def good_files() -> list[BadInput]:
    """For comparison and as seeds of fuzzing: one sound file of each transfer syntax that can be written here."""
    plain = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, "1.2.840.10008.1.2.2", DeflatedExplicitVRLittleEndian)
    streams = (RLELossless, JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless)
    contents = {syntax: partial(_good, transfer_syntax=syntax) for syntax in plain}
    contents |= {syntax: _stream(syntax, lambda frame: frame) for syntax in streams}
    return [_kind(f"good {syntax}", ACCEPTED, content) for syntax, content in contents.items()]
