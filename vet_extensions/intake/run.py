"""A source of images in, a manifest and shards out. Called by the command line and the demo.

Each item ends either as a record or as a row of rejected.csv. `passes` reads the files; here the run is set up, the tables are
written, and all is published at once. A run that was stopped goes on where it stood, and ends with the same bytes.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vet_extensions.errors import UserError
from vet_extensions.intake.deidentify import ID_DIGITS, Pseudonyms, load_or_make_salt
from vet_extensions.intake.files import FileKeys, FileList
from vet_extensions.intake.folder import CANDIDATES_NAME, OutputFolder, file_digest, saying_when_full, write_lists
from vet_extensions.intake.inventory import NO_SPLIT, Inventory, take_inventory
from vet_extensions.intake.journal import Journal
from vet_extensions.intake.labels import LabelTable, read_labels
from vet_extensions.intake.options import IntakeOptions, IntakeSummary
from vet_extensions.intake.parts import Part, write_candidates
from vet_extensions.intake.passes import Archive, Count, Passes
from vet_extensions.intake.pool import WorkerPool
from vet_extensions.intake.prescribed import split_all
from vet_extensions.intake.raw_values import FILE_NAME as RAW_VIEWS_NAME
from vet_extensions.intake.raw_values import TEXTS_NAME, TextJournal
from vet_extensions.intake.sources.base import Source
from vet_extensions.intake.sources.dicom_folder import DicomFolder
from vet_extensions.intake.tables import (
    PixelJudge,
    RecordTable,
    Rejections,
    count_equal_pixels,
    count_notes,
    count_splits,
)
from vet_extensions.manifest.build import build_table
from vet_extensions.manifest.io import write_manifest
from vet_extensions.schema import SCHEMA_VERSION

logger = logging.getLogger("vet_extensions")


def run_intake(
    source: Path | Source,
    out: Path,
    *,
    options: IntakeOptions | None = None,
    part: Part | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_taken_over: Callable[[int], None] | None = None,
    n_workers: int = 1,
) -> IntakeSummary:
    """Read every item of `source` into `out` (layout: `schema.IntakeFolder`) and report.

    source: a folder stands for the DICOM files in it, archives included (`DicomFolder`). part: read only this part of the items,
    for `parts.merge_parts`. on_progress: called with (files finished, files found); an image of several frames counts once a
    frame. on_taken_over: called with how many of them an interrupted run had finished already. n_workers: processes; 0 works in
    this one. The output depends neither on it nor on interruptions. A finished `out` from the same items and options is left as
    it is.
    Errors: UserError for a source without images, an `out` that holds something else, an unusable label table, a part
    without a given salt, and a full disk.
    """
    options = IntakeOptions() if options is None else options
    source, out = DicomFolder(Path(source)) if isinstance(source, str | Path) else source, Path(out)
    _refuse_nested(source, out)
    inventory = take_inventory(source, part=part)
    files = inventory.files
    folder = OutputFolder(out)
    done = folder.finished()
    if done is None and part is None and not folder.staging.exists():
        _demand_images(source, files)
    if part is not None:
        part.demand_salt(folder.layout.private, given=options.salt)
    with saying_when_full(out):
        pseudonyms = Pseudonyms(load_or_make_salt(folder.layout.private, given=options.salt))
        keys = files.keys(pseudonyms)
        head = _head(source, options, pseudonyms, part)
        key = _run_key(head, keys, options, inventory)
        if done is not None:
            return _as_before(done, key, folder)
        labels = LabelTable()
        if options.labels is not None:
            labels = read_labels(options.labels, pseudonyms=pseudonyms, columns=options.label_columns)
            _refuse_same_labels(source, labels)
        with folder, WorkerPool(n_workers) as pool:
            folder.take_up()
            passes = Passes(
                Archive(inventory, keys, options, pseudonyms, pool), Count(len(files), on_progress, on_taken_over)
            )
            accepted = _read(passes, head, keys, options, inventory, labels, folder)
            summary = _write_tables(accepted, passes.rejected, inventory, keys, options, labels, folder.staging)
            summary = replace(
                summary,
                run_key=key,
                salt_fingerprint=pseudonyms.fingerprint(),
                source={"name": source.name, "label_policy": dict(source.label_policy)},
                part="" if part is None else str(part),
                n_headers_taken_over=passes.n_headers_taken_over,
                n_images_taken_over=passes.n_images_taken_over,
            )
            passes.raw_views.write_csv(folder.layout.private / RAW_VIEWS_NAME)
            folder.publish(summary)
    logger.info("intake: %d of %d files accepted", summary.n_accepted, summary.n_files)
    return summary


def _read(
    passes: Passes,
    head: str,
    keys: FileKeys,
    options: IntakeOptions,
    inventory: Inventory,
    labels: LabelTable,
    folder: OutputFolder,
) -> RecordTable:
    """Both passes; of a part also the table that merging decides by. The journals go when all is published."""
    staging, part = folder.staging, inventory.part
    head = f"{head} {_program_version()}"  # another version may decode by other rules: it takes nothing over
    # A merge judges anew, and a picture that a part refused for another's sake may then be the one to keep.
    refuse_equal = options.equal_pixels == "reject" and part is None
    with (
        Journal(staging / "headers.journal", head=head) as headers,
        Journal(staging / "pixels.journal", head=head) as pixels,
        TextJournal(folder.layout.private / TEXTS_NAME, head=head) as texts,
    ):
        candidates = passes.read_headers(headers, texts)
        judge = PixelJudge(keys.file_id, refuse_equal_pixels=refuse_equal)
        accepted = passes.read_pixels(candidates, pixels, staging / "shards", judge=judge)
        if part is not None:
            answers = passes.pixel_answers(candidates, pixels)
            codes = _split_codes(candidates, inventory, options)
            path = folder.staged(folder.layout.private / CANDIDATES_NAME)
            write_candidates(path, candidates, answers, labels=labels, split_codes=codes)
    return accepted


def _write_tables(
    accepted: RecordTable,
    rejected: Rejections,
    inventory: Inventory,
    keys: FileKeys,
    options: IntakeOptions,
    labels: LabelTable,
    staging: Path,
) -> IntakeSummary:
    """manifest.parquet, rejected.csv and sources.csv, still under their temporary names; returns the summary of it all."""
    codes = _split_codes(accepted, inventory, options)
    splits, prescribed = split_all(accepted.table["patient_id"], codes, options=options.as_json())
    label_rows, positions = np.full(len(accepted), -1), accepted.column("position")
    names = (*inventory.source.label_names, *labels.names)
    pieces = [build_table([], splits=splits, label_names=names)]
    for start, records in accepted.chunks():
        rows = [labels.row_of(record) for record in records]
        label_rows[start : start + len(rows)] = [-1 if row is None else row for row in rows]
        stated = [
            replace(record, labels=inventory.labels_of(position) | labels.labels_of(record))
            for record, position in zip(records, positions[start : start + len(rows)].tolist(), strict=True)
        ]
        pieces.append(build_table(stated, splits=splits, label_names=names))
    manifest = pa.concat_tables(pieces).combine_chunks()
    write_manifest(manifest, staging / "manifest.parquet")
    write_lists(staging, files=inventory.files, keys=keys, rejected=rejected)
    return IntakeSummary(
        n_files=len(accepted) + len(rejected),
        n_accepted=len(accepted),
        n_rejected=len(rejected),
        n_patients=len(splits),
        n_studies=pc.count_distinct(manifest["study_id"]).as_py(),
        rejected=rejected.counts(),
        splits=count_splits(manifest),
        official_split=prescribed,
        equal_pixels=count_equal_pixels(manifest),
        notes=count_notes(manifest),
        labels=labels.report(label_rows) if options.labels is not None else None,
        options=options.as_json(),
    )


def _split_codes(table: RecordTable, inventory: Inventory, options: IntakeOptions) -> np.ndarray:
    """The number of the prescribed split of each image, -1 where there is none or none is wanted."""
    codes = inventory.splits[table.column("position")]
    return codes if options.official_split else np.full_like(codes, NO_SPLIT)


def _head(source: Source, options: IntakeOptions, pseudonyms: Pseudonyms, part: Part | None) -> str:
    """What every journal entry depends on, beside its file and the program's version: the kind of source, the options, the salt
    and the part."""
    what = [
        SCHEMA_VERSION,
        source.name,
        options.as_json(),
        pseudonyms.fingerprint(),
        None if part is None else str(part),
    ]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:ID_DIGITS]


def _program_version() -> str:
    try:
        return version("vet-dino")
    except PackageNotFoundError:  # run from its sources, which no installation describes
        return "not installed"


def _run_key(head: str, keys: FileKeys, options: IntakeOptions, inventory: Inventory) -> str:
    """What this run is: the items (key, size, stamp, facts), the options, the labels and the salt."""
    labels = None if options.labels is None or not options.labels.is_file() else file_digest(options.labels)
    digest = hashlib.sha256(f"{head} {labels}".encode())
    digest.update(keys.states.astype("<u8").tobytes())
    digest.update(inventory.label_digest())
    digest.update(json.dumps(dict(inventory.source.label_policy), sort_keys=True).encode())
    return digest.hexdigest()[:ID_DIGITS]


def _as_before(done: IntakeSummary, key: str, folder: OutputFolder) -> IntakeSummary:
    if done.run_key != key:
        raise UserError(
            f"The output folder '{folder.layout.root}' already holds a finished intake ({done.n_accepted} images) of other "
            f"files, options or labels; its options are in {folder.layout.summary.name}. Give a new folder, or delete "
            "this one first."
        )
    if folder.staging.exists():
        folder.clean_up()
    logger.info("intake: nothing to do, '%s' already holds this run", folder.layout.root.name)
    return done


def _demand_images(source: Source, files: FileList) -> None:
    if not isinstance(source, DicomFolder):
        if not len(files):
            raise UserError(f"The source ({source.name}) names no image. Look at its table, or at what is asked for.")
    elif not any(file.problem is None and _has_mark(source, file.relative) for file in files):
        raise UserError(
            f"No DICOM file was found below '{source.root}' ({len(files)} files looked at). Intake reads files with the DICM "
            "mark (DICOM PS3.10); give the folder that holds them. PNG, JPEG and TIFF files are read with --source images "
            "or --source table: see docs/sources.md."
        )


def _has_mark(source: Source, key: str) -> bool:
    try:
        with source.open(key) as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _refuse_same_labels(source: Source, labels: LabelTable) -> None:
    same = sorted(set(source.label_names) & set(labels.names))
    if same:
        raise UserError(
            f"The label table and {source.name} both state {', '.join(same[:10])}. Rename these columns of the table, or leave "
            "them out of label_columns."
        )


def _refuse_nested(source: Source, out: Path) -> None:
    root = getattr(source, "root", None)
    if not isinstance(root, Path):
        return
    inner, outer = out.resolve(), root.resolve()
    if inner == outer or outer in inner.parents:
        raise UserError(
            f"The output folder '{out}' lies in the source folder '{root}', so that the next run would read its own output. "
            "Give a folder outside."
        )
