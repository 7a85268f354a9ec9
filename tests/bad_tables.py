"""A hostile table of images, one kind of row each with what intake must make of it, and tables that are refused whole. Used by
the tests of bad input."""

import os
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from bad_inputs import ACCEPTED, REPAIRED
from factories import make_dicom, make_pixels
from PIL import Image

from vet_extensions.schema import RejectionCode as Code

COLUMNS = ("path", "patient", "study", "image", "label.mass")


@dataclass(frozen=True)
class BadRow:
    """One kind. path: the cell, relative to the source's folder. write: makes the file, given its true place; None where there
    is none to make. expected: what becomes of it, None where the row is passed over. cells: the row's other cells."""

    name: str
    path: str
    expected: str | None
    write: Callable[[Path], object] | None = None
    cells: Mapping[str, str] = field(default_factory=dict)

    def row(self) -> tuple[str, ...]:
        """The cells in the order of `COLUMNS`; each kind is a patient of its own."""
        cells = {"path": self.path, "patient": self.name} | dict(self.cells)
        return tuple(cells.get(column, "") for column in COLUMNS)


def bad_rows() -> list[BadRow]:
    """The table's rows; the source's folder holds `good/`, and beside it lies `outside/1.png`."""
    return [*_paths(), *_targets(), *_pictures(), *_cells()]


def picture(*, seed: int = 0, suffix: str = ".png", pixels: np.ndarray | None = None) -> bytes:
    """A small sound picture's file."""
    grey = make_pixels(bits=8, seed=seed).astype(np.uint8) if pixels is None else pixels
    return cv2.imencode(suffix, grey)[1].tobytes()


def _paths() -> Iterable[BadRow]:
    unsafe = {
        "climbs out": "../outside/1.png",
        "climbs out of a folder": "good/../../outside/1.png",
        "climbs out and in again": "../in/good/0.png",
        "climbs with backslashes": "..\\outside\\2.png",
        "absolute": "/etc/hostname",
        "with a drive letter": "C:\\outside\\1.png",
        "with a drive letter and no root": "c:1.png",
        "on another machine": "\\\\server\\share\\1.png",
        "of a zero byte": "good\0/1.png",
        "the folder above": "..",
    }
    for name, path in unsafe.items():
        yield BadRow(name, path, Code.UNSAFE_PATH)
    yield BadRow("missing", "missing/1.png", Code.FILE_MISSING)
    yield BadRow("below a file", "good/0.png/1.png", Code.FILE_MISSING)
    yield BadRow("address", "https://example.org/1.png", Code.FILE_MISSING)
    yield BadRow("pattern", "good/*.png", Code.FILE_MISSING)
    yield BadRow("home", "~/1.png", Code.FILE_MISSING)
    yield BadRow("too long a name", 300 * "x", Code.UNREADABLE)
    yield BadRow("no path", "", None)
    yield BadRow("line break in a name", "a\nb.png", ACCEPTED, _written(picture(seed=1)))
    yield BadRow("name in unicode", "\u202egnp.\u0663.png", ACCEPTED, _written(picture(seed=2)))


def _targets() -> Iterable[BadRow]:
    yield BadRow("folder", "folder.png", Code.NOT_A_REGULAR_FILE, lambda path: path.mkdir())
    yield BadRow("the source's folder", ".", Code.NOT_A_REGULAR_FILE)
    yield BadRow("pipe", "pipe.png", Code.NOT_A_REGULAR_FILE, os.mkfifo)
    yield BadRow("link out", "link out.png", Code.UNSAFE_PATH, _linked("../outside/1.png"))
    yield BadRow("link to a folder outside", "link/1.png", Code.UNSAFE_PATH, _linked_folder)
    yield BadRow("link to itself", "loop.png", Code.UNREADABLE, _linked("loop.png"))
    yield BadRow("link that leads nowhere", "nowhere.png", Code.FILE_MISSING, _linked("no such file"))
    yield BadRow("link inside", "link inside.png", ACCEPTED, _linked("good/0.png"))


