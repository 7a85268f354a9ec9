"""Cells as jobs of SLURM: one array with a limit of how many run at a time, and a job after it that writes the table.

What was submitted is written down before and after, under a name that no other submission has: whoever is killed in between,
the next call finds the jobs in the queue. Called by `vetdino ablate`.
"""

import argparse
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dinov2.run.submit import describe_submission, submit_tasks
from dinov2.run.task import SubmittedTask
from vet_extensions.ablation.cells import HASH_DIGITS, read_json, write_json
from vet_extensions.ablation.liveness import Queue
from vet_extensions.ablation.prepare import Prepared
from vet_extensions.ablation.run import cell_task

JOBS_FOLDER, RECORDS_FOLDER = "jobs", "submissions"
TABLE_MINUTES = 60
SETTLE_S, POLL_S = 60, 2
"""How long the table's job waits for SLURM to forget jobs that have just ended."""


class TableTask(SubmittedTask):
    """Write the table of an ablation. args: folder."""

    def _main(self, args: argparse.Namespace) -> None:
        from vet_extensions.ablation.finish import write_table
        from vet_extensions.ablation.status import is_at_work, look

        folder, deadline = Path(args.folder), time.monotonic() + SETTLE_S
        while any(map(is_at_work, look(folder))) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        write_table(folder)


def submit_cells(
    folder: Path, cells: Sequence[Prepared], *, name: str, data: Path, args: argparse.Namespace, jobs: int | None
) -> str:
    """Submit cells and the table's job; returns the number of the array. jobs: how many cells may run at a time."""
    token = uuid.uuid4().hex[:8]
    path = folder / RECORDS_FOLDER / f"{token}.json"
    record: dict[str, Any] = {"name": f"ablate-{name}-{token}", "cells": [one.cell.name for one in cells]}
    record |= {"at": time.time(), "job": None, "table": None}
    write_json(path, record)
    tasks = _tasks(folder, cells, data)
    submitted = submit_tasks(tasks, args, name=record["name"], folder=folder / JOBS_FOLDER, parallelism=jobs)
    record["job"] = submitted[0].job_id.partition("_")[0]
    write_json(path, record)
    _submit_table(folder, path, record, args)
    return record["job"]


def describe_cells(
    folder: Path, cells: Sequence[Prepared], *, name: str, data: Path, args: argparse.Namespace, jobs: int | None
) -> str:
    """The script that `submit_cells` would submit."""
    tasks = _tasks(folder, cells, data)
    return describe_submission(tasks, args, name=f"ablate-{name}", folder=folder / JOBS_FOLDER, parallelism=jobs)


def complete_records(folder: Path, queue: Queue, args: argparse.Namespace) -> None:
    """Finish what a submitting process that was killed has left: a table's job for every array that is still there."""
    jobs_of_cells(folder, queue)
    for path, record in _records(folder):
        alive = any(job.partition("_")[0] == record["job"] for job in queue.jobs)
        if alive and record["table"] is None:
            _submit_table(folder, path, record, args)


def jobs_of_cells(folder: Path, queue: Queue) -> dict[str, tuple[str, float]]:
    """Name of a cell -> (the last job that it was submitted as, when); jobs that were never written down are looked for."""
    found: dict[str, tuple[str, float]] = {}
    for path, record in _records(folder):
        if record["job"] is None:
            ids = [job.id for job in queue.jobs.values() if job.name == record["name"]]
            if not ids:
                continue
            record["job"] = ids[0].partition("_")[0]
            write_json(path, record)
        is_array = len(record["cells"]) > 1
        for number, name in enumerate(record["cells"]):
            found[name] = (f"{record['job']}_{number}" if is_array else record["job"], record["at"])
    return found


def log_of_job(job: str) -> str:
    """Where submitit keeps the errors of a job's first process, relative to the ablation's folder."""
    return f"{JOBS_FOLDER}/{job}_0_log.err"


def _records(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    records = [(path, read_json(path)) for path in (folder / RECORDS_FOLDER).glob("*.json")]
    return sorted(records, key=lambda entry: entry[1]["at"])


def _tasks(folder: Path, cells: Sequence[Prepared], data: Path) -> list[SubmittedTask]:
    return [cell_task(folder, one.cell.hash[:HASH_DIGITS], data=data, options=one.options) for one in cells]


def _submit_table(folder: Path, path: Path, record: dict[str, Any], args: argparse.Namespace) -> None:
    """It needs no GPU and little time, whatever the cells take."""
    small = {"nodes": 1, "ngpus": 0, "tasks_per_node": 1, "cpus_per_task": 1, "timeout": TABLE_MINUTES}
    options = argparse.Namespace(**{**vars(args), **small, "given": {*getattr(args, "given", ()), *small}})
    task = TableTask(argparse.Namespace(folder=str(folder), output_dir=str(folder)))
    name = f"{record['name']}-table"
    (job,) = submit_tasks([task], options, name=name, folder=folder / JOBS_FOLDER, after=record["job"])
    write_json(path, {**record, "table": job.job_id})
