"""`vetdino ablate`: what is told before anything runs, and what is refused. Nothing trains here."""

import json
import re

import pytest
from plan_factory import make_ablation, take_cell, write_plan
from study_factory import make_intake
from typer.testing import CliRunner

from vet_extensions import cli
from vet_extensions.ablation import session
from vet_extensions.ablation.cells import cell_folder, read_index
from vet_extensions.ablation.liveness import Queue

HERE = ("--cluster", "local", "--ngpus", "0")


@pytest.fixture
def ablate(tmp_path, monkeypatch):
    """Give a command line of `ablate` with a plan, data and a folder; returns what it said."""
    monkeypatch.setattr(Queue, "ask", lambda: Queue({}))
    data = make_intake(tmp_path / "studies", split=None, findings=("effusion",))

    def give(*options, **changes):
        plan = write_plan(tmp_path / "plans", **changes)
        words = ["ablate", str(plan), "--data", str(data), "--out", str(tmp_path / "out"), *map(str, options)]
        return CliRunner().invoke(cli.app, words)

    return give


@pytest.fixture
def runs(monkeypatch):
    """The cells that would have been run, instead of running them."""
    started = []

    def run_local(folder, cells, **_):
        for one in cells:
            started.append(one.cell.title)
            attempt = take_cell(folder, one.cell, {"job": "1"})
            if "seed=1" in one.cell.title and len(started) == 8:
                attempt.fail("made to fail")

    monkeypatch.setattr(session, "run_local", run_local)
    monkeypatch.setattr(session, "write_table", lambda folder: folder / "table.html")
    return started


def test_the_plan_is_told_and_nothing_is_written(ablate, tmp_path):
    told = ablate("--plan", *HERE)
    assert told.exit_code == 0, told.output
    assert "8 cells: routing (single_view, multi_view) x ibot (on, off)" in told.output
    assert "each cell: 10 steps of 8 samples, 1 process(es)" in told.output
    assert "unknown" in told.output
    assert not (tmp_path / "out").exists()


def test_a_dry_run_shows_an_array_with_its_limit_and_writes_nothing(ablate, tmp_path):
    shown = ablate("--dry-run", "--cluster", "slurm", "--ngpus", "0", "--jobs", "2")
    assert "#SBATCH --array=0-7%2" in shown.output
    assert not (tmp_path / "out").exists()


def test_without_slurm_every_cell_is_run_here(ablate, runs):
    ablate(*HERE)
    assert len(runs) == 8


def test_a_failed_cell_is_only_run_again_where_asked_for(ablate, runs):
    first = ablate(*HERE)
    assert first.exit_code == 1
    assert "| made to fail" in first.output
    failed = runs[-1]
    runs.clear()
    assert "run them again with --retry" in ablate(*HERE).output
    assert failed not in runs
    ablate("--retry", *HERE)
    assert runs[-1] == failed


def test_cells_that_an_arm_was_added_to_a_plan_of_are_not_run_again(ablate, tmp_path, runs):
    ablate(*HERE, seeds=[0])
    cells = read_index(tmp_path / "out")
    ablate(*HERE, seeds=[0, 2])
    assert {cell.hash for cell in cells} < {cell.hash for cell in read_index(tmp_path / "out")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--jobs", 0), "--jobs is 0"),
        (("--set", "weights"), "--set weights is not NAME=VALUE"),
    ],
)
def test_an_option_that_cannot_be_is_refused(ablate, options, message):
    refused = ablate(*options, *HERE)
    assert refused.exit_code == 2
    assert message in refused.output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axes": {"a": {"x": {}, "y": {"optim.epochs": 2}}}, "baseline": {"a": "x"}}, "are the same run"),
        (
            {"axes": {"a": {"x": {}, "y": {"routing.cross_view_wieght": 2}}}, "baseline": {"a": "x"}},
            "The arms a: y cannot run.*cross_view_weight",
        ),
        (
            {"axes": {"a": {"x": {}, "y": {"dataset.where": "species == 'cat'"}}}, "baseline": {"a": "x"}},
            "The arms a: y cannot run.*holds no study",
        ),
        ({"options": {"student.pretrained_weights": "{weights}"}}, "--set weights=VALUE"),
    ],
)
def test_arms_that_cannot_run_are_told_before_anything_is_written(ablate, tmp_path, changes, message):
    refused = ablate(*HERE, **changes)
    assert refused.exit_code == 2
    assert re.search(message, refused.output, flags=re.DOTALL), refused.output
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(ablate, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    refused = ablate(*HERE)
    assert refused.exit_code == 2
    assert "holds something else than an ablation" in refused.output


def test_no_configuration_of_a_cell_names_a_path_of_the_machine(ablate, tmp_path, runs):
    ablate(*HERE)
    texts = [path.read_text() for path in (tmp_path / "out").rglob("*.yaml")]
    assert len(texts) > 8
    assert not [text for text in texts if str(tmp_path) in text]


def test_the_status_needs_nothing_but_the_folder(ablate, tmp_path):
    cells = make_ablation(tmp_path / "out")
    take_cell(tmp_path / "out", cells[0], {"job": "1"}).fail("out of memory")
    told = ablate("--status", name=None)
    assert "| out of memory" in told.output
    assert "2 waiting, 1 failed." in told.output


def test_hours_are_told_once_a_cell_was_measured(ablate, tmp_path, runs):
    ablate(*HERE)
    cell = read_index(tmp_path / "out")[0]
    state = cell_folder(tmp_path / "out", cell) / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"state": "done", "cost": 3600.0, "device": "cpu"}))
    told = ablate("--plan", "--retry", *HERE)
    assert "7.00 CPU-hours for the cells to start (measured on 1 done cells)" in told.output


def test_data_that_nothing_can_be_judged_with_is_refused_before_anything_is_written(tmp_path):
    data, plan = make_intake(tmp_path / "unlabelled"), write_plan(tmp_path / "plans")
    said = CliRunner().invoke(
        cli.app, ["ablate", str(plan), "--data", str(data), "--out", str(tmp_path / "out"), *HERE]
    )
    assert said.exit_code == 2
    assert "The manifest has no label columns" in said.output
    assert not (tmp_path / "out").exists()
