"""A folder of DICOM files in, a manifest and shards out: the loop of intake. Called by the command line and the demo.

Two passes. The first reads headers only, decides who belongs to whom and sorts; the second decodes in manifest order, so that
a study's images lie together in the shards and only a few images are in memory at a time. Each file ends either as a record
or as a row of rejected.csv.
"""

import hashlib
import itertools
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from vet_extensions.errors import UserError
from vet_extensions.intake.deidentify import ID_DIGITS, Pseudonyms, load_or_make_salt
from vet_extensions.intake.files import SourceFile, holds_dicom, list_files
from vet_extensions.intake.folder import OutputFolder, file_digest, write_csv
from vet_extensions.intake.header import HeaderReader
from vet_extensions.intake.image import ImageReader, StoredImage
from vet_extensions.intake.labels import LabelTable, read_labels
from vet_extensions.intake.options import IntakeOptions, IntakeSummary
from vet_extensions.intake.pool import WorkerPool
from vet_extensions.manifest.build import build_table
from vet_extensions.manifest.io import write_manifest
from vet_extensions.manifest.split import split_patients
from vet_extensions.schema import SCHEMA_VERSION, ImageRecord, Rejection, RejectionCode, Split
from vet_extensions.shards.writer import ShardWriter

logger = logging.getLogger("vet_extensions")

HEADERS_A_CHUNK = 64
PIXEL_BYTES_A_CHUNK = 8 * 2**20
"""Finished images travel from worker to parent in chunks of about this many bytes."""


@dataclass(frozen=True)
class _Candidate:
    """A file whose header passed: where it stands in the listing, and its record so far."""

    position: int
    record: ImageRecord


def run_intake(
    source: Path,
    out: Path,
    *,
    options: IntakeOptions | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    n_workers: int = 1,
) -> IntakeSummary:
    """Read every file below `source` into `out` (layout: `schema.IntakeFolder`) and report.

    on_progress: called with (files finished, files found). n_workers: processes; 0 works in this one. The output does not
    depend on it. A finished `out` from the same files and options is left as it is; an interrupted one is started over.
    Errors: UserError for a source without DICOM files, an `out` that holds something else, and an unusable label table.
    """
    options = IntakeOptions() if options is None else options
    source, out = Path(source), Path(out)
    _refuse_nested(source, out)
    files = list_files(source)
    folder = OutputFolder(out)
    done = folder.finished()
    if done is None and not holds_dicom(source, files):
        raise UserError(
            f"No DICOM file was found below '{source}' ({len(files)} files looked at). Intake reads files with the DICM mark "
            "(DICOM PS3.10); give the folder that holds them."
        )
    pseudonyms = Pseudonyms(load_or_make_salt(folder.layout.private, given=options.salt))
    key = _run_key(files, options, pseudonyms)
    if done is not None:
        return _as_before(done, key, folder)
    labels = LabelTable()
    if options.labels is not None:
        labels = read_labels(options.labels, pseudonyms=pseudonyms, columns=options.label_columns)
    with folder, WorkerPool(n_workers) as pool:
        folder.start_over()
        job = _Job(source, files, options, pseudonyms, pool, on_progress)
        records = job.run(folder.staging / "shards", labels)
        summary = _write_tables(job, records, labels, folder, key)
        folder.publish(summary)
    logger.info("intake: %d of %d files accepted", summary.n_accepted, summary.n_files)
    return summary


