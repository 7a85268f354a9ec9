"""How far every cell of an ablation is, from its files and from the queue; in words for the command line.

Looking settles: a cell whose process or job is gone without a word is failed from then on, with the end of its log.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vet_extensions.ablation.cells import (
    DONE,
    FAILED,
    RUNNING,
    STATES,
    WAITING,
    Cell,
    cell_folder,
    read_index,
)
from vet_extensions.ablation.liveness import Queue, how_it_ended
from vet_extensions.ablation.state import fail_unstarted, owner_in_words, settle, steps_done, tail
from vet_extensions.ablation.submissions import jobs_of_cells, log_of_job


@dataclass(frozen=True)
class CellStatus:
    """One cell at this moment.

    steps: of optimisation, so far. note: who works on it, since when. why: the end of the log of a failed one. queued:
    it waits in SLURM's queue. cost: device-seconds so far, None before it was ever started.
    """

    cell: Cell
    state: str
    steps: int
    note: str = ""
    why: str = ""
    queued: bool = False
    cost: float | None = None
    device: str = ""


def is_at_work(status: CellStatus) -> bool:
    """Whether somebody works on the cell, or will without being asked again."""
    return status.state == RUNNING or status.queued


def steps_of(statuses: Sequence[CellStatus]) -> tuple[int, int]:
    """(optimisation steps done, in all) of these cells."""
    done = sum(status.cell.steps if status.state == DONE else status.steps for status in statuses)
    return done, sum(status.cell.steps for status in statuses)


def look(folder: Path, *, cells: Sequence[Cell] | None = None, queue: Queue | None = None) -> list[CellStatus]:
    """The state of cells in their order. cells: those of the plan in `folder`; queue: SLURM's, asked for where not given."""
    queue = Queue.ask() if queue is None else queue
    jobs = jobs_of_cells(folder, queue)
    cells = read_index(folder) if cells is None else cells
    return [_look(folder, cell, queue, *jobs.get(cell.name, ("", 0.0))) for cell in cells]


def _look(folder: Path, cell: Cell, queue: Queue, job: str, submitted: float) -> CellStatus:
    place = cell_folder(folder, cell)
    stored = settle(place, queue)
    state, owner = stored.get("state", WAITING), stored.get("owner", {})
    note, queued = "", False
    if state == RUNNING and queue.is_pending(owner.get("job", "")):
        state, queued, note = WAITING, True, f"job {owner['job']} was put back into the queue"
    elif state == RUNNING:
        note = f"{owner_in_words(owner)}, since {time.strftime('%d %b %H:%M', time.localtime(stored['since']))}"
    elif job in queue.jobs and (state == WAITING or queue.is_pending(job)):
        state, queued, note = WAITING, True, f"job {job} is in the queue"
    elif state == WAITING and job and queue.is_known and stored.get("since", 0.0) < submitted:
        ending = how_it_ended(job)
        why = f"job {job} ended before it took the cell{f': {ending}' if ending else ''}. The end of its log:\n"
        stored = fail_unstarted(place, why + tail(folder / log_of_job(job)))
        state = stored["state"]
    return CellStatus(
        cell=cell,
        state=state,
        steps=steps_done(place) if state == RUNNING else stored.get("steps", 0),
        note=note,
        why=stored.get("why", "") if state == FAILED else "",
        queued=queued,
        cost=_cost(stored, cell),
        device=stored.get("device", ""),
    )


def _cost(stored: dict[str, Any], cell: Cell) -> float | None:
    if not stored or "cost" in stored:
        return stored.get("cost")
    running = time.time() - stored["since"] if stored["state"] == RUNNING else 0.0
    return (stored.get("spent", 0.0) + running) * cell.processes


def in_words(statuses: Sequence[CellStatus]) -> Iterator[str]:
    """One line a cell, the log's end below a failed one, and the counts."""
    for status in statuses:
        facts = [status.note] if status.note else []
        if status.state != DONE and status.steps:
            facts.append(f"step {status.steps:,} of {status.cell.steps:,}")
        if status.state == DONE and status.cost is not None:
            facts.append(f"{status.cost / 3600:.3f} {status.device.upper()}-hours")
        yield f"{status.state:<8} {status.cell.title}  [{status.cell.name}]{'  ' if facts else ''}{', '.join(facts)}"
        yield from (f"         | {line}" for line in status.why.splitlines())
    counts = {state: sum(status.state == state for status in statuses) for state in STATES}
    yield ", ".join(f"{count} {state}" for state, count in counts.items() if count) + "."
