"""Image records to the manifest's columns. Used by intake; the column list is the contract that every reader relies on."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import pyarrow as pa

from vet_extensions.schema import LABEL_PREFIX, ImageRecord, Split

COLUMNS = pa.schema(
    [
        ("image_id", pa.string()),
        ("study_id", pa.string()),
        ("patient_id", pa.string()),
        ("split", pa.string()),
        ("view", pa.string()),
        ("view_source", pa.string()),
        ("species", pa.string()),
        ("body_part", pa.string()),
        ("laterality", pa.string()),
        ("rows", pa.int32()),
        ("columns", pa.int32()),
        ("stored_rows", pa.int32()),
        ("stored_columns", pa.int32()),
        ("spacing_row_mm", pa.float32()),
        ("spacing_column_mm", pa.float32()),
        ("photometric", pa.string()),
        ("bits_stored", pa.int32()),
        ("transfer_syntax", pa.string()),
        ("source_id", pa.string()),
        ("pixel_hash", pa.string()),
        ("frame", pa.int32()),
        ("crop_top", pa.int32()),
        ("crop_left", pa.int32()),
        ("crop_rows", pa.int32()),
        ("crop_columns", pa.int32()),
        ("notes", pa.string()),
    ]
)
"""All columns but the labels, which follow as `label.<finding>`, int8, null where not stated. crop_*: null where all was kept."""

SORT_KEYS = ("patient_id", "study_id", "image_id")


def build_table(
    records: Sequence[ImageRecord], *, splits: Mapping[str, Split], label_names: Sequence[str] = ()
) -> pa.Table:
    """The manifest of `records`, a row each, in their order, which must be that of SORT_KEYS.

    splits: patient id -> split, for every patient. label_names: the findings that become columns.
    """
    keys = [(record.patient_id, record.study_id, record.image_id) for record in records]
    assert all(a < b for a, b in pairwise(keys)), "records must be sorted by patient, study, image, without repetition"
    columns = {}
    for field in COLUMNS:
        columns[field.name] = pa.array([_cell(record, field.name, splits) for record in records], field.type)
    for name in label_names:
        columns[LABEL_PREFIX + name] = pa.array([record.labels.get(name) for record in records], pa.int8())
    return pa.table(columns)


def _cell(record: ImageRecord, column: str, splits: Mapping[str, Split]):
    if column == "split":
        return str(splits[record.patient_id])
    if column == "view":
        return str(record.view)
    if column == "spacing_row_mm":
        return None if record.spacing_mm is None else record.spacing_mm[0]
    if column == "spacing_column_mm":
        return None if record.spacing_mm is None else record.spacing_mm[1]
    if column.startswith("crop_"):
        return None if record.crop is None else getattr(record.crop, column.removeprefix("crop_"))
    if column == "notes":
        return ",".join(record.notes)
    return getattr(record, column)
