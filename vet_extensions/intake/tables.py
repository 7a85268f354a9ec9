"""Image records as columns, and the decisions that need all of them at once: who is whose, and which file of several is kept.

`run` fills the columns from the header pass and asks for the decisions; `parts` asks for the same ones over the columns of all
parts, so that parts that are merged and an undivided run cannot differ. A record object takes about 1 kB, a row here about 0.1.
"""

import itertools
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vet_extensions.intake.deidentify import Pseudonyms
from vet_extensions.schema import Crop, ImageRecord, Note, Rejection, RejectionCode, Split, View

ROWS_A_CHUNK = 8192

_READ_BACK = {
    "view": View,
    "spacing_mm": lambda value: None if value is None else tuple(value),
    "crop": lambda value: None if value is None else Crop(*value),
    "notes": lambda value: tuple(Note(note) for note in value),
}
_FIELDS = tuple(field for field in fields(ImageRecord) if field.name != "labels")
_IDS = ("image_id", "study_id", "patient_id", "source_id", "pixel_hash")
_NUMBERS = tuple(field.name for field in _FIELDS if field.type is int)
_OTHERS = tuple(field.name for field in _FIELDS if field.name not in (*_IDS, *_NUMBERS))
_SCHEMA = pa.schema(
    [
        ("position", pa.int64()),
        *((name, pa.string()) for name in _IDS),
        *((name, pa.int32()) for name in _NUMBERS),
        ("others", pa.dictionary(pa.int32(), pa.string())),
    ]
)
"""Few images differ in what is no identifier and no number: view, species, spacing ... share one text."""


def to_json(value: Any) -> Any:
    """A field of a record as `json` can write it; values that are objects become lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name) for field in fields(value)]
    return value


def from_json(values: dict[str, Any]) -> dict[str, Any]:
    """Fields of a record from what `to_json` made of them."""
    return {name: _READ_BACK[name](value) if name in _READ_BACK else value for name, value in values.items()}


def record_to_json(record: ImageRecord) -> list[Any]:
    """The fields of a record but its labels, for a journal."""
    return [to_json(getattr(record, field.name)) for field in _FIELDS]


def record_from_json(values: Sequence[Any]) -> ImageRecord:
    """The record that `record_to_json` wrote."""
    return ImageRecord(**from_json({field.name: value for field, value in zip(_FIELDS, values, strict=True)}))


@dataclass(frozen=True, slots=True)
class Candidate:
    """An image whose header passed. position: of its file in the listing."""

    position: int
    record: ImageRecord


class RecordTable(Sequence[Candidate]):
    """Candidates as columns. Its rows come back as objects one by one, or in order by iteration, a chunk at a time."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @classmethod
    def collect(cls, candidates: Iterable[Candidate]) -> "RecordTable":
        """All of `candidates`, in their order."""
        builder = RecordBuilder()
        for candidate in candidates:
            builder.append(candidate)
        return builder.finish()

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, row):  # pyright: ignore[reportIncompatibleMethodOverride]
        return next(iter(RecordTable(self.table.slice(row, 1))))

    def __iter__(self) -> Iterator[Candidate]:
        for batch in self.table.to_batches(max_chunksize=ROWS_A_CHUNK):
            texts = batch["others"]
            distinct = [from_json(json.loads(text)) for text in texts.dictionary.to_pylist()]
            columns = {name: batch[name].to_pylist() for name in ("position", *_IDS, *_NUMBERS)}
            positions = columns.pop("position")
            for row, code in enumerate(texts.indices.to_pylist()):
                values = {name: column[row] for name, column in columns.items()}
                yield Candidate(positions[row], ImageRecord(**values, **distinct[code]))

    def chunks(self) -> Iterator[tuple[int, list[ImageRecord]]]:
        """(first row, records) of some thousand rows at a time."""
        for start in range(0, len(self), ROWS_A_CHUNK):
            yield start, [candidate.record for candidate in RecordTable(self.table.slice(start, ROWS_A_CHUNK))]

    def take(self, rows: np.ndarray) -> "RecordTable":
        """The rows with these numbers, or where a mask is true."""
        chosen = np.flatnonzero(rows) if rows.dtype == bool else rows
        return RecordTable(self.table.take(pa.array(chosen)))

    def set(self, name: str, values: pa.Array | pa.ChunkedArray) -> "RecordTable":
        """With another column under this name."""
        index = self.table.column_names.index(name)
        return RecordTable(self.table.set_column(index, self.table.schema.field(name), values))

    def column(self, name: str) -> np.ndarray:
        """A number column, [rows]."""
        return self.table[name].to_numpy()

    def by_image(self) -> Iterator[list[Candidate]]:
        """The files of each image, which must be neighbours."""
        for _, group in itertools.groupby(self, key=lambda candidate: candidate.record.image_id):
            yield list(group)

    def in_order(self) -> "RecordTable":
        """Sorted as the manifest is, and files of one image as they are listed."""
        keys = [(name, "ascending") for name in ("patient_id", "study_id", "image_id", "position", "frame")]
        return RecordTable(self.table.take(pc.sort_indices(self.table, sort_keys=keys)))


