"""Writes images into shards: plain USTAR files, one `<image_id>.npy` a member, plus an index of byte offsets. Used by intake.

Any tar program and any WebDataset reader can read the shards. The same images in the same order give the same bytes: no
times, no owners. A writer may take over the images that an interrupted one left, and goes on after the last of them.
"""

import contextlib
import io
import os
import tarfile
import zlib
from array import array
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

INDEX_NAME = "index.parquet"
INDEX_SCHEMA = pa.schema(
    [("image_id", pa.string()), ("shard", pa.int32()), ("offset", pa.int64()), ("size", pa.int64())]
)
MAX_SHARD_BYTES = 512 * 2**20
IDS_A_CHUNK = 65536


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


class Place(NamedTuple):
    """Where an image lies: shard number, first byte and number of bytes of its .npy member, and their CRC-32."""

    shard: int
    offset: int
    size: int
    checksum: int

    @property
    def end(self) -> int:
        """The byte after the member, filled to whole blocks."""
        return self.offset + self.size + -self.size % tarfile.BLOCKSIZE


class ShardWriter:
    """Adds images one by one; `close` (or leaving the `with` block) completes the last shard and writes the index.

    The index has a row an image in the order of `add`, which for intake is the manifest's. Leaving the block with an
    exception writes no index. An image has left this process when `add` returns, and is on the disk after `sync`.
    """

    def __init__(self, folder: Path, *, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
        """folder: made if needed. max_shard_bytes: a shard ends before it would grow beyond this, with one image at least."""
        self._folder = Path(folder)
        self._max_shard_bytes = max_shard_bytes
        self._file: BinaryIO | None = None
        self._n_shards = 0
        self._taken_over: Place | None = None
        self._index = _Index()
        self._folder.mkdir(parents=True, exist_ok=True)

    def take_over(self, image_id: str, place: Place, *, verify: bool) -> bool:
        """Keep an image that an interrupted writer added, in its order and before any `add`; False if it is not there.

        verify: read its bytes, which a power failure may have lost though the file has its length.
        """
        assert self._file is None, "images are taken over before any is added"
        path = self._folder / shard_name(place.shard)
        if not path.is_file() or path.stat().st_size < place.end:
            return False
        if verify:
            with path.open("rb") as file:
                file.seek(place.offset)
                if zlib.crc32(file.read(place.size)) != place.checksum:
                    return False
        self._index.append(image_id, place)
        self._n_shards, self._taken_over = place.shard + 1, place
        return True

    def add(self, image_id: str, pixels: np.ndarray) -> Place:
        """Append one image, uint8 or uint16 [H, W]; returns where it lies."""
        assert pixels.ndim == 2, f"a grey image has two axes, got {pixels.shape}"
        assert pixels.dtype in (np.uint8, np.uint16), f"stored images are uint8 or uint16, got {pixels.dtype}"
        payload = _npy_bytes(pixels)
        member = tarfile.TarInfo(f"{image_id}.npy")
        member.size = len(payload)
        header = member.tobuf(format=tarfile.USTAR_FORMAT)
        padding = -len(payload) % tarfile.BLOCKSIZE
        file = self._file_for(len(header) + len(payload) + padding)
        file.write(header)
        place = Place(self._n_shards - 1, file.tell(), len(payload), zlib.crc32(payload))
        file.write(payload)
        file.write(bytes(padding))
        file.flush()
        self._index.append(image_id, place)
        return place

    def sync(self) -> None:
        """Bring what was added to the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Complete the last shard, remove shards beyond it that an interrupted writer left, and write the index."""
        self._go_on()
        self._finish_shard()
        for path in self._folder.glob("shard-*.tar"):
            if path.name >= shard_name(self._n_shards):
                path.unlink()
        write_index(self._folder, self._index.table())

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._file is not None:
            # A full disk fails here again; the first error is the one to tell of.
            with contextlib.suppress(OSError):
                self._file.close()

    def _file_for(self, n_bytes: int) -> BinaryIO:
        self._go_on()
        if self._file is not None and self._file.tell() + n_bytes > self._max_shard_bytes:
            self._finish_shard()
        if self._file is None:
            self._file = (self._folder / shard_name(self._n_shards)).open("wb")
            self._n_shards += 1
        return self._file

    def _go_on(self) -> None:
        """Open the last shard that was taken over, cut off after the last image."""
        if self._taken_over is None:
            return
        self._file = (self._folder / shard_name(self._taken_over.shard)).open("r+b")
        self._file.truncate(self._taken_over.end)
        self._file.seek(self._taken_over.end)
        self._taken_over = None

    def _finish_shard(self) -> None:
        if self._file is not None:
            close_tar(self._file)
            self._file.close()
            self._file = None


def close_tar(file: BinaryIO) -> None:
    """Two empty blocks end a tar file; it is filled to whole records, as tar itself does (POSIX.1-1988 ustar), and synced."""
    file.write(bytes(2 * tarfile.BLOCKSIZE))
    file.write(bytes(-file.tell() % tarfile.RECORDSIZE))
    file.flush()
    os.fsync(file.fileno())


def write_index(folder: Path, table: pa.Table) -> None:
    """Write the index of the shards in `folder`, under a temporary name first. table: columns of INDEX_SCHEMA."""
    temporary = folder / f"{INDEX_NAME}.tmp"
    pq.write_table(table, temporary)
    temporary.replace(folder / INDEX_NAME)


class _Index:
    """The rows of the index as columns: about 40 bytes an image."""

    def __init__(self) -> None:
        self._places = (array("i"), array("q"), array("q"))
        self._ids: list[pa.Array] = []
        self._pending: list[str] = []

    def append(self, image_id: str, place: Place) -> None:
        for column, value in zip(self._places, place[:3], strict=True):
            column.append(value)
        self._pending.append(image_id)
        if len(self._pending) == IDS_A_CHUNK:
            self._pack()

    def table(self) -> pa.Table:
        self._pack()
        columns = [pa.array(np.array(column, column.typecode)) for column in self._places]
        return pa.table([pa.concat_arrays(self._ids), *columns], schema=INDEX_SCHEMA)

    def _pack(self) -> None:
        self._ids.append(pa.array(self._pending, pa.string()))
        self._pending = []


def _npy_bytes(pixels: np.ndarray) -> bytes:
    """The image as a .npy file, version 1.0, little-endian, C order."""
    buffer = io.BytesIO()
    little = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder("<"), copy=False))
    np.lib.format.write_array(buffer, little, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()
