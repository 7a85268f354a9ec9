"""An array on disk that is filled row by row, by any number of writers, and knows which rows hold what was written.

`store.FeatureStore` keeps features in such files. A `RowFile` is a .npy file (numpy maps it into memory, whole or not) with one
CRC-32 a row behind the array, written after its row: a row without a fitting checksum is missing, whether it was never written,
cut off by a crash, torn by two writers or damaged since. A file that is no such file is made anew.
"""

import contextlib
import os
import zlib
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vet_extensions.errors import UserError

_CHECKSUM = np.dtype("<u4")


class RowFile:
    """[n_rows, *shape] of one dtype in a file; rows that were never written are missing. A context manager that closes the file,
    which ends writing; what `read` gave stays valid."""

    def __init__(self, path: Path, *, n_rows: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Open the file, or make it, sparse, where it is absent or not such a file."""
        self.path, self.n_rows, self.shape, self.dtype = path, n_rows, shape, np.dtype(dtype)
        self.row_bytes = int(np.prod(shape)) * self.dtype.itemsize
        offset = self._find_rows()
        self._offset = self._create() if offset is None else offset
        self.end_of_rows = self._offset + n_rows * self.row_bytes
        # Maps and writes share one open file: another writer may put a new one under the name meanwhile.
        self._file = path.open("r+b" if os.access(path, os.W_OK) else "rb", buffering=0)
        self._values = np.memmap(self._file, mode="r", dtype=self.dtype, offset=self._offset, shape=(n_rows, *shape))
        self._sums = np.memmap(self._file, mode="r", dtype=_CHECKSUM, offset=self.end_of_rows, shape=(n_rows,))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def missing(self, rows: NDArray[np.integer]) -> NDArray[np.bool_]:
        """For each of `rows`, whether it has no fitting checksum. Reads every row that has one."""
        is_written = self._sums[rows] != 0
        for place in np.flatnonzero(is_written):
            row = rows[place]
            is_written[place] = _checksum(self._values[row]) == self._sums[row]
        return ~is_written

    def read(self, rows: NDArray[np.integer] | None = None) -> NDArray[Any]:
        """Rows as a copy, [len(rows), *shape]; None for a read-only map of all."""
        whole = np.asarray(self._values)
        return whole if rows is None else whole[rows]

    def write(self, rows: NDArray[np.integer], values: NDArray[Any]) -> None:
        """Put values [len(rows), *shape] in place. Raises `UserError` when the disk is full or cannot be written."""
        assert (values.shape, values.dtype) == ((len(rows), *self.shape), self.dtype), "values do not fit the file"
        try:
            # Not through the map: where the disk is full, a write raises, and a map ends the process.
            for row, value in zip(rows.tolist(), values, strict=True):
                content = np.ascontiguousarray(value)
                checksum = np.array(_checksum(content), dtype=_CHECKSUM)
                os.pwrite(self._file.fileno(), content.tobytes(), self._offset + row * self.row_bytes)
                os.pwrite(self._file.fileno(), checksum.tobytes(), self.end_of_rows + row * _CHECKSUM.itemsize)
        except OSError as error:
            raise UserError(
                f"'{self.path.name}' in the feature folder cannot be written ({error.strerror}). Make room or mend the folder, "
                "and give the same command again: it goes on where it stood."
            ) from error

    def _find_rows(self) -> int | None:
        """Where the rows begin; None where there is no whole file of this shape."""
        with contextlib.suppress(OSError, ValueError, EOFError), self.path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
            found = (version, shape, is_fortran, dtype)
            size = file.tell() + self.n_rows * (self.row_bytes + _CHECKSUM.itemsize)
            if found == ((1, 0), (self.n_rows, *self.shape), False, self.dtype) and file.seek(0, os.SEEK_END) == size:
                return size - self.n_rows * (self.row_bytes + _CHECKSUM.itemsize)
        return None

    def _create(self) -> int:
        """An empty file under the final name; whoever has the old one open keeps it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(f".{os.getpid()}.partial")
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.n_rows, *self.shape)}
        with partial.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            offset = file.tell()
            file.truncate(offset + self.n_rows * (self.row_bytes + _CHECKSUM.itemsize))
        partial.replace(self.path)
        return offset


def _checksum(row: NDArray[Any]) -> int:
    """CRC-32 of a row's bytes; never 0, which stands for a row that was not written."""
    return zlib.crc32(np.ascontiguousarray(row).data) or 1
