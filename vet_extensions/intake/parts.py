"""An archive read in parts by several machines, and the parts merged to what one run over everything would have written.

The command line's `intake --part i/N` reads one part into a folder of its own, `merge` calls `merge_parts`. A part keeps, beside
its results, what every file said before anything was decided by it; the merge decides anew over all files.
"""

import csv
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vet_extensions.errors import UserError
from vet_extensions.intake.deidentify import ID_DIGITS, Pseudonyms, load_or_make_salt
from vet_extensions.intake.files import FileKeys, FileList, SourceFile
from vet_extensions.intake.folder import CANDIDATES_NAME, SOURCES_NAME, OutputFolder, saying_when_full, write_lists
from vet_extensions.intake.labels import LabelTable
from vet_extensions.intake.options import IntakeSummary
from vet_extensions.intake.prescribed import split_all
from vet_extensions.intake.raw_values import FILE_NAME as RAW_VIEWS_NAME
from vet_extensions.intake.raw_values import RawViews
from vet_extensions.intake.tables import (
    PixelJudge,
    RecordTable,
    Refused,
    Rejections,
    answer_from_json,
    answer_to_json,
    count_equal_pixels,
    count_notes,
    count_splits,
    decide_by_headers,
)
from vet_extensions.manifest.io import write_manifest
from vet_extensions.manifest.merge import merge_manifests
from vet_extensions.schema import ImageRecord, IntakeFolder, Rejection, RejectionCode
from vet_extensions.shards.join import join_shards
from vet_extensions.shards.writer import write_index

MIN_SALT_CHARACTERS = 8


@dataclass(frozen=True)
class Part:
    """Part `number` (from 1) of `of`: the files whose paths' hashes fall to it, whatever other files there are."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @classmethod
    def parse(cls, text: str) -> "Part":
        """From "i/N". Errors: UserError."""
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise UserError(
                f"'{text}' is no part. Give i/N with i from 1 to N, for example 3/16 for the third of sixteen."
            )
        return cls(int(number), int(of))

    def holds(self, relative_path: bytes) -> bool:
        """Whether a file belongs to this part."""
        digest = hashlib.sha256(relative_path).digest()
        return int.from_bytes(digest[:8]) % self.of == self.number - 1

    def demand_salt(self, private: Path, *, given: str | None) -> None:
        """Errors: UserError where this part would make a salt of its own: no identifier would meet those of the other parts."""
        if given is None and not (private / "salt").exists():
            raise UserError(
                f"Part {self} has no salt, and with one of its own its patients would not meet those of the other parts. "
                "Give every part the same --salt-file FILE; the first that finds none makes it."
            )


def salt_from_file(path: Path) -> str:
    """The salt in `path`; made there (0600) if there is none, by one process even where several ask at the same time.

    Errors: UserError where the file holds no usable salt.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(temporary)  # unlike a rename, refuses where another process was first
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    salt = path.read_text(encoding="utf-8").strip()
    if len(salt) < MIN_SALT_CHARACTERS:
        raise UserError(
            f"The salt file holds {len(salt)} characters; with fewer than {MIN_SALT_CHARACTERS} the pseudonyms could be guessed. "
            "Give the name of a new file to have one made."
        )
    return salt


def write_candidates(
    path: Path,
    candidates: RecordTable,
    answers: Iterable[ImageRecord | Rejection | None],
    *,
    labels: LabelTable,
    split_codes: np.ndarray,
) -> None:
    """All that a merge decides by: each candidate, what its pixels said (null where the headers had decided), its label row, and
    the number of the split that is prescribed for it."""
    texts = [None if answer is None else json.dumps(answer_to_json(answer)) for answer in answers]
    rows = [labels.row_of(candidate.record) for candidate in candidates]
    table = candidates.table.append_column("answer", pa.array(texts, pa.string()))
    table = table.append_column("label_row", pa.array([-1 if row is None else row for row in rows], pa.int64()))
    table = table.append_column("split_code", pa.array(split_codes, pa.int8()))
    pq.write_table(
        table.take(pc.sort_indices(table, sort_keys=[("position", "ascending"), ("frame", "ascending")])), path
    )
    path.chmod(0o600)


