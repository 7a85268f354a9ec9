"""One cell from its start to its end: train in all processes, evaluate in the main one.

`CellTask` is what a job does; `python -m vet_extensions.ablation.run FOLDER CELL ...` is the same without SLURM, started by
`vetdino ablate`. Whoever restarts a cell, it goes on from its newest checkpoint.
"""

import argparse
import logging
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dinov2 import distributed
from dinov2.run.train.train import Trainer
from dinov2.utils.device import cpu_threads, resolve_device
from dinov2.utils.stop import StopRequested, SupersededError
from vet_extensions.ablation.cells import (
    CELL_FILE,
    CELLS_FOLDER,
    CONFIG_FILE,
    DONE,
    EVALUATION_FOLDER,
    STATE_FILE,
    SUITE_FILE,
    read_json,
    write_json,
)
from vet_extensions.ablation.identity import code_hash
from vet_extensions.ablation.liveness import owner_process
from vet_extensions.ablation.state import TAIL_LINES, Attempt, take
from vet_extensions.errors import UserError
from vet_extensions.evaluation.results import RESULTS_FILE

logger = logging.getLogger("vet_extensions")

LOG_FILE = "log.txt"
ADOPTED_FILE = "run/adopted.json"
"""Says from which cell a training was taken over, and what that one cost in device-seconds."""
STOPPED = 130


def cell_task(folder: Path, name: str, *, data: Path, options: Sequence[str]) -> "CellTask":
    """The work of one cell. name: of its folder; data: the intake folder; options: `key=value`, laid over its configuration."""
    place = folder / CELLS_FOLDER / name
    args = argparse.Namespace(
        folder=str(folder),
        data=str(data),
        config_file=str(place / CONFIG_FILE),
        output_dir=str(place / "run"),
        opts=list(options),
        no_resume=False,
        eval_only=False,
        owner={},
        log=f"{CELLS_FOLDER}/{name}/{LOG_FILE}",
    )
    return CellTask(args)


class CellTask(Trainer):
    """A cell in a job; made by `cell_task`."""

    _attempt: Attempt | None = None

    def __call__(self) -> None:
        """Run in this process of the job."""
        import submitit

        job = submitit.JobEnvironment()
        self.args.owner = {"job": job.job_id}
        self.args.log = os.path.relpath(job.paths.stderr, self.args.folder)
        self._noting_failure(super().__call__)

    def run_here(self) -> None:
        """Run in this process, outside of jobs; a request to stop leaves the cell for another time."""
        self.args.owner = owner_process(os.getpid())
        try:
            self._noting_failure(lambda: self._main(self.args))
        except KeyboardInterrupt:
            if self._attempt is not None:
                self._attempt.stop()
            raise

    def _noting_failure(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:
            if self._attempt is not None:
                self._attempt.fail(_in_words(error))
            raise

    def _main(self, args: argparse.Namespace) -> None:
        place = Path(args.config_file).parent
        with distributed.session():
            taken: list[Attempt | None] = []
            distributed.on_main(lambda: taken.append(take(place, owner=args.owner, log=args.log)))
            self._attempt = distributed.broadcast_object(taken[0] if taken else None)
            if self._attempt is None:
                return
            processes, is_main = distributed.get_global_size(), distributed.is_main_process()
            _check(read_json(place / CELL_FILE), processes)
            distributed.on_main(lambda: adopt_training(place))
            if not distributed.broadcast_object((place / ADOPTED_FILE).is_file()):
                super()._main(args)
        if is_main:
            if not self._attempt.is_current():
                raise SupersededError(f"a later start has taken over the cell {place.name}")
            device = _evaluate(place, Path(args.data))
            earlier = read_json(place / ADOPTED_FILE).get("cost", 0.0)
            if self._attempt.finish(processes=processes, device=device, earlier=earlier):
                # What a cell that is never run again does not need: the full state of its training, embeddings.
                shutil.rmtree(place / "run" / "checkpoints", ignore_errors=True)
                shutil.rmtree(place / EVALUATION_FOLDER / "features", ignore_errors=True)


def adopt_training(place: Path) -> None:
    """Take over the trained network of a done cell that differs in nothing but how it is judged, if there is one.

    A plan that gets another metric thus costs its evaluations alone.
    """
    training = read_json(place / CELL_FILE).get("training")
    if (place / "run").exists() or training is None:
        return
    for other in sorted(place.parent.iterdir()):
        state = read_json(other / STATE_FILE)
        if state.get("state") == DONE and read_json(other / CELL_FILE).get("training") == training:
            partial = place / ".run.partial"
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(other / "run", partial, ignore=shutil.ignore_patterns("checkpoints"))
            write_json(partial / Path(ADOPTED_FILE).name, {"from": other.name, "cost": state["cost"]})
            partial.rename(place / "run")
            logger.info("the training of cell %s is the same and was taken over", other.name)
            return


def _check(facts: dict[str, Any], processes: int) -> None:
    """Raise `UserError` where this start would not be the experiment that the cell's hash stands for."""
    if processes != facts["processes"]:
        raise UserError(
            f"This cell trains in {facts['processes']} process(es), which decides its numbers; {processes} were started. Submit "
            "again with the same number of nodes and processes, or call vetdino ablate anew for other cells."
        )
    if code_hash(facts["plugins"]) != facts["code"]:
        raise UserError(
            "The code of training or evaluation was changed after this cell was planned. Call vetdino ablate again, which plans "
            "cells of the new code, or put the code back and retry."
        )


def _evaluate(place: Path, data: Path) -> str:
    """Judge the cell's newest teacher; returns the kind of device."""
    from vet_extensions.evaluation.suite import run_suite

    config: Any = OmegaConf.load(place / CONFIG_FILE)
    device = resolve_device(config.train.device)
    out = place / EVALUATION_FOLDER
    (out / RESULTS_FILE).unlink(missing_ok=True)  # of an attempt that was cut off
    with cpu_threads(config.train.cpu_threads):
        run_suite([place / "run"], data, place / SUITE_FILE, out, device=device)
    return device.type


def _in_words(error: Exception) -> str:
    """A user's mistake in its own words, another error with the end of its traceback."""
    if isinstance(error, UserError):
        return str(error)
    return "\n".join("".join(traceback.format_exception(error)).splitlines()[-TAIL_LINES:])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one cell on this machine; the exit status: 0 done, 2 a user's mistake, 130 asked to stop."""
    parser = argparse.ArgumentParser("vet_extensions.ablation.run", description="Run one cell of an ablation")
    parser.add_argument("folder", type=Path, help="the ablation's folder")
    parser.add_argument("cell", help="name of the cell's folder")
    parser.add_argument("--data", type=Path, required=True, help="intake folder")
    parser.add_argument("--options", nargs="*", default=[], help="key=value pairs, laid over the cell's configuration")
    given = parser.parse_args(arguments)

    def leave(number: int, _frame: Any) -> None:
        raise StopRequested(number)

    signal.signal(signal.SIGTERM, leave)
    try:
        cell_task(given.folder, given.cell, data=given.data, options=given.options).run_here()
    except UserError as error:
        logger.error("%s", error)
        return 2
    except KeyboardInterrupt:
        return STOPPED
    return 0


if __name__ == "__main__":
    # Through the package, so that the classes are those that others know.
    from vet_extensions.ablation.run import main as main_of_package

    sys.exit(main_of_package())
