"""The table of raw values: what is counted, what it costs, and what of it is shown."""

import stat
from pathlib import Path

import pytest

from vet_extensions.errors import UserError
from vet_extensions.intake import raw_values
from vet_extensions.intake.raw_values import RawViews, TextJournal, describe, is_plain
from vet_extensions.schema import ImageRecord, View


def record(view: View, source: str = "ViewPosition") -> ImageRecord:
    return ImageRecord("i", "s", "p", view, source, 1, 1, 1, 1, body_part="CHEST")


def table(*files: tuple[str, View]) -> RawViews:
    counted = RawViews()
    for position, view in files:
        counted.add((("ViewPosition", position),), [record(view, "none" if view == View.UNKNOWN else "ViewPosition")])
    return counted


def test_files_are_counted_by_value_and_view() -> None:
    counted = table(("LL", View.LATERAL_LEFT), ("LL", View.LATERAL_LEFT), ("odd", View.UNKNOWN))
    assert (("ViewPosition", "LL", "LATERAL_LEFT", "ViewPosition", "CHEST"), 2) in counted.rows()


def test_each_frame_counts_as_an_image_and_a_rejected_file_as_none() -> None:
    counted = RawViews()
    counted.add((("ViewPosition", "LL"),), [record(View.LATERAL_LEFT)] * 3)
    counted.add((), [])
    assert next(describe(counted)) == "Views: 3 images, of which 0 stayed UNKNOWN."


def test_the_table_survives_its_file_which_only_the_owner_reads(tmp_path: Path) -> None:
    counted = table(("LL", View.LATERAL_LEFT), ('a "quoted",\nvalue', View.UNKNOWN), ("é", View.UNKNOWN))
    counted.write_csv(tmp_path / "raw.csv")
    assert RawViews.read_csv(tmp_path / "raw.csv").rows() == counted.rows()
    assert stat.S_IMODE((tmp_path / "raw.csv").stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["", "a,b\n", ",".join(raw_values.COLUMNS) + "\nx,y\n"])
def test_a_damaged_table_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "raw.csv").write_text(text)
    with pytest.raises(UserError, match="damaged"):
        RawViews.read_csv(tmp_path / "raw.csv")


def test_parts_merge_to_the_table_of_the_whole() -> None:
    files = [("LL", View.LATERAL_LEFT), ("RL", View.LATERAL_RIGHT), ("LL", View.LATERAL_LEFT), ("x", View.UNKNOWN)]
    merged = table(*files[:2])
    merged.merge(table(*files[2:]))
    assert merged.rows() == table(*files).rows()


def test_a_description_that_differs_in_every_file_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_values, "MAX_VALUES", 5)
    counted = table(*((f"note {number}", View.UNKNOWN) for number in range(100)))
    rows = [(row[1], n) for row, n in counted.rows() if row[0] == "ViewPosition"]
    assert len(rows) == 6
    assert rows[0] == ("(further values)", 95)


def test_what_stayed_unknown_comes_first_with_its_count() -> None:
    counted = table(*[("LL", View.LATERAL_LEFT)] * 9, ("GENERICA", View.UNKNOWN))
    lines = list(describe(counted))
    assert lines[0] == "Views: 10 images, of which 1 stayed UNKNOWN."
    heading = lines.index("  ViewPosition")
    assert lines[heading + 1].split() == ["GENERICA", "UNKNOWN", "1"]
    assert lines[heading + 2].split() == ["LL", "LATERAL_LEFT", "9"]


def test_text_that_may_hold_a_name_is_shown_on_request_only() -> None:
    counted = table(("LL", View.LATERAL_LEFT), ("Rex Smith", View.UNKNOWN), ("\x1b[31mred", View.UNKNOWN))
    assert "Smith" not in "\n".join(describe(counted))
    shown = "\n".join(describe(counted, show_all=True))
    assert "Rex Smith" in shown
    assert "\x1b" not in shown


def test_a_run_that_goes_on_finds_the_texts_by_their_numbers(tmp_path: Path) -> None:
    left, right, odd = (("ViewPosition", "LL"),), (("ViewPosition", "RL"),), (("ViewPosition", "\udcff"),)
    with TextJournal(tmp_path / "texts", head="a") as texts:
        assert [texts.number_of(some) for some in (left, right, left, (), odd)] == [0, 1, 0, 2, 3]
    with TextJournal(tmp_path / "texts", head="a") as texts:
        assert [texts.get(number) for number in (0, 1, 2, 3, 4, -1)] == [left, right, (), odd, None, None]
        assert texts.number_of(right) == 4
    with TextJournal(tmp_path / "texts", head="b") as texts:
        assert texts.get(0) is None
    assert stat.S_IMODE((tmp_path / "texts").stat().st_mode) & 0o002 == 0


def test_texts_that_differ_in_every_file_do_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw_values, "MAX_VALUES", 3)
    with TextJournal(tmp_path / "texts", head="a") as texts:
        numbers = [texts.number_of((("StudyDescription", str(n)),)) for n in range(10)]
        assert len(texts._numbers) <= 3
    with TextJournal(tmp_path / "texts", head="a") as texts:
        assert [texts.get(number) for number in numbers] == [(("StudyDescription", str(n)),) for n in range(10)]


def test_long_values_are_cut(tmp_path: Path) -> None:
    counted = RawViews()
    counted.add((("StudyDescription", "x" * 5000),), [record(View.DV)])
    assert max(len(row[1]) for row, _ in counted.rows()) == 200


@pytest.mark.parametrize(
    "value",
    [
        "LL",
        "LARGE LATERAL",
        "NON GRID CHEST",
        "Thorax ll rechts anliegend",
        "(399173006, SCT, left lateral)",
        "CD\\V",
        "L-Spine 2",
    ],
)
def test_known_words_are_plain(value: str) -> None:
    assert is_plain(value)


@pytest.mark.parametrize(
    "value",
    ["SMITH", "Thorax VD Smith", "Thorax 4711", "Пёс Rex", "Пёс", "Пёс VD", "(V7, 99SMITH, left lateral)", "Lateralia"],
)
def test_anything_else_is_not(value: str) -> None:
    assert not is_plain(value)
