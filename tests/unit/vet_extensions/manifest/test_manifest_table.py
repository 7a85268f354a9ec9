"""The manifest: built, written, opened, selected, pickled."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vet_extensions.errors import UserError
from vet_extensions.manifest import Manifest, write_manifest
from vet_extensions.manifest.build import COLUMNS, build_table
from vet_extensions.manifest.io import content_hash
from vet_extensions.schema import SCHEMA_VERSION, ImageRecord, Split, View

SPLITS = {"p0": Split.TRAIN, "p1": Split.VAL, "p2": Split.TRAIN}


def make_records() -> list[ImageRecord]:
    """p0: study s0 of two images; p1: s1 of one, s2 of three; p2: s3 of one."""
    shape = {"rows": 64, "columns": 48, "stored_rows": 32, "stored_columns": 24}
    layout = [("p0", "s0", 2), ("p1", "s1", 1), ("p1", "s2", 3), ("p2", "s3", 1)]
    records = []
    for patient, study, n_images in layout:
        for number in range(n_images):
            image = f"{study}-{number}"
            labels = {"mass": len(records) % 2} if number else {"mass": -1, "effusion": 1}
            records.append(
                ImageRecord(
                    image,
                    study,
                    patient,
                    View.VD,
                    "ViewPosition",
                    **shape,
                    species="canine",
                    labels=labels,
                    pixel_hash=f"hash {image}",
                )
            )
    return records


def make_manifest(root: Path) -> Manifest:
    table = build_table(make_records(), splits=SPLITS, label_names=("effusion", "mass", "fracture"))
    root.mkdir(parents=True, exist_ok=True)
    write_manifest(table, root / "manifest.parquet")
    return Manifest.open(root)


def test_studies_are_ranges_of_rows(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)
    assert (manifest.n_images, manifest.n_studies) == (7, 4)
    np.testing.assert_array_equal(manifest.study_offsets, [0, 2, 3, 6, 7])
    np.testing.assert_array_equal(manifest.study_codes, [0, 0, 1, 2, 2, 2, 3])
    np.testing.assert_array_equal(manifest.patient_codes, [0, 0, 1, 1, 1, 1, 2])


def test_labels_keep_absent_uncertain_and_not_stated_apart(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)
    assert manifest.label_names == ("effusion", "mass", "fracture")
    np.testing.assert_array_equal(manifest.labels()[:3], [[1, -1, -128], [-128, 1, -128], [1, -1, -128]])
    assert manifest.labels().dtype == np.int8


def test_a_selection_keeps_the_rows_of_the_full_manifest(tmp_path: Path) -> None:
    chosen = make_manifest(tmp_path).select(split="val")
    np.testing.assert_array_equal(chosen.row_index, [2, 3, 4, 5])
    np.testing.assert_array_equal(chosen.study_offsets, [0, 1, 4])
    assert set(chosen.column("patient_id")) == {"p1"}


def test_a_selection_of_a_selection_still_counts_in_the_full_manifest(tmp_path: Path) -> None:
    chosen = make_manifest(tmp_path).select(split="val").take(np.array([1, 3]))
    np.testing.assert_array_equal(chosen.row_index, [3, 5])


def test_an_empty_selection_has_no_studies(tmp_path: Path) -> None:
    chosen = make_manifest(tmp_path).select(split="test")
    assert (chosen.n_images, chosen.n_studies) == (0, 0)
    assert chosen.labels().shape == (0, 3)


def test_an_unknown_split_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train, val, test"):
        make_manifest(tmp_path).select(split="validate")


def test_an_unknown_column_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'age'.*image_id"):
        make_manifest(tmp_path).column("age")


def test_texts_are_plain_strings(tmp_path: Path) -> None:
    views = make_manifest(tmp_path).views
    assert views.tolist() == ["VD"] * 7


def test_a_missing_spacing_is_null(tmp_path: Path) -> None:
    assert np.isnan(make_manifest(tmp_path).column("spacing_row_mm")).all()


def test_a_pickled_selection_is_small_and_the_same(tmp_path: Path) -> None:
    chosen = make_manifest(tmp_path).select(split="train")
    pickled = pickle.dumps(chosen)
    again = pickle.loads(pickled)
    np.testing.assert_array_equal(again.row_index, chosen.row_index)
    assert again.table.equals(chosen.table)
    assert len(pickled) < 1000


def test_a_replaced_manifest_is_noticed_when_unpickled(tmp_path: Path) -> None:
    pickled = pickle.dumps(make_manifest(tmp_path))
    write_manifest(build_table(make_records()[:3], splits=SPLITS), tmp_path / "manifest.parquet")
    with pytest.raises(UserError, match="was replaced"):
        pickle.loads(pickled)


def test_columns_are_those_of_the_contract(tmp_path: Path) -> None:
    names = make_manifest(tmp_path).table.column_names
    assert names == [*COLUMNS.names, "label.effusion", "label.mass", "label.fracture"]


def test_the_content_hash_does_not_depend_on_the_layout_in_memory(tmp_path: Path) -> None:
    table = build_table(make_records(), splits=SPLITS, label_names=("mass",))
    in_pieces = pa.concat_tables([table.slice(0, 3), table.slice(3)])
    encoded = table.set_column(3, "split", table["split"].dictionary_encode())
    assert content_hash(table) == content_hash(in_pieces) == content_hash(encoded)


@pytest.mark.parametrize("column", ["view", "rows", "label.mass"])
def test_the_content_hash_sees_every_cell(column: str) -> None:
    table = build_table(make_records(), splits=SPLITS, label_names=("mass",))
    cells = table[column].to_pylist()
    cells[4] = None
    changed = table.set_column(table.column_names.index(column), column, pa.array(cells, table[column].type))
    assert content_hash(changed) != content_hash(table)


def test_the_content_hash_of_a_written_manifest_is_kept(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)
    assert manifest.content_hash == content_hash(manifest.table)


def test_an_unknown_schema_version_is_refused_with_the_cure(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)
    newer = manifest.table.replace_schema_metadata({b"vetdino.schema_version": b"99"})
    pq.write_table(newer, tmp_path / "manifest.parquet")
    with pytest.raises(UserError, match=f"schema version 99; this program reads version {SCHEMA_VERSION}"):
        Manifest.open(tmp_path)


def test_any_other_parquet_file_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "manifest.parquet")
    with pytest.raises(UserError, match="schema version none"):
        Manifest.open(tmp_path)


def test_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="cannot be read"):
        Manifest.open(tmp_path)


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vetdino intake"):
        Manifest.open(tmp_path)


def test_unsorted_records_are_a_programming_error() -> None:
    with pytest.raises(AssertionError, match="sorted"):
        build_table(make_records()[::-1], splits=SPLITS)
