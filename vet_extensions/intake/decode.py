"""Pixel data to bit patterns, with decoders named and torn streams refused. `image` calls `read_frame` in the workers.

Standards: PS3.5 section 8 (encoding of pixel data) and Annex A (transfer syntaxes).
"""

import struct
from typing import Any

import cv2
import numpy as np
from pydicom import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder
from pydicom.uid import UID, AllTransferSyntaxes

from vet_extensions.intake.dicom import PixelLayout
from vet_extensions.intake.messages import catch_messages, tell_of_damage
from vet_extensions.intake.refusal import Refusal
from vet_extensions.schema import RejectionCode as Code

# Named, since pydicom's own order tries first what is slow or accepts torn streams. "": uncompressed, no plugin involved.
_NATIVE = ("",)
DECODERS: dict[str, tuple[str, ...]] = {
    "1.2.840.10008.1.2": _NATIVE,
    "1.2.840.10008.1.2.1": _NATIVE,
    "1.2.840.10008.1.2.1.99": _NATIVE,
    "1.2.840.10008.1.2.2": _NATIVE,
    "1.2.840.10008.1.2.5": ("pylibjpeg", "pydicom"),  # RLE; 9 times as fast as pydicom's own
    "1.2.840.10008.1.2.4.50": ("pillow", "gdcm"),  # JPEG baseline
    "1.2.840.10008.1.2.4.51": ("gdcm", "pillow"),  # JPEG extended
    "1.2.840.10008.1.2.4.57": ("gdcm",),  # JPEG lossless
    "1.2.840.10008.1.2.4.70": ("gdcm",),
    "1.2.840.10008.1.2.4.80": ("pyjpegls", "gdcm"),  # JPEG-LS
    "1.2.840.10008.1.2.4.81": ("pyjpegls", "gdcm"),
    "1.2.840.10008.1.2.4.90": ("gdcm", "pylibjpeg", "pillow"),  # JPEG 2000; gdcm's OpenJPEG is 1.3 times as fast
    "1.2.840.10008.1.2.4.91": ("gdcm", "pylibjpeg", "pillow"),
    "1.2.840.10008.1.2.4.201": ("pylibjpeg",),  # HTJ2K
    "1.2.840.10008.1.2.4.202": ("pylibjpeg",),
    "1.2.840.10008.1.2.4.203": ("pylibjpeg",),
}
_RLE = "1.2.840.10008.1.2.5"
_JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
_JPEG_2000_START = b"\xff\x4f\xff\x51"


def transfer_syntax(dataset: Dataset) -> str:
    """The transfer syntax UID, refused if no decoder here reads it."""
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", "")).strip()
    if syntax in DECODERS:
        return syntax
    known = UID(syntax) in AllTransferSyntaxes
    name = UID(syntax).name if known else "a missing or private transfer syntax"
    raise Refusal(Code.UNSUPPORTED_TRANSFER_SYNTAX, name)


def read_frame(dataset: Dataset, layout: PixelLayout, *, frame: int = 0) -> tuple[np.ndarray, str]:
    """Decode one frame, counted from 0, of PixelData.

    Returns the bit patterns, neither masked nor signed, uint8 or uint16, [rows, columns] or [rows, columns, 3], and their
    photometric interpretation, which is not the header's where the decoder has undone a colour transformation (JPEG 2000).
    Errors: Refusal.
    """
    syntax = transfer_syntax(dataset)
    if syntax == _JPEG_EXTENDED and layout.bits_stored > 8:
        raise Refusal(
            Code.UNSUPPORTED_TRANSFER_SYNTAX, f"JPEG Extended with {layout.bits_stored} bits; up to 8 are read"
        )
    if frame >= layout.n_frames:
        raise Refusal(Code.HEADER_MALFORMED, f"frame {frame} of {layout.n_frames} was asked for")
    data = dataset.get("PixelData")
    if not data:
        raise Refusal(Code.NO_PIXEL_DATA, "PixelData is missing or empty")
    if DECODERS[syntax] == _NATIVE:
        expected = (layout.n_bits * layout.n_frames + 7) // 8
        if len(data) < expected:
            detail = f"{layout.n_frames} x {layout.rows} x {layout.columns} x {layout.bits_allocated} bit"
            raise Refusal(Code.PIXEL_DATA_TRUNCATED, f"{expected:,} bytes expected for {detail}, {len(data):,} found")
    else:
        stream = _encoded_frame(dataset, layout, frame)
        _check_stream(stream, layout, is_rle=syntax == _RLE)
        if syntax in (_JPEG_BASELINE, _JPEG_EXTENDED) and layout.bits_allocated != 8:
            # gdcm would end its process.
            raise Refusal(
                Code.DECODE_FAILED, f"the JPEG stream holds 8 bits a sample, the header says {layout.bits_allocated}"
            )
        if syntax == _JPEG_BASELINE:
            _listen_to_baseline(stream)
    pixels, photometric = _decode(dataset, syntax, frame, layout)
    shape = (layout.rows, layout.columns) if layout.samples == 1 else (layout.rows, layout.columns, layout.samples)
    pattern = np.dtype(f"u{max(1, layout.bits_allocated // 8)}")
    if pixels.shape != shape or pixels.dtype.kind not in "iu" or pixels.itemsize != pattern.itemsize:
        raise Refusal(Code.DECODE_FAILED, f"decoded to {pixels.dtype} {list(pixels.shape)}, not as the header says")
    native = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    return np.ascontiguousarray(native).view(pattern), photometric


