"""Several folders of shards to one, without copying where the file system allows it. Used by `vetdino merge`."""

import os
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vet_extensions.shards.writer import INDEX_NAME, INDEX_SCHEMA, close_tar, shard_name


def join_shards(folders: Sequence[Path], wanted: Sequence[pa.Array], into: Path) -> pa.Table:
    """Give the shards of all `folders` a place in `into`, numbered on; returns their index, columns of INDEX_SCHEMA.

    wanted: for each folder the ids of the images to keep. A shard that holds nothing else is hard-linked (or copied, where the
    folders are on different file systems); of the others the wanted members are copied, so that what a merge refused is not
    in the new shards. The index has the images of the first folder first, each in its folder's order.
    """
    into.mkdir(parents=True, exist_ok=True)
    pieces, n_shards = [INDEX_SCHEMA.empty_table()], 0
    for folder, ids in zip(folders, wanted, strict=True):
        index = pq.read_table(folder / INDEX_NAME)
        is_wanted = pc.is_in(index["image_id"], value_set=ids).to_numpy()
        shards, offsets = index["shard"].to_numpy(), index["offset"].to_numpy().copy()
        numbers = np.full(len(index), -1)
        for shard in np.unique(shards[is_wanted]).tolist():
            here = shards == shard
            source, target = folder / shard_name(shard), into / shard_name(n_shards)
            if is_wanted[here].all():
                _link(source, target)
            else:
                rows = np.flatnonzero(here & is_wanted)
                offsets[rows] = _copy_members(source, target, offsets[rows], index["size"].to_numpy()[rows])
            numbers[here] = n_shards
            n_shards += 1
        columns = {"image_id": index["image_id"], "shard": numbers, "offset": offsets, "size": index["size"]}
        pieces.append(pa.table(columns, schema=INDEX_SCHEMA).filter(pa.array(is_wanted)))
    return pa.concat_tables(pieces)


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())


def _copy_members(source: Path, target: Path, offsets: np.ndarray, sizes: np.ndarray) -> list[int]:
    """Members as they are, header block and padding included; returns where their bytes begin now."""
    places = []
    target.unlink(missing_ok=True)
    with source.open("rb") as old, target.open("wb") as new:
        for offset, size in zip(offsets.tolist(), sizes.tolist(), strict=True):
            old.seek(offset - tarfile.BLOCKSIZE)
            places.append(new.tell() + tarfile.BLOCKSIZE)
            new.write(old.read(tarfile.BLOCKSIZE + size + -size % tarfile.BLOCKSIZE))
        close_tar(new)
    return places
