"""From the rows of a table to the items of a source: sorted by path, each looked up on the disk, none outside the root.

`TabledSource` is what the adapters of public data sets share: they say what their tables mean (`rows`), this file does the rest.
Rows stay columns until the moment they are handed on: a table of 400,000 images never becomes as many objects.
"""

import logging
import os
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Generic, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vet_extensions.errors import UserError
from vet_extensions.intake.files import open_regular
from vet_extensions.intake.sources.base import ImageFacts, SourceItem
from vet_extensions.intake.sources.labelling import LabelRows
from vet_extensions.schema import Rejection, RejectionCode, Split, View

_LOG = logging.getLogger("vet_extensions")

ROWS_A_CHUNK = 8192
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff"})
"""Files that count as images when those are counted that no row names; the suffixes of the rows' own paths are added."""

HUMAN = "human"
"""The word of `anatomy.decide_species` for people."""

_TABLE_SUFFIXES = (".csv", ".tsv", ".json", ".xml", ".parquet", ".xlsx", ".txt", ".gz", ".zip")
_SPLITS = {
    **dict.fromkeys(("train", "training"), Split.TRAIN),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev"), Split.VAL),
    **dict.fromkeys(("test", "testing"), Split.TEST),
}
_OUTSIDE = Rejection(RejectionCode.UNSAFE_PATH, "the table's path leads out of the source folder")
_MISSING = Rejection(RejectionCode.FILE_MISSING, "the table names a file that is not there")
_NO_FILE = Rejection(RejectionCode.NOT_A_REGULAR_FILE, "the table names a folder, pipe, socket or device")

T = TypeVar("T")
Texts: TypeAlias = pa.ChunkedArray | pa.Array


class OutsideRootError(OSError):
    """A path that leads out of the source's folder."""


@dataclass(frozen=True)
class PerRow(Generic[T]):
    """A value for each row, each distinct one held once. codes: int [rows], positions in `values`."""

    codes: np.ndarray
    values: tuple[T, ...]

    def __getitem__(self, row: int) -> T:
        return self.values[self.codes[row]]


@dataclass(frozen=True)
class ImageRows:
    """Images as columns of equal length, in the table's order. None: the table does not say.

    path: relative to the root, "/" between folders; a row with an empty path is left out. view: with the rule that decided it.
    The other columns as in `ImageFacts`.
    """

    path: Texts
    patient: Texts
    study: Texts
    image: Texts
    view: PerRow[tuple[View, str]]
    species: PerRow[str] | None = None
    body_part: PerRow[str] | None = None
    laterality: PerRow[str] | None = None
    spacing_mm: PerRow[tuple[float, float] | None] | None = None
    split: PerRow[Split | None] | None = None
    labels: LabelRows | None = None

    def facts(self, row: int, *, patient: str, study: str, image: str) -> ImageFacts:
        """What is known of one row's image."""
        view, view_source = self.view[row]
        return ImageFacts(
            patient=patient,
            study=study,
            image=image,
            view=view,
            view_source=view_source,
            species=self.species[row] if self.species else "",
            body_part=self.body_part[row] if self.body_part else "",
            laterality=self.laterality[row] if self.laterality else "",
            spacing_mm=self.spacing_mm[row] if self.spacing_mm else None,
            labels=self.labels.labels_of(row) if self.labels else {},
            split=self.split[row] if self.split else None,
        )


class TabledSource(ABC):
    """A `Source` whose images tables name. Cheap to pickle: it holds the root and options, and reads the tables for `items`."""

    name: str
    root: Path
    label_names: tuple[str, ...] = ()

    @property
    @abstractmethod
    def label_policy(self) -> dict[str, str]:
        """How labels are read, for intake.json."""

    @abstractmethod
    def rows(self) -> ImageRows:
        """All images that the tables name. Errors: UserError."""

    def items(self) -> Iterator[SourceItem]:
        """See `Source`. Errors: UserError, before the first item."""
        return list_images(self.root, self.rows(), name=self.name)

    def items_again(self) -> Iterator[SourceItem]:
        """Keys and facts as of `items`, without sizes, stamps and problems: no row's file is looked up."""
        return list_images(self.root, self.rows(), name=self.name, look=False)

    def open(self, key: str) -> BinaryIO:
        """See `Source`. Errors: OSError, also where `key` leads out of the root."""
        return open_regular(Path(_real_path(os.path.realpath(self.root), key)))


