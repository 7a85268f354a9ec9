"""One DICOM file, opened safely: the parser sees only listed attributes, sizes are checked before anything is decoded, and every
fault becomes a `Refusal` with a reason code. `header` and `image` call it in the workers; `decode` does the pixels.

Standards: PS3.10 section 7.1 (file format), PS3.5 Annex A (transfer syntaxes), PS3.3 C.7.6.3 (image pixel module), PS3.4 Annex
B.5 (SOP classes).
"""

import io
import logging
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, BinaryIO, cast

import pydicom
import pydicom.config
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from vet_extensions.intake.deidentify import HEADER_KEYWORDS, PIXEL_KEYWORDS
from vet_extensions.intake.opening import BoundedFile
from vet_extensions.intake.options import MIN_SIDE_PX
from vet_extensions.intake.refusal import Refusal
from vet_extensions.schema import RejectionCode as Code

# PS3.4 B.5: radiographs as meant for the eye.
PRESENTATION_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.1": "CR",
    "1.2.840.10008.5.1.4.1.1.1.1": "DX",
    "1.2.840.10008.5.1.4.1.1.1.2": "MG",
    "1.2.840.10008.5.1.4.1.1.1.3": "IO",
}
PROCESSING_CLASSES = frozenset(
    {"1.2.840.10008.5.1.4.1.1.1.1.1", "1.2.840.10008.5.1.4.1.1.1.2.1", "1.2.840.10008.5.1.4.1.1.1.3.1"}
)
SECONDARY_CAPTURES = frozenset({f"1.2.840.10008.5.1.4.1.1.7{part}" for part in ("", ".1", ".2", ".3", ".4")})
DICOMDIR = "1.2.840.10008.1.3.10"

PHOTOMETRIC_SAMPLES = {
    "MONOCHROME1": 1,
    "MONOCHROME2": 1,
    "PALETTE COLOR": 1,
    "RGB": 3,
    "YBR_FULL": 3,
    "YBR_FULL_422": 3,
    "YBR_ICT": 3,
    "YBR_RCT": 3,
}
"""The photometric interpretations that are read, and their samples per pixel (PS3.3 C.7.6.3.1.2)."""

_HEADER_ROOM_BYTES = 64 * 2**20
"""What a file may hold besides its pixels (overlays, private data) before it counts as too large."""
_FIRST_BYTES = 2**16
"""Few headers are longer; what more would be read comes from the pixels."""


@dataclass(frozen=True)
class PixelLayout:
    """The image pixel module (PS3.3 C.7.6.3.1), checked."""

    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    is_signed: bool
    photometric: str = "MONOCHROME2"
    n_frames: int = 1

    @property
    def samples(self) -> int:
        return PHOTOMETRIC_SAMPLES[self.photometric]

    @property
    def is_monochrome(self) -> bool:
        return self.photometric in ("MONOCHROME1", "MONOCHROME2")

    @property
    def n_bits(self) -> int:
        """Of one frame, uncompressed. YBR_FULL_422 stores two colour samples for two pixels (PS3.3 C.7.6.3.1.2)."""
        samples = 2 if self.photometric == "YBR_FULL_422" else self.samples
        return self.rows * self.columns * samples * self.bits_allocated


def largest_file(max_pixels: int) -> int:
    """Bytes of the largest file that is read."""
    return 4 * max_pixels + _HEADER_ROOM_BYTES


@contextmanager
def open_dicom(
    file: BoundedFile, *, with_pixels: bool, max_pixels: int, also: tuple[str, ...] = ()
) -> Iterator[Dataset]:
    """The listed attributes of one file, with PixelData or without.

    file: from `opened`. also: keywords of further attributes, for readers that are no part of the intake. Inside the
    block pydicom neither warns nor logs: its messages quote values, and values are people's names.
    Errors: Refusal.
    """
    with _quiet_pydicom():
        yield _parse(file, with_pixels=with_pixels, max_bytes=largest_file(max_pixels), also=also)


def is_for_processing(dataset: Dataset) -> bool:
    """Whether the pixels are raw detector values, by SOP class or PresentationIntentType (PS3.3 C.8.11.1)."""
    intent = text(dataset, "PresentationIntentType").upper()
    return text(dataset, "SOPClassUID") in PROCESSING_CLASSES or intent == "FOR PROCESSING"


def check_is_radiograph(dataset: Dataset, *, accept_secondary_capture: bool, accept_for_processing: bool) -> None:
    """Refuse what is not a radiograph. An empty answer is a yes."""
    sop_class = text(dataset, "SOPClassUID")
    if not sop_class:
        if _is_dicomdir(dataset):
            raise Refusal(Code.UNSUPPORTED_SOP_CLASS, "a DICOMDIR: a table of contents, not an image")
        raise Refusal(Code.MISSING_IDENTIFIER, "SOPClassUID is missing or empty")
    if is_for_processing(dataset) and not accept_for_processing:
        raise Refusal(Code.FOR_PROCESSING, "raw detector values; no transformation for presentation is defined")
    if sop_class in SECONDARY_CAPTURES and accept_secondary_capture:
        return
    if sop_class not in PRESENTATION_CLASSES and sop_class not in PROCESSING_CLASSES:
        raise Refusal(Code.UNSUPPORTED_SOP_CLASS, _class_name(sop_class))


