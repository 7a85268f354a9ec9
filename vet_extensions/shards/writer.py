"""Writes images into shards: plain USTAR files, one `<image_id>.npy` a member, plus an index of byte offsets. Used by intake.

Any tar program and any WebDataset reader can read the shards. The same images in the same order give the same bytes: no
times, no owners.
"""

import io
import os
import tarfile
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

INDEX_NAME = "index.parquet"
INDEX_SCHEMA = pa.schema(
    [("image_id", pa.string()), ("shard", pa.int32()), ("offset", pa.int64()), ("size", pa.int64())]
)
MAX_SHARD_BYTES = 512 * 2**20


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


class ShardWriter:
    """Adds images one by one; `close` (or leaving the `with` block) completes the last shard and writes the index.

    The index has a row an image in the order of `add`, which for intake is the manifest's. Leaving the block with an
    exception writes no index.
    """

    def __init__(self, folder: Path, *, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
        """folder: made if needed. max_shard_bytes: a shard ends before it would grow beyond this, with one image at least."""
        self._folder = Path(folder)
        self._max_shard_bytes = max_shard_bytes
        self._file: BinaryIO | None = None
        self._n_shards = 0
        self._index: dict[str, list] = {name: [] for name in INDEX_SCHEMA.names}
        self._folder.mkdir(parents=True, exist_ok=True)

    def add(self, image_id: str, pixels: np.ndarray) -> None:
        """Append one image, uint8 or uint16 [H, W]."""
        assert pixels.ndim == 2, f"a grey image has two axes, got {pixels.shape}"
        assert pixels.dtype in (np.uint8, np.uint16), f"stored images are uint8 or uint16, got {pixels.dtype}"
        payload = _npy_bytes(pixels)
        member = tarfile.TarInfo(f"{image_id}.npy")
        member.size = len(payload)
        header = member.tobuf(format=tarfile.USTAR_FORMAT)
        padding = -len(payload) % tarfile.BLOCKSIZE
        file = self._file_for(len(header) + len(payload) + padding)
        file.write(header)
        row = {"image_id": image_id, "shard": self._n_shards - 1, "offset": file.tell(), "size": len(payload)}
        file.write(payload)
        file.write(bytes(padding))
        for name, value in row.items():
            self._index[name].append(value)

    def close(self) -> None:
        self._finish_shard()
        table = pa.table(self._index, schema=INDEX_SCHEMA)
        temporary = self._folder / f"{INDEX_NAME}.tmp"
        pq.write_table(table, temporary)
        temporary.replace(self._folder / INDEX_NAME)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._file is not None:
            self._file.close()

    def _file_for(self, n_bytes: int) -> BinaryIO:
        if self._file is not None and self._file.tell() + n_bytes > self._max_shard_bytes:
            self._finish_shard()
        if self._file is None:
            self._file = (self._folder / shard_name(self._n_shards)).open("wb")
            self._n_shards += 1
        return self._file

    def _finish_shard(self) -> None:
        """Two empty blocks end a tar file; it is filled to whole records, as tar itself does (POSIX.1-1988 ustar)."""
        if self._file is None:
            return
        self._file.write(bytes(2 * tarfile.BLOCKSIZE))
        self._file.write(bytes(-self._file.tell() % tarfile.RECORDSIZE))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None


def _npy_bytes(pixels: np.ndarray) -> bytes:
    """The image as a .npy file, version 1.0, little-endian, C order."""
    buffer = io.BytesIO()
    little = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder("<"), copy=False))
    np.lib.format.write_array(buffer, little, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()
