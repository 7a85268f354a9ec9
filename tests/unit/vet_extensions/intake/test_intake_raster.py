"""PNG, JPEG and TIFF: depth and polarity kept, colour to grey, and no torn or swollen file read."""

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from factories import make_pixels
from PIL import Image

from vet_extensions.intake.raster import RasterFacts, grey_of_used_bits, probe_raster, read_raster
from vet_extensions.intake.refusal import Refusal
from vet_extensions.schema import RejectionCode

GREY_8 = make_pixels(48, 64, bits=8).astype(np.uint8)
GREY_16 = make_pixels(48, 64, bits=16)


def encode(pixels: np.ndarray | Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(stream, kind, **options)
    return stream.getvalue()


def read(data: bytes, **options: Any) -> np.ndarray:
    return read_raster(io.BytesIO(data), **options)


def refusal_of(data: bytes, **options: Any) -> RejectionCode:
    with pytest.raises(Refusal) as caught:
        read(data, **options)
    return caught.value.rejection.code


def as_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


LOSSLESS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "TIFF": {},
    "TIFF LZW": {"compression": "tiff_lzw"},
    "TIFF deflate": {"compression": "tiff_adobe_deflate"},
}


@pytest.mark.parametrize("grey", [GREY_8, GREY_16], ids=["8 bit", "16 bit"])
@pytest.mark.parametrize("kind", LOSSLESS)
def test_grey_files_keep_their_depth_and_values(kind: str, grey: np.ndarray) -> None:
    pixels = read(encode(grey, kind.split()[0], **LOSSLESS[kind]))
    assert pixels.dtype == grey.dtype
    np.testing.assert_array_equal(pixels, grey)


def test_jpeg_is_read_up_to_its_loss() -> None:
    pixels = read(encode(GREY_8, "JPEG", quality=95))
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - GREY_8).mean() < 3


def test_big_endian_tiff_is_read_by_its_byte_order() -> None:
    header = struct.pack(">2sHI", b"MM", 42, 8 + GREY_16.nbytes)
    tags = [(256, 3, 64), (257, 3, 48), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 3, 48)]
    entries = [struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, kind, value in tags if kind == 3]
    entries.insert(5, struct.pack(">HHII", 273, 4, 1, 8))
    entries.append(struct.pack(">HHII", 279, 4, 1, GREY_16.nbytes))
    directory = struct.pack(">H", len(entries)) + b"".join(entries) + struct.pack(">I", 0)
    np.testing.assert_array_equal(read(header + GREY_16.astype(">u2").tobytes() + directory), GREY_16)


def test_a_tiff_whose_white_is_zero_is_turned_about() -> None:
    eight = encode(GREY_8, "TIFF", tiffinfo={262: 0})  # for 8 bits Pillow turns the pixels itself
    sixteen = encode(65535 - GREY_16, "TIFF", tiffinfo={262: 0})
    assert (255 - GREY_8).tobytes() in eight
    assert (65535 - GREY_16).tobytes() in sixteen
    np.testing.assert_array_equal(read(eight), GREY_8)
    np.testing.assert_array_equal(read(sixteen), GREY_16)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_in_three_channels_is_that_grey(kind: str) -> None:
    np.testing.assert_array_equal(read(encode(as_rgb(GREY_8), kind)), GREY_8)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_grey_in_three_channels_of_sixteen_bits_keeps_them(suffix: str) -> None:
    _, data = cv2.imencode(suffix, as_rgb(GREY_16))
    np.testing.assert_allclose(read(data.tobytes()).astype(int), GREY_16, atol=1)


def test_transparency_is_left_out() -> None:
    with_alpha = np.dstack([as_rgb(GREY_8), np.full_like(GREY_8, 7)])
    np.testing.assert_array_equal(read(encode(with_alpha, "PNG")), GREY_8)
    grey_alpha = Image.merge("LA", [Image.fromarray(GREY_8), Image.new("L", (64, 48), 7)])
    np.testing.assert_array_equal(read(encode(grey_alpha, "PNG")), GREY_8)


def test_a_grey_palette_is_looked_up() -> None:
    indexed = Image.fromarray(255 - GREY_8, "L").convert("P")
    indexed.putpalette([level for index in range(256) for level in [255 - index] * 3])
    np.testing.assert_array_equal(read(encode(indexed, "PNG")), GREY_8)


def test_one_bit_pixels_are_black_and_white() -> None:
    pixels = read(encode(GREY_8 > 127, "PNG"))
    np.testing.assert_array_equal(pixels, np.where(GREY_8 > 127, 255, 0))


def test_colour_follows_the_policy() -> None:
    data = encode(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8), "PNG")
    assert refusal_of(data) == RejectionCode.UNSUPPORTED_PHOTOMETRIC
    assert read(data, colour="grey").shape == (48, 64)
    assert refusal_of(encode(as_rgb(GREY_8), "PNG"), colour="reject") == RejectionCode.UNSUPPORTED_PHOTOMETRIC


@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
@pytest.mark.parametrize("kind", [*LOSSLESS, "JPEG"])
def test_a_cut_file_is_refused(kind: str, share: float) -> None:
    data = encode(GREY_8, kind.split()[0], **LOSSLESS.get(kind, {}))
    assert refusal_of(data[: int(share * len(data))]) in (
        RejectionCode.PIXEL_DATA_TRUNCATED,
        RejectionCode.HEADER_MALFORMED,
        RejectionCode.NOT_AN_IMAGE,
        RejectionCode.DECODE_FAILED,
    )


