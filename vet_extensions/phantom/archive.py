"""A whole synthetic archive on disk: DICOM files in folders, truth.parquet, labels.csv and archive.json.

`vetdino phantom` and the demo call `write_archive`. Studies are written in small chunks, each by one process, each
leaving its part of the truth beside the files; a chunk whose part and files are there is not written again, so that an
interrupted archive goes on where it stopped. What a study looks like depends on the seed and its number alone, never
on the worker, the chunk or the order.
"""

import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from vet_extensions.errors import UserError
from vet_extensions.phantom.dicom import SMALLEST_SIDE_PX, write_dicom
from vet_extensions.phantom.headers import ImageKey
from vet_extensions.phantom.render import organ_masks, render_view
from vet_extensions.phantom.studies import PhantomStudy, sample_study
from vet_extensions.phantom.truth import (
    LABELS_FILE,
    TRUTH_FILE,
    merge_truth,
    read_truth,
    truth_row,
    write_labels,
    write_truth,
)
from vet_extensions.schema import View

ARCHIVE_VERSION = 1
"""Raised when the same request would give other files than before."""

ARCHIVE_FILE = "archive.json"
_PARTS = "parts"
_STUDIES_PER_CHUNK = 8


@dataclass(frozen=True)
class ArchiveRequest:
    """What decides an archive's content; kept in archive.json, so that no folder ever mixes two archives."""

    seed: int
    n_studies: int
    size_px: int
    profile: str
    views: tuple[str, ...] | None
    plain: bool
    archive_version: int = ARCHIVE_VERSION


@dataclass(frozen=True)
class ArchiveSummary:
    """What is in the folder now; `n_images_kept` of the images were there before this call."""

    root: Path
    n_patients: int
    n_studies: int
    n_images: int
    n_images_kept: int
    n_bytes: int

    def __str__(self) -> str:
        kept = f", {self.n_images_kept:,} of them kept from before" if self.n_images_kept else ""
        return (
            f"{self.n_images:,} images of {self.n_studies:,} studies of {self.n_patients:,} patients, "
            f"{self.n_bytes / 1e6:,.1f} MB{kept}."
        )


def write_archive(
    out: Path,
    *,
    n_studies: int,
    seed: int = 0,
    size_px: int = 128,
    profile: str = "balanced",
    views: tuple[View, ...] | None = None,
    n_workers: int = 1,
    plain: bool = False,
    on_progress: Callable[[int], object] | None = None,
) -> ArchiveSummary:
    """Write studies 0 .. n_studies - 1 of `seed` as DICOM files, or finish what an interrupted call began.

    out: a new or empty folder, or one that holds this same archive.
    size_px: rows and columns of every image, at least 32. views: of every study; None leaves them to `sample_study`.
    n_workers: processes; 0 and 1 work in this one. The files are the same for every number.
    plain: all files explicit little endian, MONOCHROME2, one linear window, complete headers.
    on_progress: called with the number of studies that are finished.
    Raises UserError for a request that cannot be, and for a folder that holds something else.
    """
    request = ArchiveRequest(seed, n_studies, size_px, profile, tuple(map(str, views)) if views else None, plain)
    _check_request(request)
    _claim_folder(out, request)
    chunks = [
        range(first, min(first + _STUDIES_PER_CHUNK, n_studies)) for first in range(0, n_studies, _STUDIES_PER_CHUNK)
    ]
    missing = _chunks_to_write(out, chunks)
    n_images_written, n_done = 0, sum(map(len, chunks)) - sum(map(len, missing))
    if on_progress is not None and n_done:
        on_progress(n_done)
    for n_chunk_studies, n_images in _write_chunks(out, request, missing, n_workers=n_workers):
        n_images_written += n_images
        n_done += n_chunk_studies
        if on_progress is not None:
            on_progress(n_done)
    if not (out / TRUTH_FILE).is_file():
        merge_truth(out / TRUTH_FILE, [_part_path(out, chunk) for chunk in chunks])
    shutil.rmtree(out / _PARTS)
    return _conclude(out, request, n_images_written)


def masks_of(archive: Path, sop_instance_uid: str) -> dict[str, np.ndarray]:
    """The organs of one image, name -> bool [size_px, size_px]: the study is drawn again and its organs projected.

    Raises UserError for an unknown UID or a folder that is no archive.
    """
    truth = read_truth(archive).select(["SOPInstanceUID", "study_number", "image_index"]).to_pylist()
    row = next((row for row in truth if row["SOPInstanceUID"] == sop_instance_uid), None)
    if row is None:
        raise UserError(
            f"No image of this archive has the SOPInstanceUID that was asked for. "
            f"Allowed: the values of column SOPInstanceUID in {TRUTH_FILE}."
        )
    request = _read_request(archive)
    study = _draw_study(request, row["study_number"])
    return organ_masks(study, study.exposures[row["image_index"]], request.size_px)


def _check_request(request: ArchiveRequest) -> None:
    if request.n_studies < 1:
        raise UserError(
            f"An archive of {request.n_studies} studies was asked for; give a number of studies of at least 1."
        )
    if request.size_px < SMALLEST_SIDE_PX:
        raise UserError(
            f"Images of {request.size_px} px were asked for; give a size of at least {SMALLEST_SIDE_PX} px "
            "(JPEG 2000, which some of the files use, cannot encode less)."
        )
    if request.seed < 0:
        raise UserError(f"Seed {request.seed} was given; give a whole number of at least 0.")
    _draw_study(request, 0)  # lets an unknown profile or view speak before any file is written


