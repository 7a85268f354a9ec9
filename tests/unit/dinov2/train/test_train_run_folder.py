"""Whose an output folder is, when schedulers start runs anew and machines that were given up go on for a while."""

import json
import os
import socket
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from dinov2.train import run_folder
from dinov2.train.checkpoint import Checkpointer, TrainingState
from dinov2.train.run_folder import (
    MAX_FRUITLESS_STARTS,
    Claim,
    expect_ownership,
    keep_total_batch,
    sole_owner,
)
from dinov2.utils.errors import UserError
from dinov2.utils.stop import SupersededError

HERE = socket.gethostname()


def write_claim(folder: Path, **facts: object) -> None:
    folder.mkdir(exist_ok=True)
    claim = asdict(Claim(process=os.getpid(), host=HERE)) | facts
    # As a later start puts it there: by a new file in the place of the old one.
    fresh = folder / "fresh"
    fresh.write_text(json.dumps(claim))
    fresh.replace(folder / ".lock")


def read_claim(folder: Path) -> Claim:
    return Claim(**json.loads((folder / ".lock").read_text()))


def test_the_lock_says_who_holds_the_folder(tmp_path):
    with sole_owner(tmp_path, job="77", attempt=2):
        assert read_claim(tmp_path) == Claim(os.getpid(), HERE, "77", 2)


def test_the_holder_of_a_folder_may_write_and_so_may_who_never_asked_for_one(tmp_path):
    expect_ownership(tmp_path)
    with sole_owner(tmp_path):
        expect_ownership(tmp_path)
    expect_ownership(tmp_path)


def test_a_later_start_takes_the_folder_over_from_a_process_that_still_holds_it(tmp_path):
    with sole_owner(tmp_path, job="77", attempt=0), sole_owner(tmp_path, job="77", attempt=1):
        expect_ownership(tmp_path)
        assert read_claim(tmp_path).attempt == 1


def test_a_start_that_was_taken_over_writes_no_checkpoint(tmp_path):
    state = TrainingState(tensors={"w": torch.zeros(2)}, own={}, facts={})
    checkpointer = Checkpointer(tmp_path / "checkpoints")
    with sole_owner(tmp_path, job="77", attempt=0):
        checkpointer.save(state, iteration=1)
        write_claim(tmp_path, job="77", attempt=1, host="elsewhere")
        with pytest.raises(SupersededError, match=r"job 77 \(start 1\) on elsewhere has taken over"):
            checkpointer.save(state, iteration=2)
    assert checkpointer.iterations() == [1]


def test_a_start_that_was_taken_over_while_it_writes_a_checkpoint_gives_it_no_name(tmp_path, monkeypatch):
    state = TrainingState(tensors={"w": torch.zeros(2)}, own={}, facts={})
    checkpointer = Checkpointer(tmp_path / "checkpoints", keep=1)
    with sole_owner(tmp_path, job="77", attempt=0):
        checkpointer.save(state, iteration=1)
        write_tensors = run_folder_taken_over_after(tmp_path)
        monkeypatch.setattr("dinov2.train.checkpoint.TensorFolder.write_tensors", write_tensors)
        with pytest.raises(SupersededError):
            checkpointer.save(state, iteration=2)
    assert checkpointer.iterations() == [1]


def run_folder_taken_over_after(folder: Path):
    from dinov2.fsdp.storage import TensorFolder

    write = TensorFolder.write_tensors

    def write_tensors(self, tensors):
        write(self, tensors)
        write_claim(folder, job="77", attempt=1)

    return write_tensors


def test_a_start_that_comes_too_late_leaves_the_folder_to_the_later_one(tmp_path):
    write_claim(tmp_path, job="77", attempt=2, host="elsewhere")
    with pytest.raises(SupersededError, match="too late"), sole_owner(tmp_path, job="77", attempt=1):
        pass
    assert read_claim(tmp_path).attempt == 2


