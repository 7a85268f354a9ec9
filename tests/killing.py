"""Trainings in processes of their own that are killed at random moments and started again; for tests and benchmarks/kills.py.

Half of the kills wait for a checkpoint to be under way (a `.NNNNNNN.partial` folder appears) and fall somewhere into its
writing; the others fall anywhere between the start of Python and a few steps on.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

from dinov2.fsdp.storage import TensorFolder

ROOT = Path(__file__).parents[1]

TINY = """
compute_precision: {grad_scaler: false}
dino: {head_n_prototypes: 32, head_bottleneck_dim: 8, head_hidden_dim: 16}
train: {batch_size_per_gpu: 4, num_workers: 0, OFFICIAL_EPOCH_LENGTH: 12, sampler: seeded, checkpoint_period_iterations: 2,
        device: cpu, log_period_iterations: 1}
student: {arch: vit_micro, patch_size: 8, drop_path_rate: 0.2, layerscale: 1.0}
teacher: {warmup_teacher_temp_epochs: 1}
optim: {epochs: 5, warmup_epochs: 1}
crops: {global_crops_size: 32, local_crops_size: 16, local_crops_number: 2}
evaluation: {eval_period_iterations: 0}
plugins: [vet_extensions]
augmentation: {name: paired_views}
routing: {name: vet_dino}
"""
"""60 steps of about 0.1 s, a checkpoint of 14 MB every second one."""

SPEED = {"iter_time", "data_time", "images_per_second", "data_wait", "max_memory_mb", "tflops", "mfu"}
"""Numbers of a metrics line that no two runs share."""


@dataclass(frozen=True)
class Run:
    """How to start one training, and where it writes."""

    config: Path
    data: Path
    out: Path
    options: tuple[str, ...] = ()
    n_processes: int = 1

    def arguments(self) -> list[str]:
        """Of the training command."""
        data = f"train.dataset_path=VetStudies:root={self.data}"
        return ["--config-file", str(self.config), "--output-dir", str(self.out), data, *self.options]

    def start(self) -> "Started":
        """Start it, or go on with it, in a session of its own; one thread a process."""
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.n_processes}"]
        command = [
            sys.executable,
            *(launcher if self.n_processes > 1 else []),
            *("-m", "dinov2.train.train", *self.arguments()),
        ]
        log = self.out.with_suffix(".terminal.txt")
        with log.open("ab") as terminal:
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(
                command, env=environment, stdout=terminal, stderr=terminal, start_new_session=True
            )
        return Started(self, process)

    def finish(self) -> int:
        """Run it to its end; the exit status."""
        return self.start().process.wait(timeout=600)

    def n_lines(self) -> int:
        """Steps that the metrics file holds."""
        path = self.out / "training_metrics.json"
        return path.read_bytes().count(b"\n") if path.is_file() else 0

    def partials(self) -> set[tuple[str, int, int]]:
        """Checkpoints being written, or cut off while they were: name, inode and time, so that a new one differs."""
        found = set()
        for path in (self.out / "checkpoints").glob(".*.partial"):
            try:
                found.add((path.name, path.stat().st_ino, path.stat().st_ctime_ns))
            except FileNotFoundError:
                continue
        return found

    def losses(self) -> dict[int, dict[str, float]]:
        """Every number of the metrics file by iteration, but those that say how fast the machine was."""
        lines = [json.loads(line) for line in (self.out / "training_metrics.json").read_text().splitlines()]
        assert len({line["iteration"] for line in lines}) == len(lines), "a step stands twice"
        return {line["iteration"]: {k: v for k, v in line.items() if k not in SPEED} for line in lines}

    def resumed_after(self) -> list[int]:
        """The iterations that starts of the run went on from, oldest first."""
        lines = (self.out / "logs" / "log.txt").read_text().splitlines()
        return [
            int(line.partition("resuming after iteration ")[2].split(",")[0]) for line in lines if "resuming" in line
        ]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights, centres and optimizer state of the newest checkpoint."""
        return read_checkpoint(max(p for p in (self.out / "checkpoints").iterdir() if p.name.isdigit()))


