"""Reading and writing manifest.parquet, and `Manifest`, the view of it that data sets and evaluations work with.

A manifest is columns, never a list of objects: 5 million images must fit. Rows are sorted by patient, study and image, so that a
study is a range of rows. Legend: N images, S studies, F findings.
"""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vet_extensions.errors import UserError
from vet_extensions.schema import LABEL_PREFIX, SCHEMA_VERSION, IntakeFolder, Split

VERSION_KEY = b"vetdino.schema_version"
HASH_KEY = b"vetdino.content_hash"

MISSING = -128
"""A label that is not stated, in `Manifest.labels()`."""

_FEW_VALUES = ("split", "view", "view_source", "species", "body_part", "laterality", "photometric", "transfer_syntax")


def write_manifest(table: pa.Table, path: Path) -> None:
    """Write with schema version and content hash, under a temporary name first."""
    metadata = {VERSION_KEY: str(SCHEMA_VERSION).encode(), HASH_KEY: content_hash(table).encode()}
    temporary = path.with_name(path.name + ".tmp")
    pq.write_table(table.replace_schema_metadata(metadata), temporary)
    temporary.replace(path)


def content_hash(table: pa.Table) -> str:
    """SHA-256 over names, types, values and nulls of all columns, first 16 hexadecimal digits.

    It does not depend on how the columns lie in memory (chunks, dictionaries) or in the file.
    """
    digest = hashlib.sha256()
    for name in table.column_names:
        column = table[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(pa.string())
        array = column.combine_chunks()
        digest.update(f"{name} {array.type} {len(array)}\n".encode())
        digest.update(np.packbits(pc.is_valid(array).to_numpy(zero_copy_only=False)).tobytes())
        if pa.types.is_string(array.type):
            filled = pc.fill_null(array, "")
            digest.update(pc.binary_length(filled).to_numpy(zero_copy_only=False).astype("<i8").tobytes())
            digest.update("".join(filled.to_pylist()).encode())
        else:
            values = pc.fill_null(array, pa.scalar(0, array.type)).to_numpy(zero_copy_only=False)
            digest.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()[:16]


class Manifest:
    """The images of an intake folder, or a selection of them. Pickles as its path and row numbers, and is read again elsewhere.

    path: the Parquet file. row_index: int64 [N], for each image here its row in the full manifest, which is what
    `ShardReader.read` wants. content_hash: of the full manifest.
    """

    def __init__(self, path: Path, table: pa.Table, row_index: np.ndarray, content_hash: str) -> None:
        self.path = path
        self.table = table
        self.row_index = row_index
        self.content_hash = content_hash

    @classmethod
    def open(cls, root_or_manifest_path: Path) -> "Manifest":
        """From an intake folder or a manifest file.

        Errors: UserError if there is none, if it cannot be read, or if its schema version is not the one known here.
        """
        given = Path(root_or_manifest_path)
        path = IntakeFolder(given).manifest if given.is_dir() else given
        if not path.is_file():
            raise UserError(f"'{given}' holds no manifest ({path.name}). Give the folder that `vetdino intake` wrote.")
        try:
            table = pq.read_table(path, read_dictionary=list(_FEW_VALUES), memory_map=True)
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"The manifest '{path}' cannot be read ({type(error).__name__}). Copy the folder anew, or repeat the intake."
            ) from None
        metadata = table.schema.metadata or {}
        version = metadata.get(VERSION_KEY, b"none").decode(errors="replace")
        if version != str(SCHEMA_VERSION):
            raise UserError(
                f"The manifest '{path}' has schema version {version}; this program reads version {SCHEMA_VERSION}. "
                "Repeat the intake with this version, or use the version that wrote it."
            )
        return cls(path, table, np.arange(len(table), dtype=np.int64), metadata.get(HASH_KEY, b"").decode())

    @property
    def n_images(self) -> int:
        return self.table.num_rows

    @property
    def n_studies(self) -> int:
        return len(self.study_offsets) - 1

    @cached_property
    def study_offsets(self) -> np.ndarray:
        """int64 [S + 1]: study s is the images study_offsets[s] to study_offsets[s + 1] - 1."""
        return np.append(np.flatnonzero(self._starts("study_id")), self.n_images).astype(np.int64)

    @cached_property
    def study_codes(self) -> np.ndarray:
        """int64 [N]: the number of each image's study, 0 to S - 1, rising."""
        return np.cumsum(self._starts("study_id"), dtype=np.int64) - 1

    @cached_property
    def patient_codes(self) -> np.ndarray:
        """int64 [N]: the number of each image's patient, from 0, rising."""
        return np.cumsum(self._starts("patient_id"), dtype=np.int64) - 1

    def column(self, name: str) -> np.ndarray:
        """One column, [N]: numbers as they are (NaN for null), text as an object array of str."""
        if name not in self.table.column_names:
            raise UserError(f"The manifest has no column '{name}'. Its columns: {', '.join(self.table.column_names)}.")
        column = self.table[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(pa.string())
        return column.to_numpy()

    @property
    def views(self) -> np.ndarray:
        """The view's name for each image, object array of str [N]."""
        return self.column("view")

    @property
    def label_names(self) -> tuple[str, ...]:
        """The findings, without prefix, in the manifest's order."""
        return tuple(n.removeprefix(LABEL_PREFIX) for n in self.table.column_names if n.startswith(LABEL_PREFIX))

    def labels(self) -> np.ndarray:
        """int8 [N, F]: 1 present, 0 absent, -1 uncertain, -128 not stated."""
        columns = [
            pc.fill_null(self.table[LABEL_PREFIX + name], pa.scalar(MISSING, pa.int8())) for name in self.label_names
        ]
        if not columns:
            return np.zeros((self.n_images, 0), dtype=np.int8)
        return np.stack([column.to_numpy() for column in columns], axis=1).astype(np.int8)

    def select(self, *, split: Split | str) -> "Manifest":
        """The images of one split; order and sorting stay. Errors: UserError for a name that is no split."""
        if split not in set(Split):
            raise UserError(f"'{split}' is no split. Allowed: {', '.join(Split)}.")
        return self.take(np.flatnonzero(self.column("split") == str(split)))

    def take(self, rows: np.ndarray) -> "Manifest":
        """The images at `rows` of this manifest. rows: integers, strictly rising, so that studies stay together."""
        rows = np.asarray(rows, dtype=np.int64)
        assert (np.diff(rows) > 0).all(), "rows must be strictly rising"
        return Manifest(self.path, self.table.take(pa.array(rows)), self.row_index[rows], self.content_hash)

    def __len__(self) -> int:
        return self.n_images

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "row_index": self.row_index, "content_hash": self.content_hash}

    def __setstate__(self, state: dict[str, Any]) -> None:
        full = Manifest.open(state["path"])
        if full.content_hash != state["content_hash"]:
            raise UserError(f"The manifest '{full.path}' was replaced while it was in use. Start again.")
        chosen = full if len(state["row_index"]) == full.n_images else full.take(state["row_index"])
        self.__dict__.update(chosen.__dict__)

    def _starts(self, key: str) -> np.ndarray:
        """bool [N]: whether a new study or patient begins at this image."""
        starts = np.ones(self.n_images, dtype=bool)
        if self.n_images > 1:
            ids = self.table[key].combine_chunks()
            starts[1:] = pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
        return starts
