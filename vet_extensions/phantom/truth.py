"""What is true of every image of a phantom archive: truth.parquet, one row per image, and labels.csv, one row per study.

`phantom.archive` makes the rows; tests and analyses read them with `read_truth`. An intake reads labels.csv alone, as
its table of labels; training reads neither.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vet_extensions.errors import UserError
from vet_extensions.phantom.dicom import BITS_STORED, WrittenImage
from vet_extensions.phantom.headers import ImageKey, series_uid
from vet_extensions.schema import FINDINGS

TRUTH_VERSION = 1
TRUTH_FILE = "truth.parquet"
LABELS_FILE = "labels.csv"

_VERSION_KEY = b"vetdino.truth_version"
_POINT = [("x_mm", pa.float32()), ("y_mm", pa.float32()), ("z_mm", pa.float32())]
_PIXEL = [("column_px", pa.float32()), ("row_px", pa.float32())]
_LANDMARK = pa.struct([("name", pa.string()), *_POINT, *_PIXEL])
_CENTROID = pa.struct([("finding", pa.string()), *_POINT, *_PIXEL])

TRUTH_SCHEMA = pa.schema(
    [
        ("StudyInstanceUID", pa.string()),
        ("SeriesInstanceUID", pa.string()),
        ("SOPInstanceUID", pa.string()),
        ("patient_id", pa.string()),
        ("study_number", pa.int32()),
        ("image_index", pa.int32()),
        ("view", pa.string()),
        ("path", pa.string()),
        ("n_bytes", pa.int64()),
        ("size_px", pa.int32()),
        ("pixel_spacing_mm", pa.float64()),
        ("trunk_length_mm", pa.float64()),
        *((name, pa.int8()) for name in FINDINGS),
        ("landmarks", pa.list_(_LANDMARK)),
        ("finding_centroids", pa.list_(_CENTROID)),
        ("sop_class", pa.string()),
        ("transfer_syntax", pa.string()),
        ("character_set", pa.string()),
        ("variants", pa.list_(pa.string())),
        ("photometric", pa.string()),
        ("bits_stored", pa.int8()),
        ("stored_low", pa.int32()),
        ("stored_high", pa.int32()),
        ("modality_transform", pa.string()),
        ("rescale_slope", pa.float64()),
        ("rescale_intercept", pa.float64()),
        ("voi_transform", pa.string()),
        ("window_center", pa.float64()),
        ("window_width", pa.float64()),
        ("lut_curve", pa.float64()),
        ("padding_value", pa.int32()),
    ],
    metadata={_VERSION_KEY: str(TRUTH_VERSION).encode()},
)
"""Columns of truth.parquet; docs/phantom.md says what each means."""


def truth_row(
    *,
    key: ImageKey,
    path: str,
    written: WrittenImage,
    size_px: int,
    pixel_spacing_mm: float,
    trunk_length_mm: float,
    findings: Mapping[str, bool],
    landmarks_mm: Mapping[str, np.ndarray],
    landmarks_px: Mapping[str, tuple[float, float]],
    centroids_mm: Mapping[str, Sequence[tuple[float, float, float]]],
    centroids_px: Mapping[str, Sequence[tuple[float, float]]],
) -> dict[str, Any]:
    """One image's row, keyed by the names of `TRUTH_SCHEMA`.

    path: relative to the archive, with forward slashes. Points are in this exposure's body frame, mm, and in pixels as
    (column, row); both mappings of a pair have the same names, and as many points under each.
    """
    mapping = written.mapping
    center, width = mapping.window or (None, None)
    return {
        "StudyInstanceUID": key.uid("study"),
        "SeriesInstanceUID": series_uid(key, written.plan),
        "SOPInstanceUID": key.uid("instance"),
        "patient_id": key.patient_id,
        "study_number": key.study_number,
        "image_index": key.image_index,
        "view": str(key.view),
        "path": path,
        "n_bytes": written.n_bytes,
        "size_px": size_px,
        "pixel_spacing_mm": pixel_spacing_mm,
        "trunk_length_mm": trunk_length_mm,
        **{name: int(findings[name]) for name in FINDINGS},
        "landmarks": [{"name": name, **_point(mm, landmarks_px[name])} for name, mm in landmarks_mm.items()],
        "finding_centroids": [
            {"finding": name, **_point(mm, px)}
            for name, points in centroids_mm.items()
            for mm, px in zip(points, centroids_px[name], strict=True)
        ],
        "sop_class": written.plan.sop_class,
        "transfer_syntax": written.transfer_syntax,
        "character_set": written.plan.character_set,
        "variants": sorted(written.plan.variants),
        "photometric": mapping.photometric,
        "bits_stored": BITS_STORED,
        "stored_low": mapping.low,
        "stored_high": mapping.high,
        "modality_transform": mapping.modality,
        "rescale_slope": mapping.slope,
        "rescale_intercept": mapping.intercept,
        "voi_transform": mapping.voi,
        "window_center": center,
        "window_width": width,
        "lut_curve": mapping.curve,
        "padding_value": written.padding_value,
    }


def write_truth(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows, sorted by study and image; the file appears only when it is whole."""
    ordered = sorted(rows, key=lambda row: (row["study_number"], row["image_index"]))
    _replace_table(path, pa.Table.from_pylist(ordered, schema=TRUTH_SCHEMA))


def merge_truth(path: Path, parts: Sequence[Path]) -> None:
    """Join tables that `write_truth` wrote, in the order of `parts`."""
    _replace_table(path, pa.concat_tables([pq.read_table(part, schema=TRUTH_SCHEMA) for part in parts]))


def read_truth(path: Path) -> pa.Table:
    """The truth of an archive, one row per image, in the order of studies and views.

    path: the archive's folder, or its truth.parquet.
    Raises UserError where there is none, or one that this version cannot read.
    """
    file = path / TRUTH_FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            f"No {TRUTH_FILE} in '{path}'. Allowed: the folder of a finished phantom archive, or the file itself. "
            "Run `vetdino phantom` on that folder again: it finishes an archive that was interrupted."
        )
    table = pq.read_table(file)
    version = (table.schema.metadata or {}).get(_VERSION_KEY, b"none").decode()
    if version != str(TRUTH_VERSION):
        raise UserError(
            f"'{file}' has truth version {version}; this program reads version {TRUTH_VERSION}. "
            "Write the archive again, into an empty folder."
        )
    return table


def write_labels(path: Path, truth: pa.Table) -> None:
    """The findings as CSV, one row per study: StudyInstanceUID, then 0 or 1 for each finding."""
    names = ["StudyInstanceUID", *FINDINGS]
    rows = dict.fromkeys(zip(*(truth.column(name).to_pylist() for name in names), strict=True))
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(rows)
    partial.replace(path)


def _point(mm: Sequence[float] | np.ndarray, px: tuple[float, float]) -> dict[str, float]:
    x, y, z = (float(value) for value in mm)
    return {"x_mm": x, "y_mm": y, "z_mm": z, "column_px": px[0], "row_px": px[1]}


def _replace_table(path: Path, table: pa.Table) -> None:
    partial = path.with_suffix(".partial")
    pq.write_table(table, partial)
    partial.replace(path)
