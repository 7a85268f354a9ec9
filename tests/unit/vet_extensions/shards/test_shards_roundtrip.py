"""Shards: what is written comes back, from any process, and any tar program can read them."""

import io
import multiprocessing
import pickle
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from vet_extensions.errors import UserError
from vet_extensions.shards import ShardReader, ShardWriter


def make_images(n: int = 7, dtype: type = np.uint8) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, np.iinfo(dtype).max, (20 + i, 30 - i)).astype(dtype) for i in range(n)]


def write(root: Path, images: Iterable[np.ndarray], **options: int) -> ShardReader:
    with ShardWriter(root / "shards", **options) as writer:
        for number, pixels in enumerate(images):
            writer.add(f"{number:016x}", pixels)
    return ShardReader(root)


def read_first(reader: ShardReader) -> np.ndarray:
    return reader.read(0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_images_come_back_by_row_in_any_order(tmp_path: Path, dtype: type) -> None:
    images = make_images(dtype=dtype)
    reader = write(tmp_path, images)
    assert len(reader) == len(images)
    for row in (3, 0, 6, 3):
        np.testing.assert_array_equal(reader.read(row), images[row])
        assert reader.read(row).dtype == dtype


def test_a_full_shard_is_followed_by_another(tmp_path: Path) -> None:
    images = make_images()
    reader = write(tmp_path, images, max_shard_bytes=3 * 1536)
    assert [path.name for path in sorted((tmp_path / "shards").glob("*.tar"))] == [
        f"shard-{i:06d}.tar" for i in range(3)
    ]
    for row, pixels in enumerate(images):
        np.testing.assert_array_equal(reader.read(row), pixels)


def test_an_image_larger_than_a_shard_gets_one_of_its_own(tmp_path: Path) -> None:
    images = make_images(3)
    reader = write(tmp_path, images, max_shard_bytes=100)
    np.testing.assert_array_equal(reader.read(2), images[2])


def test_tar_programs_read_the_shards(tmp_path: Path) -> None:
    images = make_images()
    write(tmp_path, images)
    with tarfile.open(tmp_path / "shards" / "shard-000000.tar") as archive:
        members = archive.getmembers()
        assert [member.name for member in members] == [f"{i:016x}.npy" for i in range(len(images))]
        file = archive.extractfile(members[4])
        assert file is not None
        np.testing.assert_array_equal(np.load(io.BytesIO(file.read())), images[4])


def test_the_index_points_at_the_first_byte_of_each_array(tmp_path: Path) -> None:
    write(tmp_path, make_images())
    data = (tmp_path / "shards" / "shard-000000.tar").read_bytes()
    index = pq.read_table(tmp_path / "shards" / "index.parquet")
    assert index.column_names == ["image_id", "shard", "offset", "size"]
    assert all(data[offset : offset + 6] == b"\x93NUMPY" for offset in index["offset"].to_pylist())


def test_the_same_images_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, make_images())
    files = [path.name for path in (tmp_path / "a" / "shards").iterdir()]
    assert files
    for name in files:
        assert (tmp_path / "a" / "shards" / name).read_bytes() == (tmp_path / "b" / "shards" / name).read_bytes()


def test_an_interrupted_writer_leaves_no_index(tmp_path: Path) -> None:
    def interrupted() -> Iterator[np.ndarray]:
        yield make_images(1)[0]
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write(tmp_path, interrupted())
    assert (tmp_path / "shards" / "shard-000000.tar").exists()
    assert not (tmp_path / "shards" / "index.parquet").exists()


def test_what_is_read_may_be_written_to(tmp_path: Path) -> None:
    reader = write(tmp_path, make_images())
    reader.read(0)[:] = 0
    assert reader.read(0).any()


def test_a_reader_that_has_read_can_be_pickled(tmp_path: Path) -> None:
    images = make_images()
    reader = write(tmp_path, images)
    reader.read(1)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(reader)).read(2), images[2])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_reader_that_has_read_works_in_other_processes(tmp_path: Path, method: str) -> None:
    images = make_images()
    reader = write(tmp_path, images)
    reader.read(0)
    with multiprocessing.get_context(method).Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(read_first, (reader,)), images[0])


@pytest.mark.parametrize("row", [-1, 7])
def test_a_row_beyond_the_images_is_an_index_error(tmp_path: Path, row: int) -> None:
    with pytest.raises(IndexError, match="0 to 6"):
        write(tmp_path, make_images()).read(row)


def test_a_missing_shard_is_named_with_the_cure(tmp_path: Path) -> None:
    reader = write(tmp_path, make_images())
    (tmp_path / "shards" / "shard-000000.tar").unlink()
    with pytest.raises(UserError, match=r"shard-000000\.tar cannot be opened.*repeat the intake"):
        reader.read(0)


def test_a_truncated_shard_is_named_with_the_cure(tmp_path: Path) -> None:
    reader = write(tmp_path, make_images())
    path = tmp_path / "shards" / "shard-000000.tar"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"shard-000000\.tar is truncated"):
        reader.read(6)


def test_a_shard_of_another_intake_is_noticed(tmp_path: Path) -> None:
    reader = write(tmp_path, make_images())
    path = tmp_path / "shards" / "shard-000000.tar"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(UserError, match="do not belong together"):
        reader.read(0)


def test_a_folder_without_shards_is_no_intake_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vetdino intake"):
        ShardReader(tmp_path)
