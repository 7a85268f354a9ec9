"""Cells as jobs: what is submitted, and what the next call finds where the submitting process was killed."""

import argparse
from types import SimpleNamespace

import pytest
from plan_factory import make_ablation, prepared, take_cell

from vet_extensions.ablation import status, submissions
from vet_extensions.ablation.cells import DONE, FAILED, WAITING
from vet_extensions.ablation.liveness import Queue, QueuedJob
from vet_extensions.ablation.status import is_at_work, look
from vet_extensions.ablation.submissions import complete_records, submit_cells


class Slurm:
    """A stand-in for submissions: keeps what was submitted; dies at the submission with a given number."""

    def __init__(self, dies_after=99):
        self.calls, self.dies_after = [], dies_after

    def submit_tasks(self, tasks, args, **facts):
        self.calls.append({**facts, "tasks": list(tasks), "args": args})
        first = 10 * len(self.calls)
        if len(self.calls) >= self.dies_after:
            raise KeyboardInterrupt
        return [SimpleNamespace(job_id=f"{first}_{n}" if len(tasks) > 1 else str(first)) for n in range(len(tasks))]

    def queue(self, state="PENDING"):
        jobs = [
            QueuedJob(f"{10 * place}_{n}" if len(call["tasks"]) > 1 else str(10 * place), call["name"], state)
            for place, call in enumerate(self.calls, 1)
            for n in range(len(call["tasks"]))
        ]
        return Queue({job.id: job for job in jobs})


@pytest.fixture
def submit(tmp_path, monkeypatch):
    def submit_all(slurm, n=3):
        monkeypatch.setattr(submissions, "submit_tasks", slurm.submit_tasks)
        cells = [prepared(cell, "a=1") for cell in make_ablation(tmp_path, seeds=n)]
        args = argparse.Namespace(ngpus=8, nodes=2, given={"ngpus"})
        return submit_cells(tmp_path, cells, name="small", data=tmp_path, args=args, jobs=2)

    monkeypatch.setattr(status, "how_it_ended", lambda job: "CANCELLED")
    return submit_all


def test_cells_are_one_array_with_a_limit_and_a_table_after_it(submit):
    slurm = Slurm()
    assert submit(slurm) == "10"
    array, table = slurm.calls
    assert (len(array["tasks"]), array["parallelism"]) == (3, 2)
    assert (len(table["tasks"]), table["after"]) == (1, "10")


def test_the_job_of_the_table_asks_for_no_gpu(submit):
    slurm = Slurm()
    submit(slurm)
    args = slurm.calls[1]["args"]
    assert (args.ngpus, args.nodes) == (0, 1)
    assert {"ngpus", "nodes"} <= args.given  # the site file does not put them back


def test_cells_in_the_queue_are_at_work(submit, tmp_path):
    slurm = Slurm()
    submit(slurm)
    assert all(map(is_at_work, look(tmp_path, queue=slurm.queue())))


def test_jobs_of_a_submitter_that_was_killed_before_it_noted_them_are_found(submit, tmp_path):
    slurm = Slurm(dies_after=1)
    with pytest.raises(KeyboardInterrupt):
        submit(slurm)
    assert all(map(is_at_work, look(tmp_path, queue=slurm.queue())))
    slurm.dies_after = 99
    complete_records(tmp_path, slurm.queue(), argparse.Namespace(given=set()))
    assert slurm.calls[1]["after"] == "10"


def test_a_killed_submission_that_never_reached_slurm_leaves_waiting_cells(submit, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        submit(Slurm(dies_after=1))
    assert [(s.state, s.queued) for s in look(tmp_path, queue=Queue({}))] == [(WAITING, False)] * 3


def test_the_job_of_the_table_is_submitted_once(submit, tmp_path):
    slurm = Slurm()
    submit(slurm)
    complete_records(tmp_path, slurm.queue(), argparse.Namespace(given=set()))
    assert len(slurm.calls) == 2


def test_a_job_that_ended_before_it_took_its_cell_has_failed(submit, tmp_path):
    submit(Slurm(), n=1)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "10_0_log.err").write_text("ModuleNotFoundError: dinov2\n")
    (found,) = look(tmp_path, queue=Queue({}))
    assert found.state == FAILED
    assert "job 10 ended before it took the cell: CANCELLED" in found.why
    assert "ModuleNotFoundError" in found.why


def test_a_done_cell_stays_done_after_its_job_is_forgotten(submit, tmp_path):
    submit(Slurm(), n=1)
    cell = look(tmp_path, queue=Queue({}, is_known=False))[0].cell
    take_cell(tmp_path, cell, {"job": "10"}).finish(processes=1, device="cpu")
    assert look(tmp_path, queue=Queue({}))[0].state == DONE
