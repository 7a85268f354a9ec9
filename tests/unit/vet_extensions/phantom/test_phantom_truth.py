"""truth.parquet and labels.csv: what goes in comes out, and what cannot be read says why."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vet_extensions.errors import UserError
from vet_extensions.phantom.dicom import write_dicom
from vet_extensions.phantom.headers import ImageKey
from vet_extensions.phantom.truth import (
    LABELS_FILE,
    TRUTH_FILE,
    TRUTH_SCHEMA,
    merge_truth,
    read_truth,
    truth_row,
    write_labels,
    write_truth,
)
from vet_extensions.schema import FINDINGS, View


def make_row(folder: Path, *, study_number: int = 0, image_index: int = 0, finding: str = "nodule") -> dict[str, Any]:
    """The row of an image that was really written."""
    key = ImageKey(7, study_number, image_index, View.VD)
    image = np.linspace(0, 1, 32 * 32, dtype=np.float32).reshape(32, 32)
    return truth_row(
        key=key,
        path=f"dicom/{study_number}/{image_index}.dcm",
        written=write_dicom(folder / "image.dcm", key=key, image=image, spacing_mm=0.75),
        size_px=32,
        pixel_spacing_mm=0.75,
        trunk_length_mm=215.0,
        findings={name: name == finding for name in FINDINGS},
        landmarks_mm={"carina": np.array([60.0, 1.0, -40.0])},
        landmarks_px={"carina": (15.25, 11.5)},
        centroids_mm={finding: [(1.0, 2.0, 3.0), (4.0, 5.0, 6.0)]},
        centroids_px={finding: [(7.0, 8.0), (9.0, -3.5)]},
    )


def test_a_row_has_exactly_the_columns_of_the_schema(tmp_path: Path) -> None:
    assert list(make_row(tmp_path)) == TRUTH_SCHEMA.names


def test_findings_are_columns_named_as_in_the_schema_of_the_house(tmp_path: Path) -> None:
    write_truth(tmp_path / TRUTH_FILE, [make_row(tmp_path, finding="effusion")])
    table = read_truth(tmp_path)
    assert {name: table.column(name).to_pylist() for name in FINDINGS} == {
        name: [int(name == "effusion")] for name in FINDINGS
    }


def test_landmarks_and_centroids_come_back_in_millimetres_and_pixels(tmp_path: Path) -> None:
    write_truth(tmp_path / TRUTH_FILE, [make_row(tmp_path)])
    (row,) = read_truth(tmp_path / TRUTH_FILE).to_pylist()
    (carina,) = row["landmarks"]
    assert carina == {"name": "carina", "x_mm": 60, "y_mm": 1, "z_mm": -40, "column_px": 15.25, "row_px": 11.5}
    assert row["finding_centroids"] == [
        {"finding": "nodule", "x_mm": 1, "y_mm": 2, "z_mm": 3, "column_px": 7, "row_px": 8},
        {"finding": "nodule", "x_mm": 4, "y_mm": 5, "z_mm": 6, "column_px": 9, "row_px": -3.5},
    ]


def test_rows_are_sorted_by_study_and_image(tmp_path: Path) -> None:
    order = [(2, 0), (0, 1), (0, 0), (1, 0)]
    write_truth(tmp_path / TRUTH_FILE, [make_row(tmp_path, study_number=s, image_index=i) for s, i in order])
    table = read_truth(tmp_path)
    found = list(zip(table.column("study_number").to_pylist(), table.column("image_index").to_pylist(), strict=True))
    assert found == sorted(order)


def test_merged_parts_equal_the_truth_written_at_once(tmp_path: Path) -> None:
    rows = [make_row(tmp_path, study_number=number) for number in range(3)]
    write_truth(tmp_path / "whole.parquet", rows)
    write_truth(tmp_path / "a.parquet", rows[:2])
    write_truth(tmp_path / "b.parquet", rows[2:])
    merge_truth(tmp_path / TRUTH_FILE, [tmp_path / "a.parquet", tmp_path / "b.parquet"])
    assert read_truth(tmp_path).equals(read_truth(tmp_path / "whole.parquet"))


def test_labels_have_one_line_per_study(tmp_path: Path) -> None:
    rows = [make_row(tmp_path, study_number=s, image_index=i) for s in range(2) for i in range(3)]
    write_truth(tmp_path / TRUTH_FILE, rows)
    write_labels(tmp_path / LABELS_FILE, read_truth(tmp_path))
    with (tmp_path / LABELS_FILE).open(newline="", encoding="utf-8") as stream:
        labels = list(csv.DictReader(stream))
    assert list(labels[0]) == ["StudyInstanceUID", *FINDINGS]
    assert [label["StudyInstanceUID"] for label in labels] == [ImageKey(7, n, 0, View.VD).uid("study") for n in (0, 1)]
    assert all(label[name] == str(int(name == "nodule")) for label in labels for name in FINDINGS)


def test_a_folder_without_truth_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vetdino phantom"):
        read_truth(tmp_path)


def test_truth_of_another_version_is_refused(tmp_path: Path) -> None:
    table = pa.table({"view": ["VD"]}).replace_schema_metadata({"vetdino.truth_version": "99"})
    pq.write_table(table, tmp_path / TRUTH_FILE)
    with pytest.raises(UserError, match="version 99"):
        read_truth(tmp_path)
