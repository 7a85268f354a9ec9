"""Which files a folder holds: a walk that follows no link, opens nothing it should not, and always gives the same order.

`DicomFolder` calls `list_files`; what cannot be a DICOM file by its kind is marked here. The list is columns, since an archive
of 5 million files must fit beside everything else; `run` keeps any source's items in one.
"""

import errno
import hashlib
import os
import re
import stat
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vet_extensions.errors import UserError
from vet_extensions.intake.deidentify import Pseudonyms
from vet_extensions.schema import Rejection, RejectionCode

PATHS_A_CHUNK = 65536


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One entry of the archive. relative: its path below the root, "/" between folders; or an item's key.

    stamp: changes when the content may have changed: the time of change in ns, or a hash of it and more (64 bits, signed).
    problem: why it is not worth opening.
    """

    relative: str
    size: int = 0
    stamp: int = 0
    problem: Rejection | None = None


class FileList(Sequence[SourceFile]):
    """Files sorted by the bytes of their paths; about 16 bytes a file beside the path itself."""

    def __init__(self, files: Iterable[SourceFile]) -> None:
        chunks: list[pa.Array] = []
        pending: list[bytes] = []
        sizes, stamps = array("q"), array("q")
        problems: dict[bytes, Rejection] = {}
        for file in files:
            path = os.fsencode(file.relative)
            pending.append(path)
            sizes.append(file.size)
            stamps.append(file.stamp)
            if file.problem is not None:
                problems[path] = file.problem
            if len(pending) == PATHS_A_CHUNK:
                chunks.append(pa.array(pending, pa.large_binary()))
                pending = []
        chunks.append(pa.array(pending, pa.large_binary()))
        paths = pa.concat_arrays(chunks)
        order = pc.sort_indices(paths)
        self._paths = paths.take(order)
        self._sizes = np.frombuffer(sizes, np.int64)[order.to_numpy()] if sizes else np.zeros(0, np.int64)
        self._stamps = np.frombuffer(stamps, np.int64)[order.to_numpy()] if stamps else np.zeros(0, np.int64)
        self._problems = problems

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, position):  # pyright: ignore[reportIncompatibleMethodOverride]
        path: bytes = self._paths[position].as_py()
        size, stamp = int(self._sizes[position]), int(self._stamps[position])
        return SourceFile(os.fsdecode(path), size, stamp, self._problems.get(path))

    def __iter__(self) -> Iterator[SourceFile]:
        for start in range(0, len(self), PATHS_A_CHUNK):
            paths = self._paths.slice(start, PATHS_A_CHUNK).to_pylist()
            sizes, stamps = (column[start : start + len(paths)].tolist() for column in (self._sizes, self._stamps))
            for path, size, stamp in zip(paths, sizes, stamps, strict=True):
                yield SourceFile(os.fsdecode(path), size, stamp, self._problems.get(path))

    def ending_with(self, suffixes: Iterable[str]) -> Iterator[SourceFile]:
        """The files whose names end with one of these, in any case."""
        pattern = "(?i)(" + "|".join(re.escape(suffix) for suffix in suffixes) + ")$"
        found = pc.match_substring_regex(self._paths, pattern)
        return (self[position] for position in np.flatnonzero(found.to_numpy(zero_copy_only=False)).tolist())

    def keys(self, pseudonyms: Pseudonyms) -> "FileKeys":
        """The pseudonym and the state of each file, as numbers."""
        ids, states = array("Q"), array("Q")
        for file in self:
            file_id = int(pseudonyms.file(file.relative), 16)
            state = hashlib.blake2b(b"%d %d %d" % (file_id, file.size, file.stamp), digest_size=8)
            ids.append(file_id)
            states.append(int.from_bytes(state.digest()))
        return FileKeys(np.array(ids, np.uint64), np.array(states, np.uint64))


@dataclass(frozen=True)
class FileKeys:
    """Of each file in a list: ids, uint64 [n], its pseudonym; states, uint64 [n], a hash of pseudonym, size and stamp.

    A file that was changed has another state: what a journal says of the old one does not hold.
    """

    ids: np.ndarray
    states: np.ndarray

    def file_id(self, position: int) -> str:
        return f"{int(self.ids[position]):016x}"

    def finder(self) -> Callable[[int], int]:
        """state -> position in the list, -1 where no file is in that state."""
        order = np.argsort(self.states)
        ordered = self.states[order]

        def position_of(state: int) -> int:
            place = int(np.searchsorted(ordered, np.uint64(state)))
            return int(order[place]) if place < len(ordered) and int(ordered[place]) == state else -1

        return position_of


def list_files(root: Path, *, chosen: Callable[[bytes], bool] = lambda _: True) -> FileList:
    """Every file below `root`, sorted by path. Links, pipes, sockets and devices are listed with a problem, never opened.

    chosen: by its relative path, whether a file belongs to the list; the others are not even asked for their size.
    Errors: UserError if `root` is no readable folder.
    """
    if not root.is_dir():
        kind = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"The source '{root}' {kind}. Give the folder that holds the DICOM files.")
    return FileList(_walk(root, chosen))


class NotRegularError(OSError):
    """A link, pipe, socket or device where a file was expected."""


def open_regular(path: Path) -> BinaryIO:
    """A regular file's bytes. What was one when it was listed may be a link or a pipe by now: no link is followed, no pipe waited
    for. Errors: OSError; NotRegularError for what is no regular file."""
    try:
        file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115 (the caller closes it)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a socket
            raise NotRegularError("no regular file") from None
        raise
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise NotRegularError("no regular file")
    return file


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _walk(root: Path, chosen: Callable[[bytes], bool]) -> Iterator[SourceFile]:
    """Depth is bounded by the file system's path length; no recursion, so that it is not bounded by Python's."""
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    relative = f"{folder}{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(f"{relative}/")
                    elif chosen(os.fsencode(relative)):
                        yield _describe(entry, relative)
        except OSError as error:
            if folder == "":
                raise UserError(
                    f"The source folder cannot be read ({type(error).__name__}). Check its permissions."
                ) from None
            if chosen(os.fsencode(folder)):
                reason = Rejection(RejectionCode.UNREADABLE, f"the folder cannot be read ({type(error).__name__})")
                yield SourceFile(folder, problem=reason)


def _describe(entry: os.DirEntry[str], relative: str) -> SourceFile:
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError as error:
        reason = Rejection(RejectionCode.UNREADABLE, f"the file cannot be read ({type(error).__name__})")
        return SourceFile(relative, problem=reason)
    if stat.S_ISREG(status.st_mode):
        return SourceFile(relative, status.st_size, status.st_mtime_ns)
    reason = Rejection(RejectionCode.NOT_A_REGULAR_FILE, "a link, pipe, socket or device")
    return SourceFile(relative, problem=reason)
