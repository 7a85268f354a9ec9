"""The table's files: one page that stands alone, Markdown to paste, and numbers that repeat byte for byte."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.ablation_factory import METRIC, OTHER_METRIC, cells, one_axis_plan, two_axes_plan
from tests.html_page import Page
from vet_extensions.ablation.cells import FAILED, CellResult
from vet_extensions.ablation.page import CELLS_CSV, CSV, HTML, MARKDOWN, write_tables
from vet_extensions.ablation.plan import Arms, Plan
from vet_extensions.ablation.table import BETTER, ablation_table

BASELINE_SCORES = (0.60, 0.64, 0.58)
GAINS = (0.031, 0.028, 0.033)


def score(arms: Arms, seed: int) -> float:
    return (
        BASELINE_SCORES[seed] + GAINS[seed] * (arms["routing"] == "multi_view") + 0.001 * seed * (arms["ibot"] == "off")
    )


def full_plan() -> Plan:
    return two_axes_plan(seeds=(0, 1, 2), metrics=(METRIC, OTHER_METRIC))


def written(folder: Path, plan: Plan, found: Sequence[CellResult]) -> dict[str, str]:
    write_tables(ablation_table(plan, found), folder)
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return written(tmp_path_factory.mktemp("full"), full_plan(), cells(full_plan(), score))


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    found = cells(full_plan(), score)
    found[4] = replace(found[4], state=FAILED, results=[], why="RuntimeError: in a folder with a name")
    return written(tmp_path_factory.mktemp("unfinished"), full_plan(), found)


def test_four_files_are_written_and_no_half_one_is_left(files: dict[str, str]) -> None:
    assert set(files) == {HTML, MARKDOWN, CSV, CELLS_CSV}


def test_page_refers_to_nothing_outside_itself(files: dict[str, str]) -> None:
    for tag, attributes in Page(files[HTML]).elements:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            target = attributes.get(name, "#")
            assert target.startswith(("#", "data:")), f"<{tag} {name}={target[:60]}>"
    assert "://" not in files[HTML]


def test_page_can_be_read_without_seeing_it(files: dict[str, str]) -> None:
    page = Page(files[HTML])
    pictures = page.all("img")
    assert len(pictures) == 2 * 2, "two charts a metric"
    assert all("routing multi_view" in picture["alt"] and int(picture["height"]) for picture in pictures)
    assert len(page.all("table")) == len(page.all("caption"))
    assert all(cell["scope"] in ("col", "row") for cell in page.all("th"))
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert {link["href"].removeprefix("#") for link in page.all("a")} <= ids


def test_page_states_question_verdicts_comparisons_and_both_uncertainties(files: dict[str, str]) -> None:
    text = " ".join(Page(files[HTML]).text.split())
    assert "Does the arm matter?" in text
    assert "2 arms, averaged over the other axes, compared with the baseline: 1 “better”, 0 “worse”" in text
    assert "10 comparisons could be tested" in text
    assert "Holm" in text
    assert "A difference that is clear over seeds is not thereby clear over patients." in text
    assert "120 studies of 60 test patients" in text


def test_markdown_says_what_the_page_says(files: dict[str, str]) -> None:
    lines = files[MARKDOWN].splitlines()
    line = next(line for line in lines if line.startswith("| multi_view | all | 3 of 3 |"))
    assert line.endswith(f"| {BETTER} |")
    text = " ".join(Page(files[HTML]).text.split())
    assert all(cell.strip() in text for cell in line.strip("|").split("|"))
    tables = [
        [line.count("|") for line in block.splitlines()] for block in files[MARKDOWN].split("\n\n") if "|--" in block
    ]
    assert len(tables) == 2 * 2 + 4
    assert all(len(set(widths)) == 1 for widths in tables)


def test_statistics_of_two_runs_of_one_plan_are_equal_whatever_they_cost(files: dict[str, str], tmp_path: Path) -> None:
    found = [replace(c, hash="f" * 64, cost=77.0, device="cuda") for c in cells(full_plan(), score)]
    again = written(tmp_path, full_plan(), found)
    assert again[CSV] == files[CSV]
    assert again[CELLS_CSV] != files[CELLS_CSV]


def test_statistics_hold_a_row_for_every_arm_and_metric(files: dict[str, str]) -> None:
    rows = list(csv.DictReader(files[CSV].splitlines()))
    assert [row["kind"] for row in rows] == ["combination"] * 8 + ["axis"] * 8 + ["control"] * 4
    row = next(row for row in rows if row["routing"] == "multi_view" and row["ibot"] == "all")
    assert float(row["difference"]) == pytest.approx(sum(GAINS) / 3, abs=1e-6)
    assert float(row["low"]) < float(row["difference"]) < float(row["high"])
    assert (row["n_pairs"], row["verdict"]) == ("3", BETTER)


def test_cells_hold_every_run_with_its_scores_and_its_cost(files: dict[str, str]) -> None:
    rows = list(csv.DictReader(files[CELLS_CSV].splitlines()))
    assert len(rows) == 12
    assert float(rows[0][METRIC]) == pytest.approx(0.60)
    assert {row["device_seconds"] for row in rows} == {"36.000000"}


def test_a_failed_run_is_shown_in_every_file(unfinished: dict[str, str]) -> None:
    text = " ".join(Page(unfinished[HTML]).text.split())
    assert "11 of 12 runs are done." in text
    assert "2 of 3 (seed 1 failed)" in text
    assert "| single_view | off | 1 | failed | – | – |" in unfinished[MARKDOWN]
    failed = next(row for row in csv.DictReader(unfinished[CELLS_CSV].splitlines()) if row["state"] == FAILED)
    assert (failed["seed"], failed[METRIC]) == ("1", "")


def test_log_lines_stay_out_because_they_may_name_folders(unfinished: dict[str, str]) -> None:
    assert not [name for name, text in unfinished.items() if "a folder with a name" in text]


def test_words_of_the_plan_are_escaped(tmp_path: Path) -> None:
    plan = one_axis_plan(["a", "<b>|b"], question="Is <script> & co. safe?")
    found = written(tmp_path, plan, cells(plan, lambda arms, seed: BASELINE_SCORES[seed]))
    assert "&lt;script&gt; &amp; co." in found[HTML]
    assert "<script" not in found[HTML]
    assert "| <b>\\|b | 3 of 3 |" in found[MARKDOWN]


def test_one_seed_says_so_instead_of_an_interval(tmp_path: Path) -> None:
    plan = one_axis_plan(seeds=[0])
    found = written(tmp_path, plan, cells(plan, lambda arms, seed: 0.6 + 0.01 * (arms["arm"] == "b")))
    text = " ".join(Page(found[HTML]).text.split())
    assert "+0.0100 – one seed: no interval" in text
    assert "No comparison could be tested yet." in text


def test_runs_of_unequal_length_carry_a_warning(tmp_path: Path) -> None:
    plan = one_axis_plan(seeds=[0, 1])
    found = cells(plan, lambda arms, seed: BASELINE_SCORES[seed])
    found[0] = replace(found[0], steps=20)
    assert "did not all take the same number of steps" in written(tmp_path, plan, found)[MARKDOWN]


def test_before_anything_ran_the_page_can_already_be_written(tmp_path: Path) -> None:
    plan = one_axis_plan()
    empty = [CellResult(c.hash, c.arms, c.seed) for c in cells(plan, lambda arms, seed: 0.5)]
    page = Page(written(tmp_path, plan, empty)[HTML])
    assert "0 of 6 runs are done." in " ".join(page.text.split())
    assert not page.all("img")