def _pictures() -> Iterable[BadRow]:
    colours = np.random.default_rng(0).integers(0, 255, (32, 40, 3), np.uint8)
    contents: dict[str, tuple[str, bytes]] = {
        "no image": (Code.NOT_AN_IMAGE, b"hello world\n" * 50),
        "empty": (Code.NOT_AN_IMAGE, b""),
        "web page": (Code.NOT_AN_IMAGE, b"<!DOCTYPE html><title>404 Not Found</title>"),
        "vector drawing": (Code.NOT_AN_IMAGE, b'<svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/hostname"/></svg>'),
        "bitmap": (Code.NOT_AN_IMAGE, picture(suffix=".bmp")),
        "script": (Code.NOT_AN_IMAGE, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 32\n"),
        "cut PNG": (Code.PIXEL_DATA_TRUNCATED, picture()[:-30]),
        "cut JPEG": (Code.PIXEL_DATA_TRUNCATED, picture(suffix=".jpg")[:-30]),
        "cut TIFF": (Code.PIXEL_DATA_TRUNCATED, _tiff_of_strips()),
        "PNG with a changed byte": (Code.DECODE_FAILED, _flipped(picture())),
        "PNG bomb": (Code.TOO_LARGE, _png_of(60_000)),
        "PNG of an icon": (Code.TOO_SMALL, picture(pixels=make_pixels(8, 8, bits=8).astype(np.uint8))),
        "PNG of one value": (Code.CONSTANT_IMAGE, picture(pixels=np.full((32, 40), 7, np.uint8))),
        "photograph": (Code.UNSUPPORTED_PHOTOMETRIC, picture(pixels=colours)),
        "grey in three channels": (REPAIRED, picture(pixels=np.repeat(make_pixels(bits=8).astype(np.uint8)[..., None], 3, -1))),
        "TIFF of decimal points": (Code.UNSUPPORTED_PHOTOMETRIC, _saved(Image.fromarray(np.full((32, 40), np.nan, np.float32)))),
        "TIFF of two pages": (Code.MULTI_FRAME, _pages()),
        "JPEG under a PNG's name": (ACCEPTED, picture(suffix=".jpg", seed=3)),
    }  # fmt: skip
    for name, (expected, content) in contents.items():
        yield BadRow(name, f"{name}.png", expected, _written(content))
    yield BadRow("cut DICOM file", "cut.dcm", Code.PIXEL_DATA_TRUNCATED, _cut_dicom)
    yield BadRow("report", "report.dcm", Code.UNSUPPORTED_SOP_CLASS, _report)
    yield BadRow("archive", "good.zip", Code.NOT_AN_IMAGE, _written(b"PK\5\6" + bytes(18)))


def _cells() -> Iterable[BadRow]:
    for name, text in {
        "formula as patient": "=cmd|'/C calc'!A0",
        "path as patient": "../../../../etc/passwd",
        "terminal codes as patient": "\x1b[2JEvil\r\n",
    }.items():
        yield BadRow(name, f"{name}.png", ACCEPTED, _written(picture(seed=4)), {"patient": text, "study": text})
    yield BadRow("no patient", "no patient.png", ACCEPTED, _written(picture(seed=5)), {"patient": ""})
    yield BadRow("label that is no number", "nan.png", ACCEPTED, _written(picture(seed=6)), {"label.mass": "NaN"})
    same = {"patient": "P", "study": "S", "image": "one name"}
    for number in (1, 2):
        write = _written(picture(seed=6 + number))
        yield BadRow(f"one name, picture {number}", f"twin {number}.png", Code.CONFLICTING_DUPLICATE, write, same)


def _written(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def _linked(target: str) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(target)


def _linked_folder(path: Path) -> None:
    path.parent.rmdir()
    path.parent.symlink_to("../outside")


def _flipped(data: bytes) -> bytes:
    place = data.index(b"IDAT") + 40
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def _png_of(side: int) -> bytes:
    """The header promises `side` x `side` pixels (ISO 15948, 11.2.2), and its checksum agrees."""
    data = picture()
    header = data[12:16] + struct.pack(">II", side, side) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def _saved(image: Image.Image, **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "TIFF", **options)
    return buffer.getvalue()


def _tiff_of_strips() -> bytes:
    """The directory stands before the strips, of which the last lacks its end."""
    return _saved(Image.fromarray(make_pixels(bits=8).astype(np.uint8)))[:-30]


def _pages() -> bytes:
    pages = [Image.fromarray(make_pixels(bits=8, seed=seed).astype(np.uint8)) for seed in range(2)]
    return _saved(pages[0], save_all=True, append_images=pages[1:])


def _cut_dicom(path: Path) -> None:
    path.write_bytes(make_dicom(path).read_bytes()[:-100])


def _report(path: Path) -> None:
    make_dicom(path, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", PixelData=None)


REFUSED_TABLES: dict[str, tuple[str, list[dict[str, str]]]] = {
    "the same row twice": ("share 1 files", [{"path": "good/0.png"}, {"path": "good/0.png"}]),
    "one file under two spellings": ("share 1 files", [{"path": "good/0.png"}, {"path": ".\\good//./0.png"}]),
    "an infinite label": ("hold 1 values", [{"path": "good/0.png", "label.mass": "inf"}]),
    "a label that overflows to infinity": ("hold 1 values", [{"path": "good/0.png", "label.mass": "-1e999"}]),
    "a label of letters": ("hold 1 values", [{"path": "good/0.png", "label.mass": "Bello"}]),
    "a label of half": ("hold 1 values", [{"path": "good/0.png", "label.mass": "0.5"}]),
}
"""Tables that are refused whole -> what the refusal says, and the rows."""