def _encoded_frame(dataset: Dataset, layout: PixelLayout, frame: int) -> bytes:
    """The compressed stream of one frame, of one or more fragments (PS3.5 A.4)."""
    offsets = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    try:
        return get_frame(
            dataset.PixelData,
            frame,
            number_of_frames=layout.n_frames,
            extended_offsets=offsets if all(offsets) else None,
        )
    except Exception as error:
        raise Refusal(Code.PIXEL_DATA_TRUNCATED, f"the fragments cannot be followed ({type(error).__name__})") from None


def _check_stream(stream: bytes, layout: PixelLayout, *, is_rle: bool) -> None:
    """Refuse torn and mismatched streams: some decoders fill what is missing with grey and say nothing.

    JPEG, JPEG-LS and JPEG 2000 streams all end with the two bytes FF D9 (ISO 10918-1 B.1.1.3, ISO 15444-1 A.4.4).
    """
    if is_rle:
        return
    if not stream.rstrip(b"\0\xff").endswith(b"\xff\xd9"):  # writers pad to even length with either byte
        raise Refusal(Code.PIXEL_DATA_TRUNCATED, f"the compressed stream of {len(stream):,} bytes has no end mark")
    size = _codestream_size(stream)
    if size is None:
        raise Refusal(Code.DECODE_FAILED, "the compressed stream does not state its size, or has no scan")
    if size != (layout.rows, layout.columns, layout.samples):
        raise Refusal(
            Code.DECODE_FAILED,
            f"the stream holds {size[0]} x {size[1]} pixels, the header says {layout.rows} x {layout.columns}"
            if size[:2] != (layout.rows, layout.columns)
            else f"the stream holds {size[2]} samples per pixel, the header says {layout.samples}",
        )


def _listen_to_baseline(stream: bytes) -> None:
    """Refuse a JPEG stream with a hole. Pillow keeps libjpeg's warnings to itself, so OpenCV decodes it again, at an eighth of
    the size, to hear them."""
    with catch_messages() as heard:
        cv2.imdecode(np.frombuffer(stream, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_8)
        if tell_of_damage(heard()):
            raise Refusal(Code.DECODE_FAILED, "pixels are missing inside the JPEG stream")


def _codestream_size(stream: bytes) -> tuple[int, int, int] | None:
    """(rows, columns, samples) as the stream states them: SIZ of JPEG 2000 (ISO 15444-1 A.5.1), SOFn of JPEG and JPEG-LS
    (ISO 10918-1 B.2.2). None if not found, or if no scan follows SOFn or its precision cannot be, at which gdcm would end its
    process. Some writers put the boxes of a JP2 file around JPEG 2000."""
    start = stream.find(_JPEG_2000_START, 0, 4096)
    if start >= 0 and len(stream) >= start + 42:
        width, height, left, top = struct.unpack_from(">4I", stream, start + 8)
        return height - top, width - left, struct.unpack_from(">H", stream, start + 40)[0]
    position, size = 2, None
    while stream[:2] == b"\xff\xd8" and position + 10 <= len(stream) and stream[position] == 0xFF:
        marker, length = struct.unpack_from(">BH", stream, position + 1)
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker == 0xDA:
            return size
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            precision, rows, columns, samples = struct.unpack_from(">BHHB", stream, position + 4)
            if not 2 <= precision <= 16:
                return None
            size = rows, columns, samples
        position += 2 + length
    return None


def _decode(dataset: Dataset, syntax: str, frame: int, layout: PixelLayout) -> tuple[np.ndarray, str]:
    decoder = get_decoder(UID(syntax))
    failures = []
    for plugin in DECODERS[syntax]:
        try:
            # The unused bits are masked later, in one look-up with everything else; SamplesPerPixel may be absent.
            options: Any = {"correct_unused_bits": False, "samples_per_pixel": layout.samples}
            with catch_messages() as heard:
                pixels, facts = decoder.as_array(dataset, index=frame, raw=True, decoding_plugin=plugin, **options)
                is_damaged = tell_of_damage(heard())
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # BaseException: pylibjpeg-rle is written in Rust, and its PanicException is no Exception. The message may quote
            # values, so only the kind is kept.
            failures.append(f"{plugin or 'pydicom'}: {type(error).__name__}")
            continue
        if is_damaged:
            raise Refusal(Code.DECODE_FAILED, f"{plugin}: pixels are missing inside the JPEG stream")
        return pixels, str(facts["photometric_interpretation"])
    raise Refusal(Code.DECODE_FAILED, "; ".join(failures))
