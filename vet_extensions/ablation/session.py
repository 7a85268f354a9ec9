"""One call of `vetdino ablate`: read the plan, see what is there, start what is missing, wait, write the table.

The verb is `vet_extensions.commands.ablate`; nothing here prints.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dinov2.run.options import resolved_options
from dinov2.run.submit import number_of_processes
from vet_extensions.ablation.cells import DONE, cell_folder
from vet_extensions.ablation.estimate import plan_in_words, to_run
from vet_extensions.ablation.finish import write_table
from vet_extensions.ablation.liveness import Queue
from vet_extensions.ablation.local import run_local
from vet_extensions.ablation.plan import Plan, read_plan
from vet_extensions.ablation.prepare import Prepared, check_folder, prepare, write_folder
from vet_extensions.ablation.run import cell_task
from vet_extensions.ablation.state import release
from vet_extensions.ablation.status import CellStatus, is_at_work, look, steps_of
from vet_extensions.ablation.submissions import complete_records, describe_cells, submit_cells
from vet_extensions.errors import UserError

WAIT_POLL_S = 5
OnProgress = Callable[[int, int], None]


@dataclass
class Session:
    """A plan with its cells in a folder. args: options of the submission; jobs: cells at a time; retry: failed ones, too."""

    plan_file: Path
    plan: Plan
    cells: Sequence[Prepared]
    folder: Path
    data: Path
    args: argparse.Namespace
    jobs: int | None
    retry: bool

    @classmethod
    def open(
        cls,
        plan_file: Path,
        *,
        data: Path,
        folder: Path,
        values: Mapping[str, str],
        args: argparse.Namespace,
        jobs: int | None = None,
        retry: bool = False,
    ) -> "Session":
        """Read and check everything; nothing is written or started. values: of the plan's placeholders."""
        plan, folder, data = read_plan(plan_file), folder.absolute(), data.absolute()
        check_folder(folder, plan)
        args.cluster = resolved_options(args).cluster
        cells = prepare(plan, data=data, processes=number_of_processes(args), values=values)
        return cls(plan_file, plan, cells, folder, data, args, jobs, retry)

    def statuses(self, queue: Queue | None = None) -> list[CellStatus]:
        """How far the cells are."""
        return look(self.folder, cells=[one.cell for one in self.cells], queue=queue)

    def plan_in_words(self) -> Iterator[str]:
        """What there is to do, before it is done."""
        return plan_in_words(self.plan, self.cells, self.statuses(), folder=self.folder, retry=self.retry)

    def missing(self, queue: Queue | None = None) -> list[Prepared]:
        """The cells that a start would begin or go on with."""
        names = {status.cell.name for status in to_run(self.statuses(queue), retry=self.retry)}
        return [one for one in self.cells if one.cell.name in names]

    def script(self) -> str:
        """What would be submitted."""
        cells = self.missing()
        if not cells:
            return "Nothing would be submitted."
        return describe_cells(self.folder, cells, name=self.plan.name, data=self.data, args=self.args, jobs=self.jobs)

    def submit(self) -> str | None:
        """Submit what is missing to SLURM; returns the array's number, None where nothing was missing.

        Raises `UserError` where SLURM does not tell its queue: cells might be there that would be submitted twice.
        """
        queue = Queue.ask()
        if not queue.is_known:
            raise UserError(
                "SLURM does not tell its queue (squeue fails), so that cells might be submitted twice. Try again, or "
                "run them on this machine with --cluster local."
            )
        cells = self._begin(queue)
        complete_records(self.folder, queue, self.args)
        if not cells:
            return None
        return submit_cells(self.folder, cells, name=self.plan.name, data=self.data, args=self.args, jobs=self.jobs)

    def run_here(self, *, on_progress: OnProgress) -> None:
        """Run what is missing on this machine, until nobody works on a cell any more."""
        cells = self._begin()
        if self.args.cluster != "debug":
            run_local(self.folder, cells, data=self.data, jobs=self.jobs, on_progress=on_progress)
            return
        for one in cells:
            cell_task(self.folder, one.cell.name, data=self.data, options=one.options).run_here()

    def wait(self, *, on_progress: OnProgress) -> None:
        """Wait until nobody works on a cell any more."""
        while any(map(is_at_work, statuses := self.statuses())):
            on_progress(*steps_of(statuses))
            time.sleep(WAIT_POLL_S)

    def is_at_work(self) -> bool:
        """Whether cells run or wait in the queue."""
        return any(map(is_at_work, self.statuses()))

    def finish(self) -> tuple[Path, bool]:
        """Write the table; returns its page, and whether every cell is done."""
        statuses = self.statuses()
        return write_table(self.folder), all(status.state == DONE for status in statuses)

    def _begin(self, queue: Queue | None = None) -> list[Prepared]:
        write_folder(self.folder, self.plan_file, self.cells)
        cells = self.missing(queue)
        for one in cells:
            release(cell_folder(self.folder, one.cell))
        return cells
