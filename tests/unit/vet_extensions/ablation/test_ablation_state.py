"""The state of a cell: who may take it, who may write it, and what is made of an owner that is gone."""

import os
import subprocess
import sys

import pytest
from plan_factory import make_ablation, take_cell, try_to_take

from vet_extensions.ablation import state as state_module
from vet_extensions.ablation.cells import DONE, FAILED, RUNNING, WAITING, cell_folder, read_cells, read_json
from vet_extensions.ablation.liveness import Queue, QueuedJob, owner_process
from vet_extensions.ablation.state import release, settle, steps_done, tail
from vet_extensions.ablation.status import in_words, look

NO_JOBS = Queue({})


def queue_of(**states: str) -> Queue:
    jobs = {name.removeprefix("job_"): state for name, state in states.items()}
    return Queue({job: QueuedJob(job, "name", state) for job, state in jobs.items()})


@pytest.fixture
def cell(tmp_path):
    return make_ablation(tmp_path)[0]


@pytest.fixture
def dead_process():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = owner_process(process.pid)
    process.communicate(b"\n")
    return owner


def state_of(tmp_path, cell):
    return read_json(cell_folder(tmp_path, cell) / "state.json")


def test_a_cell_that_finishes_is_done_and_never_taken_again(tmp_path, cell):
    attempt = take_cell(tmp_path, cell, {"job": "1"})
    assert attempt.finish(processes=2, device="cpu")
    assert state_of(tmp_path, cell)["state"] == DONE
    assert try_to_take(tmp_path, cell, {"job": "2"}) is None


def test_a_cell_at_work_is_left_alone(tmp_path, cell):
    take_cell(tmp_path, cell, owner_process(os.getppid()))
    assert try_to_take(tmp_path, cell, owner_process(os.getpid())) is None


def test_a_requeued_job_takes_its_cell_back(tmp_path, cell, monkeypatch):
    monkeypatch.setattr(Queue, "ask", lambda: queue_of(job_1="RUNNING"))
    take_cell(tmp_path, cell, {"job": "1"})
    assert try_to_take(tmp_path, cell, {"job": "1"}) is not None


def test_an_attempt_that_was_superseded_writes_nothing(tmp_path, cell):
    old = take_cell(tmp_path, cell, {"job": "1"})
    take_cell(tmp_path, cell, {"job": "1"})
    assert not old.is_current()
    assert not old.fail("the node was lost")
    assert not old.finish(processes=1, device="cpu")
    assert state_of(tmp_path, cell)["state"] == RUNNING


def test_of_several_processes_the_first_failure_is_heard(tmp_path, cell):
    attempt = take_cell(tmp_path, cell, {"job": "1"})
    assert attempt.fail("out of memory")
    assert not attempt.fail("connection closed by peer")
    assert state_of(tmp_path, cell)["why"] == "out of memory"


def test_a_stopped_cell_waits_for_another_time(tmp_path, cell):
    take_cell(tmp_path, cell, {"job": "1"}).stop()
    assert state_of(tmp_path, cell)["state"] == WAITING


def test_a_process_that_is_gone_has_failed_with_the_end_of_its_log(tmp_path, cell, dead_process):
    take_cell(tmp_path, cell, dead_process)
    (cell_folder(tmp_path, cell) / "log.txt").write_text("first\n\nKilled\n")
    stored = settle(cell_folder(tmp_path, cell), NO_JOBS)
    assert stored["state"] == FAILED
    assert stored["why"].endswith("first\nKilled")


def test_a_job_that_is_gone_has_failed(tmp_path, cell, monkeypatch):
    monkeypatch.setattr(state_module, "how_it_ended", lambda job: "OUT_OF_MEMORY")
    take_cell(tmp_path, cell, {"job": "1_0"})
    assert "job 1_0 ended without a word: OUT_OF_MEMORY" in settle(cell_folder(tmp_path, cell), NO_JOBS)["why"]


def test_while_slurm_does_not_answer_no_job_is_taken_for_gone(tmp_path, cell):
    take_cell(tmp_path, cell, {"job": "1_0"})
    assert settle(cell_folder(tmp_path, cell), Queue({}, is_known=False))["state"] == RUNNING


def test_a_process_of_another_machine_is_not_judged_by_its_number(tmp_path, cell, dead_process):
    take_cell(tmp_path, cell, {**dead_process, "host": "elsewhere"})
    assert settle(cell_folder(tmp_path, cell), NO_JOBS)["state"] == RUNNING


def test_the_time_of_an_attempt_that_was_cut_off_counts_in_the_cost(tmp_path, cell, monkeypatch):
    take_cell(tmp_path, cell, {"job": "1"})
    metrics = cell_folder(tmp_path, cell) / "run" / "training_metrics.json"
    metrics.parent.mkdir()
    metrics.write_text('{"iteration": 4, "loss": 1}\n')
    began = state_of(tmp_path, cell)["since"]
    os.utime(metrics, (began + 100, began + 100))
    again = take_cell(tmp_path, cell, {"job": "1"})
    assert again.spent == pytest.approx(100)


def test_a_failed_cell_is_released_and_a_done_one_is_not(tmp_path, cell):
    attempt = take_cell(tmp_path, cell, {"job": "1"})
    attempt.fail("why")
    release(cell_folder(tmp_path, cell))
    assert state_of(tmp_path, cell)["state"] == WAITING
    take_cell(tmp_path, cell, {"job": "2"}).finish(processes=1, device="cpu")
    release(cell_folder(tmp_path, cell))
    assert state_of(tmp_path, cell)["state"] == DONE


def test_steps_are_counted_beyond_a_line_that_is_being_written(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "training_metrics.json").write_text('{"iteration": 6}\n{"iterat')
    assert steps_done(tmp_path) == 7


def test_the_end_of_a_long_log_is_its_last_lines(tmp_path):
    (tmp_path / "log").write_text("\n".join(map(str, range(100_000))))
    assert tail(tmp_path / "log", 2) == "99998\n99999"


def test_the_status_tells_waiting_running_and_failed_cells_apart(tmp_path):
    waiting, running, failed = make_ablation(tmp_path)
    take_cell(tmp_path, running, {"job": "7_1"})
    take_cell(tmp_path, failed, {"job": "7_2"}).fail("the loss is not finite")
    lines = "\n".join(in_words(look(tmp_path, queue=queue_of(job_7_1="RUNNING"))))
    assert [status.state for status in look(tmp_path, queue=queue_of(job_7_1="RUNNING"))] == [WAITING, RUNNING, FAILED]
    assert "job 7_1, since" in lines
    assert "| the loss is not finite" in lines
    assert waiting.title in lines


def test_a_job_that_was_put_back_into_the_queue_waits(tmp_path, cell):
    take_cell(tmp_path, cell, {"job": "7_0"})
    status = look(tmp_path, queue=queue_of(job_7_0="PENDING"))[0]
    assert (status.state, status.queued) == (WAITING, True)


def test_a_failed_cell_has_no_results(tmp_path, cell):
    take_cell(tmp_path, cell, {"job": "1"}).fail("why")
    read = read_cells(tmp_path)[0]
    assert (read.state, read.results, read.why) == (FAILED, [], "why")
