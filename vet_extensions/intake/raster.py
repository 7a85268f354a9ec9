"""PNG, JPEG and TIFF files to grey pixels, for data sets that come as pictures.

`header` asks `probe_raster` for what the file's own header tells, `image` asks `read_raster` for the pixels.

Pillow reads the header, so that the size is known before anything is unpacked, and decodes; what it would pass in silence (a
missing end, a 16-bit inverse scale) is looked after here. Standards: PNG (ISO 15948), JPEG (ISO 10918-1), TIFF 6.0.
"""

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol, cast

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from vet_extensions.intake.colour import colour_to_grey
from vet_extensions.intake.options import MIN_SIDE_PX
from vet_extensions.intake.refusal import Refusal
from vet_extensions.intake.resize import to_bits
from vet_extensions.schema import RejectionCode as Code

_FORMATS = ("PNG", "JPEG", "TIFF")
_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")
_GREY_8 = ("1", "L", "LA")
_COLOUR = ("RGB", "RGBA", "RGBX", "YCbCr", "CMYK", "P", "PA")
_METADATA_ROOM_BYTES = 64 * 2**20
"""What a file may hold besides its pixels."""


class Readable(Protocol):
    """As much of a file as is used here."""

    def read(self, size: int = -1, /) -> bytes: ...

    def seek(self, offset: int, whence: int = 0, /) -> int: ...

    def tell(self) -> int: ...


@dataclass(frozen=True)
class RasterFacts:
    """What a picture's header tells. format: PNG, JPEG or TIFF. bits: 8 or 16 a sample.

    photometric: in DICOM's words (PS3.3 C.7.6.3.1.2), RGB for all colour that has no palette.
    """

    rows: int
    columns: int
    bits: int
    photometric: str
    format: str

    @property
    def is_grey(self) -> bool:
        return self.photometric.startswith("MONOCHROME")


def largest_raster(max_pixels: int) -> int:
    """Bytes of the largest file that is read."""
    return 8 * max_pixels + _METADATA_ROOM_BYTES


def probe_raster(file: Readable, *, max_pixels: int = 100_000_000, colour: str = "neutral") -> RasterFacts:
    """What the header tells, without decoding; what it alone tells against the file is refused. Errors: Refusal."""
    with _header_of(file, max_pixels=max_pixels, colour=colour) as image:
        columns, rows = image.size
        if image.mode not in (*_GREY_16, *_GREY_8, *_COLOUR):
            raise _unreadable_mode()
        is_wide = image.mode in _GREY_16 or (image.mode == "RGB" and "16" in _raw_mode(image))
        photometric = "PALETTE COLOR" if image.mode in ("P", "PA") else "RGB"
        if image.mode not in _COLOUR:
            photometric = "MONOCHROME1" if _is_white_zero(image) else "MONOCHROME2"
        return RasterFacts(rows, columns, 16 if is_wide else 8, photometric, str(image.format))


def read_raster(file: Readable, *, max_pixels: int = 100_000_000, colour: str = "neutral") -> np.ndarray:
    """The picture in `file`, uint8 or uint16 [H, W], black at 0, white at the greatest value. Colour becomes luminance.

    16-bit files keep their 16 bits, all others have 8. Transparency is left out, the orientation mark of a camera too: a
    radiograph is stored as it is meant to lie.
    colour: as `IntakeOptions.colour`; "neutral" refuses what is not grey.
    Errors: Refusal.
    """
    data = file.read(largest_raster(max_pixels) + 1)
    if len(data) > largest_raster(max_pixels):
        raise Refusal(Code.TOO_LARGE, f"the file has more than {largest_raster(max_pixels):,} bytes")
    with _header_of(io.BytesIO(data), max_pixels=max_pixels, colour=colour) as image:
        _check_end(data, image)
        try:
            return _pixels(data, image, colour=colour)
        except Refusal:
            raise
        except Exception as error:
            code = Code.PIXEL_DATA_TRUNCATED if "truncated" in str(error).lower() else Code.DECODE_FAILED
            raise Refusal(code, f"the pixels cannot be decoded ({type(error).__name__})") from None


def grey_of_used_bits(pixels: np.ndarray) -> np.ndarray:
    """uint16 [H, W] over the whole range, from uint8 or uint16.

    8 bits are taken as they are. Of 16 bits nobody says how many are used (12-bit values are stored as they are, or spread):
    white is the greatest value of the bits that the picture does use, at least 8. Nothing is clipped, and 0 stays black.
    """
    if pixels.dtype == np.uint8:
        return pixels.astype(np.uint16) * 257
    n_bits = max(8, int(pixels.max()).bit_length())
    return np.rint(pixels * (65535 / (2**n_bits - 1))).astype(np.uint16)


