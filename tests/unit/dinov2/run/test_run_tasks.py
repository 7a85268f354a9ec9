"""Several tasks in one submission: an array for SLURM, some processes at a time here; and what is shown without doing it."""

import argparse
import os
import re
from pathlib import Path

import pytest

from dinov2.run import site, submit
from dinov2.run.submit import describe_submission, get_args_parser, submit_tasks
from dinov2.run.task import SubmittedTask
from dinov2.run.train.train import main as main_train


class Note(SubmittedTask):
    """Writes its number, and how many others were at work meanwhile."""

    def _main(self, args: argparse.Namespace) -> str:
        busy = Path(args.output_dir) / f"busy{args.number}"
        busy.touch()
        others = len(list(busy.parent.glob("busy*"))) - 1
        busy.unlink()
        if args.number == args.fails:
            raise RuntimeError("as told")
        return f"{args.number} beside {others} with {args.variable and os.environ[args.variable]}"


def notes(folder: Path, n: int, *, fails: int = -1, variable: str = "") -> list[Note]:
    return [
        Note(argparse.Namespace(number=i, output_dir=str(folder), fails=fails, variable=variable)) for i in range(n)
    ]


@pytest.fixture(autouse=True)
def no_site_file(monkeypatch) -> None:
    monkeypatch.setattr(site, "NAME", Path("no site file of this checkout's user"))


def parse(*options: str) -> argparse.Namespace:
    return get_args_parser().parse_args(["--ngpus", "0", *options])


def described(folder: Path, n: int, *options: str, parallelism: int | None = None, after: str | None = None) -> str:
    args = parse("--cluster", "slurm", "--dry-run", *options)
    return describe_submission(
        notes(folder, n), args, name="notes", folder=folder / "jobs", parallelism=parallelism, after=after
    )


def test_several_tasks_are_an_array_with_a_limit(tmp_path):
    assert "#SBATCH --array=0-7%3" in described(tmp_path, 8, parallelism=3).splitlines()
    assert "array" not in described(tmp_path, 1)


def test_a_job_waits_for_the_end_of_another_well_or_not(tmp_path):
    assert "#SBATCH --dependency=afterany:4711" in described(tmp_path, 1, after="4711").splitlines()


def test_a_description_needs_no_slurm_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert "srun" in described(tmp_path, 2)
    assert not list(tmp_path.iterdir())


def test_any_option_of_sbatch_can_be_given_and_wins(tmp_path):
    script = described(
        tmp_path, 1, "--slurm", "mail-type=END", "--slurm", "time=5", "--slurm", "exclusive"
    ).splitlines()
    assert {"#SBATCH --mail-type=END", "#SBATCH --time=5", "#SBATCH --exclusive"} <= set(script)
    assert len([line for line in script if "--time" in line]) == 1


def test_gpus_of_a_kind_take_the_place_of_their_number(tmp_path):
    script = described(tmp_path, 1, "--ngpus", "2", "--slurm", "gres=gpu:a100:2")
    assert "#SBATCH --gres=gpu:a100:2\n" in script
    assert "#SBATCH --ntasks-per-node=2\n" in script
    assert "gpus-per-node" not in script


@pytest.mark.parametrize(("options", "is_asked"), [((), True), (("--slurm", "no-requeue"), False)])
def test_a_job_may_be_requeued_unless_the_user_says_no(options, is_asked, tmp_path):
    lines = described(tmp_path, 1, *options).splitlines()
    assert ("#SBATCH --requeue" in lines) is is_asked
    assert ("#SBATCH --no-requeue" in lines) is not is_asked


def test_every_process_gets_its_cores_and_no_key_of_submitits_own(tmp_path):
    script = described(tmp_path, 1, "--cpus-per-task", "6")
    assert re.search(r"^srun .*--cpus-per-task=6 ", script, flags=re.MULTILINE)
    assert "wckey" not in script


