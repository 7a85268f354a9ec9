"""Which files an archive holds: a walk that follows no link, opens nothing it should not, and always gives the same order.

`run` calls `list_files` first; what cannot be a DICOM file by its kind is marked here.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vet_extensions.errors import UserError
from vet_extensions.schema import Rejection, RejectionCode


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One entry of the archive. relative: its path below the root, "/" between folders. problem: why it is not worth opening."""

    relative: str
    size: int = 0
    mtime_ns: int = 0
    problem: Rejection | None = None


def list_files(root: Path) -> list[SourceFile]:
    """Every file below `root`, sorted by path. Links, pipes, sockets and devices are listed with a problem, never opened.

    Errors: UserError if `root` is no readable folder.
    """
    if not root.is_dir():
        kind = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"The source '{root}' {kind}. Give the folder that holds the DICOM files.")
    return sorted(_walk(root), key=lambda file: os.fsencode(file.relative))


def holds_dicom(root: Path, files: Iterable[SourceFile]) -> bool:
    """Whether any file carries the DICOM mark; stops at the first."""
    return any(file.problem is None and _has_mark(root / file.relative) for file in files)


def _walk(root: Path) -> Iterator[SourceFile]:
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
                    else:
                        yield _describe(entry, relative)
        except OSError as error:
            if folder == "":
                raise UserError(
                    f"The source folder cannot be read ({type(error).__name__}). Check its permissions."
                ) from None
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


def _has_mark(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