@contextmanager
def _header_of(file: Readable, *, max_pixels: int, colour: str) -> Iterator[Image.Image]:
    """The opened picture, whose size and kind of pixels may be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's warnings quote values
        image = _open(file)
        _check_size(image, max_pixels=max_pixels)
        if image.mode in _COLOUR and colour == "reject":
            raise Refusal(Code.UNSUPPORTED_PHOTOMETRIC, "stored in colour")
        yield image


def _open(file: Readable) -> Image.Image:
    try:
        return Image.open(cast(BinaryIO, file), formats=_FORMATS)
    except UnidentifiedImageError:
        raise Refusal(Code.NOT_AN_IMAGE, "neither PNG, JPEG nor TIFF, or its header is damaged") from None
    except Image.DecompressionBombError:
        raise Refusal(Code.TOO_LARGE, "the header promises more pixels than Pillow opens") from None
    except Exception as error:
        raise Refusal(Code.HEADER_MALFORMED, f"the header cannot be read ({type(error).__name__})") from None


def _check_size(image: Image.Image, *, max_pixels: int) -> None:
    columns, rows = image.size
    if rows * columns > max_pixels:
        raise Refusal(Code.TOO_LARGE, f"{rows} x {columns} pixels; at most {max_pixels:,} are read")
    if min(rows, columns) < MIN_SIDE_PX:
        raise Refusal(Code.TOO_SMALL, f"{rows} x {columns} pixels; the shorter side needs at least {MIN_SIDE_PX}")
    if image.format != "JPEG" and getattr(image, "n_frames", 1) != 1:  # a camera's JPEG may carry previews
        raise Refusal(Code.MULTI_FRAME, "several pages or frames")


def _check_end(data: bytes, image: Image.Image) -> None:
    """Refuse a file that was cut: Pillow shows what is there of a PNG, and of a JPEG that lacks no more than its end mark."""
    if image.format == "PNG":
        is_whole = _has_png_end(data)
    elif image.format == "JPEG":
        is_whole = _has_jpeg_end(data)
    else:
        is_whole = _has_tiff_strips(len(data), image)
    if not is_whole:
        raise Refusal(Code.PIXEL_DATA_TRUNCATED, f"the {image.format} file of {len(data):,} bytes ends too early")


def _has_png_end(data: bytes) -> bool:
    """Whether the chunks lead to IEND (ISO 15948, 5.3)."""
    position = 8
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"IEND":
            return True
        position += 12 + length
    return False


def _has_jpeg_end(data: bytes) -> bool:
    """Whether EOI follows the first scan. Within a scan FF is never followed by D9 (ISO 10918-1 B.1.1.5); before it, in a
    preview among the metadata, it may be, so the segments are passed over one by one."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker, length = struct.unpack_from(">BH", data, position + 1)
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker == 0xDA:
            return data.find(b"\xff\xd9", position) >= 0
        else:
            position += 2 + length
    return False


def _has_tiff_strips(n_bytes: int, image: Image.Image) -> bool:
    """Whether all strips or tiles lie within the file (TIFF 6.0 sections 3 and 15)."""
    tags: Any = getattr(image, "tag_v2", {})
    for offsets, counts in ((273, 279), (324, 325)):
        for offset, count in zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False):
            if offset + count > n_bytes:
                return False
    return True


def _raw_mode(image: Image.Image) -> str:
    """How the file lays out its samples, as Pillow calls it; only before it is loaded."""
    tiles: Any = getattr(image, "tile", ())
    return str(tiles[0].args) if tiles else ""


def _is_white_zero(image: Image.Image) -> bool:
    return image.format == "TIFF" and getattr(image, "tag_v2", {}).get(262) == 0


def _unreadable_mode() -> Refusal:
    return Refusal(Code.UNSUPPORTED_PHOTOMETRIC, "pixels of more than 16 bits, signed, or with a decimal point")


def _pixels(data: bytes, image: Image.Image, *, colour: str) -> np.ndarray:
    raw_mode, is_white_zero = _raw_mode(image), _is_white_zero(image)
    image.load()
    if image.mode in _GREY_16:
        values = np.asarray(image).astype(np.uint16)
        # Pillow turns 8-bit "white is zero" about, but not 16-bit (TIFF 6.0, PhotometricInterpretation).
        return 65535 - values if is_white_zero else values
    if image.mode in ("1", "L"):
        return np.array(image.convert("L"))
    if image.mode == "LA":
        return np.array(image.getchannel("L"))
    if image.mode not in _COLOUR:
        raise _unreadable_mode()
    if "16" in raw_mode and image.mode == "RGB":
        # Pillow has no mode for colour of 16 bits and keeps the upper eight.
        wide = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if wide is None or wide.dtype != np.uint16 or wide.shape != (image.height, image.width, 3):
            raise Refusal(Code.DECODE_FAILED, "16-bit colour that cannot be decoded")
        return colour_to_grey(wide[..., ::-1], bits=16, policy=colour)
    rgb = np.asarray(image.convert("RGB"))
    return to_bits(colour_to_grey(rgb, bits=8, policy=colour), bits=8)
