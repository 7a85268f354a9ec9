"""Cells on this machine: how many at a time, what is attached to, what becomes of those that fail. No cell trains here."""

import json
import subprocess
import sys
import threading
import time

import pytest
from plan_factory import make_ablation, prepared, take_cell

from vet_extensions.ablation import local
from vet_extensions.ablation.cells import DONE, FAILED, WAITING, Cell, cell_folder
from vet_extensions.ablation.liveness import Queue, owner_process
from vet_extensions.ablation.status import look

TAKES = """
import json, os, pathlib, socket, sys, time
place = pathlib.Path(sys.argv[1])
began = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
owner = {"pid": os.getpid(), "host": socket.gethostname(), "began": began}
state = {"token": "t", "owner": owner, "since": time.time(), "spent": 0, "log": "cells/%s/log.txt" % place.name}

def say(**changes):
    partial = place / "partial"
    partial.write_text(json.dumps({**state, **changes}))
    partial.replace(place / "state.json")

def event(word):
    with open(place.parent / "events", "a") as events:
        events.write(word + "\\n")

say(state="running")
event("begin")
deadline = time.monotonic() + 20
while (place.parent / "events").read_text().count("begin") < int(sys.argv[2]) and time.monotonic() < deadline:
    time.sleep(0.02)
"""
"""The start of a cell without its training: it waits until a number of cells have begun."""
FINISHES = TAKES + "event('end'); say(state='done', steps=10)"
WAITS = TAKES.replace("int(sys.argv[2])", "0") + "input(); event('end'); say(state='done', steps=10)"
IS_KILLED = TAKES + "print('about to be killed', flush=True); os.kill(os.getpid(), 9)"
CANNOT_BEGIN = "raise SystemExit('no such module')"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the cells of an ablation, each as the program that stands for it; returns what is known of all."""

    def run_programs(programs, *, jobs=1, cells=None, together=1):
        cells = cells or make_ablation(tmp_path, seeds=len(programs))
        program = dict(zip([cell.name for cell in cells], programs, strict=True))
        monkeypatch.setattr(local, "POLL_S", 0.05)

        def command(folder, one, data):
            return [sys.executable, "-c", program[one.cell.name], str(cell_folder(folder, one.cell)), str(together)]

        monkeypatch.setattr(local, "command", command)
        seen = []
        local.run_local(
            tmp_path, list(map(prepared, cells)), data=tmp_path, jobs=jobs, on_progress=lambda *now: seen.append(now)
        )
        return look(tmp_path, queue=Queue({})), seen

    return run_programs


def most_at_a_time(tmp_path):
    now = most = 0
    for event in (tmp_path / "cells" / "events").read_text().split():
        now += 1 if event == "begin" else -1
        most = max(most, now)
    return most


def test_all_cells_run_and_their_steps_add_up(run):
    statuses, seen = run([FINISHES] * 3, jobs=3)
    assert [status.state for status in statuses] == [DONE] * 3
    assert seen[-1] == (30, 30)


def test_no_more_cells_than_asked_for_run_at_a_time(run, tmp_path):
    run([FINISHES] * 4, jobs=2, together=2)
    assert most_at_a_time(tmp_path) == 2


def test_a_cell_that_fails_shows_its_log_and_stops_no_other(run):
    statuses, _ = run([IS_KILLED, FINISHES, CANNOT_BEGIN])
    assert [status.state for status in statuses] == [FAILED, DONE, FAILED]
    assert "about to be killed" in statuses[0].why
    assert "no such module" in statuses[2].why


def test_a_cell_that_somebody_else_runs_is_waited_for_and_counts(run, tmp_path):
    cells = make_ablation(tmp_path, seeds=2)
    other = subprocess.Popen([sys.executable, "-c", WAITS, str(cell_folder(tmp_path, cells[0]))], stdin=subprocess.PIPE)
    while look(tmp_path, queue=Queue({}))[0].state == WAITING:
        time.sleep(0.01)
    threading.Timer(0.5, other.communicate, [b"\n"]).start()
    statuses, _ = run([FINISHES], cells=cells[1:])
    other.wait()
    assert [status.state for status in statuses] == [DONE, DONE]
    assert most_at_a_time(tmp_path) == 1


def test_the_least_used_gpus_are_given(tmp_path):
    assert local._free(["0", "1", "2"], ["0", "0", "1"], 2) == ("2", "1")
    assert local._free([], [], 1) == ()


def test_gpus_of_a_cell_that_somebody_else_started_count_as_used(tmp_path):
    cell = make_ablation(tmp_path, seeds=1)[0]
    take_cell(tmp_path, cell, {**owner_process(1), "devices": "2,3"})
    assert list(local._devices_of(tmp_path, cell.name, {})) == ["2", "3"]


def test_a_cell_of_several_processes_is_started_by_torchrun(tmp_path):
    one = prepared(Cell("abc", arms={}, seed=0, processes=4), "a=1")
    line = local.command(tmp_path, one, tmp_path / "data")
    assert "--nproc-per-node=4" in line
    assert line[-2:] == ["--options", "a=1"]


def test_progress_reads_the_metrics_of_running_cells(run, tmp_path):
    metrics = json.dumps({"iteration": 3}) + "\n"
    writes = (
        f"(place / 'run').mkdir(); (place / 'run' / 'training_metrics.json').write_text({metrics!r}); time.sleep(0.5)\n"
    )
    reports = FINISHES.replace("event('end')", f"{writes}event('end')")
    _, seen = run([reports])
    assert (4, 10) in seen