class RecordBuilder:
    """Takes candidates one by one and packs them a chunk at a time."""

    def __init__(self) -> None:
        self._pending: list[Candidate] = []
        self._chunks: list[pa.RecordBatch] = []

    def append(self, candidate: Candidate) -> None:
        self._pending.append(candidate)
        if len(self._pending) == ROWS_A_CHUNK:
            self._pack()

    def finish(self) -> RecordTable:
        """All that was appended; the texts of all chunks are made one dictionary."""
        self._pack()
        return RecordTable(pa.Table.from_batches(self._chunks, _SCHEMA).unify_dictionaries())

    def _pack(self) -> None:
        records = [candidate.record for candidate in self._pending]
        others = [json.dumps({name: to_json(getattr(record, name)) for name in _OTHERS}) for record in records]
        columns = [pa.array([candidate.position for candidate in self._pending], pa.int64())]
        columns += [pa.array([getattr(record, name) for record in records], pa.string()) for name in _IDS]
        columns += [pa.array([getattr(record, name) for record in records], pa.int32()) for name in _NUMBERS]
        columns.append(pa.array(others, pa.string()).dictionary_encode())
        self._chunks.append(pa.RecordBatch.from_arrays(columns, schema=_SCHEMA))
        self._pending = []


class Refused(NamedTuple):
    """A file, or one frame of it, that is not used. position: of the file in the listing."""

    position: int
    frame: int
    rejection: Rejection


class Rejections:
    """What was refused and why, as columns: most files share their reason with many others."""

    def __init__(self) -> None:
        self._positions, self._frames, self._reasons = array("q"), array("i"), array("q")
        self._numbers: dict[Rejection, int] = {}

    def add(self, refused: Refused) -> None:
        self._positions.append(refused.position)
        self._frames.append(refused.frame)
        self._reasons.append(self._numbers.setdefault(refused.rejection, len(self._numbers)))

    def __len__(self) -> int:
        return len(self._positions)

    def counts(self) -> dict[str, int]:
        """code -> number, by name."""
        each = Counter(self._reasons)
        counts: Counter[str] = Counter()
        for rejection, number in self._numbers.items():
            counts[str(rejection.code)] += each[number]
        return dict(sorted(counts.items()))

    def in_order(self) -> Iterator[Refused]:
        """By position and frame."""
        known = list(self._numbers)
        for row in np.lexsort((np.array(self._frames), np.array(self._positions))).tolist():
            yield Refused(self._positions[row], self._frames[row], known[self._reasons[row]])


@dataclass(frozen=True)
class Decided:
    """What the headers of all files say together.

    table: the candidates that remain, each with its patient, as the manifest is sorted. refused: the others.
    """

    table: RecordTable
    refused: list[Refused]


def decide_by_headers(candidates: RecordTable, pseudonyms: Pseudonyms) -> Decided:
    """Refuse studies of two patients and images of two studies; give each study that names no patient one of its own."""
    study_codes, study_names = _codes(candidates, "study_id")
    image_codes, image_names = _codes(candidates, "image_id")
    patient_codes, patient_names = _codes(candidates, "patient_id")
    is_named = pc.not_equal(candidates.table["patient_id"], "").to_numpy()
    n_patients = _n_partners(study_codes[is_named], patient_codes[is_named], len(study_names))[study_codes]
    n_studies = _n_partners(image_codes, study_codes, len(image_names))[image_codes]
    positions, frames = candidates.column("position"), candidates.column("frame")
    refused = []
    for row in np.flatnonzero((n_patients > 1) | (n_studies > 1)):
        if n_patients[row] > 1:
            detail = f"its study holds files of {n_patients[row]} patients"
            rejection = Rejection(RejectionCode.CONFLICTING_PATIENT, detail)
        else:
            detail = "its SOPInstanceUID also occurs in another study"
            rejection = Rejection(RejectionCode.CONFLICTING_DUPLICATE, detail)
        refused.append(Refused(int(positions[row]), int(frames[row]), rejection))
    owner = np.full(len(study_names), -1)
    owner[study_codes[is_named]] = patient_codes[is_named]
    names = patient_names.to_pylist()
    for study in np.flatnonzero(owner < 0):
        owner[study] = len(names)
        names.append(pseudonyms.patient_of_study(study_names[study].as_py()))
    named = candidates.set("patient_id", pa.array(names, pa.string()).take(pa.array(owner[study_codes])))
    return Decided(named.take((n_patients <= 1) & (n_studies <= 1)).in_order(), refused)


