"""Tables of images: columns read as texts with pyarrow, and the source `table` for a list of one's own. Adapters read with it.

Only the columns that are asked for are kept, so that a column of reports never leaves the parser. Cells stay texts: a number
would lose an identifier's leading zeros.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from vet_extensions.errors import UserError
from vet_extensions.intake.anatomy import decide_body_part, decide_species
from vet_extensions.intake.sources.labelling import LabelPolicy, LabelRows, finding_name, nearest, parse_labels
from vet_extensions.intake.sources.listing import (
    ImageRows,
    PerRow,
    TabledSource,
    decide_each,
    own_identifiers,
    own_patients,
    same_for_all,
    split_of,
    within_patient,
)
from vet_extensions.intake.views import UNDECIDED, decide_laterality, decide_view
from vet_extensions.schema import LABEL_PREFIX, View

WELL_KNOWN: dict[str, tuple[str, ...]] = {
    "path": ("path", "Path", "image_path", "file_path"),
    "patient": ("patient", "patient_id", "PatientID"),
    "study": ("study", "study_id", "StudyInstanceUID"),
    "image": ("image", "image_id", "SOPInstanceUID"),
    "view": ("view", "view_position", "ViewPosition"),
    "body_part": ("body_part", "BodyPartExamined"),
    "species": ("species", "PatientSpeciesDescription"),
    "laterality": ("laterality", "ImageLaterality", "Laterality"),
    "split": ("split",),
}
"""What a column may be, and the names under which it is found without being told."""

HUMAN_DECUBITUS = {"AP LLD": View.AP, "AP RLD": View.AP, "PA LLD": View.PA, "PA RLD": View.PA}
"""In people a decubitus picture is a frontal one with a horizontal beam."""

_SIDES = {"LEFT": "L", "RIGHT": "R", "BOTH": "B", "BILATERAL": "B"}


def column_names(path: Path) -> list[str]:
    """The names in a table's first line, without a byte order mark and surrounding blanks. Errors: UserError."""
    return _header(path)[0]


def read_columns(path: Path, wanted: Sequence[str], *, optional: Sequence[str] = ()) -> pa.Table:
    """Columns of a CSV, TSV (both also .gz, UTF-8) or Parquet table as texts, blanks around them cut off; empty cells are "".

    optional: read where they exist; where not, a column of empty cells. Errors: UserError where the file cannot be read, or
    a column is missing or there twice.
    """
    names, n_lines = _header(path)
    for name in (*wanted, *optional):
        _check_name(path, name, names, is_needed=name in wanted)
    present = [name for name in dict.fromkeys((*wanted, *optional)) if name in names]
    try:
        table = _read_parquet(path, present) if _is_parquet(path) else _read_csv(path, names, n_lines, present)
        columns = {name: pc.utf8_trim_whitespace(_as_text(table[name])) for name in present}
    except (pa.ArrowException, OSError, EOFError) as error:
        raise _unreadable(path, error) from None
    for name in optional:
        columns.setdefault(name, pa.chunked_array([pa.repeat("", table.num_rows)]))
    return pa.table(columns)


def first_view(
    cells: Sequence[tuple[str, str]], *, dataset: str, exceptions: Mapping[str, View] | None = None
) -> tuple[View, str]:
    """The view that the first telling cell names, and the rule for `view_source`; (UNKNOWN, "none") where none does.

    cells: (column, text), in the order in which they are believed. exceptions: words in upper case that mean something else here
    than in ViewPosition (0018,5101).
    """
    for column, text in cells:
        view = (exceptions or {}).get(text.upper()) or decide_view(position=text)[0]
        if view is not View.UNKNOWN:
            return view, f"{column} ({dataset})"
    return View.UNKNOWN, UNDECIDED


def decide_view_word(text: str) -> tuple[View, str]:
    """The view that a word of ViewPosition names, and the rule."""
    return first_view([("view", text)], dataset="table")


def decide_side(text: str) -> str:
    """L, R, B or U, or written out, to the vocabulary's word."""
    return decide_laterality(image_laterality=_SIDES.get(text.upper(), text), laterality="")


class TableSource(TabledSource):
    """Images that a table of one's own lists, a row an image.

    columns: what a column is -> its name in the table: the keys of `WELL_KNOWN` and `label.<finding>`. Needed are path and
    patient. What is not named is found only under the names in `WELL_KNOWN`, and labels only under `label.<finding>`.
    Without a study column, or with an empty cell, an image is a study of its own. Study names count within their patient, so
    that "1", "2", ... may start anew with each.
    """

    name = "table"

    def __init__(
        self,
        root: Path,
        table: str | Path,
        *,
        columns: Mapping[str, str] | None = None,
        uncertain: str = "keep",
        blank: str = "missing",
    ) -> None:
        """table: its name inside `root`, or else its path; the paths in it are relative to `root`. Errors: UserError."""
        self.root = root
        self.table = root / table if (root / table).is_file() else Path(table)
        self.columns = _choose_columns(self.table, columns or {})
        self._policy = LabelPolicy(uncertain=uncertain, blank=blank)
        self.label_names = tuple(
            finding_name(role.removeprefix(LABEL_PREFIX)) for role in self.columns if role.startswith(LABEL_PREFIX)
        )
        if len(set(self.label_names)) < len(self.label_names):
            raise UserError("Two label columns of the table name the same finding. Leave one out, or rename it.")

    @property
    def label_policy(self) -> dict[str, str]:
        return self._policy.to_json()

    def rows(self) -> ImageRows:
        """The table's rows in the manifest's words."""
        table = read_columns(self.table, list(dict.fromkeys(self.columns.values())))
        n_rows = table.num_rows
        path = table[self.columns["path"]]
        image = own_identifiers(self._column(table, "image"), path)
        study = own_identifiers(self._column(table, "study"), image)
        patient = own_patients(table[self.columns["patient"]], study)
        return ImageRows(
            path=path,
            patient=patient,
            study=within_patient(patient, study),
            image=image,
            view=self._decided(table, "view", decide_view_word) or same_for_all((View.UNKNOWN, UNDECIDED), n_rows),
            species=self._decided(table, "species", lambda text: decide_species(description=text)),
            body_part=self._decided(table, "body_part", lambda text: decide_body_part(examined=text)),
            laterality=self._decided(table, "laterality", decide_side),
            split=self._decided(table, "split", split_of),
            labels=self._labels(table),
        )

    def _column(self, table: pa.Table, role: str) -> pa.ChunkedArray | None:
        return table[self.columns[role]] if role in self.columns else None

    def _decided(self, table: pa.Table, role: str, decide) -> PerRow | None:
        return decide_each(decide, table[self.columns[role]]) if role in self.columns else None

    def _labels(self, table: pa.Table) -> LabelRows | None:
        if not self.label_names:
            return None
        columns = [table[name] for role, name in self.columns.items() if role.startswith(LABEL_PREFIX)]
        return LabelRows(self.label_names, parse_labels(columns, self.label_names, policy=self._policy))


