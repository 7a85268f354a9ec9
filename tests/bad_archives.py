"""Malformed and hostile archives, one kind a row of the table of bad inputs. Used by the tests of bad input."""

import bz2
import gzip
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from bad_inputs import ACCEPTED, BadInput
from factories import make_dicom

from tests.unit.vet_extensions.intake.test_sources_archives import add_special, make_tar, make_zip
from vet_extensions.schema import RejectionCode as Code

UNSAFE_NAMES = ("../up.dcm", "a/../../up.dcm", "/absolute.dcm", "C:\\drive.dcm", "a\\..\\..\\up.dcm", "line\nbreak.dcm")


def bad_archives() -> list[BadInput]:
    """The table, sorted by name. A sound image lies in most, and costs its life only where the archive is refused whole."""
    return sorted([*_both(), *_zips(), *_tars(), *_beside()], key=lambda kind: kind.name)


def _image(folder: Path, name: str = "good") -> bytes:
    """A sound file whose identifiers are this folder's and name's own."""
    path = make_dicom(folder / f"{name} in {folder.name}.dcm")
    content = path.read_bytes()
    path.unlink()
    return content


def _members(suffix: str, members: Callable[[Path], Mapping[str, bytes]]) -> Callable[[Path], None]:
    """Writes an archive of the kind that the suffix names."""
    make = make_zip if suffix == "zip" else make_tar

    def write(folder: Path) -> None:
        make(folder / f"archive.{suffix}", dict(members(folder)))

    return write


def _both() -> Iterable[BadInput]:
    for suffix in ("zip", "tar", "tar.gz"):
        yield BadInput(
            f"{suffix} with names that lead out of it",
            _members(
                suffix, lambda folder: {"good.dcm": _image(folder), **dict.fromkeys(UNSAFE_NAMES, _image(folder))}
            ),
            (ACCEPTED, *[str(Code.UNSAFE_MEMBER_NAME)] * len(UNSAFE_NAMES)),
        )
        yield BadInput(
            f"{suffix} with archives in it",
            _members(suffix, lambda folder: {"good.dcm": _image(folder), "in.zip": b"PK", "in.tgz": b"", "in.7z": b""}),
            (ACCEPTED, *[str(Code.NESTED_ARCHIVE)] * 3),
        )
        yield BadInput(
            f"{suffix} with a cut image and a note",
            _members(
                suffix,
                lambda folder: {"good.dcm": _image(folder), "cut.dcm": _image(folder, "cut")[:-99], "note": b"Bello"},
            ),
            (ACCEPTED, str(Code.PIXEL_DATA_TRUNCATED), str(Code.NOT_DICOM)),
        )
        yield BadInput(f"{suffix} of text", _content(suffix, lambda _: b"hello world\n" * 99), (str(Code.UNREADABLE),))
        yield BadInput(f"{suffix} of nothing", _content(suffix, lambda _: b""), (str(Code.UNREADABLE),))
    yield BadInput("zip with a name twice", _twice_in_a_zip, (str(Code.DUPLICATE_MEMBER),))
    yield BadInput("tar with a name twice", _twice_in_a_tar, (str(Code.DUPLICATE_MEMBER),))


def _content(suffix: str, content: Callable[[Path], bytes]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / f"archive.{suffix}").write_bytes(content(folder))

    return write


def _twice_in_a_zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("one", "two"):
            archive.writestr("same.dcm", _image(folder, name))


def _twice_in_a_tar(folder: Path) -> None:
    image = _image(folder)
    entry = tarfile.TarInfo("same.dcm")
    entry.size = len(image)
    (folder / "archive.tar").write_bytes(2 * (entry.tobuf() + image + bytes(-len(image) % 512)) + bytes(1024))


# --- zip


