"""Trainings on two nodes, submitted by the launcher and disturbed by the tests, and what they end with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from killing import TINY, Run
from slurm_jobs import TRAIN, facts, submit, wait_for_state, wait_until
from study_factory import make_intake

N_STEPS = 24
MIDDLE = 6
"""Steps after which trainings are disturbed."""
BATCH = 4
SLOW_STEP_S = 1.0
"""Least time of a step until the training has been disturbed."""
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
ALONE = ("--nodes", "1")
TWO_BY_TWO = ("--ngpus", "2")
SAVE_OFTEN = "train.checkpoint_period_iterations=3"
SAVE_AT_THE_END = "train.checkpoint_period_iterations=1000"
"""What is saved before that is saved because of a signal."""


@dataclass(frozen=True)
class SlurmTraining:
    """A submitted training."""

    run: Run
    job: str

    def wait_for_its_middle(self) -> None:
        """Until its metrics hold some steps."""
        wait_until(lambda: self.run.n_lines() >= MIDDLE, f"step {MIDDLE} of job {self.job}")

    def wait_for_restart(self, what: str) -> None:
        """Until SLURM has put it back into the queue because of `what`."""
        wait_until(lambda: facts(self.job)["Restarts"] != "0", f"job {self.job} to go back into the queue: {what}")

    def wait_until_done(self) -> None:
        """Until SLURM calls it completed; from here on it makes haste."""
        set_pace(self.run.out)
        wait_for_state(self.job, "COMPLETED")

    def checkpoints(self) -> list[Path]:
        """Those that are whole, oldest first."""
        return sorted((self.run.out / "checkpoints").glob("[0-9]*/meta.json"))

    def teacher(self) -> dict[str, torch.Tensor]:
        """The weights that the training is for."""
        path = self.run.out / "eval" / f"training_{N_STEPS - 1}" / "teacher_checkpoint.pth"
        return torch.load(path, weights_only=True)["teacher"]


def start_training(
    out: Path, data: Path, *options: str, step_s: float = SLOW_STEP_S, submission: Sequence[str] = ()
) -> SlurmTraining:
    """Submit one: two nodes with a process each, unless `submission` says otherwise."""
    config, pace = out.with_suffix(".yaml"), set_pace(out, step_s=step_s)
    config.write_text(TINY)
    run = Run(config, data, out, (*OPTIONS, f"augmentation.pace={pace}", *options))
    # Whole nodes: what is done to those of one training must not happen to another's.
    return SlurmTraining(run, submit(TRAIN, "--slurm", "exclusive", *submission, *run.arguments()))


@dataclass(frozen=True)
class Scene:
    """What trainings of all tests share, whichever process of pytest runs the test."""

    folder: Path

    @property
    def data(self) -> Path:
        """Forty studies."""
        path = self.folder / "studies"
        with FileLock(f"{path}.lock"):
            return path if path.is_dir() else make_intake(path, n_studies=40)

    def undisturbed(self, submission: Sequence[str] = ()) -> SlurmTraining:
        """A training that nothing happened to, with as many processes; the first to ask waits for it."""
        out = self.folder / "".join(("undisturbed", *submission))
        job = out.with_suffix(".job")
        with FileLock(f"{job}.lock"):
            if not job.is_file():
                training = start_training(out, self.data, SAVE_AT_THE_END, step_s=0, submission=submission)
                training.wait_until_done()
                job.write_text(training.job)
        return SlurmTraining(Run(out.with_suffix(".yaml"), self.data, out), job.read_text())


def assert_ended_alike(one: SlurmTraining, other: SlurmTraining) -> None:
    """Every step's losses, the last checkpoint's tensors (weights, centres, optimizer) and the teacher, bit for bit."""
    assert sorted(one.run.losses()) == list(range(N_STEPS))
    assert one.run.losses() == other.run.losses()
    for a, b in ((one.run.tensors(), other.run.tensors()), (one.teacher(), other.teacher())):
        assert a.keys() == b.keys()
        assert [name for name in a if not torch.equal(a[name], b[name])] == []


def set_pace(out: Path, *, step_s: float = 0, hunger_mb: float = 0) -> Path:
    """How fast the training in `out` is from now on, and how much memory a worker of its takes; the file that says so."""
    pace, new = out.with_suffix(".pace"), out.with_suffix(".new")
    new.write_text(f"{step_s / BATCH} {hunger_mb}")
    return new.replace(pace)
