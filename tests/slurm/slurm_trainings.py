"""Trainings of four processes on two nodes, submitted by the launcher and disturbed by the tests, and what they end with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from killing import TINY, Run
from slurm_jobs import TRAIN, submit, wait_for_state, wait_until
from study_factory import make_intake

N_STEPS = 24
STEP_S = 0.5
"""How long a step takes, at least, in a training that is to be disturbed; twelve seconds in all."""
BATCH = 4
OPTIONS = (
    "plugins=[vet_extensions,slow_views]",
    "augmentation.name=slow_paired_views",
    "optim.epochs=2",
    f"train.OFFICIAL_EPOCH_LENGTH={N_STEPS // 2}",
    f"train.batch_size_per_gpu={BATCH}",
    # A worker, so that signals reach one.
    "train.num_workers=1",
    f"evaluation.eval_period_iterations={N_STEPS}",
)
SAVE_OFTEN = "train.checkpoint_period_iterations=3"
SAVE_AT_THE_END = "train.checkpoint_period_iterations=1000"
"""What is saved before that is saved because of a signal."""
TWO_BY_TWO = ("--nodes", "2", "--ngpus", "2", "--cpus-per-task", "1", "--timeout", "30")


@dataclass(frozen=True)
class SlurmTraining:
    """A submitted training."""

    run: Run
    job: str

    def wait_until_step(self, n: int) -> None:
        """Until its metrics hold so many steps."""
        wait_until(lambda: self.run.n_lines() >= n, f"step {n} of job {self.job}\n{self.said()}")

    def wait_until_done(self) -> None:
        """Until SLURM calls it completed."""
        wait_for_state(self.job, "COMPLETED")

    def said(self) -> str:
        """Its processes' own words, for messages."""
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(self.run.out.glob("*_log.*")))

    def teacher(self) -> dict[str, torch.Tensor]:
        """The weights that the training is for."""
        path = self.run.out / "eval" / f"training_{N_STEPS - 1}" / "teacher_checkpoint.pth"
        return torch.load(path, weights_only=True)["teacher"]


def start_training(
    folder: Path,
    data: Path,
    *options: str,
    name: str = "run",
    step_s: float = STEP_S,
    submission: Sequence[str] = TWO_BY_TWO,
) -> SlurmTraining:
    """Submit one into `folder`/`name`."""
    config = folder / "tiny.yaml"
    config.write_text(TINY)
    pace = f"augmentation.seconds={step_s / BATCH}"
    run = Run(config, data, folder / name, (*OPTIONS, pace, *options))
    return SlurmTraining(run, submit(TRAIN, *submission, *run.arguments()))


@dataclass(frozen=True)
class Scene:
    """What trainings of all tests share, whichever process runs the test."""

    folder: Path

    @property
    def data(self) -> Path:
        """Forty studies."""
        path = self.folder / "studies"
        with FileLock(f"{path}.lock"):
            return path if path.is_dir() else make_intake(path, n_studies=40)

    def undisturbed(self) -> SlurmTraining:
        """A training that nothing happened to; the first to ask waits for it."""
        job = self.folder / "undisturbed.job"
        with FileLock(f"{job}.lock"):
            if job.is_file():
                run = Run(self.folder / "tiny.yaml", self.data, self.folder / "undisturbed")
                return SlurmTraining(run, job.read_text())
            training = start_training(self.folder, self.data, SAVE_AT_THE_END, name="undisturbed", step_s=0)
            training.wait_until_done()
            job.write_text(training.job)
            return training


def assert_ended_alike(one: SlurmTraining, other: SlurmTraining) -> None:
    """Every step's losses, the last checkpoint's tensors (weights, centres, optimizer) and the teacher, bit for bit."""
    assert sorted(one.run.losses()) == list(range(N_STEPS))
    assert one.run.losses() == other.run.losses()
    for a, b in ((one.run.tensors(), other.run.tensors()), (one.teacher(), other.teacher())):
        assert a.keys() == b.keys()
        assert [name for name in a if not torch.equal(a[name], b[name])] == []