def test_another_run_does_not_take_a_folder_over(tmp_path):
    with sole_owner(tmp_path, job="77", attempt=0):
        refused = pytest.raises(UserError, match=f"Process {os.getpid()} is already training")
        with refused, sole_owner(tmp_path, job="78", attempt=1):
            pass
        expect_ownership(tmp_path)


def test_the_process_of_another_machine_is_named_with_it_and_not_judged(tmp_path, monkeypatch):
    """Its number may be free here, or another's."""
    monkeypatch.setattr(run_folder, "_WORKERS_LEAVE_WITHIN_S", 0.2)
    monkeypatch.setattr(run_folder, "_take", lambda _lock: False)
    write_claim(tmp_path, process=os.getpid(), host="elsewhere")
    with pytest.raises(UserError, match=rf"on elsewhere: kill {os.getpid()}"), sole_owner(tmp_path):
        pass


def start(folder: Path, attempt: int, *, checkpoint: int | None = None) -> None:
    """One start of job 77 that leaves a checkpoint, or none."""
    with sole_owner(folder, job="77", attempt=attempt):
        if checkpoint is not None:
            (folder / "checkpoints" / f"{checkpoint:07d}").mkdir(parents=True)


def test_a_job_that_gets_nowhere_is_stopped_after_a_few_starts(tmp_path):
    for attempt in range(MAX_FRUITLESS_STARTS):
        start(tmp_path, attempt)
    with pytest.raises(UserError, match=r"would go round for ever.*--timeout.*from the beginning"):
        start(tmp_path, MAX_FRUITLESS_STARTS)


def test_a_checkpoint_begins_the_count_anew(tmp_path):
    for attempt in range(3 * MAX_FRUITLESS_STARTS):
        start(tmp_path, attempt, checkpoint=attempt if attempt % MAX_FRUITLESS_STARTS == 0 else None)


def test_starts_of_different_jobs_are_not_counted_together(tmp_path):
    for number in range(2 * MAX_FRUITLESS_STARTS):
        with sole_owner(tmp_path, job=str(number)):
            pass


def make_run(folder: Path, *, batch: int, n_accumulated: int = 1, total: int | None = None):
    """A configuration, and the one that the folder's run began with, of so many samples a step."""
    if total is not None:
        before = {"optim": {"base_lr": 0.004, "lr": 0.004 * (total / 1024) ** 0.5}}
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(before)))
    train = {"output_dir": str(folder), "batch_size_per_gpu": batch, "gradient_accumulation_steps": n_accumulated}
    return OmegaConf.create({"train": train})


@pytest.mark.parametrize(
    ("batch", "n_accumulated", "total", "world_size", "now"),
    [
        (8, 1, 32, 4, None),
        (8, 1, 32, 2, (8, 2)),
        (8, 1, 32, 1, (8, 4)),
        (8, 2, 64, 8, (8, 1)),
        (8, 1, 32, 8, (4, 1)),
        (6, 1, 24, 3, (4, 2)),
        (48, 1, 48 * 1000, 500, (48, 2)),
    ],
)
def test_another_number_of_processes_shares_the_samples_of_a_step(
    batch, n_accumulated, total, world_size, now, tmp_path
):
    cfg = make_run(tmp_path, batch=batch, n_accumulated=n_accumulated, total=total)
    names = ("train.batch_size_per_gpu", "train.gradient_accumulation_steps")
    wanted = [f"{name}={value}" for name, value in zip(names, now or ())]
    assert keep_total_batch(cfg, world_size=world_size) == wanted


def test_samples_that_cannot_be_shared_evenly_are_refused(tmp_path):
    with pytest.raises(UserError, match="32 samples a step, which 3 processes"):
        keep_total_batch(make_run(tmp_path, batch=8, total=32), world_size=3)


def test_a_folder_without_a_run_asks_for_nothing(tmp_path):
    assert keep_total_batch(make_run(tmp_path, batch=8), world_size=3) == []
