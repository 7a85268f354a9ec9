"""An append-only record of what a run has finished, so that a run that was killed goes on where it stood. Used by `run`.

A journal is a text file: one line an entry, a CRC-32 before each, so that a line that was torn by a kill or lost by a power
failure ends the journal there instead of being believed. It is for its owner's eyes only, like what its entries are made of.
"""

import json
import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

SYNC_EVERY_S = 5.0
"""What a power failure can cost. A kill costs nothing: each entry has left the process before the next begins."""

_SYNCED = "on disk"


class Journal:
    """Entries that `json` can write, in the order of `append`. Open it, `replay` what is there, then `append`.

    head: what the entries depend on; a journal with another head is emptied.
    """

    def __init__(self, path: Path, *, head: str, sync_every_s: float = SYNC_EVERY_S) -> None:
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0)
        self._sync_every_s = sync_every_s
        self._last_sync = time.monotonic()
        first = _line({"head": head})
        with path.open("rb") as file:
            is_ours = file.readline() == first
        if not is_ours:
            self._file.truncate(0)
            self._append_line(first)
        self._start = len(first)

    def replay(self, accept: Callable[[Any, bool], bool]) -> int:
        """Give each entry to `accept(entry, is_on_disk)` until one is torn or refused; the file ends before that one.

        is_on_disk: it was followed by a `sync`, so that what it speaks of survived a power failure too. Returns how many
        entries were accepted.
        """
        n_accepted, end = 0, self._start
        synced = self._last_sync_mark()
        with open(self._file.fileno(), "rb", closefd=False) as lines:
            lines.seek(self._start)
            for line in lines:
                is_whole, entry = _parse(line)
                if not is_whole:
                    break
                if entry != _SYNCED:
                    if not accept(entry, end < synced):
                        break
                    n_accepted += 1
                end += len(line)
        self._file.truncate(end)
        return n_accepted

    def append(self, entry: Any) -> None:
        """Add one entry. Errors: OSError, with the entry torn or missing."""
        self._append_line(_line(entry))

    def is_sync_due(self) -> bool:
        """Whether some seconds have passed since the last `sync`."""
        return time.monotonic() - self._last_sync >= self._sync_every_s

    def sync(self) -> None:
        """Bring all entries to the disk. What they speak of must be there already."""
        self._append_line(_line(_SYNCED))
        os.fsync(self._file.fileno())
        self._last_sync = time.monotonic()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append_line(self, line: bytes) -> None:
        self._file.seek(0, os.SEEK_END)
        written = self._file.write(line)
        while written < len(line):  # a disk that is nearly full takes a part first, and then refuses
            written += self._file.write(line[written:])

    def _last_sync_mark(self) -> int:
        """The byte at which the last whole sync mark begins; 0 without one."""
        mark, position, found = _line(_SYNCED), self._start, 0
        with open(self._file.fileno(), "rb", closefd=False) as lines:
            lines.seek(self._start)
            for line in lines:
                if line == mark:
                    found = position
                position += len(line)
        return found


def _line(entry: Any) -> bytes:
    text = json.dumps(entry, separators=(",", ":")).encode("ascii")
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parse(line: bytes) -> tuple[bool, Any]:
    checksum, text = line[:8], line[9:-1]
    if line[-1:] != b"\n" or checksum != b"%08x" % zlib.crc32(text):
        return False, None
    return True, json.loads(text)
