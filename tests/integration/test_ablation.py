"""An ablation on this machine, with real trainings: whoever is killed, the same command ends with the same table."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from plan_factory import ROOT, write_plan
from study_factory import make_intake

pytestmark = pytest.mark.slow

CHANGES = {
    "axes": {"routing": {"single_view": {"routing.name": "same_image"}, "multi_view": {}}},
    "baseline": {"routing": "single_view"},
    "options": {"optim.epochs": 4, "optim.warmup_epochs": 1, "train.cpu_threads": 1},
    "seeds": [0],
}
PROGRAM = "from vet_extensions.cli import main; main()"


class Ablation:
    """One plan, run into folders as a user does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plan = write_plan(folder / "plans", **CHANGES)
        self.data = make_intake(folder / "studies", n_studies=60, split=None, findings=("nodule", "mass"))

    def start(self, out: str, *options: str) -> "subprocess.Popen[str]":
        words = ["ablate", str(self.plan), "--data", str(self.data), "--out", str(self.folder / out)]
        command = [sys.executable, "-c", PROGRAM, *words, "--cluster", "local", "--ngpus", "0", *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self, out: str, *options: str) -> tuple[int, str]:
        process = self.start(out, *options)
        said, _ = process.communicate(timeout=600)
        return process.returncode, said

    def states(self, out: str) -> dict[str, dict]:
        """State of every cell that has begun, by the place of the cell's folder."""
        return {
            str(path.parent): json.loads(path.read_text()) for path in (self.folder / out).glob("cells/*/state.json")
        }

    def wait_for_training(self, out: str, n_cells: int) -> list[dict]:
        """The states of cells that train, once there are so many."""
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            training = [
                state
                for place, state in self.states(out).items()
                if state["state"] == "running" and (Path(place) / "run" / "training_metrics.json").is_file()
            ]
            if len(training) >= n_cells:
                return training
            time.sleep(0.05)
        raise TimeoutError("no cell trains")

    def table(self, out: str) -> bytes:
        return (self.folder / out / "table.csv").read_bytes()


@pytest.fixture(scope="module")
def ablation(tmp_path_factory):
    return Ablation(tmp_path_factory.mktemp("ablation"))


@pytest.fixture(scope="module")
def undisturbed(ablation):
    code, said = ablation.run("undisturbed", "--jobs", "2")
    assert code == 0, said
    return ablation.table("undisturbed")


def test_a_killed_submitter_is_followed_by_one_that_waits_for_its_cells(ablation, undisturbed):
    first = ablation.start("attached", "--jobs", "1")
    (cell,) = ablation.wait_for_training("attached", 1)
    first.kill()
    first.communicate()
    code, said = ablation.run("attached", "--jobs", "1")
    assert code == 0, said
    (again,) = [state for state in ablation.states("attached").values() if state["owner"] == cell["owner"]]
    assert (again["state"], again["token"]) == ("done", cell["token"])  # the very attempt that was under way
    assert ablation.table("attached") == undisturbed


def test_a_killed_cell_shows_its_log_and_is_not_in_the_mean_until_it_is_retried(ablation, undisturbed):
    process = ablation.start("killed", "--jobs", "2")
    victim, _ = ablation.wait_for_training("killed", 2)
    os.kill(victim["owner"]["pid"], signal.SIGKILL)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "ended without a word" in said
    assert (ablation.folder / "killed" / victim["log"]).read_text().splitlines()[-1] in said
    assert "1 done, 1 failed." in said
    before = ablation.states("killed")
    assert ablation.table("killed") != undisturbed
    code, said = ablation.run("killed", "--retry")
    assert code == 0, said
    after = ablation.states("killed")
    assert sum(before[place]["token"] != after[place]["token"] for place in after) == 1
    assert ablation.table("killed") == undisturbed


def test_ctrl_c_lets_cells_save_and_the_same_command_goes_on(ablation, undisturbed):
    process = ablation.start("stopped", "--jobs", "2")
    ablation.wait_for_training("stopped", 2)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 130, said
    assert {state["state"] for state in ablation.states("stopped").values()} == {"waiting"}
    code, said = ablation.run("stopped", "--jobs", "2")
    assert code == 0, said
    assert ablation.table("stopped") == undisturbed
