"""Label tables: which columns count, what their cells may hold, and how mistakes are answered."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vet_extensions.errors import UserError
from vet_extensions.intake.deidentify import Pseudonyms
from vet_extensions.intake.labels import LabelTable, read_labels
from vet_extensions.schema import ImageRecord, View

NAMES = Pseudonyms("test salt")


def make_record(image: str = "1.1", study: str = "1") -> ImageRecord:
    return ImageRecord(NAMES.image(image), NAMES.study(study), "patient", View.VD, "ViewPosition", 32, 32, 32, 32)


def read(tmp_path: Path, text: str, *, name: str = "labels.csv", columns: tuple[str, ...] | None = None) -> LabelTable:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return read_labels(tmp_path / name, pseudonyms=NAMES, columns=columns)


def test_rows_by_image_reach_their_image(tmp_path: Path) -> None:
    table = read(tmp_path, "SOPInstanceUID,effusion,mass\n1.1,1,0\n1.2,-1,\n")
    assert table.labels_of(make_record("1.1")) == {"effusion": 1, "mass": 0}
    assert table.labels_of(make_record("1.2")) == {"effusion": -1}


def test_rows_by_study_reach_all_its_images(tmp_path: Path) -> None:
    table = read(tmp_path, "StudyInstanceUID,effusion\n1,1\n")
    assert table.labels_of(make_record("1.1")) == table.labels_of(make_record("1.2")) == {"effusion": 1}


def test_an_image_without_row_has_no_labels(tmp_path: Path) -> None:
    assert read(tmp_path, "SOPInstanceUID,effusion\n1.1,1\n").labels_of(make_record("9.9")) == {}


@pytest.mark.parametrize("cell", ["1", "1.0", "true", " 1"])
def test_a_one_may_be_spelt_in_several_ways(tmp_path: Path, cell: str) -> None:
    table = read(tmp_path, f"SOPInstanceUID,effusion\n1.1,{cell}\n")
    assert table.labels_of(make_record("1.1")) == {"effusion": 1}


def test_columns_of_other_things_are_ignored_and_named(tmp_path: Path) -> None:
    table = read(tmp_path, "SOPInstanceUID,age,owner,effusion\n1.1,7,Smith,1\n1.2,3,Doe,0\n")
    assert table.names == ("effusion",)
    assert table.ignored_columns == ("age", "owner")


def test_prefixed_columns_are_the_only_ones_if_there_are_any(tmp_path: Path) -> None:
    table = read(tmp_path, "SOPInstanceUID,is_neutered,label.effusion\n1.1,1,0\n")
    assert table.names == ("effusion",)
    assert table.ignored_columns == ("is_neutered",)


def test_a_named_column_with_other_values_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Column 'grade'.*-1 \(uncertain\)"):
        read(tmp_path, "SOPInstanceUID,grade\n1.1,3\n", columns=("grade",))


def test_a_named_column_that_is_missing_is_an_error_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no column efusion.*effusion"):
        read(tmp_path, "SOPInstanceUID,effusion\n1.1,1\n", columns=("efusion",))


def test_a_table_without_key_is_an_error_that_says_which_are_allowed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"SOPInstanceUID.*StudyInstanceUID"):
        read(tmp_path, "image,effusion\n1.1,1\n")


def test_a_table_without_findings_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no column of findings"):
        read(tmp_path, "SOPInstanceUID,age\n1.1,7\n")


def test_contradicting_rows_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rows 1 and 2"):
        read(tmp_path, "SOPInstanceUID,effusion\n1.1,1\n1.1,0\n")


def test_equal_rows_are_not(tmp_path: Path) -> None:
    assert read(tmp_path, "SOPInstanceUID,effusion\n1.1,1\n1.1,1\n").labels_of(make_record("1.1")) == {"effusion": 1}


def test_a_missing_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_labels(tmp_path / "none.csv", pseudonyms=NAMES)


def test_a_damaged_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path, "PAR1 but no more", name="labels.parquet")


def test_byte_order_mark_and_windows_lines_are_read(tmp_path: Path) -> None:
    table = read(tmp_path, "\ufeffSOPInstanceUID,effusion\r\n1.1,1\r\n")
    assert table.labels_of(make_record("1.1")) == {"effusion": 1}


def test_parquet_with_nulls_is_read(tmp_path: Path) -> None:
    columns = {"SOPInstanceUID": ["1.1", "1.2"], "effusion": pa.array([1, None], pa.int8()), "mass": [True, False]}
    pq.write_table(pa.table(columns), tmp_path / "labels.parquet")
    table = read_labels(tmp_path / "labels.parquet", pseudonyms=NAMES)
    assert table.labels_of(make_record("1.1")) == {"effusion": 1, "mass": 1}
    assert table.labels_of(make_record("1.2")) == {"mass": 0}


def test_the_report_counts_what_did_not_meet(tmp_path: Path) -> None:
    table = read(tmp_path, "SOPInstanceUID,effusion\n1.1,1\n1.2,0\n1.3,0\n")
    rows = [table.row_of(make_record(uid)) for uid in ("1.1", "8.8", "9.9")]
    report = table.report(np.array([-1 if row is None else row for row in rows]))
    assert (report.n_rows, report.n_rows_unmatched, report.n_images_without_row) == (3, 2, 2)
