"""`vetdino check`: each kind of damage is found, and a sound folder is called sound."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vet_extensions.errors import UserError
from vet_extensions.manifest import Manifest, write_manifest
from vet_extensions.manifest.build import build_table
from vet_extensions.manifest.validate import summarise
from vet_extensions.schema import ImageRecord, Split, View
from vet_extensions.shards import ShardWriter

SPLITS = {"p0": Split.TRAIN, "p1": Split.TRAIN, "p2": Split.TEST}


def make_records() -> list[ImageRecord]:
    records = []
    for patient in SPLITS:
        for view in (View.LATERAL_LEFT, View.VD):
            image = f"{patient}-{view}"
            labels = {"mass": int(view == View.VD)}
            records.append(
                ImageRecord(
                    image,
                    f"study of {patient}",
                    patient,
                    view,
                    "ViewPosition",
                    8,
                    8,
                    8,
                    8,
                    pixel_hash=image,
                    labels=labels,
                )
            )
    return records


def make_folder(
    root: Path, records: list[ImageRecord] | None = None, *, in_shards: list[ImageRecord] | None = None
) -> Path:
    records = make_records() if records is None else records
    with ShardWriter(root / "shards") as writer:
        for number, record in enumerate(records if in_shards is None else in_shards):
            writer.add(record.image_id, np.full((8, 8), number, np.uint8))
    write_manifest(build_table(records, splits=SPLITS, label_names=("mass",)), root / "manifest.parquet")
    return root


def change(root: Path, column: str, row: int, value: object) -> None:
    """Change one cell and write the manifest anew, hash and all: damage that only the content shows."""
    table = Manifest.open(root).table.combine_chunks()
    cells = table[column].to_pylist()
    cells[row] = value
    changed = table.set_column(table.column_names.index(column), column, pa.array(cells))
    write_manifest(changed, root / "manifest.parquet")


def problems(root: Path) -> str:
    return " ".join(summarise(root).problems)


def test_a_sound_folder_has_no_problems(tmp_path: Path) -> None:
    report = summarise(make_folder(tmp_path))
    assert report.problems == ()
    assert report.is_sound


def test_the_report_counts_what_is_there(tmp_path: Path) -> None:
    report = summarise(make_folder(tmp_path))
    assert (report.n_images, report.n_studies, report.n_patients) == (6, 3, 3)
    assert report.counts["view"] == {"LATERAL_LEFT": 3, "VD": 3}
    assert report.counts["split"] == {"train": 4, "test": 2}
    assert report.labels["mass"] == {"present": 3, "absent": 3, "uncertain": 0, "not stated": 0}


def test_the_printed_report_names_counts_and_verdict(tmp_path: Path) -> None:
    text = str(summarise(make_folder(tmp_path)))
    assert "6 images of 3 studies of 3 patients" in text
    assert "LATERAL_LEFT" in text
    assert "No problems found." in text


def test_a_patient_in_two_splits_is_found(tmp_path: Path) -> None:
    change(make_folder(tmp_path), "split", 0, "test")
    assert "1 patients are in more than one split" in problems(tmp_path)


def test_equal_pixels_in_two_splits_are_found(tmp_path: Path) -> None:
    change(make_folder(tmp_path), "pixel_hash", 5, make_records()[0].pixel_hash)
    assert "1 pictures are in more than one split" in problems(tmp_path)


def test_equal_pixels_in_one_split_are_found(tmp_path: Path) -> None:
    change(make_folder(tmp_path), "pixel_hash", 2, make_records()[0].pixel_hash)
    assert "1 pictures occur more than once" in problems(tmp_path)


def test_a_study_of_two_patients_is_found(tmp_path: Path) -> None:
    change(make_folder(tmp_path), "study_id", 2, "study of p0")
    assert "belongs to two patients" in problems(tmp_path)


def test_a_repeated_image_is_found(tmp_path: Path) -> None:
    change(make_folder(tmp_path), "image_id", 1, make_records()[0].image_id)
    assert "1 image ids occur more than once" in problems(tmp_path)


def test_a_change_behind_the_hash_is_found(tmp_path: Path) -> None:
    make_folder(tmp_path)
    table = Manifest.open(tmp_path).table
    metadata = table.schema.metadata
    cells = pa.array([9] * 6, pa.int32())
    changed = table.set_column(table.column_names.index("rows"), "rows", cells).replace_schema_metadata(metadata)
    pq.write_table(changed, tmp_path / "manifest.parquet")
    assert "does not match its hash" in problems(tmp_path)


def test_images_without_pixels_and_pixels_without_image_are_found(tmp_path: Path) -> None:
    records = make_records()
    strangers = [*records[:5], replace(records[5], image_id="stranger")]
    make_folder(tmp_path, records, in_shards=strangers)
    assert "1 images of the manifest are in no shard" in problems(tmp_path)
    assert "1 images in the shards are not in the manifest" in problems(tmp_path)


def test_another_order_in_the_shards_is_found(tmp_path: Path) -> None:
    make_folder(tmp_path, make_records(), in_shards=make_records()[::-1])
    assert "do not have the same order" in problems(tmp_path)


def test_a_truncated_shard_is_found(tmp_path: Path) -> None:
    shard = make_folder(tmp_path) / "shards" / "shard-000000.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    assert "shard-000000.tar is truncated" in problems(tmp_path)


def test_a_missing_shard_is_found(tmp_path: Path) -> None:
    (make_folder(tmp_path) / "shards" / "shard-000000.tar").unlink()
    assert "shard-000000.tar is missing" in problems(tmp_path)


def test_a_missing_index_is_found(tmp_path: Path) -> None:
    (make_folder(tmp_path) / "shards" / "index.parquet").unlink()
    assert "index.parquet" in problems(tmp_path)


def test_an_empty_manifest_is_a_problem(tmp_path: Path) -> None:
    assert "holds no image" in problems(make_folder(tmp_path, []))


def test_a_folder_that_is_none_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no manifest"):
        summarise(tmp_path)
