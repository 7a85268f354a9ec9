"""Members of zip and tar archives as files that can be opened, without unpacking anything to disk. `dicom_folder` calls it.

Nothing is believed that an archive says of itself: names are never used as paths, and sizes, ratios and counts are checked before
anything is inflated. Formats: .ZIP File Format Specification (APPNOTE 6.3.10), POSIX.1-2017 pax (ustar).
"""

import gzip
import io
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from vet_extensions.intake.refusal import Refusal
from vet_extensions.schema import Rejection
from vet_extensions.schema import RejectionCode as Code

COMPRESSED_TAR_SUFFIXES = (".tar.gz", ".tgz")
ARCHIVE_SUFFIXES = (".zip", ".tar", *COMPRESSED_TAR_SUFFIXES)
NESTED_SUFFIXES = (*ARCHIVE_SUFFIXES, ".tar.bz2", ".tar.xz", ".7z", ".rar")

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1
_SMALL = 2**20
"""Members up to this size may have any ratio: a small blank image deflates to next to nothing."""
_LONGEST_READ = 2**20
"""No honest tar header, extended or not, is longer; file contents are not read while an archive is listed."""


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """What an archive may hold. Beyond a limit of the whole, it is not read at all.

    n_members: entries of one archive. member_bytes: one member, which is held in memory while it is read.
    ratio: bytes out for a byte in; deflate reaches 1,032, a radiograph about 4, one with wide black borders 20.
    total_bytes: all members of one archive. compressed_tar_bytes: the same for .tar.gz and .tgz. Those can only be read from
    their start, so that each image costs half of this on average, up to about a second.
    """

    n_members: int = 500_000
    member_bytes: int = 2**30
    ratio: int = 100
    total_bytes: int = 2**42
    compressed_tar_bytes: int = 2**29


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive. name: as the archive writes it, "" for the archive as a whole. stamp: changes with the content.

    offset: of its bytes in the (uncompressed) tar; -1 in a zip.
    """

    name: str
    size: int = -1
    stamp: str = ""
    problem: Rejection | None = None
    offset: int = -1


def is_archive(name: str) -> bool:
    """Whether a file's name says that it is an archive that is read here."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def list_members(path: Path, *, limits: ArchiveLimits) -> list[Member]:
    """Every file in the archive, sorted by name (as bytes); those that should not be opened have a problem. Folders are left out.

    An archive that cannot be listed to its end is a member with the name "" and a problem, beside those that came before.
    """
    found: dict[str, Member] = {}
    whole: Rejection | None = None
    try:
        for member in (_zip_members if _is_zip(path) else _tar_members)(path, limits):
            if member.name in found:
                problem = Rejection(Code.DUPLICATE_MEMBER, "two or more members of the archive have this name")
                member = Member(member.name, problem=problem)
            found[member.name] = member
    except Refusal as refusal:
        whole = refusal.rejection
    except (OSError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile, ValueError, struct.error) as error:
        whole = Rejection(Code.UNREADABLE, f"the archive is damaged or cut short ({type(error).__name__})")
    except NotImplementedError:
        whole = Rejection(Code.UNREADABLE, "the archive needs a newer version of zip than is read here")
    if whole is not None:
        if whole.code == Code.ARCHIVE_LIMIT:
            found.clear()
        found[""] = Member("", problem=whole)
    return sorted(found.values(), key=lambda member: os.fsencode(member.name))


