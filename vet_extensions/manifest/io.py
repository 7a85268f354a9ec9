"""Reading and writing manifest.parquet, and `Manifest`, the view of it that data sets and evaluations work with.

A manifest is columns, never a list of objects, and a column is read when it is first asked for: 5 million images must fit and
open at once. Rows are sorted by patient, study and image, so that a study is a range of rows. Legend: N images, S studies,
F findings.
"""

import hashlib
from collections.abc import Sequence
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

_FEW_VALUES = (
    "split",
    "view",
    "view_source",
    "species",
    "body_part",
    "laterality",
    "photometric",
    "transfer_syntax",
    "notes",
)


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
        digest.update(f"{name} {column.type} {len(column)}\n".encode())
        digest.update(np.packbits(pc.is_valid(column).to_numpy()).tobytes())
        if pa.types.is_string(column.type):
            filled = pc.fill_null(column, "")
            digest.update(pc.binary_length(filled).to_numpy().astype("<i8").tobytes())
            for chunk in filled.chunks:
                digest.update(_text_bytes(chunk))
        else:
            values = pc.fill_null(column, pa.scalar(0, column.type)).to_numpy()
            digest.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()[:16]


def _text_bytes(array: pa.StringArray) -> bytes | memoryview:
    """All texts of an array without nulls, one after the other, in UTF-8."""
    _, offsets, text = array.buffers()
    if len(array) == 0 or text is None:
        return b""
    ends = np.frombuffer(offsets, dtype=np.int32)[array.offset : array.offset + len(array) + 1]
    return memoryview(text)[ends[0] : ends[-1]]


class _File:
    """A manifest file: its schema at once, its columns when they are asked for, each read once."""

    def __init__(self, path: Path) -> None:
        """Errors: UserError if the file cannot be read, or if its schema version is not the one known here."""
        self.path = path
        try:
            with pq.ParquetFile(path) as file:
                self.schema, self.n_rows = file.schema_arrow, file.metadata.num_rows
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(path, error) from None
        metadata = self.schema.metadata or {}
        version = metadata.get(VERSION_KEY, b"none").decode(errors="replace")
        if version != str(SCHEMA_VERSION):
            raise UserError(
                f"The manifest '{path}' has schema version {version}; this program reads version {SCHEMA_VERSION}. "
                "Repeat the intake with this version, or use the version that wrote it."
            )
        self.content_hash = metadata.get(HASH_KEY, b"").decode()
        self._identity = _identity(path)
        self._columns: dict[str, pa.ChunkedArray] = {}

    def read(self, names: Sequence[str]) -> dict[str, pa.ChunkedArray]:
        """Columns by name, texts of few values as dictionaries. Errors: UserError if the file is damaged or was replaced."""
        missing = [name for name in names if name not in self._columns]
        if missing:
            few = [name for name in missing if name in _FEW_VALUES]
            try:
                if _identity(self.path) != self._identity:
                    raise UserError(f"The manifest '{self.path}' was replaced while it was in use. Start again.")
                with pq.ParquetFile(self.path, read_dictionary=few, memory_map=True) as file:
                    table = file.read(columns=missing)
            except (pa.ArrowException, OSError) as error:
                raise _unreadable(self.path, error) from None
            self._columns.update({name: table[name] for name in missing})
        return {name: self._columns[name] for name in names}

    def forget(self, names: Sequence[str]) -> None:
        """Give the memory of these columns back."""
        for name in names:
            self._columns.pop(name, None)


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"The manifest '{path}' cannot be read ({type(error).__name__}). Copy the folder anew, or repeat the intake."
    )


def _identity(path: Path) -> tuple[int, int, int]:
    about = path.stat()
    return about.st_ino, about.st_size, about.st_mtime_ns