def _claim_folder(out: Path, request: ArchiveRequest) -> None:
    """Write archive.json into a new folder, or check that the folder is this archive's."""
    if (out / ARCHIVE_FILE).is_file():
        old, new = asdict(_read_request(out)), asdict(request)
        differing = [f"{name} {old[name]!r} (asked for: {new[name]!r})" for name in new if old[name] != new[name]]
        if differing:
            raise UserError(
                f"The folder '{out}' holds another archive: {', '.join(differing)}. "
                "Give the same values to finish that one, or another folder for the new one."
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"'{out}' is not empty and holds no phantom archive (no {ARCHIVE_FILE}). Give a new or empty folder."
        )
    out.mkdir(parents=True, exist_ok=True)
    _write_json(out / ARCHIVE_FILE, {"request": asdict(request), "counts": None})


def _read_request(archive: Path) -> ArchiveRequest:
    try:
        stored = json.loads((archive / ARCHIVE_FILE).read_text(encoding="utf-8"))["request"]
        return ArchiveRequest(**stored | {"views": tuple(stored["views"]) if stored["views"] else None})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"'{archive}' has no {ARCHIVE_FILE} that this program can read ({type(error).__name__}). "
            "Give the folder of a phantom archive, or write one into an empty folder with `vetdino phantom`."
        ) from error


def _part_path(out: Path, chunk: range) -> Path:
    return out / _PARTS / f"{chunk.start:06d}.parquet"


def _chunks_to_write(out: Path, chunks: list[range]) -> list[range]:
    """The chunks of which a file or the truth is missing, or has another size than the truth says."""
    (out / _PARTS).mkdir(exist_ok=True)
    if (out / TRUTH_FILE).is_file():
        broken = set(_studies_with_broken_files(out, out / TRUTH_FILE))
        return [chunk for chunk in chunks if not broken.isdisjoint(chunk)]
    parts = [(chunk, _part_path(out, chunk)) for chunk in chunks]
    return [chunk for chunk, part in parts if not part.is_file() or any(_studies_with_broken_files(out, part))]


def _studies_with_broken_files(out: Path, truth: Path) -> Iterator[int]:
    table = pq.read_table(truth, columns=["path", "n_bytes", "study_number"])
    for path, n_bytes, study_number in zip(*(column.to_pylist() for column in table.columns), strict=True):
        file = out / path
        if not file.is_file() or file.stat().st_size != n_bytes:
            yield study_number


def _write_chunks(
    out: Path, request: ArchiveRequest, chunks: list[range], *, n_workers: int
) -> Iterator[tuple[int, int]]:
    """Write the chunks, in this process or in others; gives (studies, images) of each as it is finished."""
    if n_workers <= 1 or len(chunks) <= 1:
        for chunk in chunks:
            yield len(chunk), _write_chunk(out, request, chunk)
        return
    # Spawned, not forked: the caller may have started threads (a progress bar, torch) that a fork would copy half-way.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(n_workers, len(chunks)), mp_context=context) as pool:
        futures = {pool.submit(_write_chunk, out, request, chunk): len(chunk) for chunk in chunks}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _write_chunk(out: Path, request: ArchiveRequest, chunk: range) -> int:
    """Write some studies and, when all their files are there, their part of the truth. Returns the number of images."""
    rows = [row for study_number in chunk for row in _write_study(out, request, study_number)]
    write_truth(_part_path(out, chunk), rows)
    return len(rows)


def _write_study(out: Path, request: ArchiveRequest, study_number: int) -> Iterator[dict]:
    study = _draw_study(request, study_number)
    for index, exposure in enumerate(study.exposures):
        key = ImageKey(request.seed, study_number, index, exposure.view)
        path = f"dicom/{_folder_name(key.patient_id)}/{_folder_name(key.uid('study'))}/{index + 1}.dcm"
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        rendered = render_view(study, exposure, request.size_px)
        spacing = rendered.pixel_spacing_mm
        written = write_dicom(out / path, key=key, image=rendered.image, spacing_mm=spacing, plain=request.plain)
        yield truth_row(
            key=key,
            path=path,
            written=written,
            size_px=request.size_px,
            pixel_spacing_mm=spacing,
            trunk_length_mm=study.trunk_length_mm,
            findings=study.findings,
            landmarks_mm=rendered.landmarks_mm,
            landmarks_px=rendered.landmarks_px,
            centroids_mm=rendered.findings_mm,
            centroids_px=rendered.findings_px,
        )


def _draw_study(request: ArchiveRequest, study_number: int) -> PhantomStudy:
    views = tuple(View(view) for view in request.views) if request.views else None
    return sample_study(request.seed, study_number, profile=request.profile, views=views)


def _folder_name(identifier: str) -> str:
    """Eight hex digits: as in real archives, folder names mean nothing."""
    return sha256(identifier.encode()).hexdigest()[:8]


def _conclude(out: Path, request: ArchiveRequest, n_images_written: int) -> ArchiveSummary:
    """Write labels.csv and the counts in archive.json."""
    truth = read_truth(out)
    write_labels(out / LABELS_FILE, truth)
    summary = ArchiveSummary(
        root=out,
        n_patients=len(truth.column("patient_id").unique()),
        n_studies=request.n_studies,
        n_images=truth.num_rows,
        n_images_kept=truth.num_rows - n_images_written,
        n_bytes=sum(truth.column("n_bytes").to_pylist()),
    )
    counts = {name: getattr(summary, name) for name in ("n_patients", "n_studies", "n_images", "n_bytes")}
    versions = {name: version(name) for name in ("numpy", "pydicom", "pyarrow")}
    _write_json(out / ARCHIVE_FILE, {"request": asdict(request), "counts": counts, "versions": versions})
    return summary


def _write_json(path: Path, content: dict) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
