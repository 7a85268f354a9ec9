"""What signals make of a submitted task: which ones put its job back into the queue, and who does so."""

import argparse
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import submitit
from submitit.core.utils import DelayedSubmission
from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE

from dinov2.run.task import SubmittedTask
from dinov2.utils.errors import UserError
from dinov2.utils.stop import StopRequested, SupersededError

SCONTROL = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/asked"
case "$*" in
  *show*) echo "JobId=77 JobName=x Requeue=1 Restarts=$FAKE_RESTARTS JobState=$FAKE_STATE Reason=None";;
  *) [ -z "$FAKE_REFUSES" ] || { echo "Job is not requeueable" >&2; exit 1; };;
esac
"""


class Told(SubmittedTask):
    """Does as its arguments tell: sends itself a signal, and ends in some way."""

    def _main(self, args: argparse.Namespace) -> str:
        try:
            if args.gets:
                signal.raise_signal(args.gets)
        except KeyboardInterrupt:
            if args.ends is None:
                raise
        if isinstance(args.ends, BaseException):
            raise args.ends
        return args.ends or "result"


def told(gets: signal.Signals | None = None, ends: str | BaseException | None = None) -> Told:
    return Told(argparse.Namespace(gets=gets, ends=ends, output_dir="run/%j", no_resume=True))


@pytest.fixture(autouse=True)
def same_handlers_afterwards() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR2, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """This process is one of a job on this machine."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "before")
        monkeypatch.delenv(name)  # so that what the job sets is taken back after the test
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    monkeypatch.setenv("SUBMITIT_FOLDER", str(tmp_path))
    for name, value in {"JOB_ID": "77", "NTASKS": "1", "JOB_NUM_NODES": "1", "GLOBALID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SUBMITIT_LOCAL_{name}", value)


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """This process is the first task of a running SLURM job; what SLURM was asked stands in the file."""
    (tmp_path / "scontrol").write_text(SCONTROL)
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SUBMITIT_FOLDER", str(tmp_path))
    given = {"SLURM_JOB_ID": "77", "SLURM_PROCID": "0", "FAKE_STATE": "RUNNING", "FAKE_RESTARTS": "0"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    for name in ("RANK", "SLURM_RESTART_COUNT", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "FAKE_REFUSES"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "asked"


def requeues(asked: Path) -> int:
    return asked.read_text().splitlines().count("requeue 77") if asked.is_file() else 0


def run_job(task: Told) -> object:
    """As submitit does in a process of a job."""
    job = submitit.JobEnvironment()
    delayed = DelayedSubmission(task)
    delayed.set_timeout(60, 3)
    job._handle_signals(job.paths, delayed)
    return delayed.result()


def exit_code(task: Told) -> object:
    with pytest.raises(SystemExit) as left:
        run_job(task)
    return left.value.code


def test_a_task_that_nobody_disturbs_gives_its_result_and_puts_the_handlers_back(local):
    before = signal.getsignal(signal.SIGTERM)
    assert told()() == "result"
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_warned_local_job_is_started_again_and_goes_on(local, tmp_path):
    assert exit_code(told(signal.SIGUSR2)) == LOCAL_REQUEUE_RETURN_CODE
    again = DelayedSubmission.load(tmp_path / "77_submitted.pkl").function
    assert isinstance(again, Told)
    assert again.args.no_resume is False


def test_a_local_job_that_somebody_ends_is_not_started_again(local):
    assert exit_code(told(signal.SIGTERM)) == 0


@pytest.mark.parametrize("ends", [RuntimeError("SystemExit was swallowed"), "a result of half of the work"])
def test_a_request_to_stop_that_got_lost_on_the_way_still_counts(ends, local):
    """torch makes an ordinary error of it in the middle of writing a checkpoint; others catch KeyboardInterrupt."""
    assert exit_code(told(signal.SIGUSR2, ends)) == LOCAL_REQUEUE_RETURN_CODE


def test_an_error_of_its_own_ends_the_job(local):
    with pytest.raises(RuntimeError, match="out of memory"):
        run_job(told(ends=RuntimeError("out of memory")))


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_running_slurm_job_goes_back_into_the_queue(number, slurm):
    exit_code(told(number))
    assert requeues(slurm) == 1


@pytest.mark.parametrize(("state", "restarts"), [("COMPLETING", "0"), ("COMPLETING", "1"), ("RUNNING", "1")])
def test_a_job_that_slurm_has_cancelled_or_started_anew_is_left_alone(state, restarts, slurm, monkeypatch):
    """SLURM obeys a request to requeue a cancelled job, and one whose later start is running."""
    monkeypatch.setenv("FAKE_STATE", state)
    monkeypatch.setenv("FAKE_RESTARTS", restarts)
    assert exit_code(told(signal.SIGTERM)) == 0
    assert requeues(slurm) == 0


def test_a_later_start_of_a_job_goes_back_into_the_queue_too(slurm, monkeypatch):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    monkeypatch.setenv("FAKE_RESTARTS", "2")
    exit_code(told(signal.SIGUSR2))
    assert requeues(slurm) == 1


def test_all_but_the_first_process_only_leave(slurm, monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert exit_code(told(signal.SIGUSR2)) == 0
    assert requeues(slurm) == 0


def test_a_site_that_does_not_requeue_is_told_of(slurm, monkeypatch):
    monkeypatch.setenv("FAKE_REFUSES", "yes")
    with pytest.raises(UserError, match="submit it again with the same output folder"):
        run_job(told(signal.SIGUSR2))


def test_an_interrupt_stops_the_job_for_good(slurm):
    with pytest.raises(KeyboardInterrupt):
        run_job(told(ends=StopRequested(signal.SIGINT)))
    assert requeues(slurm) == 0


def test_a_start_that_was_taken_over_leaves_without_a_result(slurm):
    assert exit_code(told(ends=SupersededError("taken over"))) == 0
    assert requeues(slurm) == 0


def test_the_error_of_an_earlier_start_is_not_taken_for_the_end_of_this_one(slurm, tmp_path):
    (tmp_path / "77_0_result.pkl").write_bytes(b"an error")
    assert run_job(told()) == "result"
    assert not (tmp_path / "77_0_result.pkl").exists()


def test_processes_of_a_local_job_meet_at_another_port_in_every_start(local, monkeypatch):
    monkeypatch.setenv("SUBMITIT_LOCAL_NTASKS", "2")
    monkeypatch.setenv("SUBMITIT_LOCAL_GLOBALID", "1")
    task, ports = told(), set()
    for _ in range(4):
        task._setup_args()
        assert (os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["MASTER_ADDR"]) == ("1", "2", "127.0.0.1")
        ports.add(os.environ["MASTER_PORT"])
        task = task.checkpoint().function
    assert len(ports) == 4
    assert task.args.output_dir == "run/77"


def test_the_processes_of_a_slurm_job_are_left_to_the_training(slurm, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    told()()
    assert "RANK" not in os.environ
