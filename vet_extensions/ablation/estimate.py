"""The plan in words, before anything runs: cells, what is there already, device-hours and disk. `vetdino ablate` says it.

Hours and disk are measured on cells of this very plan, done ones first, else those on their way. Before there is one they are
unknown: what a step costs depends on the machine, and nobody has asked it yet.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

from vet_extensions.ablation.cells import DONE, FAILED, STATES, cell_folder
from vet_extensions.ablation.plan import FULL, Plan
from vet_extensions.ablation.prepare import Prepared
from vet_extensions.ablation.status import CellStatus, is_at_work

_LEAST_STEPS = 10
"""Of a cell on its way, so that the start of its program does not weigh much."""
_MIB = 1024 * 1024


def plan_in_words(
    plan: Plan, cells: Sequence[Prepared], statuses: Sequence[CellStatus], *, folder: Path, retry: bool
) -> Iterator[str]:
    """Everything that a user wants to know before saying yes."""
    to_start = to_run(statuses, retry=retry)
    axes = " x ".join(f"{axis} ({', '.join(arms)})" for axis, arms in plan.axes.items())
    design = "every combination" if plan.design == FULL else "one axis at a time"
    yield f"{plan.name}: {plan.question}"
    yield f"  {len(cells)} cells: {axes}; {design}; seeds {', '.join(map(str, plan.seeds))}"
    yield f"  compared with: {', '.join(f'{axis} {arm}' for axis, arm in plan.baseline.items())}"
    budgets = {_budget(one) for one in cells}
    yield f"  each cell: {'; or '.join(sorted(budgets))}"
    counts = {state: sum(status.state == state for status in statuses) for state in STATES}
    yield f"  now: {', '.join(f'{count} {state}' for state, count in counts.items() if count)}; to start: {len(to_start)}"
    if counts[FAILED] and not retry:
        yield "  failed cells are left alone; run them again with --retry"
    yield f"  time: {_hours(statuses, to_start)}"
    yield f"  disk: {_disk(folder, statuses, to_start)}"


def to_run(statuses: Sequence[CellStatus], *, retry: bool) -> list[CellStatus]:
    """The cells that are to be started: neither done nor at work, and failed ones only where asked for."""
    return [s for s in statuses if s.state != DONE and not is_at_work(s) and (retry or s.state != FAILED)]


def _budget(one: Prepared) -> str:
    train = one.config.train
    batch = train.batch_size_per_gpu * train.gradient_accumulation_steps * one.cell.processes
    return f"{one.cell.steps:,} steps of {batch:,} samples, {one.cell.processes} process(es)"


def _hours(statuses: Sequence[CellStatus], to_start: Sequence[CellStatus]) -> str:
    known = [s for s in statuses if s.state == DONE and s.cost is not None]
    per_step = [s.cost / s.cell.steps for s in known if s.cost is not None and s.cell.steps]
    measured = f"measured on {len(known)} done cells"
    if not per_step:
        underway = [s for s in statuses if s.state != DONE and s.cost and s.steps >= _LEAST_STEPS]
        per_step = [s.cost / s.steps for s in underway if s.cost]
        measured = f"measured on {len(underway)} cells on their way"
    if not per_step:
        return "unknown until a cell of this plan has run; the same command with --plan tells it then"
    devices = {s.device for s in known if s.device} or {"device"}
    left = sum(max(0, s.cell.steps - s.steps) for s in to_start) * mean(per_step) / 3600
    return f"{left:.2f} {'/'.join(sorted(devices)).upper()}-hours for the cells to start ({measured})"


def _disk(folder: Path, statuses: Sequence[CellStatus], to_start: Sequence[CellStatus]) -> str:
    sizes = [_size(cell_folder(folder, status.cell)) for status in statuses if status.state == DONE]
    if not sizes:
        return "unknown until a cell of this plan is done; one that trains also keeps train.checkpoints_to_keep checkpoints"
    each = mean(sizes) / _MIB
    return f"{each * len(to_start):,.0f} MiB for the cells to start ({each:,.1f} MiB a done cell; checkpoints while it trains)"


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