def merge_parts(folders: Sequence[Path], out: Path) -> IntakeSummary:
    """Merge the parts in `folders` into `out`: the manifest that one run over all files would have written, byte for byte.

    Duplicates, conflicts and splits are decided over all files. The parts stay as they are; their shards are hard-linked where
    possible. A finished `out` from the same parts is left as it is.
    Errors: UserError for folders that are not all parts of one archive, read with the same options, salt and labels.
    """
    parts = _open_parts(folders)
    folder = OutputFolder(Path(out))
    salt = (parts[0].layout.private / "salt").read_text(encoding="utf-8").strip()
    key = hashlib.sha256(" ".join(part.summary.run_key for part in parts).encode()).hexdigest()[:ID_DIGITS]
    done = folder.finished()
    if done is not None:
        if done.run_key != key:
            raise UserError(
                f"The output folder '{out}' already holds another intake. Give a new folder, or delete it first."
            )
        return done
    with saying_when_full(folder.layout.root), folder:
        folder.take_up()
        pseudonyms = Pseudonyms(load_or_make_salt(folder.layout.private, given=salt))
        files = FileList(SourceFile(path) for part in parts for path in _source_paths(part.layout))
        summary = _merge(parts, files, files.keys(pseudonyms), pseudonyms, folder)
        summary = replace(summary, run_key=key, salt_fingerprint=pseudonyms.fingerprint())
        folder.publish(summary)
    return summary


@dataclass(frozen=True)
class _FinishedPart:
    layout: IntakeFolder
    summary: IntakeSummary


def _open_parts(folders: Sequence[Path]) -> list[_FinishedPart]:
    """The parts by number. Errors: UserError where they do not belong together."""
    found: dict[Part, _FinishedPart] = {}
    for path in folders:
        layout, summary = IntakeFolder(Path(path)), OutputFolder(Path(path)).finished()
        if summary is None or not summary.part:
            what = "holds no finished intake" if summary is None else "is no part of an archive but a whole one"
            raise UserError(f"'{path}' {what}. Merge folders that `vetdino intake --part i/N` has finished.")
        part = Part.parse(summary.part)
        if part in found:
            raise UserError(f"'{found[part].layout.root}' and '{path}' both hold part {part}. Give each part once.")
        found[part] = _FinishedPart(layout, summary)
    totals = sorted({part.of for part in found})
    if len(totals) != 1 or len(found) != totals[0]:
        got = ", ".join(str(part) for part in sorted(found, key=lambda part: (part.of, part.number)))
        raise UserError(f"These folders are not all parts of one archive: got {got or 'none'}. Give all N folders.")
    parts = [found[part] for part in sorted(found, key=lambda part: part.number)]
    for what, same in (
        ("salts (--salt-file)", {(part.layout.private / "salt").read_bytes() for part in parts}),
        (
            "options",
            {json.dumps([part.summary.options, part.summary.schema_version], sort_keys=True) for part in parts},
        ),
        ("label tables", {_labels_seen(part.summary) for part in parts}),
        ("sources", {json.dumps(part.summary.source, sort_keys=True) for part in parts}),
    ):
        if len(same) > 1:
            raise UserError(
                f"The parts were read with different {what}, so that they do not fit together. Read them anew alike."
            )
    return parts


def _labels_seen(summary: IntakeSummary) -> tuple[object, ...]:
    report = summary.labels
    return () if report is None else (report.n_rows, report.columns, report.ignored_columns)


