"""The generic table of images: what it reads, what it guesses, what it refuses."""

import gzip
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.source_files import facts_of, items_of, problems_of, write_csv, write_images
from vet_extensions.errors import UserError
from vet_extensions.intake.sources.labelling import LabelPolicy, finding_name
from vet_extensions.intake.sources.tables import TableSource, column_names, read_columns
from vet_extensions.schema import Split, View

PATHS = ("a/1.png", "a/2.png", "b/1.png")


def make_source(root: Path, names: list[str], rows: list[tuple], **options) -> TableSource:
    write_csv(root / "images.csv", names, rows)
    return TableSource(root, "images.csv", **options)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_images(tmp_path, PATHS)
    return tmp_path


def test_a_byte_order_mark_windows_line_ends_and_quoted_line_breaks_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes('\ufeffid , note\r\n007,"a ""b"",\r\nc"\r\n 08,ü\r\n'.encode())
    assert column_names(path) == ["id", "note"]
    assert read_columns(path, ["id", "note"]).to_pylist() == [
        {"id": "007", "note": 'a "b",\r\nc'},
        {"id": "08", "note": "ü"},
    ]


def test_a_name_and_a_cell_may_hold_line_breaks_wherever_the_parser_cuts_the_file(tmp_path: Path) -> None:
    cell = "a\nb\n" * 40
    write_csv(tmp_path / "t.csv", ["id", "two\nlines"], ((number, cell) for number in range(20_000)))
    table = read_columns(tmp_path / "t.csv", ["id", "two\nlines"])
    assert table["id"].to_pylist() == [str(number) for number in range(20_000)]
    assert table["two\nlines"].unique().to_pylist() == [cell.strip()]


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.tsv", "t.tsv.gz", "t.parquet", "t.parquet.gz"])
def test_every_kind_of_table_gives_the_same_texts(tmp_path: Path, name: str) -> None:
    plain = tmp_path / "plain"
    if "parquet" in name:
        pq.write_table(pa.table({"id": ["007", "NA"], "age": pa.array([7, None], pa.float64())}), plain)
    else:
        mark = "\t" if "tsv" in name else ","
        plain.write_text(f"id{mark}age\n007{mark}7\nNA{mark}\n")
    data = plain.read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert read_columns(tmp_path / name, ["id", "age"]).to_pydict() == {"id": ["007", "NA"], "age": ["7", ""]}