def read_checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint folder, whole, however many processes wrote it."""
    stored = TensorFolder(folder)
    assert stored.fault() is None
    listed = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors = {name: torch.zeros(fact.size, dtype=fact.properties.dtype) for name, fact in listed.items()}  # pyright: ignore[reportAttributeAccessIssue]
    stored.read_tensors(tensors)
    return tensors


@dataclass
class Started:
    """A training that runs."""

    run: Run
    process: subprocess.Popen[bytes]

    def ranks(self) -> list[int]:
        """The processes that train, by rank."""
        if self.run.n_processes == 1:
            return [self.process.pid]
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        of_rank = {}
        for child in children:
            environment = Path("/proc", child, "environ").read_bytes().split(b"\0")
            ranks = [entry for entry in environment if entry.startswith(b"RANK=")]
            if ranks:
                of_rank[int(ranks[0].partition(b"=")[2])] = int(child)
        return [of_rank[rank] for rank in sorted(of_rank)]

    def kill(self, whom: str) -> None:
        """SIGKILL to `all` processes at once, as when a machine goes down, or to `one` rank, and wait for the end of the rest."""
        if self.process.poll() is not None:
            return
        ranks = self.ranks()
        if whom == "one" and ranks:
            _kill(ranks[-1])
        else:
            for process in (self.process.pid, *ranks):
                _kill(process)
        self.process.wait(timeout=60)

    def wait_until(self, reached: Callable[[], bool], *, timeout_s: float = 120) -> bool:
        """Watch closely until something is there; False when the training ended before."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if reached():
                return True
            if self.process.poll() is not None:
                return False
            time.sleep(0.0005)
        raise TimeoutError(f"waited {timeout_s} s for a training that neither goes on nor ends")


@dataclass(frozen=True)
class Kill:
    """One SIGKILL: what it waited for and what it hit."""

    while_writing: bool
    """Aimed at the writing of a checkpoint."""
    seconds: float
    """From the start of the training to the kill."""
    hit: bool
    """The training was still running."""
    cut_a_checkpoint: bool
    """A checkpoint was left half written."""
    n_lines: int
    """Steps in the metrics file afterwards."""
    whom: str


def kill_again_and_again(run: Run, *, n_kills: int, seed: int, write_s: float = 0.25) -> list[Kill]:
    """Start a run and kill it, `n_kills` times; which moments, `seed` decides. The run is left unfinished.

    write_s: about how long a checkpoint takes, for kills that are to hit one.
    """
    rng = random.Random(seed)
    kinds = [number % 2 == 0 for number in range(n_kills)]
    rng.shuffle(kinds)
    return [_kill_once(run, rng, while_writing=kind, write_s=write_s) for kind in kinds]


def _kill_once(run: Run, rng: random.Random, *, while_writing: bool, write_s: float) -> Kill:
    before, lines_before = run.partials(), run.n_lines()
    began, started = time.monotonic(), run.start()
    if while_writing:
        wanted = rng.choice((1, 1, 2))  # the first checkpoint of a start, or the second: some starts earn nothing
        seen: set[str] = set()

        def reached() -> bool:
            seen.update(name for name, *_ in run.partials() - before)
            return len(seen) >= wanted

        started.wait_until(reached)
        time.sleep(rng.uniform(0, write_s))
    elif rng.random() < 0.25:
        # Somewhere between the start of Python and the first steps, but earn no more than a few.
        limit = began + rng.uniform(0, 6)
        started.wait_until(lambda: time.monotonic() > limit or run.n_lines() > lines_before + 2)
    else:
        n_more = rng.randint(0, 2)
        started.wait_until(lambda: run.n_lines() > lines_before + n_more)
        time.sleep(rng.uniform(0, 0.1))
    seconds, hit = time.monotonic() - began, started.process.poll() is None
    whom = "all" if run.n_processes == 1 or rng.random() < 0.5 else "one"
    started.kill(whom)
    return Kill(while_writing, seconds, hit, bool(run.partials() - before), run.n_lines(), whom)


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