def _merge(
    parts: list[_FinishedPart], files: FileList, keys: FileKeys, pseudonyms: Pseudonyms, folder: OutputFolder
) -> IntakeSummary:
    """Everything but publishing."""
    first, staging, private = parts[0].summary, folder.staging, folder.layout.private
    options = first.options
    union, rejected = _gather(parts, keys)
    decided = decide_by_headers(union, pseudonyms)
    for refused in decided.refused:
        rejected.add(refused)
    judge = PixelJudge(keys.file_id, refuse_equal_pixels=options["equal_pixels"] == "reject")
    accepted = decided.table.take(np.array(list(_kept_rows(decided.table, judge, rejected)), np.int64)).table
    splits, prescribed = split_all(accepted["patient_id"], accepted["split_code"].to_numpy(), options=options)
    wanted = [
        accepted.filter(pc.equal(accepted["part"], number))["image_id"].combine_chunks() for number in range(len(parts))
    ]
    manifest = merge_manifests([part.layout.manifest for part in parts], wanted, order=accepted, splits=splits)
    write_manifest(manifest, staging / "manifest.parquet")
    index = join_shards([part.layout.shards for part in parts], wanted, staging / "shards")
    order = pc.index_in(accepted["image_id"], value_set=index["image_id"].combine_chunks())
    write_index(staging / "shards", index.take(order).combine_chunks())
    raw_views = RawViews()
    for part in parts:
        raw_views.merge(RawViews.read_csv(part.layout.private / RAW_VIEWS_NAME))
    raw_views.write_csv(private / RAW_VIEWS_NAME)
    write_lists(staging, files=files, keys=keys, rejected=rejected)
    labels = first.labels
    if labels is not None:
        rows = accepted["label_row"].to_numpy()
        n_unmatched = labels.n_rows - len(np.unique(rows[rows >= 0]))
        labels = replace(labels, n_rows_unmatched=n_unmatched, n_images_without_row=int((rows < 0).sum()))
    return IntakeSummary(
        n_files=len(accepted) + len(rejected),
        n_accepted=len(accepted),
        n_rejected=len(rejected),
        n_patients=len(splits),
        n_studies=pc.count_distinct(accepted["study_id"]).as_py(),
        rejected=rejected.counts(),
        splits=count_splits(manifest),
        official_split=prescribed,
        source=first.source,
        equal_pixels=count_equal_pixels(manifest),
        notes=count_notes(manifest),
        labels=labels,
        options=first.options,
    )


def _gather(parts: list[_FinishedPart], keys: FileKeys) -> tuple[RecordTable, Rejections]:
    """The candidates of all parts, by their positions in the whole, and the files whose header was refused."""
    order = np.argsort(keys.ids)
    ordered = keys.ids[order]

    def positions_of(ids: Iterable[str]) -> np.ndarray:
        return order[np.searchsorted(ordered, np.array([int(i, 16) for i in ids], np.uint64))]

    tables, rejected = [], Rejections()
    for number, part in enumerate(parts):
        table = pq.read_table(part.layout.private / CANDIDATES_NAME)
        positions = positions_of(table["source_id"].to_pylist())
        is_candidate = np.zeros(len(keys.ids), bool)
        is_candidate[positions] = True
        table = table.set_column(0, "position", pa.array(positions, pa.int64()))
        tables.append(table.append_column("part", pa.array(np.full(len(table), number), pa.int32())))
        with part.layout.rejected.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                position = int(positions_of([row["file_id"]])[0])
                if not is_candidate[position]:
                    rejected.add(Refused(position, 0, Rejection(RejectionCode(row["code"]), row["detail"])))
    return RecordTable(pa.concat_tables(tables).unify_dictionaries()), rejected


def _kept_rows(table: RecordTable, judge: PixelJudge, rejected: Rejections) -> Iterator[int]:
    """The rows of `table` that are kept; the others are rejected."""
    texts = (text for batch in table.table.select(["answer"]).to_batches() for text in batch["answer"].to_pylist())
    row = 0
    for group in table.by_image():
        answers = [answer_from_json(json.loads(text)) for text in islice(texts, len(group))]
        kept, refused = judge.choose(group, answers)
        for one in refused:
            rejected.add(one)
        if kept is not None:
            yield row + kept
        row += len(group)


def _source_paths(layout: IntakeFolder) -> Iterator[str]:
    with (layout.private / SOURCES_NAME).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        for row in csv.DictReader(file):
            yield row["path"]
