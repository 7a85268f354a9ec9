"""Two processes stop and go on exactly, hand their run to one process and take one over, and end together when one breaks.

All trainings share three rounds of processes, for starting one costs more than what it trains: one process, then two, then one.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import ROOT, TINY, Run, read_checkpoint
from study_factory import make_intake

pytestmark = pytest.mark.slow

STRATEGIES = ("NO_SHARD", "FULL_SHARD")
STOP, LAST = 4, 7
"""The run is stopped after iteration 4, between two periodic checkpoints, and ends after 7."""


def config_text(strategy: str) -> str:
    sections = "\n".join(
        f"  {who}:\n"
        + "\n".join(
            f"    {part}: {{sharding_strategy: {strategy}, mixed_precision: {{param_dtype: fp32, reduce_dtype: fp32}}}}"
            for part in ("backbone", "dino_head", "ibot_head")
        )
        for who in ("student", "teacher")
    )
    tiny = TINY.replace("compute_precision: {grad_scaler: false}", "").replace(
        "OFFICIAL_EPOCH_LENGTH: 12", "OFFICIAL_EPOCH_LENGTH: 4"
    )
    tiny = tiny.replace("epochs: 5", "epochs: 2").replace(
        "checkpoint_period_iterations: 2", "checkpoint_period_iterations: 3"
    )
    return f"{tiny}\ncompute_precision:\n  grad_scaler: false\n{sections}\n"


@dataclass(frozen=True)
class World:
    """Folders of all trainings, and what the processes wrote down."""

    folder: Path
    data: Path

    def job(
        self, strategy: str, name: str, *options: str, at: dict[str, list[int]] | None = None, into: str = ""
    ) -> dict[str, Any]:
        """One training; `into` gives the folder of an earlier one that it goes on with."""
        out = self.folder / (into or name)
        config, data = self.folder / f"{strategy}.yaml", f"train.dataset_path=VetStudies:root={self.data}"
        return {
            "name": name,
            "arguments": ["--config-file", str(config), "--output-dir", str(out), data, *options],
            "at": at or {},
        }

    def run(self, name: str, strategy: str = "NO_SHARD") -> Run:
        return Run(self.folder / f"{strategy}.yaml", self.data, self.folder / name)

    def diary(self, name: str, rank: int = 0) -> dict[str, Any]:
        """Status and samples of one training in one process."""
        for results in sorted(self.folder.glob("results_*")):
            found = json.loads((results / f"{rank}.json").read_text()) if (results / f"{rank}.json").is_file() else {}
            if name in found:
                return found[name]
        raise KeyError(name)

    def statuses(self, name: str) -> list[int]:
        return [self.diary(name, rank)["status"] for rank in range(2)]

    def samples(self, name: str, *, n_processes: int) -> dict[int, list[int]]:
        """Samples of each step, of all processes together."""
        parts = [self.diary(name, rank)["samples"] for rank in range(n_processes)]
        return {int(step): sorted(i for part in parts for i in part[step]) for step in parts[0]}

    def loaded(self, name: str) -> dict[str, torch.Tensor]:
        """What a resumed training began with: weights, centres, optimizer."""
        (path,) = self.folder.glob(f"results_*/{name}.loaded.pt")
        return torch.load(path, weights_only=True)


def start_round(world: World, number: int, jobs: list[dict[str, Any]], *, n_processes: int) -> list[int]:
    """Run the jobs in so many processes; the exit status of each process."""
    plan, results = world.folder / f"plan_{number}.json", world.folder / f"results_{number}"
    plan.write_text(json.dumps(jobs))
    results.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(n_processes):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n_processes, "LOCAL_WORLD_SIZE": n_processes}
        group = {
            **{key: str(value) for key, value in place.items()},
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        environment = {
            **os.environ,
            **(group if n_processes > 1 else {}),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, str(Path(__file__).with_name("train_worker.py")), str(plan), str(results)]
        with (results / f"{rank}.terminal.txt").open("w") as terminal:
            processes.append(subprocess.Popen(command, env=environment, stdout=terminal, stderr=terminal))
    try:
        return [process.wait(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    folder = tmp_path_factory.mktemp("world")
    world = World(folder, make_intake(folder / "studies"))
    for strategy in STRATEGIES:
        (folder / f"{strategy}.yaml").write_text(config_text(strategy))
    one = [world.job(s, f"{s}_one_stopped", "train.batch_size_per_gpu=8", at={"stop": [0, STOP]}) for s in STRATEGIES]
    assert start_round(world, 1, one, n_processes=1) == [0]
    two = []
    for s in STRATEGIES:
        shutil.copytree(folder / f"{s}_one_stopped", folder / f"{s}_one_to_two")
        two += [
            world.job(s, f"{s}_whole"),
            world.job(s, f"{s}_stopped", at={"stop": [1, STOP]}),
            world.job(s, f"{s}_workers_stopped", "train.num_workers=2", at={"stop": [1, STOP]}),
            world.job(s, f"{s}_workers_resumed", "train.num_workers=2", into=f"{s}_workers_stopped"),
            world.job(s, f"{s}_one_to_two"),
        ]
    two.append(world.job("NO_SHARD", "nan", at={"nan": [1, STOP]}))
    two.append(world.job("FULL_SHARD", "full", at={"full": [1, STOP]}))
    assert start_round(world, 2, two, n_processes=2) == [0, 0]
    last = []
    for s in STRATEGIES:
        shutil.copytree(folder / f"{s}_stopped", folder / f"{s}_two_to_one")
        last.append(world.job(s, f"{s}_two_to_one", "train.batch_size_per_gpu=8"))
    assert start_round(world, 3, last, n_processes=1) == [0]
    again = [world.job(s, f"{s}_resumed", into=f"{s}_stopped") for s in STRATEGIES]
    again.append(world.job("NO_SHARD", "dies", at={"die": [1, STOP]}))
    world_ends = start_round(world, 4, again, n_processes=2)
    (folder / "ends.json").write_text(json.dumps(world_ends))
    return world


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_stop_asked_of_one_process_is_followed_by_both(strategy, world):
    assert world.statuses(f"{strategy}_stopped") == [143, 143]
    assert (world.folder / f"{strategy}_stopped" / "checkpoints" / f"{STOP:07d}" / "rank_1.pth").is_file()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("stopped", "resumed"), [("stopped", "resumed"), ("workers_stopped", "workers_resumed")])
def test_two_processes_stopped_and_resumed_end_bit_equal(stopped, resumed, strategy, world):
    assert world.statuses(f"{strategy}_{resumed}") == [0, 0]
    whole, parts = world.run(f"{strategy}_whole"), world.run(f"{strategy}_{stopped}")
    assert sorted(whole.losses()) == list(range(LAST + 1))
    assert parts.losses() == whole.losses()
    assert parts.resumed_after() == [STOP]
    assert_same(parts.tensors(), whole.tensors())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("change", ["one_to_two", "two_to_one"])
def test_another_number_of_processes_begins_with_the_same_weights_centres_and_optimizer(change, strategy, world):
    loaded = world.loaded(f"{strategy}_{change}")
    assert any(name.endswith("exp_avg_sq") for name in loaded)
    assert any("center" in name for name in loaded)
    assert_same(loaded, read_checkpoint(world.folder / f"{strategy}_{change}" / "checkpoints" / f"{STOP:07d}"))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_another_number_of_processes_goes_on_with_the_same_samples(strategy, world):
    whole = world.samples(f"{strategy}_whole", n_processes=2)
    after = {step: samples for step, samples in whole.items() if step > STOP}
    assert sorted(after) == list(range(STOP + 1, LAST + 1))
    assert world.samples(f"{strategy}_two_to_one", n_processes=1) == after
    assert world.samples(f"{strategy}_one_to_two", n_processes=2) == after


def test_the_random_numbers_of_each_process_are_its_own(world):
    folder = world.folder / "NO_SHARD_stopped" / "checkpoints" / f"{STOP:07d}"
    states = [torch.load(folder / f"rank_{rank}.pth", weights_only=True)["random_states"] for rank in range(2)]
    assert not torch.equal(states[0]["torch"], states[1]["torch"])


def test_a_loss_that_is_not_finite_in_one_process_names_it_and_its_samples(world):
    assert world.statuses("nan") == [3, 3]
    said = (world.folder / "nan" / "logs" / "log.txt").read_text()
    samples = world.diary("nan", rank=1)["samples"][str(STOP)]
    assert f"Not finite at iteration {STOP}: koleo_loss." in said
    assert f"Process 1: koleo_loss, from the samples {samples[0]}" in said
    assert "Process 0:" not in said
    assert "The last good checkpoint is checkpoints/0000002" in said


def test_a_process_that_cannot_write_its_part_of_a_checkpoint_ends_all_with_the_last_good_one_named(world):
    assert world.statuses("full") == [2, 2]
    said = (world.folder / "full" / "logs" / "log.txt").read_text()
    assert "The checkpoint 0000005 could not be written" in said
    assert "The last good checkpoint is checkpoints/0000002" in said


def test_a_process_that_dies_ends_the_other(world):
    first, second = json.loads((world.folder / "ends.json").read_text())
    assert second == -9
    assert first == 1
    assert "the run broke off: RuntimeError" in (world.folder / "dies" / "logs" / "log.txt").read_text()
