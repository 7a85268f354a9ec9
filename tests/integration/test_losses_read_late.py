"""`train.read_losses_every`: values read late are the same values, and what nobody has judged is never written."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import SPEED, TINY, Run
from study_factory import make_intake
from torch.utils._python_dispatch import TorchDispatchMode

from dinov2.train.train import run
from dinov2.train.trainer import Trainer

SHORT = TINY.replace("OFFICIAL_EPOCH_LENGTH: 12", "OFFICIAL_EPOCH_LENGTH: 6").replace("epochs: 5", "epochs: 2")
SELDOM_LOGGED = "train.log_period_iterations=4"
LATE = "train.read_losses_every=7"

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "_unique2", "equal")
"""ATen operations for whose answer the host waits."""


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_intake(tmp_path_factory.mktemp("late") / "studies")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(SHORT)
    return path


def lines(training: Run) -> list[dict[str, Any]]:
    text = (training.out / "training_metrics.json").read_text()
    return [{k: v for k, v in json.loads(line).items() if k not in SPEED} for line in text.splitlines()]


def assert_same(a: Run, b: Run) -> None:
    assert lines(a) == lines(b)
    first, second = a.tensors(), b.tensors()
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def interrupt_at(iteration: int, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainer.train_step

    def train_step(self: Trainer, batches: Any, now: int, **options: Any) -> None:
        if now == iteration:
            os.kill(os.getpid(), signal.SIGINT)
        step(self, batches, now, **options)

    monkeypatch.setattr(Trainer, "train_step", train_step)


def test_values_read_late_are_the_same_and_so_are_those_of_a_run_that_was_stopped(
    studies: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once, late, stopped = (
        Run(config, studies, tmp_path / name, (SELDOM_LOGGED, *options))
        for name, options in (("at_once", ()), ("late", (LATE,)), ("stopped", (LATE,)))
    )
    assert [run(training.arguments()) for training in (at_once, late)] == [0, 0]
    assert_same(late, at_once)
    assert lines(late)[-1]["total_loss"] > 0
    with monkeypatch.context() as during:
        interrupt_at(5, during)
        assert run(stopped.arguments()) == 130
    assert run(stopped.arguments()) == 0
    assert_same(stopped, at_once)


def test_a_broken_loss_that_is_read_late_is_told_and_never_saved(
    studies: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = ("optim.base_lr=1e38", "optim.clip_grad=0", "train.log_period_iterations=100")
    training = Run(config, studies, tmp_path / "run", (*broken, LATE, "train.checkpoint_period_iterations=3"))
    assert run(training.arguments()) == 3
    said = capsys.readouterr().err
    assert "the weights in memory are lost; none of them was saved" in said
    assert "There is no checkpoint yet" in said
    assert not list((training.out / "checkpoints").glob("0*"))


def test_steps_cannot_be_both_left_out_and_taken_unread(
    studies: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(Run(config, studies, tmp_path / "run", (LATE, "train.on_nonfinite=skip")).arguments()) == 2
    assert "train.read_losses_every=7 most steps are taken unread" in capsys.readouterr().err


class Waits(TorchDispatchMode):
    """Counts operations that the host would wait for on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in WAITS or by_mask:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def test_nothing_is_waited_for_in_a_step_that_is_not_read(
    studies: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, waits = Trainer.train_step, dict[bool, list[str]]()

    def train_step(self: Trainer, batches: Any, now: int, *, read: bool) -> None:
        with Waits() as mode:
            step(self, batches, now, read=read)
        waits.setdefault(read, []).extend(mode.seen)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    # On the CPU alone clipping looks at the norm.
    training = Run(config, studies, tmp_path / "run", (SELDOM_LOGGED, LATE, "optim.clip_grad=0"))
    assert run(training.arguments()) == 0
    assert waits[False] == []