@pytest.mark.parametrize(("kind", "n_missing"), [("PNG", 12), ("JPEG", 2)])
def test_a_file_without_its_end_mark_alone_is_truncated(kind: str, n_missing: int) -> None:
    assert refusal_of(encode(GREY_8, kind)[:-n_missing]) == RejectionCode.PIXEL_DATA_TRUNCATED


def test_what_follows_the_end_of_a_file_is_passed_over() -> None:
    for kind in ("PNG", "JPEG"):
        assert read(encode(GREY_8, kind) + b"trailing bytes").shape == (48, 64)


def test_a_flipped_byte_in_a_png_is_seen_by_its_checksum() -> None:
    data = bytearray(encode(GREY_8, "PNG"))
    data[len(data) // 2] ^= 0x55
    assert refusal_of(bytes(data)) in (RejectionCode.DECODE_FAILED, RejectionCode.PIXEL_DATA_TRUNCATED)


def png_of_size(columns: int, rows: int) -> bytes:
    """A PNG header that promises much, over pixels that unpack to a megabyte."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    size = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(2**20)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize(("columns", "rows"), [(12_000, 12_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_refused_by_its_header(columns: int, rows: int) -> None:
    assert refusal_of(png_of_size(columns, rows)) == RejectionCode.TOO_LARGE


def test_fewer_pixels_than_the_header_says_are_refused() -> None:
    assert refusal_of(png_of_size(5000, 5000)) in (RejectionCode.PIXEL_DATA_TRUNCATED, RejectionCode.DECODE_FAILED)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", RejectionCode.NOT_AN_IMAGE),
        (b"patient " * 100, RejectionCode.NOT_AN_IMAGE),
        (encode(GREY_8, "GIF"), RejectionCode.NOT_AN_IMAGE),
        (encode(GREY_8[:10], "PNG"), RejectionCode.TOO_SMALL),
        (encode(GREY_8.astype(np.float32), "TIFF"), RejectionCode.UNSUPPORTED_PHOTOMETRIC),
        (encode(GREY_8.astype(np.int32), "TIFF"), RejectionCode.UNSUPPORTED_PHOTOMETRIC),
        (
            encode(Image.fromarray(GREY_8), "TIFF", save_all=True, append_images=[Image.fromarray(255 - GREY_8)]),
            RejectionCode.MULTI_FRAME,
        ),
    ],
    ids=["empty", "text", "another format", "tiny", "float", "32 bit", "two pages"],
)
def test_what_cannot_be_used_gets_its_reason(data: bytes, code: RejectionCode) -> None:
    assert refusal_of(data) == code


def test_more_bytes_than_its_pixels_could_need_are_too_large() -> None:
    room = 64 * 2**20
    assert refusal_of(encode(GREY_8, "PNG") + bytes(room + 8 * 4096), max_pixels=4096) == RejectionCode.TOO_LARGE


class HeaderOnly(io.BytesIO):
    """A file of which no more than its first bytes may be read."""

    def read(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        assert 0 <= size < 2000, "a probe reads the header, not the pixels"
        return super().read(size)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encode(GREY_8, "PNG"), RasterFacts(48, 64, 8, "MONOCHROME2", "PNG")),
        (encode(GREY_16, "PNG"), RasterFacts(48, 64, 16, "MONOCHROME2", "PNG")),
        (encode(GREY_16, "TIFF"), RasterFacts(48, 64, 16, "MONOCHROME2", "TIFF")),
        (encode(as_rgb(GREY_8), "PNG"), RasterFacts(48, 64, 8, "RGB", "PNG")),
        (encode(Image.fromarray(GREY_8).convert("P"), "PNG"), RasterFacts(48, 64, 8, "PALETTE COLOR", "PNG")),
    ],
)
def test_a_probe_tells_size_depth_and_kind_from_the_header_alone(data: bytes, expected: RasterFacts) -> None:
    assert probe_raster(HeaderOnly(data)) == expected


def test_a_probe_refuses_what_the_header_speaks_against() -> None:
    given: list[tuple[bytes, dict[str, Any], RejectionCode]] = [
        (b"no picture", {}, RejectionCode.NOT_AN_IMAGE),
        (encode(GREY_8, "PNG"), {"max_pixels": 1000}, RejectionCode.TOO_LARGE),
        (encode(as_rgb(GREY_8), "PNG"), {"colour": "reject"}, RejectionCode.UNSUPPORTED_PHOTOMETRIC),
        (encode(GREY_8.astype(np.float32), "TIFF"), {}, RejectionCode.UNSUPPORTED_PHOTOMETRIC),
    ]
    for data, options, code in given:
        with pytest.raises(Refusal) as caught:
            probe_raster(io.BytesIO(data), **options)
        assert caught.value.rejection.code == code


@pytest.mark.parametrize(("top", "white"), [(255, 255), (100, 255), (4095, 4095), (4096, 8191), (65535, 65535)])
def test_white_is_the_greatest_value_of_the_bits_that_a_16_bit_picture_uses(top: int, white: int) -> None:
    values = np.array([[0, top // 2, top]], np.uint16)
    np.testing.assert_array_equal(grey_of_used_bits(values), np.rint(values * (65535 / white)))


def test_8_bit_pictures_are_taken_as_they_are() -> None:
    np.testing.assert_array_equal(grey_of_used_bits(np.array([[0, 7, 200]], np.uint8)), [[0, 7 * 257, 200 * 257]])