class Manifest:
    """The images of an intake folder, or a selection of them. Pickles as its path and row numbers, and is read again elsewhere.

    path: the Parquet file. row_index: int64 [N], for each image here its row in the full manifest, which is what
    `ShardReader.read` wants. content_hash: of the full manifest.
    """

    def __init__(self, file: _File, rows: np.ndarray | None = None) -> None:
        """rows: the images chosen from the file, rising; None stands for all. Users call `Manifest.open`."""
        self._file = file
        self._chosen = rows

    @classmethod
    def open(cls, root_or_manifest_path: Path) -> "Manifest":
        """From an intake folder or a manifest file. Reads the file's metadata only.

        Errors: UserError if there is none, if it cannot be read, or if its schema version is not the one known here.
        """
        given = Path(root_or_manifest_path)
        path = IntakeFolder(given).manifest if given.is_dir() else given
        if not path.is_file():
            raise UserError(f"'{given}' holds no manifest ({path.name}). Give the folder that `vetdino intake` wrote.")
        return cls(_File(path))

    @property
    def path(self) -> Path:
        return self._file.path

    @property
    def content_hash(self) -> str:
        return self._file.content_hash

    @property
    def column_names(self) -> list[str]:
        return self._file.schema.names

    @property
    def schema(self) -> pa.Schema:
        return self._file.schema

    @property
    def n_images(self) -> int:
        return self._file.n_rows if self._chosen is None else len(self._chosen)

    @property
    def n_studies(self) -> int:
        return len(self.study_offsets) - 1

    @property
    def table(self) -> pa.Table:
        """All columns of these images, with the schema version and content hash of the file in its metadata."""
        table = self.columns(self.column_names)
        return table.replace_schema_metadata(self._file.schema.metadata)

    @cached_property
    def row_index(self) -> np.ndarray:
        return np.arange(self.n_images, dtype=np.int64) if self._chosen is None else self._chosen

    @cached_property
    def study_offsets(self) -> np.ndarray:
        """int64 [S + 1]: study s is the images study_offsets[s] to study_offsets[s + 1] - 1."""
        return np.append(np.flatnonzero(self._starts("study_id")), self.n_images).astype(np.int64)

    @cached_property
    def study_codes(self) -> np.ndarray:
        """int64 [N]: the number of each image's study, 0 to S - 1, rising."""
        return np.repeat(np.arange(self.n_studies), np.diff(self.study_offsets))

    @cached_property
    def patient_codes(self) -> np.ndarray:
        """int64 [N]: the number of each image's patient, from 0, rising."""
        return np.cumsum(self._starts("patient_id"), dtype=np.int64) - 1

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Some columns as they are in the file. Errors: UserError for a name that is no column."""
        for name in names:
            if name not in self.column_names:
                raise UserError(f"The manifest has no column '{name}'. Its columns: {', '.join(self.column_names)}.")
        table = pa.table(self._file.read(names))
        return table if self._chosen is None else table.take(pa.array(self._chosen))

    def column(self, name: str) -> np.ndarray:
        """One column, [N]: numbers as they are (NaN for null), text as an object array of str."""
        column = self.columns([name])[name]
        if pa.types.is_dictionary(column.type) and column.null_count == 0:
            values, codes = _decode(column)
            return np.array(values, dtype=object)[codes]
        if pa.types.is_dictionary(column.type):
            column = column.cast(pa.string())
        return column.to_numpy()

    def codes(self, name: str) -> tuple[list[str], np.ndarray]:
        """A text column as its values, sorted, and the place of each image's value among them, uint8 or int32 [N].

        Null counts as the empty text. One byte an image where there are at most 256 values.
        """
        column = pc.fill_null(self.columns([name])[name].cast(pa.string()), "")
        values, codes = _decode(column.dictionary_encode())
        order = sorted(range(len(values)), key=values.__getitem__)
        place = np.empty(len(values), dtype=np.uint8 if len(values) <= 256 else np.int32)
        place[order] = np.arange(len(values))
        return [values[i] for i in order], place[codes]

    @property
    def views(self) -> np.ndarray:
        """The view's name for each image, object array of str [N]."""
        return self.column("view")

    @property
    def label_names(self) -> tuple[str, ...]:
        """The findings, without prefix, in the manifest's order."""
        return tuple(n.removeprefix(LABEL_PREFIX) for n in self.column_names if n.startswith(LABEL_PREFIX))

    def labels(self, *, names: Sequence[str] | None = None) -> np.ndarray:
        """int8 [N, F]: 1 present, 0 absent, -1 uncertain, -128 not stated. names: the findings wanted, all without them."""
        names = self.label_names if names is None else names
        if not names:
            return np.zeros((self.n_images, 0), dtype=np.int8)
        table = self.columns([LABEL_PREFIX + name for name in names])
        columns = [pc.fill_null(column, pa.scalar(MISSING, pa.int8())).to_numpy() for column in table.columns]
        return np.stack(columns, axis=1).astype(np.int8)

    def select(self, *, split: Split | str) -> "Manifest":
        """The images of one split; order and sorting stay. Errors: UserError for a name that is no split."""
        if split not in set(Split):
            raise UserError(f"'{split}' is no split. Allowed: {', '.join(Split)}.")
        values, codes = self.codes("split")
        wanted = values.index(str(split)) if str(split) in values else -1
        return self.take(np.flatnonzero(codes == wanted))

    def take(self, rows: np.ndarray) -> "Manifest":
        """The images at `rows` of this manifest. rows: integers, strictly rising, so that studies stay together."""
        rows = np.asarray(rows, dtype=np.int64)
        assert (np.diff(rows) > 0).all(), "rows must be strictly rising"
        return Manifest(self._file, rows if self._chosen is None else self._chosen[rows])

    def __len__(self) -> int:
        return self.n_images

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "rows": self._chosen, "content_hash": self.content_hash}

    def __setstate__(self, state: dict[str, Any]) -> None:
        full = Manifest.open(state["path"])
        if full.content_hash != state["content_hash"]:
            raise UserError(f"The manifest '{full.path}' was replaced while it was in use. Start again.")
        self._file, self._chosen = full._file, state["rows"]

    def _starts(self, key: str) -> np.ndarray:
        """bool [N]: whether a new study or patient begins at this image."""
        starts = np.ones(self.n_images, dtype=bool)
        if self.n_images > 1:
            ids = self.columns([key])[key].combine_chunks()
            starts[1:] = pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
        self._file.forget([key])  # 20 bytes an image that hardly anyone asks for twice
        return starts


def _decode(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """The values of a dictionary column without nulls, and an index into them for each row."""
    joined = column.unify_dictionaries().combine_chunks()
    return joined.dictionary.to_pylist(), joined.indices.to_numpy()