def _choose_columns(path: Path, given: Mapping[str, str]) -> dict[str, str]:
    """role -> column, all that are given and those that are found by a well-known name."""
    names = column_names(path)
    for role, name in given.items():
        if role not in WELL_KNOWN and not role.startswith(LABEL_PREFIX):
            allowed = (*WELL_KNOWN, f"{LABEL_PREFIX}<finding>")
            raise UserError(f"A column cannot be '{role}'.{nearest(role, allowed)} Allowed are {', '.join(allowed)}.")
        _check_name(path, name, names, is_needed=True)
    chosen = dict(given)
    for role, known in WELL_KNOWN.items():
        found = [name for name in known if name in names]
        if role in chosen or not found:
            continue
        if len(found) > 1:
            raise UserError(
                f"In the table '{path.name}' the columns {', '.join(found)} could each be the {role}. Say which one is: "
                f'columns={{"{role}": "{found[0]}"}}.'
            )
        chosen[role] = found[0]
    taken = set(chosen.values())
    chosen.update((name, name) for name in names if name.startswith(LABEL_PREFIX) and name not in taken)
    for role in ("path", "patient"):
        if role not in chosen:
            raise UserError(
                f"The table '{path.name}' has no column for the {role}. Its columns are {_listed(names)}; found without being "
                f"told are {', '.join(WELL_KNOWN[role])}. Name yours in `columns`."
            )
    return chosen


def _header(path: Path) -> tuple[list[str], int]:
    """The column names, and the number of lines that they take."""
    if not path.is_file():
        raise UserError(f"The table '{path}' does not exist or is no file. Give a CSV, TSV or Parquet file.")
    try:
        if _is_parquet(path):
            return list(pq.read_schema(_parquet_source(path)).names), 0
        with pa.input_stream(str(path), compression="detect") as stream:
            reader = csv.reader(
                io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""), delimiter=_delimiter(path), strict=True
            )
            names = [name.strip() for name in next(reader)]
            return names, reader.line_num
    except (pa.ArrowException, OSError, EOFError, csv.Error, UnicodeDecodeError, StopIteration) as error:
        raise _unreadable(path, error) from None


def _read_csv(path: Path, names: list[str], n_lines: int, present: list[str]) -> pa.Table:
    return pyarrow.csv.read_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(column_names=names, skip_rows=n_lines),
        parse_options=pyarrow.csv.ParseOptions(delimiter=_delimiter(path), newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=present, column_types=dict.fromkeys(present, pa.string()), strings_can_be_null=False
        ),
    )


def _read_parquet(path: Path, present: list[str]) -> pa.Table:
    return pq.read_table(_parquet_source(path), columns=present)


def _parquet_source(path: Path) -> Path | pa.BufferReader:
    if path.suffix.lower() != ".gz":
        return path
    with pa.input_stream(str(path), compression="gzip") as stream:
        return pa.BufferReader(stream.read())


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Numbers that pandas made floating because of an empty cell become whole again: 7.0 is the identifier "7"."""
    if pa.types.is_floating(column.type):
        filled = pc.fill_null(pc.if_else(pc.is_nan(column), None, column), 0.0)
        if pc.all(pc.equal(pc.floor(filled), filled)).as_py():
            column = pc.if_else(pc.is_nan(column), None, column).cast(pa.int64())
    return pc.fill_null(column.cast(pa.string()), "")


def _check_name(path: Path, name: str, names: Sequence[str], *, is_needed: bool) -> None:
    if names.count(name) > 1:
        raise UserError(f"The table '{path.name}' has {names.count(name)} columns called '{name}'. Rename all but one.")
    if is_needed and name not in names:
        raise UserError(
            f"The table '{path.name}' has no column '{name}'.{nearest(name, names)} Its columns are {_listed(names)}."
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 40} more" if len(names) > 40 else ""
    return ", ".join(names[:40]) + more


def _is_parquet(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith(".parquet")


def _delimiter(path: Path) -> str:
    return "\t" if path.name.lower().removesuffix(".gz").endswith(".tsv") else ","


def _unreadable(path: Path, error: Exception) -> UserError:
    # Arrow's own message quotes the line that it could not read.
    return UserError(
        f"The table '{path.name}' cannot be read ({type(error).__name__}). Allowed are CSV (comma) and TSV files in UTF-8, plain "
        "or .gz, whose every row has as many cells as the first line has names, and Parquet files."
    )
