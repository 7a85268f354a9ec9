"""Arrays that processes share through OUT/.cache: written once, whole, and never needed."""

import os
import pickle
from pathlib import Path

import numpy as np
from study_factory import make_intake

from vet_extensions.shards import ShardReader, mapped
from vet_extensions.shards.mapped import cache_key, mapped_arrays


class Maker:
    """Counts how often the arrays had to be made."""

    def __init__(self) -> None:
        self.n_calls = 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.n_calls += 1
        return {"rows": np.arange(1000), "codes": np.zeros(10, dtype=np.uint8)}


def arrays(root: Path, make: Maker, **changes) -> dict[str, np.ndarray]:
    return mapped_arrays(root, "things", **{"key": "k", "make": make, "min_bytes": 1, **changes})


def test_the_second_process_maps_what_the_first_one_made(tmp_path: Path) -> None:
    make = Maker()
    first, second = arrays(tmp_path, make), arrays(tmp_path, make)
    assert make.n_calls == 1
    assert isinstance(second["rows"], np.memmap)
    assert not second["rows"].flags.writeable
    np.testing.assert_array_equal(first["rows"], second["rows"])


def test_another_key_is_another_set_of_arrays(tmp_path: Path) -> None:
    make = Maker()
    arrays(tmp_path, make)
    arrays(tmp_path, make, key="other")
    assert make.n_calls == 2


def test_small_arrays_leave_the_folder_as_it_was(tmp_path: Path) -> None:
    arrays(tmp_path, Maker(), min_bytes=2**20)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / ".cache").write_text("a file where the folder should be")
    np.testing.assert_array_equal(arrays(tmp_path, Maker())["rows"], np.arange(1000))


def test_a_damaged_cache_is_made_anew(tmp_path: Path) -> None:
    make = Maker()
    arrays(tmp_path, make)
    (tmp_path / ".cache" / "things-k" / "rows.npy").write_bytes(b"torn")
    np.testing.assert_array_equal(arrays(tmp_path, make)["rows"], np.arange(1000))
    assert make.n_calls == 2
    arrays(tmp_path, make)
    assert make.n_calls == 2


def test_nothing_unfinished_stays_behind(tmp_path: Path) -> None:
    arrays(tmp_path, Maker())
    assert [path.name for path in (tmp_path / ".cache").iterdir()] == ["things-k"]


def test_keys_depend_on_every_part_and_its_place() -> None:
    assert len({cache_key("a", "b"), cache_key("ab"), cache_key("b", "a"), cache_key("a", "b", "")}) == 4


def test_a_reader_with_a_shared_index_reads_the_same_images(tmp_path: Path, monkeypatch) -> None:
    root = make_intake(tmp_path, n_studies=3)
    private = ShardReader(root)
    monkeypatch.setattr(mapped.mapped_arrays, "__kwdefaults__", {"min_bytes": 1})
    shared = pickle.loads(pickle.dumps(ShardReader(root)))
    assert isinstance(shared._offset, np.memmap)
    for row in range(len(private)):
        np.testing.assert_array_equal(private.read(row), shared.read(row))


def test_a_changed_index_is_not_read_from_the_cache(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(mapped.mapped_arrays, "__kwdefaults__", {"min_bytes": 1})
    root = make_intake(tmp_path, n_studies=3)
    assert len(ShardReader(root)) == 6
    make_intake(tmp_path, n_studies=5)
    os.utime(root / "shards" / "index.parquet", (1, 1))
    assert len(ShardReader(root)) == 10
