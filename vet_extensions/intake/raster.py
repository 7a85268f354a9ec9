"""PNG, JPEG and TIFF files to grey pixels, for data sets that come as pictures: the sources' readers call `read_raster`.

Pillow reads the header, so that the size is known before anything is unpacked, and decodes; what it would pass in silence (a
missing end, a 16-bit inverse scale) is looked after here. Standards: PNG (ISO 15948), JPEG (ISO 10918-1), TIFF 6.0.
"""

import io
import struct
import warnings
from typing import Any, BinaryIO

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
_COLOUR = ("RGB", "RGBA", "RGBX", "YCbCr", "CMYK", "P", "PA")
_METADATA_ROOM_BYTES = 64 * 2**20
"""What a file may hold besides its pixels."""


def read_raster(file: BinaryIO, *, max_pixels: int = 100_000_000, colour: str = "neutral") -> np.ndarray:
    """The picture in `file`, uint8 or uint16 [H, W], black at 0, white at the greatest value. Colour becomes luminance.

    16-bit files keep their 16 bits, all others have 8. Transparency is left out, the orientation mark of a camera too: a
    radiograph is stored as it is meant to lie.
    colour: as `IntakeOptions.colour`; "neutral" refuses what is not grey.
    Errors: Refusal.
    """
    data = file.read(8 * max_pixels + _METADATA_ROOM_BYTES + 1)
    if len(data) > 8 * max_pixels + _METADATA_ROOM_BYTES:
        raise Refusal(Code.TOO_LARGE, f"the file has more than {8 * max_pixels + _METADATA_ROOM_BYTES:,} bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's warnings quote values
        image = _open(data)
        _check_size(image, max_pixels=max_pixels)
        _check_end(data, image)
        if image.mode in _COLOUR and colour == "reject":
            raise Refusal(Code.UNSUPPORTED_PHOTOMETRIC, "stored in colour")
        try:
            return _pixels(data, image, colour=colour)
        except Refusal:
            raise
        except Exception as error:
            code = Code.PIXEL_DATA_TRUNCATED if "truncated" in str(error).lower() else Code.DECODE_FAILED
            raise Refusal(code, f"the pixels cannot be decoded ({type(error).__name__})") from None


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
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


def _pixels(data: bytes, image: Image.Image, *, colour: str) -> np.ndarray:
    tiles: Any = getattr(image, "tile", ())
    raw_mode = str(tiles[0].args) if tiles else ""
    is_white_zero = image.format == "TIFF" and getattr(image, "tag_v2", {}).get(262) == 0
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
        raise Refusal(Code.UNSUPPORTED_PHOTOMETRIC, "pixels of more than 16 bits, signed, or with a decimal point")
    if "16" in raw_mode and image.mode == "RGB":
        # Pillow has no mode for colour of 16 bits and keeps the upper eight.
        wide = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if wide is None or wide.dtype != np.uint16 or wide.shape != (image.height, image.width, 3):
            raise Refusal(Code.DECODE_FAILED, "16-bit colour that cannot be decoded")
        return colour_to_grey(wide[..., ::-1], bits=16, policy=colour)
    rgb = np.asarray(image.convert("RGB"))
    return to_bits(colour_to_grey(rgb, bits=8, policy=colour), bits=8)