def pixel_layout(dataset: Dataset, *, max_pixels: int) -> PixelLayout:
    """Check everything about the pixels that can be known before decoding. Several frames are no fault here."""
    n_frames = whole_number(dataset, "NumberOfFrames", default=1)
    if n_frames < 1:
        raise Refusal(Code.HEADER_MALFORMED, "NumberOfFrames is 0")
    photometric = text(dataset, "PhotometricInterpretation").upper()
    samples = whole_number(dataset, "SamplesPerPixel", default=1)
    if PHOTOMETRIC_SAMPLES.get(photometric) != samples:
        shown = (
            photometric
            if photometric in {"", *PHOTOMETRIC_SAMPLES, *_OTHER_PHOTOMETRICS}
            else "an unknown interpretation"
        )
        raise Refusal(Code.UNSUPPORTED_PHOTOMETRIC, f"{shown or 'no interpretation'} with {samples} samples per pixel")
    rows, columns = whole_number(dataset, "Rows"), whole_number(dataset, "Columns")
    if rows * columns > max_pixels:
        raise Refusal(Code.TOO_LARGE, f"{rows} x {columns} pixels; at most {max_pixels:,} are read")
    if min(rows, columns) < MIN_SIDE_PX:
        raise Refusal(Code.TOO_SMALL, f"{rows} x {columns} pixels; the shorter side needs at least {MIN_SIDE_PX}")
    allocated = whole_number(dataset, "BitsAllocated")
    stored = whole_number(dataset, "BitsStored", default=allocated)
    high_bit = whole_number(dataset, "HighBit", default=stored - 1)
    sign = whole_number(dataset, "PixelRepresentation")
    if (
        allocated not in ((1, 8, 16) if samples == 1 else (8, 16))
        or not 1 <= stored <= allocated
        or not stored - 1 <= high_bit < allocated
        or sign not in (0, 1)
    ):
        raise Refusal(
            Code.HEADER_MALFORMED,
            f"BitsAllocated {allocated}, BitsStored {stored}, HighBit {high_bit}, PixelRepresentation {sign} do not fit together",
        )
    return PixelLayout(rows, columns, allocated, stored, high_bit, bool(sign), photometric, n_frames)


def text(dataset: Dataset, keyword: str) -> str:
    """The value as text, "" where absent or empty; several values joined by a backslash, as DICOM writes them."""
    value = _value(dataset, keyword)
    if value is None:
        return ""
    if isinstance(value, (list, tuple, MultiValue)):
        return "\\".join(str(part) for part in value).strip()
    return str(value).strip(" \0\t\r\n")


def number(dataset: Dataset, keyword: str, *, index: int = 0) -> float | None:
    """Value number `index` as a float (it may be NaN or infinite), None where absent or empty."""
    value = _value(dataset, keyword)
    if isinstance(value, (list, tuple, MultiValue)):
        value = value[index] if len(value) > index else None
    elif index > 0:
        value = None
    if value is None or value == "":
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise Refusal(Code.HEADER_MALFORMED, f"{keyword} is not a number") from None


def whole_number(dataset: Dataset, keyword: str, *, default: int | None = None) -> int:
    """The value as an integer, `default` where absent; refused if it is neither."""
    value = number(dataset, keyword)
    if value is None:
        if default is None:
            raise Refusal(Code.HEADER_MALFORMED, f"{keyword} is missing")
        return default
    if not math.isfinite(value) or value != int(value) or value < 0:
        raise Refusal(Code.HEADER_MALFORMED, f"{keyword} is not a whole number")
    return int(value)


def _plain_value(raw: RawDataElement) -> int | str | None:
    """Of one number or code in its plain form, without pydicom's conversion, which costs a header pass more than its parsing.

    US is two bytes, UI and CS are of ASCII letters, padded (PS3.5 table 6.2-1). None for everything else.
    """
    data = raw.value
    if raw.VR == "US" and data is not None and len(data) == 2:
        return int.from_bytes(data, "little" if raw.is_little_endian else "big")
    if raw.VR in ("UI", "CS") and data and data.isascii() and b"\\" not in data:
        return data.decode("ascii").rstrip(" \0")
    return None


@cache
def _tag(keyword: str) -> BaseTag:
    """pydicom looks a keyword up anew at every access, which took a third of the header pass."""
    return Tag(keyword)


