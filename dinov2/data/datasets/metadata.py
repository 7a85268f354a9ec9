"""The metadata files of the official data sets, `.npy` arrays of rows: mapped into memory where they are read, written whole or
not at all. Called by `ImageNet` and `ImageNet22k`; the command `python -m dinov2.data.datasets.prepare` makes the files.
"""

import contextlib
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dinov2.utils.errors import UserError

OFFICIAL_OFFSET = np.dtype("<u4")
WIDE_OFFSET = np.dtype("<u8")


class Rows:
    """One metadata file, opened at its first use. Sent to another process, it opens the file there instead of copying it."""

    def __init__(self, path: Path, *, fields: Iterable[str] = (), command: str) -> None:
        """fields: that each row must have; none for an array of plain values. command: makes the file, for messages."""
        self.path = path
        self._fields = tuple(fields)
        self._command = command
        self._rows: np.ndarray | None = None

    def get(self) -> np.ndarray:
        """The rows, read-only. Raises `UserError` that names the command to run when the file is missing or no such file."""
        if self._rows is None:
            self._rows = self._open()
        return self._rows

    def forget(self) -> None:
        """Open the file anew at the next use: it was written again."""
        self._rows = None

    def _open(self) -> np.ndarray:
        try:
            rows = np.load(self.path, mmap_mode="r")
        except FileNotFoundError:
            raise UserError(
                f"There is no metadata file '{self.path}', which lists the images or the classes. "
                f"Make it once with: {self._command}"
            ) from None
        except (ValueError, EOFError) as error:
            raise UserError(
                f"The metadata file '{self.path}' cannot be read as a .npy array. Make it anew with: {self._command}"
            ) from error
        missing = [name for name in self._fields if name not in (rows.dtype.names or ())]
        if missing or rows.ndim != 1:
            raise UserError(
                f"The metadata file '{self.path}' holds {rows.dtype} of shape {rows.shape}; expected are rows"
                f"{' with ' + ', '.join(self._fields) if self._fields else ''}. Make it anew with: {self._command}"
            )
        return rows.view(np.ndarray)  # numpy's memmap class makes each access slower

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_rows": None}


def save_rows(path: Path, *, dtype: np.dtype, length: int, parts: Iterable[np.ndarray]) -> None:
    """Write `parts`, together `length` rows, as one `.npy` file; whoever opens `path` sees the old file or the new one whole."""
    written = 0
    with _written_aside(path) as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            assert part.dtype == dtype, f"rows of {part.dtype} in a file of {dtype}"
            file.write(part.tobytes())
            written += len(part)
        assert written == length, f"{written} rows for a file of {length}"


def text_dtype(texts: Iterable[str]) -> np.dtype:
    """The `U` type that holds the longest of these texts."""
    return np.dtype(f"<U{max((len(text) for text in texts), default=0) or 1}")


def offset_dtype(greatest: int) -> np.dtype:
    """Of byte offsets up to `greatest`: the official 32 bits, or 64 for tar files beyond 4 GiB."""
    return OFFICIAL_OFFSET if greatest <= np.iinfo(OFFICIAL_OFFSET).max else WIDE_OFFSET


def prepare_command(name: str, *, root: Any, extra: Any, split: str | None = None) -> str:
    """The command line that makes the metadata of the data set `name`, as one would type it."""
    words = ["python", "-m", "dinov2.data.datasets.prepare", name, "--root", str(root), "--extra", str(extra)]
    return shlex.join(words if split is None else [*words, "--split", split])


def kind_of(name: str) -> str:
    """What a count of files calls this one: its suffix, never its name."""
    return Path(name).suffix or "without suffix"


def listed(kinds: Counter[str]) -> str:
    """Counts in words: "3 .txt, 1 folder"; "nothing" without any."""
    return ", ".join(f"{count:,d} {kind}" for kind, count in kinds.most_common()) or "nothing"


def shortened(names: Iterable[str], *, limit: int = 10) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - limit:,d} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


@contextlib.contextmanager
def _written_aside(path: Path) -> Iterator[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