def answer_to_json(answer: ImageRecord | Rejection) -> Any:
    """What the pixel pass said of one image, for a journal: its completed record, or why not."""
    if isinstance(answer, Rejection):
        return {"code": str(answer.code), "detail": answer.detail}
    return record_to_json(answer)


def answer_from_json(value: Any) -> ImageRecord | Rejection:
    """What `answer_to_json` wrote."""
    if isinstance(value, dict):
        return Rejection(RejectionCode(value["code"]), value["detail"])
    return record_from_json(value)


class PixelJudge:
    """Which of the files of one image is kept, group by group in the manifest's order."""

    def __init__(self, file_id: Callable[[int], str], *, refuse_equal_pixels: bool) -> None:
        """file_id: of a position. refuse_equal_pixels: also refuse pictures that an earlier image shows under another UID."""
        self._file_id = file_id
        self._seen: dict[str, int] | None = {} if refuse_equal_pixels else None

    def choose(
        self, group: Sequence[Candidate], answers: Sequence[ImageRecord | Rejection]
    ) -> tuple[int | None, list[Refused]]:
        """The number of the file that is kept, if any, and the others with their reasons.

        Files with one SOPInstanceUID: equal pixels count once, different ones not at all.
        """
        refused: list[Refused] = []

        def refuse(number: int, rejection: Rejection) -> None:
            refused.append(Refused(group[number].position, group[number].record.frame, rejection))

        good: list[tuple[int, str]] = []
        for number, answer in enumerate(answers):
            if isinstance(answer, Rejection):
                refuse(number, answer)
            else:
                good.append((number, answer.pixel_hash))
        if len({pixel_hash for _, pixel_hash in good}) > 1:
            detail = f"{len(good)} files have this SOPInstanceUID and their pixels differ"
            for number, _ in good:
                refuse(number, Rejection(RejectionCode.CONFLICTING_DUPLICATE, detail))
            return None, refused
        if not good:
            return None, refused
        (first, pixel_hash), *rest = good
        for number, _ in rest:
            detail = f"the same image as file {self._file_id(group[first].position)}"
            refuse(number, Rejection(RejectionCode.DUPLICATE, detail))
        earlier = self._seen.setdefault(pixel_hash, group[first].position) if self._seen is not None else None
        if earlier not in (None, group[first].position):
            detail = f"the same pixels as file {self._file_id(earlier)}, which has another SOPInstanceUID"
            refuse(first, Rejection(RejectionCode.DUPLICATE, detail))
            return None, refused
        return first, refused


def count_equal_pixels(manifest: pa.Table) -> dict[str, int]:
    """Pictures that occur under several UIDs, and the images that show them."""
    counts = pc.value_counts(manifest["pixel_hash"].combine_chunks()).field("counts").to_numpy()
    repeated = counts[counts > 1]
    return {"pictures": len(repeated), "images": int(repeated.sum())}


def count_notes(manifest: pa.Table) -> dict[str, int]:
    """Note -> number of images, in the order of `Note`; those that no image has are left out."""
    counts: Counter[str] = Counter()
    for found in pc.value_counts(manifest["notes"].combine_chunks()).to_pylist():
        for note in (found["values"] or "").split(","):
            counts[note] += found["counts"]
    return {str(note): counts[note] for note in Note if counts[note]}


def count_splits(manifest: pa.Table) -> dict[str, dict[str, int]]:
    """split -> {"patients", "studies", "images"}."""
    counts = {}
    for split in Split:
        here = manifest.filter(pc.equal(manifest["split"], str(split)))
        counts[str(split)] = {
            "patients": pc.count_distinct(here["patient_id"]).as_py(),
            "studies": pc.count_distinct(here["study_id"]).as_py(),
            "images": here.num_rows,
        }
    return counts


def _codes(candidates: RecordTable, name: str) -> tuple[np.ndarray, pa.Array]:
    """A text column as numbers, [rows], and the texts that they stand for."""
    encoded = candidates.table[name].combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy(), encoded.dictionary


def _n_partners(keys: np.ndarray, values: np.ndarray, n_keys: int) -> np.ndarray:
    """For each key, how many different values it occurs with."""
    pairs = np.unique(np.stack([keys, values], axis=1).astype(np.int64), axis=0)
    return np.bincount(pairs[:, 0], minlength=n_keys)
