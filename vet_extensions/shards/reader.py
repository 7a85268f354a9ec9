"""Random access to the images of an intake folder by row of its manifest. Used by data sets, evaluation and pictures.

A reader is cheap to make and to pickle: it carries the folder's path, shares the index with all processes of the machine
(`mapped_arrays`), and maps a shard into memory when it is first asked for one of its images. A forked or spawned worker gets
maps of its own.
"""

import io
import math
import mmap
import os
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from vet_extensions.errors import UserError
from vet_extensions.schema import IntakeFolder
from vet_extensions.shards.mapped import cache_key, mapped_arrays
from vet_extensions.shards.writer import shard_name

MAX_OPEN_SHARDS = 128
"""Every open map holds a file descriptor, of which a process commonly has 1,024."""

_PLACE = ("shard", "offset", "size")
_TAIL_BYTES = 2**16
_FIXED_HEAD_BYTES = 10
"""Of a .npy file: magic string, version, and in the last two bytes the length of what follows before the array."""


class ShardReader:
    """`reader.read(row)` gives one image; `len(reader)` is the number of images."""

    def __init__(self, root: Path) -> None:
        """root: the intake folder. Errors: UserError if it holds no shard index."""
        self.root = Path(root)
        self._load_index()
        self._forget_maps()

    def __len__(self) -> int:
        return len(self._shard)

    def read(self, row_index: int) -> np.ndarray:
        """uint8 or uint16 [H, W], a copy of its own. row_index: row of the full manifest (`Manifest.row_index` of a selection).

        Errors: IndexError beyond the last image; UserError for a missing, truncated or damaged shard.
        """
        if not 0 <= row_index < len(self):
            raise IndexError(
                f"Image {row_index} asked for, but the shards hold {len(self)} images (0 to {len(self) - 1})."
            )
        shard, offset, size = int(self._shard[row_index]), int(self._offset[row_index]), int(self._size[row_index])
        view = self._map(shard)
        if len(view) < offset + size:
            raise UserError(
                f"{self._path(shard)} is truncated: image {row_index} should end at byte {offset + size:,}, but the file has "
                f"{len(view):,}. Copy the intake folder anew, or repeat the intake."
            )
        try:
            pixels = _array_at(view, offset, size)
        except ValueError:
            pixels = None
        if pixels is None or pixels.ndim != 2:
            raise UserError(
                f"{self._path(shard)} holds no image at byte {offset:,}: shard and index do not belong together, or the file is "
                "damaged. Run `vetdino check` on the folder; copy it anew, or repeat the intake."
            )
        return pixels

    def __getstate__(self) -> dict[str, Any]:
        """The path alone: the index is read again in the other process, the maps are opened there."""
        return {"root": self.root}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.root = state["root"]
        self._load_index()
        self._forget_maps()

    def _load_index(self) -> None:
        path = IntakeFolder(self.root).index
        if not path.is_file():
            raise UserError(
                f"'{self.root}' holds no shard index ({path.relative_to(self.root)}). "
                "Give the folder that `vetdino intake` wrote."
            )
        arrays = mapped_arrays(
            self.root,
            "places",
            key=index_key(self.root),
            make=lambda: {name: pq.read_table(path, columns=[name])[name].to_numpy() for name in _PLACE},
        )
        self._shard, self._offset, self._size = (arrays[name] for name in _PLACE)

    def _forget_maps(self) -> None:
        self._maps: OrderedDict[int, mmap.mmap] = OrderedDict()
        self._process = os.getpid()

    def _path(self, shard: int) -> Path:
        return IntakeFolder(self.root).shards / shard_name(shard)

    def _map(self, shard: int) -> mmap.mmap:
        if self._process != os.getpid():
            self._forget_maps()
        if shard not in self._maps:
            if len(self._maps) >= MAX_OPEN_SHARDS:
                self._maps.popitem(last=False)[1].close()
            self._maps[shard] = self._open(shard)
        self._maps.move_to_end(shard)
        return self._maps[shard]

    def _open(self, shard: int) -> mmap.mmap:
        path = self._path(shard)
        try:
            with path.open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            reason = "is empty" if isinstance(error, ValueError) else f"cannot be opened ({type(error).__name__})"
            raise UserError(f"Shard {path} {reason}. Copy the intake folder anew, or repeat the intake.") from None


def _array_at(view: mmap.mmap, offset: int, size: int) -> np.ndarray:
    """The .npy file that lies in `view`, copied once: numpy's own reader parses the header anew and copies three times.

    Errors: ValueError for anything else than a whole file of version 1.0, which the writer writes.
    """
    start = offset + _FIXED_HEAD_BYTES
    start += int.from_bytes(view[start - 2 : start], "little")
    shape, is_fortran, dtype = _layout(view[offset:start])
    n = math.prod(shape)
    if start + n * dtype.itemsize != offset + size:
        raise ValueError("the array does not fill its place")
    return np.frombuffer(view, dtype, n, start).reshape(shape, order="F" if is_fortran else "C").copy()


@lru_cache(maxsize=4096)
def _layout(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and type of a .npy header; an archive has few different ones."""
    file = io.BytesIO(header)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not version 1.0")
    return np.lib.format.read_array_header_1_0(file)


def index_key(root: Path) -> str:
    """Stands for the shard index as it is now: size, time of change and last bytes (Parquet's statistics)."""
    path = IntakeFolder(root).index
    about = path.stat()
    with path.open("rb") as file:
        file.seek(-min(_TAIL_BYTES, about.st_size), os.SEEK_END)
        tail = file.read()
    return cache_key(about.st_size, about.st_mtime_ns, tail)
