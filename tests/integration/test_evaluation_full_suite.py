"""The whole evaluation as a user runs it: DICOM phantom, intake, every protocol and control of the small full suite, twice."""

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from run_factory import write_run

from vet_extensions.evaluation.pooling_config import POOLING_PROTOCOLS
from vet_extensions.evaluation.suite_config import PROTOCOLS, load_suite
from vet_extensions.evaluation.tuning_config import TUNED_PROTOCOLS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SUITE = ROOT / "configs" / "evaluation" / "full_small.yaml"
EVALUATE = f"evaluate run --data studies --suite {SUITE} --out results"


def vetdino(folder: Path, words: str) -> str:
    """What the command prints; a failure fails the test with what it said."""
    command = [str(Path(sys.executable).with_name("vetdino")), *words.split()]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict], str]:
    """(folder, rows of results.jsonl, what was printed)."""
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("full")
    vetdino(folder, "phantom dicom --studies 260 --size 64 --seed 3 --plain --workers 1")
    vetdino(folder, "intake dicom studies --labels dicom/labels.csv --longest-side 64 --workers 1")
    write_run(folder / "run", crops={"global_crops_size": 48})
    printed = vetdino(folder, EVALUATE)
    rows = [json.loads(line) for line in (folder / "results" / "results.jsonl").read_text().splitlines()]
    return folder, rows, printed


def protocol_of(row: dict) -> str:
    """A row's protocol without the point of its curve."""
    name = row["protocol"]
    return name if name in PROTOCOLS else name.rpartition("_")[0]


def test_every_protocol_has_rows_on_every_level_that_it_can_judge(evaluated: tuple) -> None:
    suite = load_suite(SUITE)
    assert set(suite.protocols) == set(PROTOCOLS), "the full suite leaves a protocol out"
    found = defaultdict(set)
    for row in evaluated[1]:
        if row["arm"] not in ("shuffled_labels", "raw_pixels", "metadata", "cca", "cca_shuffled", "random_init"):
            found[protocol_of(row)].add(row["level"])
    assert set(found) == set(PROTOCOLS)
    for protocol in ("knn", "ml_knn", "linear", "linear_grid"):
        assert found[protocol] == set(suite.levels)
    assert all(found[protocol] == {"image", "study_mean", "study_max"} for protocol in TUNED_PROTOCOLS)
    assert all(found[protocol] == {"study"} for protocol in POOLING_PROTOCOLS)
    assert found["resolution"] == found["few_shot"] == found["label_share"] == {"image"}


def test_every_control_stands_beside_and_shuffled_labels_are_at_chance(evaluated: tuple) -> None:
    rows = evaluated[1]
    arms = {row["arm"] for row in rows}
    assert {"random_init", "raw_pixels", "metadata", "shuffled_labels", "cca", "cca_shuffled"} < arms
    shuffled = [row for row in rows if row["arm"] == "shuffled_labels"]
    assert shuffled
    assert all(row["config"]["is_at_chance"] for row in shuffled)
    assert {row["protocol"] for row in shuffled} >= {"knn", "ml_knn", "linear", "linear_grid", *POOLING_PROTOCOLS}


def test_scores_and_intervals_are_numbers_that_belong_together(evaluated: tuple) -> None:
    for row in evaluated[1]:
        if row["kind"] == "score" and row["value"] is not None:
            assert row["low"] <= row["high"]
            if row["metric"] != "median_rank":
                assert 0 <= row["value"] <= 1


def test_the_page_shows_every_table_and_names_nobody(evaluated: tuple) -> None:
    folder, rows, printed = evaluated
    page = (folder / "results" / "leaderboard.html").read_text()
    for heading in ("ABMIL", "LoRA", "few-shot, patients a label: 16", "linear probe, pixels a side: 32", "retrieval"):
        assert heading in page
    assert str(folder) not in page + printed
    assert f"{len(rows):,} rows" in printed


def test_the_same_command_again_leaves_every_file_as_it_is(evaluated: tuple) -> None:
    folder, _, printed = evaluated
    results = folder / "results"
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    assert vetdino(folder, EVALUATE) == printed
    assert {path: path.read_bytes() for path in results.rglob("*") if path.is_file()} == before


def test_two_evaluations_of_the_same_data_can_be_compared(evaluated: tuple) -> None:
    folder, _, _ = evaluated
    said = vetdino(folder, "compare results --level study --protocol abmil --controls --resamples 100")
    assert "random_init" in said