def open_member(path: Path, name: str, *, limits: ArchiveLimits) -> BinaryIO:
    """A member's bytes, seekable. Errors: OSError if it is not there or damaged, or if it is one that has a problem."""
    status = path.stat()
    state = (str(path), status.st_size, status.st_mtime_ns)
    try:
        if _is_zip(path):
            return _open_in_zip(state, name, limits)
        place = _tar_index(state, limits).get(name)
        if place is None:
            raise FileNotFoundError("the archive has no such member")
        if path.name.lower().endswith(COMPRESSED_TAR_SUFFIXES):
            with gzip.open(path, "rb") as file:
                file.seek(place[0])
                return io.BytesIO(file.read(place[1]))
        return io.BufferedReader(_Section(path, *place))
    except (
        EOFError,
        zlib.error,
        tarfile.TarError,
        zipfile.BadZipFile,
        ValueError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise OSError(f"the archive's member cannot be read ({type(error).__name__})") from None


def _is_zip(path: Path) -> bool:
    return path.name.lower().endswith(".zip")


def _problem_of(name: str, size: int, limits: ArchiveLimits) -> Rejection | None:
    """What speaks against a member of either kind of archive."""
    parts = name.replace("\\", "/").split("/")
    if name[:1] in ("/", "\\") or name[1:2] == ":" or ".." in parts or "" in parts or any(ord(c) < 32 for c in name):
        detail = (
            "the member's name is absolute, climbs out of the archive, or holds an empty part or control characters"
        )
        return Rejection(Code.UNSAFE_MEMBER_NAME, detail)
    if name.lower().endswith(NESTED_SUFFIXES):
        return Rejection(Code.NESTED_ARCHIVE, "an archive in an archive")
    if size > limits.member_bytes:
        return Rejection(Code.TOO_LARGE, f"the member has {size:,} bytes; at most {limits.member_bytes:,} are read")
    return None


def _refuse_beyond(what: str, value: int, limit: int, *, cure: str = "") -> None:
    if value > limit:
        raise Refusal(Code.ARCHIVE_LIMIT, f"the archive holds more than {limit:,} {what}{cure}")


# Zip


def _zip_members(path: Path, limits: ArchiveLimits) -> Iterator[Member]:
    _check_directory_size(path, limits)
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    _refuse_beyond("members", len(entries), limits.n_members)
    _refuse_beyond("bytes, unpacked", sum(entry.file_size for entry in entries), limits.total_bytes)
    if sum(entry.compress_size for entry in entries) > path.stat().st_size:
        raise Refusal(Code.ARCHIVE_LIMIT, "the archive's members overlap, as in a decompression bomb")
    for entry in entries:
        if entry.filename.endswith("/"):
            continue
        problem = _zip_problem(entry, limits)
        yield Member(entry.filename, entry.file_size, f"{entry.CRC:08x}:{entry.file_size}", problem)


def _zip_problem(entry: zipfile.ZipInfo, limits: ArchiveLimits) -> Rejection | None:
    kind = stat.S_IFMT(entry.external_attr >> 16) if entry.create_system == 3 else 0  # 3: made on Unix (APPNOTE 4.4.2)
    if kind not in (0, stat.S_IFREG):
        return Rejection(Code.NOT_A_REGULAR_FILE, "a link, pipe, socket or device in an archive")
    problem = _problem_of(entry.filename, entry.file_size, limits)
    if problem is not None:
        return problem
    if entry.flag_bits & _ENCRYPTED:
        return Rejection(Code.ENCRYPTED_MEMBER, "the member is encrypted")
    if entry.compress_type not in _METHODS:
        return Rejection(
            Code.UNREADABLE, f"zip method {entry.compress_type}; stored (0) and deflated (8) members are read"
        )
    if entry.file_size > max(_SMALL, limits.ratio * entry.compress_size):
        detail = (
            f"{entry.compress_size:,} bytes would become {entry.file_size:,}, more than {limits.ratio} times as many"
        )
        return Rejection(Code.ARCHIVE_LIMIT, detail)
    return None


def _check_directory_size(path: Path, limits: ArchiveLimits) -> None:
    """Refuse a table of contents longer than the allowed members' (APPNOTE 4.3.12 to 4.3.16) before `zipfile` reads it whole."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 2**16 - 22 - 20))
        tail = file.read()
        at = tail.rfind(b"PK\5\6")
        if at < 0 or len(tail) < at + 22:
            raise Refusal(Code.UNREADABLE, "no zip archive, or cut short: it has no table of contents")
        length = int.from_bytes(tail[at + 12 : at + 16], "little")
        if at >= 20 and tail[at - 20 : at - 16] == b"PK\6\7":
            file.seek(min(int.from_bytes(tail[at - 12 : at - 4], "little"), size))
            record = file.read(56)
            length = max(length if length < 2**32 - 1 else 0, int.from_bytes(record[40:48], "little"))
    # 46 bytes and the name, extra fields and comment of each entry.
    _refuse_beyond("members", length // 512, limits.n_members)


@lru_cache(maxsize=4)
def _zip_at(state: tuple[str, int, int]) -> zipfile.ZipFile:
    """Kept open, since its table of contents is read whole each time; another size or time of change is another archive."""
    return zipfile.ZipFile(state[0])


def _open_in_zip(state: tuple[str, int, int], name: str, limits: ArchiveLimits) -> BinaryIO:
    archive = _zip_at(state)
    try:
        entry = archive.getinfo(name)
    except KeyError:
        raise FileNotFoundError("the archive has no such member") from None
    problem = _zip_problem(entry, limits)
    if problem is not None:
        raise OSError(f"the archive's member is not read ({problem.code})")
    return io.BytesIO(archive.read(entry))  # never more than file_size; the CRC is checked


# Tar


def _tar_members(path: Path, limits: ArchiveLimits) -> Iterator[Member]:
    stamp = f"{path.stat().st_mtime_ns}"
    for entry in _tar_entries(path, limits):
        if entry.isdir():
            continue
        if not entry.isreg() or entry.issparse():
            problem = Rejection(Code.NOT_A_REGULAR_FILE, "a link, pipe, device or sparse file in an archive")
        else:
            problem = _problem_of(entry.name, entry.size, limits)
        yield Member(entry.name, entry.size, f"{stamp}:{entry.offset_data}:{entry.size}", problem, entry.offset_data)


def _tar_entries(path: Path, limits: ArchiveLimits) -> Iterator[tarfile.TarInfo]:
    is_compressed = path.name.lower().endswith(COMPRESSED_TAR_SUFFIXES)
    with gzip.open(path, "rb") if is_compressed else path.open("rb") as file:
        guarded = _Guarded(file, path.stat().st_size, limits, is_compressed=is_compressed)
        with tarfile.open(fileobj=guarded, mode="r:") as archive:  # pyright: ignore[reportArgumentType, reportCallIssue]
            n_entries = 0
            while (entry := archive.next()) is not None:
                archive.members = []  # it would keep every entry, a kilobyte each
                n_entries += 1
                _refuse_beyond("members", n_entries, limits.n_members)
                yield entry
            # A damaged header, or none, ends tarfile's loop as the end mark does: a block of zeros (pax, ustar format).
            guarded.seek(archive.offset)
            if guarded.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise Refusal(
                    Code.UNREADABLE, "the archive is damaged or cut short: after its last member comes no end mark"
                )


class _Guarded:
    """What `tarfile` may do while it lists: short reads, and no seek beyond what the limits allow."""

    def __init__(self, file: Any, n_bytes: int, limits: ArchiveLimits, *, is_compressed: bool) -> None:
        self._file = file
        self._limit = limits.total_bytes
        if is_compressed:
            self._limit = min(limits.compressed_tar_bytes, max(_SMALL, limits.ratio * n_bytes))
        self._cure = "; unpack it, or pack it as .tar or .zip" if is_compressed else ""

    def read(self, n: int) -> bytes:
        if not 0 <= n <= _LONGEST_READ:
            raise Refusal(Code.ARCHIVE_LIMIT, f"the archive has a header of more than {_LONGEST_READ:,} bytes")
        self._check(self._file.tell() + n)
        return self._file.read(n)

    def seek(self, position: int) -> int:
        self._check(position)
        return self._file.seek(position)

    def tell(self) -> int:
        return self._file.tell()

    def _check(self, position: int) -> None:
        # What follows the last member is less than a record of 10,240 bytes.
        _refuse_beyond("bytes, unpacked", position - 10_240, self._limit, cure=self._cure)


@lru_cache(maxsize=4)
def _tar_index(state: tuple[str, int, int], limits: ArchiveLimits) -> dict[str, tuple[int, int]]:
    """name -> (offset, size) of the members that may be opened; a tar has no table of contents, so it is read through once."""
    members = list_members(Path(state[0]), limits=limits)
    return {member.name: (member.offset, member.size) for member in members if member.problem is None}


class _Section(io.RawIOBase):
    """A stretch of a file as a file of its own."""

    name = "a member of an archive"  # pydicom asks a reader for one

    def __init__(self, path: Path, start: int, size: int) -> None:
        self._file = path.open("rb", buffering=0)
        self._start, self._size, self._at = start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("a seek to before the file's start")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self._size - self._at))
        n_read = self._file.readinto(view[:wanted]) if self._file.seek(self._start + self._at) >= 0 else 0
        self._at += n_read or 0
        return n_read or 0

    def close(self) -> None:
        self._file.close()
        super().close()