def list_images(root: Path, rows: ImageRows, *, name: str, look: bool = True) -> Iterator[SourceItem]:
    """An item a row, sorted by the bytes of their paths; at the end the log says how table and disk met.

    look: ask the disk for each file; without it there are keys and facts alone, and nothing is logged.
    Errors: UserError where rows share a file.
    """
    path = _tidy(rows.path)
    is_named = pc.not_equal(path, "").to_numpy(zero_copy_only=False)
    named = path.filter(pa.array(is_named))
    n_files = pc.count_distinct(named).as_py()
    if n_files < len(named):
        counts = pc.value_counts(named).field("counts")
        repeated = pc.filter(counts, pc.greater(counts, 1))
        raise UserError(
            f"{name}: {pc.sum(repeated).as_py()} rows of the table share {len(repeated)} files, each of which several rows name. "
            "Needed is a row an image: remove the repeated rows."
        )
    order = np.flatnonzero(is_named)[pc.sort_indices(named).to_numpy()]
    return _walk_rows(root if look else None, rows, path, order, name)


def decide_each(decide: Callable[..., T], *columns: Texts) -> PerRow[T]:
    """`decide` of each row's cells, called once for each combination that occurs. columns: texts, at least one."""
    encoded = [_combined(column).dictionary_encode() for column in columns]
    codes = np.stack([column.indices.to_numpy() for column in encoded], axis=1)
    distinct, inverse = np.unique(codes, axis=0, return_inverse=True)
    words = [column.dictionary.to_pylist() for column in encoded]
    values = tuple(decide(*(word[code] for word, code in zip(words, row))) for row in distinct.tolist())
    return PerRow(inverse.reshape(-1).astype(np.int32), values)


def same_for_all(value: T, n_rows: int) -> PerRow[T]:
    """One value for every row."""
    return PerRow(np.zeros(n_rows, np.int8), (value,))


def join(*parts: Texts | str) -> Texts:
    """Columns and constant texts joined row by row."""
    return pc.binary_join_element_wise(*parts, "")


def rows_of(keys: Texts, listed: Texts) -> np.ndarray:
    """For each key the row of `listed` where it first stands, -1 where it does not; int64 [keys]."""
    found = pc.index_in(_combined(keys), value_set=_combined(listed))
    return pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)


def own_identifiers(column: Texts | None, otherwise: Texts) -> Texts:
    """`column`, and `otherwise` where it is empty or missing altogether."""
    return otherwise if column is None else pc.if_else(pc.equal(column, ""), otherwise, column)


def own_patients(patient: Texts, study: Texts) -> Texts:
    """A study that names no patient is one of its own, as DICOM studies are that name none."""
    return own_identifiers(patient, study)


def within_patient(patient: Texts, study: Texts) -> Texts:
    """Study names that may start anew with each patient, made unique."""
    return join(patient, "/", study)


def split_of(word: str) -> Split | None:
    """train, val(id(ate|ation)), test, in any case, to `Split`; "" to None. Errors: UserError for another word."""
    split = _SPLITS.get(word.strip().lower())
    if split is None and word.strip():
        raise UserError(
            f"The table's column of splits holds a word that names none. Allowed are {', '.join(_SPLITS)} and empty cells."
        )
    return split


