"""The folder an intake writes: taken over, filled under temporary names, published at the end; finished or not, never in between.

`run` opens one `OutputFolder` a run. While a run lasts everything new lies in OUT/.unfinished, or where it is private under a
temporary name in OUT/private; `intake.json` is written last and means that the rest is whole. What a run that was stopped left
there is what the next one goes on from.
"""

import contextlib
import csv
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from vet_extensions.errors import UserError
from vet_extensions.intake.files import FileKeys, FileList
from vet_extensions.intake.options import IntakeSummary
from vet_extensions.intake.raw_values import TEXTS_NAME
from vet_extensions.intake.tables import Rejections
from vet_extensions.schema import IntakeFolder

UNFINISHED = ".unfinished"
SOURCES_NAME = "sources.csv"
CANDIDATES_NAME = "candidates.parquet"
"""In OUT/private: file id -> path; and, of a part, all that `vetdino merge` decides by."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class OutputFolder:
    """One run's hold on OUT; a context manager that locks it against a second run."""

    def __init__(self, root: Path) -> None:
        """Errors: UserError where `root` is a file, or holds something that no intake wrote."""
        self.layout = IntakeFolder(root)
        self.staging = root / UNFINISHED
        self._lock: TextIO | None = None
        if root.exists() and not root.is_dir():
            raise UserError(f"The output '{root}' is a file. Give a new or empty folder.")
        if root.is_dir() and not self.layout.summary.exists() and not self.staging.exists():
            foreign = sorted(path.name for path in root.iterdir() if path != self.layout.private)
            if foreign:
                raise UserError(
                    f"The output folder '{root}' holds something else ({len(foreign)} entries, no {self.layout.summary.name}). "
                    "Give a new or empty folder, or the folder of an earlier intake."
                )

    def __enter__(self) -> "OutputFolder":
        self.staging.mkdir(parents=True, exist_ok=True)
        self._lock = (self.staging / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise UserError(
                f"Another intake is writing to '{self.layout.root}'. Wait until it ends, or give another folder."
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def finished(self) -> IntakeSummary | None:
        """What the finished run in this folder reported; None if there is none."""
        if not self.layout.summary.exists():
            return None
        try:
            return IntakeSummary.from_json(json.loads(self.layout.summary.read_text(encoding="utf-8")))
        except (ValueError, TypeError, KeyError):
            raise UserError(
                f"'{self.layout.summary}' is damaged or was written by another version. Give a new folder, or delete this one."
            ) from None

    def take_up(self) -> None:
        """Bring what an interrupted run left into the state in which it can go on: nothing of it is published."""
        if self.layout.shards.exists():
            self.layout.shards.replace(self.staging / self.layout.shards.name)
        for path in self._published()[1:]:
            _remove(path)
            # Tables are written anew; one that only a part has would be published by a run that is none.
            _remove(self.staged(path))

    def staged(self, path: Path) -> Path:
        """Where a file or folder of OUT lies until it is published: what is private never leaves OUT/private."""
        return _staged_private(path) if path.parent == self.layout.private else self.staging / path.name

    def publish(self, summary: IntakeSummary) -> None:
        """Give the finished parts their names, the summary last."""
        self.layout.private.mkdir(mode=0o700, exist_ok=True)
        for path in self._published():
            staged = self.staged(path)
            if staged.exists():
                _sync(staged)
                staged.replace(path)
        staged = self.staging / self.layout.summary.name
        with staged.open("w", encoding="utf-8") as file:
            json.dump(summary.as_json(), file, indent=2)
            file.write("\n")
            _flush(file)
        staged.replace(self.layout.summary)
        self.clean_up()

    def clean_up(self) -> None:
        """Remove the temporary folder, lock and all, and the texts that a run that goes on would have needed."""
        (self.layout.private / TEXTS_NAME).unlink(missing_ok=True)
        shutil.rmtree(self.staging)

    def _published(self) -> tuple[Path, ...]:
        private = self.layout.private
        return (
            self.layout.shards,
            self.layout.manifest,
            self.layout.rejected,
            private / SOURCES_NAME,
            private / CANDIDATES_NAME,
        )


def write_lists(staging: Path, *, files: FileList, keys: FileKeys, rejected: Rejections) -> None:
    """rejected.csv and sources.csv, under their temporary names; the paths lie in OUT/private from the start."""
    write_csv(
        staging / "rejected.csv",
        header=("file_id", "code", "detail"),
        rows=((keys.file_id(position), str(r.code), r.detail) for position, _, r in rejected.in_order()),
    )
    write_csv(
        _staged_private(IntakeFolder(staging.parent).private / SOURCES_NAME),
        header=("file_id", "path"),
        rows=((keys.file_id(position), file.relative) for position, file in enumerate(files)),
        mode=0o600,
    )


def write_csv(path: Path, *, header: tuple[str, ...], rows: Iterable[tuple[str, ...]], mode: int = 0o644) -> None:
    """A CSV table in UTF-8; file names that are not valid text come back byte for byte (surrogateescape)."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
        _flush(file)


@contextlib.contextmanager
def saying_when_full(out: Path) -> Iterator[None]:
    """Errors: UserError where the disk is full (or a quota, or the largest file allowed); any other error passes."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise UserError(
            f"The disk of '{out}' is full ({errno.errorcode[error.errno]}). Nothing half-written counts. Free space, then give "
            "the same command again: it goes on where it stopped."
        ) from None


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _staged_private(path: Path) -> Path:
    return path.with_name(path.name + UNFINISHED)


def _flush(file: TextIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
