"""Runs several pre-trainings side by side, each in its own process with its share of the cores, and reports their progress."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dinov2.train.run_folder import is_free
from vet_extensions.errors import UserError

POLL_S = 0.5
_LOG_NAME = "output.txt"


@dataclass(frozen=True)
class PretrainJob:
    """One run: its configuration file, its output folder and the options laid over the file."""

    config_path: Path
    output_dir: Path
    options: Sequence[str]
    n_steps: int

    def command(self, n_threads: int) -> list[str]:
        """The command line, the same that a user would type."""
        return [
            *(sys.executable, "-m", "dinov2.train.train"),
            *("--config-file", str(self.config_path), "--output-dir", str(self.output_dir)),
            *self.options,
            f"train.cpu_threads={n_threads}",
        ]

    def steps_done(self) -> int:
        """Steps finished so far, as logged in training_metrics.json."""
        path = self.output_dir / "training_metrics.json"
        if not path.is_file():
            return 0
        for line in reversed(path.read_text().splitlines()):
            try:
                return int(json.loads(line)["iteration"]) + 1
            except ValueError:  # a line that is just being written
                continue
        return 0


def pretrain(jobs: Sequence[PretrainJob], *, n_workers: int, on_progress: Callable[[int, int], None]) -> None:
    """Run all jobs, `n_workers` at a time; a job that was interrupted before goes on from its newest checkpoint.

    A run that outlived the demo that had started it is waited for: it is doing this very work.

    on_progress is called with (steps done, steps in all). Raises `UserError` with the end of a failed run's output.
    """
    n_parallel = max(1, min(n_workers, len(jobs)))
    n_threads = max(1, n_workers // n_parallel)
    waiting, running = list(jobs), list[tuple[PretrainJob, subprocess.Popen[bytes]]]()
    total = sum(job.n_steps for job in jobs)
    try:
        while waiting or running:
            for job in [job for job in waiting if is_free(job.output_dir)][: n_parallel - len(running)]:
                waiting.remove(job)
                running.append((job, _start(job, n_threads)))
            time.sleep(POLL_S)
            on_progress(sum(job.steps_done() for job in jobs), total)
            for job, process in [pair for pair in running if pair[1].poll() is not None]:
                running.remove((job, process))
                _check_end(job, process)
    finally:
        # A terminal's Ctrl-C reaches the runs too: they save and leave. Otherwise one run failed and the others are asked to.
        for _, process in running:
            process.terminate()
        for _, process in running:
            process.wait()


def _start(job: PretrainJob, n_threads: int) -> "subprocess.Popen[bytes]":
    job.output_dir.mkdir(parents=True, exist_ok=True)
    with (job.output_dir / _LOG_NAME).open("wb") as output:
        return subprocess.Popen(job.command(n_threads), stdout=output, stderr=subprocess.STDOUT)


def _check_end(job: PretrainJob, process: "subprocess.Popen[bytes]") -> None:
    if process.returncode == 0:
        return
    lines = (job.output_dir / _LOG_NAME).read_text(errors="replace").splitlines()
    raise UserError(
        f"The pre-training run '{job.output_dir.name}' ended with exit code {process.returncode}. The end of its output "
        f"({_LOG_NAME} in its folder):\n" + "\n".join(lines[-15:])
    )