def test_a_missing_column_is_named_with_the_nearest(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", ["PatientID"], [("1",)])
    with pytest.raises(UserError, match=r"no column 'PatientId'\. Did you mean 'PatientID'"):
        read_columns(tmp_path / "t.csv", ["PatientId"])


def test_a_column_that_is_there_twice_is_refused_only_where_it_is_needed(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", ["id", "x", "x"], [("1", "2", "3")])
    assert read_columns(tmp_path / "t.csv", ["id"]).to_pydict() == {"id": ["1"]}
    with pytest.raises(UserError, match="2 columns called 'x'"):
        read_columns(tmp_path / "t.csv", ["x"])


def test_typed_columns_of_parquet_become_texts(tmp_path: Path) -> None:
    columns = {
        " id": pa.array([7.0, None, 10000032.0]),
        "half": pa.array([0.5, float("nan"), 2.0]),
        "word": pa.array(["a", None, " a "]).dictionary_encode(),
        "yes": pa.array([True, False, None]),
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    texts = read_columns(tmp_path / "t.parquet", list(columns)).to_pydict()
    assert texts[" id"] == ["7", "", "10000032"]
    assert texts["half"][0] == "0.5"
    assert texts["word"] == ["a", "", "a"]
    assert texts["yes"] == ["true", "false", ""]


def test_an_optional_column_that_is_missing_is_empty(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", ["id"], [("1",), ("2",)])
    assert read_columns(tmp_path / "t.csv", ["id"], optional=["view"]).to_pydict() == {
        "id": ["1", "2"],
        "view": ["", ""],
    }


@pytest.mark.parametrize("data", [b"", b"id\n1,2,SECRET\n", b"id\n\xff\xfe\n", b"\x1f\x8b broken"], ids=repr)
def test_a_table_that_cannot_be_read_is_said_so_without_its_cells(tmp_path: Path, data: bytes) -> None:
    for name in ("t.csv", "t.csv.gz", "t.parquet"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match="cannot be read") as error:
            read_columns(tmp_path / name, ["id"])
        assert "SECRET" not in str(error.value)


def test_every_role_is_found_under_its_well_known_name(root: Path) -> None:
    names = ["path", "patient", "study", "image", "view", "body_part", "species", "laterality", "split", "label.Nodule"]
    row = ("a/1.png", "0012", "s1", "i1", "left lateral", "Thorax", "Hund", "right", "valid", "1.0")
    item = items_of(make_source(root, names, [row]))["a/1.png"]
    facts = item.facts
    assert facts is not None
    assert (facts.patient, facts.study, facts.image) == ("0012", "0012/s1", "i1")
    assert (facts.view, facts.view_source) == (View.LATERAL_LEFT, "view (table)")
    assert (facts.body_part, facts.species, facts.laterality) == ("CHEST", "canine", "R")
    assert (facts.split, facts.labels) == (Split.VAL, {"nodule": 1})
    assert item.problem is None
    assert item.size == (root / "a/1.png").stat().st_size
    assert item.stamp == str((root / "a/1.png").stat().st_mtime_ns)


def test_columns_with_other_names_are_mapped(root: Path) -> None:
    columns = {"path": "Datei", "patient": "Tier", "view": "Lage", "label.effusion": "Erguss"}
    rows = [("a/1.png", "1", "VD", "0")]
    source = make_source(root, ["Datei", "Tier", "Lage", "Erguss"], rows, columns=columns)
    facts = items_of(source)["a/1.png"].facts
    assert facts is not None
    assert (facts.patient, facts.view, facts.labels) == ("1", View.VD, {"effusion": 0})
    assert source.label_names == ("effusion",)


def test_an_unknown_role_is_named_with_the_nearest(root: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be 'pateint'\. Did you mean 'patient'"):
        make_source(root, ["path", "p"], [], columns={"pateint": "p"})


def test_two_well_known_names_for_one_role_must_be_decided(root: Path) -> None:
    with pytest.raises(UserError, match="path, image_path could each be the path"):
        make_source(root, ["path", "image_path", "patient"], [])


def test_a_table_without_patients_is_refused(root: Path) -> None:
    with pytest.raises(UserError, match="no column for the patient"):
        make_source(root, ["path", "animal"], [])


def test_without_studies_every_image_is_a_study_of_its_own(root: Path) -> None:
    studies = facts_of(make_source(root, ["path", "patient"], [("a/1.png", "p"), ("a/2.png", "p")]), "study")
    assert len(set(studies.values())) == 2


def test_study_numbers_may_start_anew_with_each_patient(root: Path) -> None:
    rows = [("a/1.png", "p", "1"), ("a/2.png", "p", "1"), ("b/1.png", "q", "1")]
    studies = facts_of(make_source(root, ["path", "patient", "study"], rows), "study")
    assert studies["a/1.png"] == studies["a/2.png"] != studies["b/1.png"]


def test_a_study_that_names_no_patient_shares_none_with_another(root: Path) -> None:
    rows = [("a/1.png", "", "s"), ("a/2.png", "", "s"), ("b/1.png", "", "t")]
    patients = facts_of(make_source(root, ["path", "patient", "study"], rows), "patient")
    assert patients["a/1.png"] == patients["a/2.png"] != patients["b/1.png"]


@pytest.mark.parametrize(
    "path",
    [
        "/etc/hostname",
        "../x.png",
        "a/../../x.png",
        "..\\x.png",
        "C:\\x.png",
        "c:x.png",
        "a/../a/1.png",
        "a\0/1.png",
        "..",
    ],
    ids=repr,
)
def test_a_path_that_leads_out_of_the_root_is_a_problem(root: Path, path: str) -> None:
    pq.write_table(pa.table({"path": [path, "a/1.png"], "patient": ["p", "p"]}), root / "t.parquet")
    source = TableSource(root, "t.parquet")
    problems = problems_of(source)
    assert list(problems.values()) == ["UNSAFE_PATH"]
    with pytest.raises(OSError):
        source.open(next(iter(problems)))


def test_links_are_followed_only_inside_the_root(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "root-and-more"
    write_images(root, ["real/1.png"])
    write_images(outside, ["1.png"])
    (root / "in").symlink_to("real")
    (root / "out").symlink_to(outside)
    (root / "out.png").symlink_to(outside / "1.png")
    (root / "loop.png").symlink_to("loop.png")
    rows = [("in/1.png", "p"), ("out/1.png", "p"), ("out.png", "p"), ("loop.png", "p")]
    source = make_source(root, ["path", "patient"], rows)
    assert problems_of(source) == {"loop.png": "UNREADABLE", "out.png": "UNSAFE_PATH", "out/1.png": "UNSAFE_PATH"}
    for key in ("out/1.png", "out.png"):
        with pytest.raises(OSError):
            source.open(key)


def test_a_file_that_is_missing_or_is_a_folder_is_a_problem(root: Path) -> None:
    long = "x" * 300
    rows = [("a/9.png", "p"), ("a", "p"), ("a/1.png/x.png", "p"), (long, "p")]
    source = make_source(root, ["path", "patient"], rows)
    assert problems_of(source) == {
        "a": "NOT_A_REGULAR_FILE",
        "a/1.png/x.png": "FILE_MISSING",
        "a/9.png": "FILE_MISSING",
        long: "UNREADABLE",
    }


def test_files_that_no_row_names_and_rows_without_a_path_are_counted(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "a/._1.png").touch()
    (root / "a/notes.md").touch()
    with caplog.at_level(logging.INFO, logger="vet_extensions"):
        assert len(items_of(make_source(root, ["path", "patient"], [("a/1.png", "p"), ("", "p"), ("x.png", "p")]))) == 2
    assert "3 rows, 1 without a path, 1 whose file cannot be taken; 2 image files that no row names" in caplog.text


def test_a_file_that_is_named_through_a_link_only_counts_as_named_by_no_row(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "link").symlink_to("a")
    with caplog.at_level(logging.INFO, logger="vet_extensions"):
        items_of(make_source(root, ["path", "patient"], [("link/1.png", "p"), ("b/1.png", "p")]))
    assert "; 2 image files that no row names" in caplog.text


@pytest.mark.parametrize("again", ["a/1.png", "./a/1.png", "a//1.png", "a/./1.png", "a\\1.png"])
def test_two_rows_for_one_file_are_an_error_that_names_no_path(root: Path, again: str) -> None:
    source = make_source(root, ["path", "patient"], [("a/1.png", "p"), (again, "q"), ("b/1.png", "p")])
    with pytest.raises(UserError, match="2 rows of the table share 1 files") as error:
        source.items()
    assert "1.png" not in str(error.value)


def test_open_gives_the_file_from_its_start(root: Path) -> None:
    with make_source(root, ["path", "patient"], [("./a\\1.png", "p")]).open("a/1.png") as file:
        assert file.seekable()
        assert file.read() == (root / "a/1.png").read_bytes()


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({}, {"1": 1, "0": 0, "-1": -1}),
        ({"uncertain": "to_positive"}, {"1": 1, "0": 0, "-1": 1}),
        ({"uncertain": "to_negative"}, {"1": 1, "0": 0, "-1": 0}),
        ({"uncertain": "missing"}, {"1": 1, "0": 0}),
        ({"blank": "absent"}, {"1": 1, "0": 0, "-1": -1, "": 0}),
    ],
)
def test_a_label_policy_says_what_uncertain_and_blank_cells_become(
    root: Path, policy: dict[str, str], expected: dict[str, int]
) -> None:
    write_images(root, [f"{number}.png" for number in range(4)])
    cells = ["1", "0", "-1", ""]
    rows = [(f"{number}.png", "p", cell) for number, cell in enumerate(cells)]
    source = make_source(root, ["path", "patient", "label.x"], rows, **policy)
    found = {cell: labels.get("x") for cell, labels in zip(cells, facts_of(source, "labels").values())}
    assert {cell: value for cell, value in found.items() if value is not None} == expected
    assert source.label_policy == {"uncertain": "keep", "blank": "missing", **policy}


@pytest.mark.parametrize("option", [{"uncertain": "to_positiv"}, {"blank": "Absent"}])
def test_an_unknown_label_policy_is_named_with_the_nearest(option: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"Did you mean '(to_positive|absent)'"):
        LabelPolicy(**option)


def test_a_label_that_is_no_label_is_refused_without_being_quoted(root: Path) -> None:
    source = make_source(root, ["path", "patient", "label.x"], [("a/1.png", "p", "Rex"), ("a/2.png", "p", "2")])
    with pytest.raises(UserError, match="'x' hold 2 values") as error:
        source.items()
    assert "Rex" not in str(error.value)


def test_a_split_word_that_is_none_is_refused(root: Path) -> None:
    source = make_source(root, ["path", "patient", "split"], [("a/1.png", "p", "fold1")])
    with pytest.raises(UserError, match="Allowed are train, "):
        source.items()


def test_finding_names_are_snake_case_and_one_for_one_finding() -> None:
    assert finding_name(" Pleural  Effusion") == finding_name("pleural_effusion") == "pleural_effusion"
    assert finding_name("Airspace Opacity") == finding_name("Lung Opacity")


def test_a_table_inside_the_root_is_found_by_its_name_and_another_by_its_path(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "list.tsv"
    elsewhere.write_text("path\tpatient\na/1.png\tp\n")
    assert list(items_of(TableSource(root, elsewhere))) == ["a/1.png"]
    with pytest.raises(UserError, match="does not exist"):
        TableSource(root, "list.tsv")


def test_an_empty_table_has_no_items(root: Path) -> None:
    assert items_of(make_source(root, ["path", "patient", "view", "label.x"], [])) == {}