def _zips() -> Iterable[BadInput]:
    limit, unreadable = str(Code.ARCHIVE_LIMIT), str(Code.UNREADABLE)
    bomb = _members("zip", lambda folder: {"good.dcm": _image(folder), "bomb.dcm": bytes(2**23)})
    yield BadInput("zip bomb", bomb, (ACCEPTED, limit))
    yield BadInput("zip of overlapping members", _changed(_overlapping), (limit,))
    yield BadInput("zip with an encrypted member", _changed(_encrypted), (ACCEPTED, str(Code.ENCRYPTED_MEMBER)))
    yield BadInput("zip with a changed byte", _changed(_flipped), (ACCEPTED, unreadable))
    yield BadInput("zip with a member that says it is small", _changed(_belittled), (ACCEPTED, unreadable))
    yield BadInput("zip cut in its members", _changed(lambda data: data[: len(data) // 2]), (unreadable,))
    yield BadInput("zip cut in its table of contents", _changed(lambda data: data[:-30]), (unreadable,))
    yield BadInput("zip with bytes before it", _changed(lambda data: b"MZ" * 500 + data), (ACCEPTED, ACCEPTED))
    yield BadInput("zip of an unusual method", _bzip2, (unreadable,))
    yield BadInput("zip with a link", _link_in_a_zip, (ACCEPTED, str(Code.NOT_A_REGULAR_FILE)))


def _changed(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """A zip archive of two stored images, its bytes changed."""

    def write(folder: Path) -> None:
        members = {"first.dcm": _image(folder, "first"), "second.dcm": _image(folder, "second")}
        path = make_zip(folder / "archive.zip", members, method=zipfile.ZIP_STORED)
        path.write_bytes(change(path.read_bytes()))

    return write


def _directory(data: bytes) -> int:
    """Where the table of contents begins, with the first member's entry (APPNOTE 4.3.12)."""
    return data.index(b"PK\1\2")


def _patched(data: bytes, place: int, layout: str, value: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(layout, changed, place, value)
    return bytes(changed)


def _overlapping(data: bytes) -> bytes:
    return _patched(data, _directory(data) + 20, "<I", len(data))


def _encrypted(data: bytes) -> bytes:
    return _patched(_patched(data, 6, "<H", 1), _directory(data) + 8, "<H", 1)


def _flipped(data: bytes) -> bytes:
    place = data.index(b"TEST^ANIMAL")
    return data[:place] + b"LEST" + data[place + 4 :]


def _belittled(data: bytes) -> bytes:
    return _patched(_patched(data, _directory(data) + 24, "<I", 1000), _directory(data) + 20, "<I", 1000)


def _bzip2(folder: Path) -> None:
    make_zip(folder / "archive.zip", {"packed.dcm": _image(folder)}, method=zipfile.ZIP_BZIP2)


def _link_in_a_zip(folder: Path) -> None:
    link = zipfile.ZipInfo("link.dcm")
    link.create_system, link.external_attr = 3, 0o120777 << 16  # made on Unix; a symbolic link
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        archive.writestr(link, "good.dcm")
        archive.writestr("good.dcm", _image(folder))


# --- tar


def _tars() -> Iterable[BadInput]:
    limit, unreadable, odd = str(Code.ARCHIVE_LIMIT), str(Code.UNREADABLE), str(Code.NOT_A_REGULAR_FILE)
    yield BadInput("tar with links and devices", _specials, (ACCEPTED, odd, odd, odd, odd, odd))
    yield BadInput("tar cut in its second member", _cut_tar, (ACCEPTED, str(Code.MISSING_IDENTIFIER), unreadable))
    yield BadInput("tar without an end", _endless_tar, (ACCEPTED, unreadable))
    yield BadInput("tar with a giant extended header", _content("tar", lambda _: _giant_header()), (limit,))
    yield BadInput("tar.gz bomb", _content("tar.gz", lambda _: _tar_bomb()), (limit,))
    yield BadInput("tar.gz cut", _content("tar.gz", _cut_tar_gz), (unreadable, unreadable))
    yield BadInput("bzip2 under the name of a tar", _content("tar", _bzipped_tar), (unreadable,))


def _specials(folder: Path) -> None:
    make_tar(folder / "archive.tar", {"good.dcm": _image(folder)})
    with tarfile.open(folder / "archive.tar", "a") as archive:
        add_special(archive, "folder", tarfile.DIRTYPE)
        add_special(archive, "soft.dcm", tarfile.SYMTYPE, "../../outside.dcm")
        add_special(archive, "hard.dcm", tarfile.LNKTYPE, "good.dcm")
        add_special(archive, "pipe.dcm", tarfile.FIFOTYPE)
        add_special(archive, "device.dcm", tarfile.CHRTYPE)
        add_special(archive, "block.dcm", tarfile.BLKTYPE)


def _two_in_a_tar(folder: Path) -> bytes:
    """Each member is a block of name and size and the image, filled up to a whole block of 512 bytes."""
    members = {"first.dcm": _image(folder, "first"), "second.dcm": _image(folder, "second")}
    path = make_tar(folder / "archive.tar", members)
    content = path.read_bytes()
    path.unlink()
    return content


def _cut_tar(folder: Path) -> None:
    data = _two_in_a_tar(folder)
    (folder / "archive.tar").write_bytes(data[: data.index(b"second.dcm") + 1000])


def _endless_tar(folder: Path) -> None:
    data = _two_in_a_tar(folder)
    (folder / "archive.tar").write_bytes(data[: data.index(b"second.dcm")])


def _giant_header() -> bytes:
    entry = tarfile.TarInfo("pax")
    entry.type, entry.size = tarfile.XHDTYPE, 2**32
    return entry.tobuf() + bytes(10_240)


def _tar_bomb() -> bytes:
    entry = tarfile.TarInfo("bomb.dcm")
    entry.size = 2**24
    return gzip.compress(entry.tobuf() + bytes(2**24 + 1024))


def _cut_tar_gz(folder: Path) -> bytes:
    data = gzip.compress(_two_in_a_tar(folder))
    return data[: len(data) // 8]


def _bzipped_tar(folder: Path) -> bytes:
    return bz2.compress(_two_in_a_tar(folder))


# --- what lies beside an archive


def _beside() -> Iterable[BadInput]:
    yield BadInput("folder called like an archive's inside", _twin, (ACCEPTED, str(Code.DUPLICATE_MEMBER)))
    yield BadInput("image in an archive and beside it", _packed_and_plain, (ACCEPTED, str(Code.DUPLICATE)))
    yield BadInput("link to an archive", _linked, (ACCEPTED, str(Code.NOT_A_REGULAR_FILE)))
    yield BadInput("folder called like an archive", lambda folder: (folder / "archive.zip").mkdir(), ())


def _twin(folder: Path) -> None:
    make_zip(folder / "archive.zip", {"good.dcm": _image(folder, "packed")})
    make_dicom(folder / "archive.zip!" / "good.dcm", SOPInstanceUID="2.25.100000000000000000000001")


def _packed_and_plain(folder: Path) -> None:
    make_zip(folder / "archive.zip", {"good.dcm": _image(folder)})
    (folder / "plain.dcm").write_bytes(_image(folder))


def _linked(folder: Path) -> None:
    make_zip(folder / "archive.zip", {"good.dcm": _image(folder)})
    (folder / "link.zip").symlink_to("archive.zip")
