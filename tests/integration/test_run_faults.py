"""What breaks beside a training - its checkpoints, its disk, its loader workers - is named, and what is whole is used."""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from killing import ROOT, TINY, Run
from study_factory import make_intake

from dinov2.train import ssl_meta_arch
from dinov2.train.run_folder import is_free, sole_owner
from dinov2.train.train import run
from dinov2.train.trainer import Trainer

SHORT = TINY.replace("OFFICIAL_EPOCH_LENGTH: 12", "OFFICIAL_EPOCH_LENGTH: 3").replace("epochs: 5", "epochs: 2")
"""6 steps, with checkpoints after 1, 3 and 5."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Run:
    """A run that has ended."""
    folder = tmp_path_factory.mktemp("whole")
    config = folder / "tiny.yaml"
    config.write_text(SHORT)
    training = Run(config, make_intake(folder / "studies"), folder / "run")
    assert run(training.arguments()) == 0
    return training


@pytest.fixture
def copy(whole, tmp_path) -> Run:
    """The same, to be damaged."""
    shutil.copytree(whole.out, tmp_path / "run")
    return Run(whole.config, whole.data, tmp_path / "run")


@pytest.fixture
def new(whole, tmp_path) -> Run:
    """The same training, not begun."""
    return Run(whole.config, whole.data, tmp_path / "new")


def assert_same_end(a: Run, b: Run) -> None:
    assert a.losses() == b.losses()
    first, second = a.tensors(), b.tensors()
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def log_of(training: Run) -> str:
    return (training.out / "logs" / "log.txt").read_text()


def truncate(folder: Path) -> None:
    path = folder / "__0_0.distcp"
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_bit(folder: Path) -> None:
    path = folder / "__0_0.distcp"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def zero_a_page(folder: Path) -> None:
    path = folder / "__0_0.distcp"
    data = bytearray(path.read_bytes())
    data[8192 : 8192 + 4096] = bytes(4096)
    path.write_bytes(data)


def remove_a_file(folder: Path) -> None:
    (folder / "__0_0.distcp").unlink()


def empty_the_facts(folder: Path) -> None:
    (folder / "meta.json").write_text("")


DAMAGES = {
    "SHA-256 of __0_0.distcp differs": flip_a_bit,
    "bytes, 1": truncate,
    "__0_0.distcp differs from": zero_a_page,
    "__0_0.distcp is missing": remove_a_file,
    "meta.json is missing or unreadable": empty_the_facts,
}


@pytest.mark.parametrize(("said", "damage"), DAMAGES.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_damaged_checkpoint_is_named_and_the_run_goes_on_from_the_one_before(said, damage, copy, whole):
    damage(copy.out / "checkpoints" / "0000005")
    assert run(copy.arguments()) == 0
    log = log_of(copy)
    assert "checkpoint 0000005 is not usable" in log
    assert said in log
    assert "resuming after iteration 3" in log
    assert_same_end(copy, whole)


def test_a_half_written_checkpoint_is_passed_over_and_cleared_away(copy, whole):
    checkpoints = copy.out / "checkpoints"
    (checkpoints / "0000005").rename(checkpoints / ".0000005.partial")
    (checkpoints / "0000003").rename(checkpoints / ".0000002.partial")  # of a step that will not be saved again
    (checkpoints / ".0000005.partial" / "meta.json").unlink()
    assert run(copy.arguments()) == 0
    assert "resuming after iteration 1" in log_of(copy)
    assert_same_end(copy, whole)
    assert list(checkpoints.glob(".*")) == []


def test_when_all_checkpoints_are_damaged_the_run_refuses_to_start_anew_by_itself(copy, capsys):
    for folder in (copy.out / "checkpoints").iterdir():
        flip_a_bit(folder)
    metrics = (copy.out / "training_metrics.json").read_bytes()
    assert run(copy.arguments()) == 2
    said = capsys.readouterr().err
    assert all(f"{step:07d}: the SHA-256 of __0_0.distcp differs" in said for step in (1, 3, 5))
    assert "--no-resume" in said
    assert (copy.out / "training_metrics.json").read_bytes() == metrics
    assert run(["--no-resume", *copy.arguments()]) == 0
    assert len(list((copy.out / "checkpoints.before_1").iterdir())) == 3


@contextmanager
def full_disk(most_bytes: int) -> Iterator[None]:
    """No file may grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("in_background", ["false", "true"])
def test_a_full_disk_ends_the_run_with_the_last_good_checkpoint_named(in_background, copy, whole, capsys):
    shutil.rmtree(copy.out / "checkpoints" / "0000005")
    command = [*copy.arguments(), f"train.checkpoint_in_background={in_background}"]
    with full_disk(4_000_000):  # the tensors take 14 MB
        assert run(command) == 2
    said = capsys.readouterr().err
    assert "The checkpoint 0000005 could not be written: OSError: [Errno 27] File too large." in said
    assert "The last good checkpoint is checkpoints/0000003" in said
    assert "Traceback" not in said
    assert run(command) == 0
    assert_same_end(copy, whole)


def accident(monkeypatch: pytest.MonkeyPatch, iteration: int, happens: Callable[[], object]) -> None:
    """Let something happen before a step of the next training."""
    step = Trainer.train_step

    def train_step(self, batches, now, **options):
        if now == iteration:
            happens()
        step(self, batches, now, **options)

    monkeypatch.setattr(Trainer, "train_step", train_step)


def test_a_killed_loader_worker_ends_the_run_which_can_go_on(new, whole, monkeypatch):
    command = [*new.arguments(), "train.num_workers=2"]
    with monkeypatch.context() as during:
        accident(during, 4, kill_a_child)
        with pytest.raises(RuntimeError, match=r"DataLoader worker .* killed"):
            run(command)
    assert "the run broke off: RuntimeError: DataLoader worker" in log_of(new)
    assert "The last good checkpoint is checkpoints/0000003" in log_of(new)
    assert run(command) == 0
    assert_same_end(new, whole)


def kill_a_child() -> None:
    child = multiprocessing.active_children()[0]
    os.kill(child.pid or 0, signal.SIGKILL)


def test_a_run_goes_on_with_the_scale_of_its_gradients(new, monkeypatch, tmp_path):
    # So large that the first steps overflow; changed again and again.
    monkeypatch.setattr(
        ssl_meta_arch, "grad_scaler", lambda *_: torch.amp.GradScaler("cpu", init_scale=2.0**122, growth_interval=2)
    )
    undisturbed = Run(new.config, new.data, tmp_path / "undisturbed")
    assert run(undisturbed.arguments()) == 0
    with monkeypatch.context() as during:
        accident(during, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert run(new.arguments()) == 128 + signal.SIGTERM
    assert run(new.arguments()) == 0
    scales = [json.loads(p.read_text())["scaler"]["scale"] for p in sorted(new.out.glob("checkpoints/*/meta.json"))]
    assert len(set(scales)) > 1
    assert_same_end(new, undisturbed)


HOLD_AND_DIE = """
import os, signal, sys, time
from pathlib import Path
from dinov2.train.run_folder import sole_owner
with sole_owner(Path(sys.argv[1])):
    if os.fork() == 0:
        time.sleep(1)  # a loader worker, which notices only later that its parent is gone
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_runs_folder_is_free_as_soon_as_its_workers_have_noticed(tmp_path):
    command = [sys.executable, "-c", HOLD_AND_DIE, str(tmp_path)]
    assert subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == -signal.SIGKILL
    assert not is_free(tmp_path)
    with sole_owner(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["process"] == os.getpid()