def look_for(root: Path, names: Sequence[str]) -> Path | None:
    """The first of `names` that is a file below `root`, plain or with .gz; None where none is."""
    candidates = (root / f"{name}{suffix}" for name in names for suffix in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def find_file(root: Path, names: Sequence[str], *, dataset: str) -> Path:
    """As `look_for`. Errors: UserError that says what is there instead."""
    found = look_for(root, names)
    if found is not None:
        return found
    expected = " or ".join(f"'{name}'" for name in names)
    if not root.is_dir():
        raise UserError(f"The source '{root}' is no folder. Give the folder of {dataset} that holds {expected}.")
    raise UserError(
        f"'{root}' is not {dataset} as it is downloaded: expected {expected} (or .gz), found {_found(root)}."
    )


def _found(root: Path) -> str:
    """Tables by name; other entries only counted, since folders may be called after patients."""
    entries = sorted(root.iterdir())
    tables = [entry.name for entry in entries if entry.name.lower().endswith(_TABLE_SUFFIXES)]
    more = f" and {len(tables) - 12} more tables" if len(tables) > 12 else ""
    others = len(entries) - len(tables)
    listed = ", ".join(tables[:12]) or "no table"
    return f"{listed}{more} and {others} other entries"


def _combined(column: Texts) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _tidy(path: Texts) -> pa.Array:
    """One spelling for one file: "/" for Windows' separators, no "./" and no doubled "/"."""
    tidy = pc.replace_substring(_combined(path), "\\", "/")
    tidy = pc.replace_substring_regex(tidy, "/+", "/")
    return _combined(pc.replace_substring_regex(tidy, r"(^|/)(?:\./)+", r"\1"))


def _walk_rows(
    root: Path | None, rows: ImageRows, path: pa.Array, order: np.ndarray, name: str
) -> Iterator[SourceItem]:
    disk = None if root is None else _Disk(root)
    for start in range(0, len(order), ROWS_A_CHUNK):
        chunk = order[start : start + ROWS_A_CHUNK]
        columns = [column.take(pa.array(chunk)).to_pylist() for column in (path, rows.patient, rows.study, rows.image)]
        for row, key, patient, study, image in zip(chunk.tolist(), *columns):
            facts = rows.facts(row, patient=patient, study=study, image=image)
            yield SourceItem(key, facts=facts) if disk is None else disk.item(key, facts)
    if disk is None:
        return
    n_empty = len(path) - len(order)
    _LOG.info(
        "%s: %d rows, %d without a path, %d whose file cannot be taken; %d image files that no row names",
        name,
        len(path),
        n_empty,
        disk.n_problems,
        disk.n_unnamed(),
    )


class _Disk:
    """Looks the rows' files up, and remembers as much as is needed to count those that no row names."""

    def __init__(self, root: Path) -> None:
        self.n_problems = 0
        self._root = os.path.realpath(root)
        self._folder = ("", self._root)
        self._n_direct = 0
        self._suffixes = set(IMAGE_SUFFIXES)

    def item(self, key: str, facts: ImageFacts) -> SourceItem:
        """The row's item; with a problem where there is no such file or it is none to take."""
        try:
            real = self._real_path(key)
            status = os.stat(real)  # noqa: PTH116 (a Path for each of a million rows costs more than the call)
        except OutsideRootError:
            return self._refuse(key, facts, _OUTSIDE)
        except (FileNotFoundError, NotADirectoryError):
            return self._refuse(key, facts, _MISSING)
        except OSError as error:
            reason = Rejection(RejectionCode.UNREADABLE, f"the file cannot be read ({type(error).__name__})")
            return self._refuse(key, facts, reason)
        if not stat.S_ISREG(status.st_mode):
            return self._refuse(key, facts, _NO_FILE)
        if real == f"{self._root}/{key}":
            self._n_direct += 1
            self._suffixes.add(_suffix(key))
        return SourceItem(key, size=status.st_size, stamp=str(status.st_mtime_ns), facts=facts)

    def n_unnamed(self) -> int:
        """Image files below the root that no row names; links are not followed."""
        n_files = 0
        folders = [self._root]
        while folders:
            try:
                with os.scandir(folders.pop()) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(entry.path)
                        elif entry.is_file(follow_symlinks=False) and not entry.name.startswith("._"):
                            n_files += _suffix(entry.name) in self._suffixes
            except OSError:
                continue
        return max(0, n_files - self._n_direct)

    def _refuse(self, key: str, facts: ImageFacts, problem: Rejection) -> SourceItem:
        self.n_problems += 1
        return SourceItem(key, problem=problem, facts=facts)

    def _real_path(self, key: str) -> str:
        """`_real_path`, which asks the disk for every folder on the way: neighbours in the list share theirs."""
        if _is_unsafe(key):
            raise OutsideRootError("the path leads out of the source folder")
        folder, _, file = key.rpartition("/")
        if folder != self._folder[0]:
            self._folder = (folder, _real_path(self._root, folder))
        real = f"{self._folder[1]}/{file}"
        return _real_path(self._root, key) if os.path.islink(real) else real  # noqa: PTH114


def _real_path(root: str, key: str) -> str:
    """The path of `key` below `root` with all links followed. root: real. Errors: OutsideRootError."""
    real = "" if _is_unsafe(key) else os.path.realpath(f"{root}/{key}")
    if real != root and not real.startswith(f"{root.rstrip('/')}/"):
        raise OutsideRootError("the path leads out of the source folder")
    return real


def _is_unsafe(key: str) -> bool:
    """Absolute (also with a Windows drive), climbing, or with a character that no path can hold."""
    return key.startswith("/") or re.match(r"[A-Za-z]:", key) is not None or ".." in key.split("/") or "\0" in key


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122