_OTHER_PHOTOMETRICS = ("YBR_PARTIAL_420", "YBR_PARTIAL_422", "HSV", "ARGB", "CMYK", "XYB")


def _value(dataset: Dataset, keyword: str) -> Any:
    """Raw values are converted on access, so that any fault of the file can come up here."""
    tag = _tag(keyword)
    try:
        raw: Any = dataset.get_item(tag)
        if raw is None:
            return None
        value = _plain_value(raw) if isinstance(raw, RawDataElement) else None
        return dataset[tag].value if value is None else value
    except Exception as error:
        raise Refusal(Code.HEADER_MALFORMED, f"{keyword} cannot be read ({type(error).__name__})") from None


def _class_name(sop_class: str) -> str:
    name = UID(sop_class).name
    return name if name != sop_class else "an unknown or private SOP class"


@contextmanager
def _quiet_pydicom() -> Iterator[None]:
    logger = logging.getLogger("pydicom")
    settings = pydicom.config.settings
    was_disabled, mode = logger.disabled, settings.reading_validation_mode
    logger.disabled = True
    settings.reading_validation_mode = pydicom.config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = was_disabled
        settings.reading_validation_mode = mode


def _parse(file: BoundedFile, *, with_pixels: bool, max_bytes: int, also: tuple[str, ...]) -> Dataset:
    start = file.read(132)
    if start[128:] != b"DICM":
        raise Refusal(Code.NOT_DICOM, "an empty file" if not start else "no DICM mark at byte 128 (PS3.10 section 7.1)")
    _check_deflated(file, max_bytes=max_bytes)
    file.seek(0)
    tags = [_tag(keyword) for keyword in (*(PIXEL_KEYWORDS if with_pixels else HEADER_KEYWORDS), *also)]
    dataset = None if with_pixels else _header_from_memory(file, tags)
    if dataset is not None:
        return dataset
    file.seek(0)
    try:
        dataset = pydicom.dcmread(cast(BinaryIO, file), stop_before_pixels=not with_pixels, specific_tags=tags)
    except EOFError:
        raise _cut(with_pixels=with_pixels) from None
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise Refusal(Code.HEADER_MALFORMED, f"the header cannot be parsed ({type(error).__name__})") from None
    # pydicom keeps the file's end to itself where an element of undefined length meets it, and drops all others.
    if not dataset and not _is_dicomdir(dataset):
        raise _cut(with_pixels=with_pixels)
    return dataset


def _header_from_memory(file: BoundedFile, tags: list[BaseTag]) -> Dataset | None:
    """The header, if the pixels begin within the first bytes: pydicom asks a file for its place three times an element, which
    takes as long as all the rest. None if they do not, or at any fault, which the file itself shall show."""
    start = io.BytesIO(file.read(_FIRST_BYTES))
    try:
        dataset = pydicom.dcmread(start, stop_before_pixels=True, specific_tags=tags)
    except Exception:
        return None
    return dataset if dataset and start.tell() < start.getbuffer().nbytes else None


def _cut(*, with_pixels: bool) -> Refusal:
    code = Code.PIXEL_DATA_TRUNCATED if with_pixels else Code.HEADER_MALFORMED
    return Refusal(code, "the file ends in the middle of an element, or holds none that is read")


def _is_dicomdir(dataset: Dataset) -> bool:
    """Its data set holds none of the attributes of images."""
    return str(dataset.file_meta.get("MediaStorageSOPClassUID", "")) == DICOMDIR


def _check_deflated(file: BoundedFile, *, max_bytes: int) -> None:
    """pydicom inflates a deflated data set whole, even for its header: measure it first, keeping nothing (PS3.5 A.5).

    The file meta information begins with its own length, (0002,0000) UL (PS3.10 table 7.1-1).
    """
    head = file.read(12)
    if len(head) < 12 or head[:8] != b"\x02\x00\x00\x00UL\x04\x00":
        return
    meta = file.read(min(struct.unpack("<I", head[8:])[0], 2**20))
    syntax = DeflatedExplicitVRLittleEndian.encode()
    if b"\x02\x00\x10\x00UI" + struct.pack("<H", len(syntax)) + syntax not in meta:
        return
    inflater, n_bytes = zlib.decompressobj(-zlib.MAX_WBITS), 0
    try:
        # Bytes may follow the end; zlib then leaves its tail as it is, for ever.
        while not inflater.eof and (chunk := inflater.unconsumed_tail or file.read(2**16)):
            n_bytes += len(inflater.decompress(chunk, 2**20))
            if n_bytes > max_bytes:
                raise Refusal(Code.TOO_LARGE, f"the deflated data set holds more than {max_bytes:,} bytes")
    except zlib.error:
        raise Refusal(Code.UNREADABLE, "the deflated data set is damaged") from None
    if not inflater.eof:
        raise Refusal(Code.UNREADABLE, "the deflated data set is cut")
