"""Findings from the user's table, brought to the pseudonyms of this intake. `run` reads the table before it touches a file."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from vet_extensions.errors import UserError
from vet_extensions.intake.deidentify import Pseudonyms
from vet_extensions.intake.options import LabelReport
from vet_extensions.schema import LABEL_PREFIX, ImageRecord

IMAGE_KEYS = ("SOPInstanceUID", "sop_instance_uid")
STUDY_KEYS = ("StudyInstanceUID", "study_instance_uid")

NOT_STATED = -128


@dataclass
class LabelTable:
    """Findings by image or by study.

    names: the findings. of_image, of_study: pseudonym -> row of `values`; one of the two is empty.
    values: int8 [rows, findings]: 1 present, 0 absent, -1 uncertain, -128 not stated.
    """

    names: tuple[str, ...] = ()
    values: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int8))
    of_image: dict[str, int] = field(default_factory=dict)
    of_study: dict[str, int] = field(default_factory=dict)
    ignored_columns: tuple[str, ...] = ()

    def row_of(self, record: ImageRecord) -> int | None:
        return self.of_image.get(record.image_id, self.of_study.get(record.study_id))

    def labels_of(self, record: ImageRecord) -> dict[str, int]:
        """What the table states of this image; findings that it does not state are left out."""
        row = self.row_of(record)
        if row is None:
            return {}
        return {name: int(value) for name, value in zip(self.names, self.values[row]) if value != NOT_STATED}

    def report(self, rows: np.ndarray) -> LabelReport:
        """How the table met the images. rows: of each accepted image the row that speaks of it, -1 where none does."""
        return LabelReport(
            n_rows=len(self.values),
            n_rows_unmatched=len(self.values) - len(np.unique(rows[rows >= 0])),
            n_images_without_row=int((rows < 0).sum()),
            columns=self.names,
            ignored_columns=self.ignored_columns,
        )


def read_labels(path: Path, *, pseudonyms: Pseudonyms, columns: tuple[str, ...] | None = None) -> LabelTable:
    """Read a CSV, TSV or Parquet table whose key column is SOPInstanceUID (a row an image) or StudyInstanceUID (a row a study).

    columns: the findings; each must hold 0, 1, -1 and empty cells only. None: those called `label.<finding>`, with the same
    demand; if there are none, every column that meets it, and the others are ignored and named in the report.
    Errors: UserError.
    """
    table = _read_table(path)
    key, pseudonym = _key_column(table, path, pseudonyms)
    chosen, ignored = _choose_columns(table, path, key=key, wanted=columns)
    if not chosen:
        raise UserError(
            f"The label table '{path.name}' has no column of findings: none holds only 0, 1, -1 and empty cells. "
            "Name the columns with label_columns to see what is wrong with them."
        )
    values = np.stack(list(chosen.values()), axis=1)
    rows = _index_rows(table[key], values, path, pseudonym)
    is_by_image = key in IMAGE_KEYS
    return LabelTable(
        names=tuple(name.removeprefix(LABEL_PREFIX) for name in chosen),
        values=values,
        of_image=rows if is_by_image else {},
        of_study={} if is_by_image else rows,
        ignored_columns=ignored,
    )


def _read_table(path: Path) -> pa.Table:
    if not path.is_file():
        raise UserError(f"The label table '{path}' does not exist or is no file. Give a CSV, TSV or Parquet file.")
    try:
        if path.suffix.lower() == ".parquet":
            return pq.read_table(path)
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        # UIDs hold only digits and dots; without this a short one would be read as a number.
        types = {key: pa.string() for key in (*IMAGE_KEYS, *STUDY_KEYS)}
        return pyarrow.csv.read_csv(
            path,
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=True),
        )
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"The label table '{path.name}' cannot be read ({type(error).__name__}). Allowed are CSV (comma, UTF-8), "
            "TSV and Parquet files with one line of column names."
        ) from None


def _key_column(table: pa.Table, path: Path, pseudonyms: Pseudonyms) -> tuple[str, Callable[[str], str]]:
    for keys, pseudonym in ((IMAGE_KEYS, pseudonyms.image), (STUDY_KEYS, pseudonyms.study)):
        for key in keys:
            if key in table.column_names and table[key].null_count < len(table):
                return key, pseudonym
    raise UserError(
        f"The label table '{path.name}' has no key. Its columns are {', '.join(table.column_names[:20])}; needed is "
        f"{IMAGE_KEYS[0]} (a row an image) or {STUDY_KEYS[0]} (a row a study). Rename the column that holds the UIDs."
    )


def _choose_columns(
    table: pa.Table, path: Path, *, key: str, wanted: tuple[str, ...] | None
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The columns of findings as int8, and the names of the others."""
    others = [name for name in table.column_names if name not in (*IMAGE_KEYS, *STUDY_KEYS)]
    if wanted is None:
        prefixed = tuple(name for name in others if name.startswith(LABEL_PREFIX))
        wanted = prefixed or None
    if wanted is not None:
        missing = [name for name in wanted if name not in others]
        if missing:
            raise UserError(
                f"The label table '{path.name}' has no column {', '.join(missing)}. Its columns are {', '.join(others[:40])}."
            )
    chosen = {}
    for name in others if wanted is None else wanted:
        values = _as_labels(table[name])
        if values is not None:
            chosen[name] = values
        elif wanted is not None:
            raise UserError(
                f"Column '{name}' of the label table '{path.name}' holds other values than 0 (absent), 1 (present), "
                "-1 (uncertain) and empty (not stated). Change them, or leave the column out of label_columns."
            )
    return chosen, tuple(name for name in others if name not in chosen)


def _as_labels(column: pa.ChunkedArray) -> np.ndarray | None:
    """int8 with -128 for empty, or None if any value is not a label. A column without a single value is none either."""
    if column.null_count == len(column):
        return None
    try:
        if pa.types.is_boolean(column.type):
            column = column.cast(pa.int8())
        numbers = column.cast(pa.float64())
    except pa.ArrowException:
        return None
    floats = numbers.to_numpy()
    is_empty = np.isnan(floats)
    if is_empty.all() or not np.isin(floats[~is_empty], (-1.0, 0.0, 1.0)).all():
        return None
    return np.where(is_empty, NOT_STATED, floats).astype(np.int8)


def _index_rows(
    keys: pa.ChunkedArray, values: np.ndarray, path: Path, pseudonym: Callable[[str], str]
) -> dict[str, int]:
    rows: dict[str, int] = {}
    texts = pc.utf8_trim_whitespace(keys.cast(pa.string())).to_pylist()
    for row, uid in enumerate(texts):
        if not uid:
            continue
        first = rows.setdefault(pseudonym(uid), row)
        if first != row and not np.array_equal(values[first], values[row]):
            raise UserError(
                f"The label table '{path.name}' contradicts itself: data rows {first + 1} and {row + 1} have the same key and "
                "different findings. Keep one row for each key."
            )
    return rows