def test_set_up_lines_come_before_the_program(tmp_path):
    script = described(tmp_path, 1, "--setup", "module load cuda", "--setup", "export A=1")
    assert script.index("module load cuda\nexport A=1\n") < script.index("srun")


def test_a_launchers_dry_run_shows_script_and_configuration_and_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main_train(["--dry-run", "--cluster", "slurm", "--partition", "gpu", "optim.epochs=7"]) == 0
    shown = capsys.readouterr().out
    assert "#SBATCH --partition=gpu" in shown
    assert re.search(r"^ +epochs: 7$", shown, flags=re.MULTILINE)
    assert not list(tmp_path.iterdir())


def test_a_dry_run_here_says_what_would_run(tmp_path):
    args = parse("--cluster", "local")
    said = describe_submission(notes(tmp_path, 4), args, name="notes", folder=tmp_path / "jobs", parallelism=2)
    assert "4 job(s), 2 at a time, of 1 process(es) each" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_tasks_run_here_some_at_a_time_and_one_that_fails_ends_no_other(tmp_path):
    args = parse("--cluster", "local", "--setup", "export NOTE='of the set-up'")
    jobs = submit_tasks(
        notes(tmp_path, 3, fails=1, variable="NOTE"), args, name="notes", folder=tmp_path / "jobs", parallelism=1
    )
    assert all(job.done() for job in jobs)
    assert [job.exception() is None for job in jobs] == [True, False, True]
    assert [jobs[i].result() for i in (0, 2)] == [f"{i} beside 0 with of the set-up" for i in (0, 2)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # submitit leaves its log files open
def test_tasks_run_in_this_process_under_debug(tmp_path):
    jobs = submit_tasks(notes(tmp_path, 2), parse("--cluster", "debug"), name="notes", folder=tmp_path / "jobs")
    assert [job.result() for job in jobs] == ["0 beside 0 with ", "1 beside 0 with "]


@pytest.mark.slow
def test_gpus_that_the_user_chose_are_the_jobs(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    args = parse("--cluster", "local")
    (job,) = submit_tasks(
        notes(tmp_path, 1, variable="CUDA_VISIBLE_DEVICES"), args, name="notes", folder=tmp_path / "jobs"
    )
    assert job.result() == "0 beside 0 with 4,5"


class Running:
    """A job on this machine that ends when it has been asked a few times whether it has."""

    def __init__(self, n_questions: int) -> None:
        self.n_questions = n_questions
        self.is_cancelled = False

    def done(self) -> bool:
        self.n_questions -= 1
        return self.n_questions < 0

    def wait(self) -> None:
        if self.n_questions > 100:
            raise KeyboardInterrupt

    def cancel(self) -> None:
        self.is_cancelled = True


def start_here(monkeypatch: pytest.MonkeyPatch, folder: Path, jobs: list[Running]) -> list[int]:
    """Run jobs on this machine, two at a time; returns how many ran when each one was started, itself among them."""
    started: list[Running] = []
    running = []

    def start(_executor: object, _tasks: object) -> list[Running]:
        started.append(jobs[len(started)])
        running.append(sum(job.n_questions >= 0 for job in started))
        return started[-1:]

    monkeypatch.setattr(submit, "_submit", start)
    monkeypatch.setattr(submit, "POLL_S", 0)
    args = parse("--cluster", "local")
    submit_tasks(notes(folder, len(jobs)), args, name="notes", folder=folder / "jobs", parallelism=2)
    return running


def test_here_no_more_jobs_run_at_a_time_than_are_allowed(tmp_path, monkeypatch):
    assert start_here(monkeypatch, tmp_path, [Running(n) for n in (9, 3, 5, 2)]) == [1, 2, 2, 2]


def test_an_interrupt_ends_the_jobs_that_run_here(tmp_path, monkeypatch):
    jobs = [Running(200), Running(0)]
    with pytest.raises(KeyboardInterrupt):
        start_here(monkeypatch, tmp_path, jobs)
    assert [job.is_cancelled for job in jobs] == [True, False]