class _Job:
    """The state of one run: which files have been dealt with, and how."""

    def __init__(
        self,
        source: Path,
        files: list[SourceFile],
        options: IntakeOptions,
        pseudonyms: Pseudonyms,
        pool: WorkerPool,
        on_progress: Callable[[int, int], None] | None,
    ) -> None:
        self.files = files
        self.options = options
        self.file_ids = [pseudonyms.file(file.relative) for file in files]
        self.rejected: dict[tuple[int, int], Rejection] = {}
        self.n_images = len(files)
        self._source = source
        self._pseudonyms = pseudonyms
        self._pool = pool
        self._on_progress = on_progress
        self._n_done = 0

    def run(self, shards: Path, labels: LabelTable) -> list[ImageRecord]:
        """Both passes. Returns the accepted records in manifest order, as written to the shards."""
        candidates = self._reject_conflicts(self._read_headers())
        candidates.sort(key=lambda c: (c.record.patient_id, c.record.study_id, c.record.image_id, c.position))
        records: list[ImageRecord] = []
        with ShardWriter(shards) as writer:
            for candidate, image in self._distinct_images(candidates):
                writer.add(candidate.record.image_id, image.pixels)
                record = image.complete(candidate.record)
                records.append(replace(record, labels=labels.labels_of(record)))
                self._count_done()
        return records

    def _read_headers(self) -> list[_Candidate]:
        positions: list[int] = []
        tasks: list[tuple[str, str]] = []
        for position, file in enumerate(self.files):
            if file.problem is None:
                positions.append(position)
                tasks.append((str(self._source / file.relative), self.file_ids[position]))
            else:
                self._reject(position, file.problem)
        answers = self._pool.ordered_map(
            HeaderReader(self._pseudonyms, self.options),
            tasks,
            chunk_size=HEADERS_A_CHUNK,
            on_death=lambda _: Rejection(RejectionCode.UNREADABLE, "the process that read the header died"),
        )
        candidates = []
        for position, answer in zip(positions, answers, strict=True):
            if isinstance(answer, Rejection):
                self._reject(position, answer)
            else:
                candidates.extend(_Candidate(position, record) for record in answer)
                self.n_images += len(answer) - 1
        return candidates

    def _reject_conflicts(self, candidates: list[_Candidate]) -> list[_Candidate]:
        """Refuse studies of two patients and images of two studies; give each study that names no patient one of its own."""
        patients: dict[str, set[str]] = defaultdict(set)
        studies: dict[str, set[str]] = defaultdict(set)
        for candidate in candidates:
            record = candidate.record
            patients[record.study_id] |= {record.patient_id} - {""}
            studies[record.image_id].add(record.study_id)
        kept = []
        for candidate in candidates:
            record = candidate.record
            named = patients[record.study_id]
            if len(named) > 1:
                detail = f"its study holds files of {len(named)} patients"
                rejection = Rejection(RejectionCode.CONFLICTING_PATIENT, detail)
                self._reject(candidate.position, rejection, frame=record.frame)
            elif len(studies[record.image_id]) > 1:
                detail = "its SOPInstanceUID also occurs in another study"
                rejection = Rejection(RejectionCode.CONFLICTING_DUPLICATE, detail)
                self._reject(candidate.position, rejection, frame=record.frame)
            else:
                patient_id = next(iter(named), None) or self._pseudonyms.patient_of_study(record.study_id)
                kept.append(_Candidate(candidate.position, replace(record, patient_id=patient_id)))
        return kept

    def _distinct_images(self, candidates: list[_Candidate]) -> Iterator[tuple[_Candidate, StoredImage]]:
        """The pixel pass. Files with one SOPInstanceUID are neighbours: equal pixels count once, different ones not at all."""
        decoded = zip(candidates, self._decode(candidates), strict=True)
        for _, group in itertools.groupby(decoded, key=lambda pair: pair[0].record.image_id):
            good: list[tuple[_Candidate, StoredImage]] = []
            for candidate, answer in group:
                if isinstance(answer, Rejection):
                    self._reject(candidate.position, answer, frame=candidate.record.frame)
                else:
                    good.append((candidate, answer))
            if len({image.pixel_hash for _, image in good}) > 1:
                detail = f"{len(good)} files have this SOPInstanceUID and their pixels differ"
                rejection = Rejection(RejectionCode.CONFLICTING_DUPLICATE, detail)
                for candidate, _ in good:
                    self._reject(candidate.position, rejection, frame=candidate.record.frame)
                continue
            for candidate, _ in good[1:]:
                detail = f"the same image as file {self.file_ids[good[0][0].position]}"
                rejection = Rejection(RejectionCode.DUPLICATE, detail)
                self._reject(candidate.position, rejection, frame=candidate.record.frame)
            yield from good[:1]

    def _decode(self, candidates: Iterable[_Candidate]) -> Iterator[StoredImage | Rejection]:
        largest = self.options.longest_side_px**2 * self.options.bits // 8
        return self._pool.ordered_map(
            ImageReader(self.options),
            ((str(self._source / self.files[c.position].relative), c.record.frame) for c in candidates),
            chunk_size=max(1, min(32, PIXEL_BYTES_A_CHUNK // largest)),
            on_death=lambda _: Rejection(RejectionCode.DECODE_FAILED, "the process that decoded the file died"),
        )

    def _reject(self, position: int, rejection: Rejection, *, frame: int = 0) -> None:
        self.rejected[position, frame] = rejection
        self._count_done()

    def _count_done(self) -> None:
        self._n_done += 1
        if self._on_progress is not None:
            self._on_progress(self._n_done, self.n_images)


def _write_tables(
    job: _Job, records: list[ImageRecord], labels: LabelTable, folder: OutputFolder, key: str
) -> IntakeSummary:
    """manifest.parquet, rejected.csv and sources.csv, still under their temporary names; returns the summary of it all."""
    patients = {record.patient_id for record in records}
    splits = split_patients(patients, fractions=job.options.fractions, seed=job.options.split_seed)
    write_manifest(build_table(records, splits=splits, label_names=labels.names), folder.staging / "manifest.parquet")
    rejections = sorted(job.rejected.items())
    write_csv(
        folder.staging / "rejected.csv",
        header=("file_id", "code", "detail"),
        rows=((job.file_ids[position], str(r.code), r.detail) for (position, _), r in rejections),
    )
    write_csv(
        folder.staging / "sources.csv",
        header=("file_id", "path"),
        rows=((file_id, file.relative) for file_id, file in zip(job.file_ids, job.files, strict=True)),
        mode=0o600,
    )
    codes = Counter(str(rejection.code) for rejection in job.rejected.values())
    return IntakeSummary(
        n_files=job.n_images,
        n_accepted=len(records),
        n_rejected=len(job.rejected),
        n_patients=len(patients),
        n_studies=len({record.study_id for record in records}),
        rejected=dict(sorted(codes.items())),
        splits=_count_splits(records, splits),
        labels=labels.report(records) if job.options.labels is not None else None,
        options=job.options.as_json(),
        run_key=key,
    )


def _count_splits(records: list[ImageRecord], splits: dict[str, Split]) -> dict[str, dict[str, int]]:
    counts = {}
    for split in Split:
        here = [record for record in records if splits[record.patient_id] == split]
        counts[str(split)] = {
            "patients": len({record.patient_id for record in here}),
            "studies": len({record.study_id for record in here}),
            "images": len(here),
        }
    return counts


def _run_key(files: list[SourceFile], options: IntakeOptions, pseudonyms: Pseudonyms) -> str:
    """What this run is: the files (path, size, time of change), the options, the labels' bytes and the salt."""
    digest = hashlib.sha256()
    labels = None if options.labels is None or not options.labels.is_file() else file_digest(options.labels)
    what = [SCHEMA_VERSION, options.as_json(), labels, pseudonyms.fingerprint()]
    digest.update(json.dumps(what, sort_keys=True).encode())
    for file in files:
        digest.update(f"{pseudonyms.file(file.relative)} {file.size} {file.mtime_ns}\n".encode())
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


def _refuse_nested(source: Path, out: Path) -> None:
    inner, outer = out.resolve(), source.resolve()
    if inner == outer or outer in inner.parents:
        raise UserError(
            f"The output folder '{out}' lies in the source folder '{source}', so that the next run would read its own output. "
            "Give a folder outside."
        )
