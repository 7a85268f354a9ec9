"""The object that submitit sends to a job and calls in every process of it; `Trainer` and the `Evaluator`s are made of it.

It also decides what a signal means. submitit itself would put the job back into the queue from within its handler, in process
0 alone, while the others still compute, and it overhears SIGTERM. Here every process leaves first: at once, or as the train loop
does, after a common checkpoint. Then process 0 lets submitit put the job back.
"""

import argparse
import logging
import random
import re
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from typing import Any, NoReturn

from dinov2.utils.errors import UserError
from dinov2.utils.stop import StopRequested, SupersededError, warning_signal

logger = logging.getLogger("dinov2")

_LOCAL_PORTS = (20_000, 32_767)


class SubmittedTask(ABC):
    """A command line, and what to do with it inside a job. Subclasses say so in `_main`."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self._n_requeues = 0
        self._stopped_by = 0

    def __call__(self) -> Any:
        """Run in this process of the job; returns what the entry point gives.

        Leaves by SystemExit, without a result for submitit, where a signal stopped it and where a later start has taken over.
        """
        self._setup_args()
        warning = warning_signal()
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, warning)}
        for number in before:
            signal.signal(number, self._on_signal)
        try:
            result = self._main(self.args)
            if not self._stopped_by:
                return result
        except SupersededError as end:
            logger.warning("%s", end)
            sys.exit(0)
        except StopRequested as stop:
            self._stopped_by = stop.number
        except BaseException:
            # In the middle of writing a checkpoint, torch makes an ordinary error of the request to stop.
            if not self._stopped_by:
                raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        self._leave(before[warning])

    def _on_signal(self, number: int, _frame: Any) -> None:
        self._stopped_by = number
        raise StopRequested(number)

    def _leave(self, requeue: Any) -> NoReturn:
        """Leave the job, and put it back into the queue where that is what the signal meant.

        requeue: submitit's handler, which does so in process 0, keeping count of time limits; no handler in this very process
        under `--cluster debug`.
        """
        if not callable(requeue) or self._stopped_by == signal.SIGINT:
            raise StopRequested(self._stopped_by)
        for number in (signal.SIGTERM, warning_signal()):  # SLURM sends them again while the job ends
            signal.signal(number, signal.SIG_IGN)
        try:
            if self._may_requeue():
                requeue(self._stopped_by, None)
        except (OSError, subprocess.SubprocessError) as error:
            raise UserError(
                f"SLURM does not put this job back into the queue ({error}). Nothing is lost: submit it again with the same "
                "output folder. Where requeueing is switched off, --slurm requeue allows it."
            ) from error
        sys.exit(0)

    def _may_requeue(self) -> bool:
        """Whether the job still runs, and as this start of it.

        SLURM would also start a cancelled job again, and one whose later start is running, if it was asked to.
        """
        import submitit

        job = submitit.JobEnvironment()
        if job.cluster != "slurm":
            return self._stopped_by != signal.SIGTERM  # somebody ended the processes on this machine
        from dinov2.distributed.launch import find_launch

        command = ["scontrol", "--oneliner", "show", "job", job.job_id]
        said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        facts = dict(re.findall(r"\b(JobState|Restarts)=(\S+)", said))
        if facts == {"JobState": "RUNNING", "Restarts": str(find_launch().restarts)}:
            return True
        logger.info("SLURM has already decided what becomes of this job (%s): leaving", facts)
        return False

    def checkpoint(self) -> Any:
        """What submitit puts back into the queue when the time limit nears or the job is preempted: the same command line.

        It goes on from the newest checkpoint, also where the first start had `--no-resume`.
        """
        import submitit.helpers

        again = {"no_resume": False} if hasattr(self.args, "no_resume") else {}
        task = type(self)(argparse.Namespace(**{**vars(self.args), **again}))
        task._n_requeues = self._n_requeues + 1
        return submitit.helpers.DelayedSubmission(task)

    @abstractmethod
    def _main(self, args: argparse.Namespace) -> Any:
        """Call the entry point; it is imported here, so that submitting needs none of it."""

    def _setup_args(self) -> None:
        """Put the job's number for `%j` in the output folder, and let the processes of this machine find each other.

        Those of a SLURM job are found by `dinov2.distributed`.
        """
        import submitit
        import submitit.helpers

        job = submitit.JobEnvironment()
        output_dir = str(self.args.output_dir).replace("%j", job.job_id)
        self.args = argparse.Namespace(**{**vars(self.args), "output_dir": output_dir})
        if job.cluster != "debug":
            # An earlier start, which lost its peers before SLURM noticed, may have left an error here.
            job.paths.result_pickle.unlink(missing_ok=True)
        if job.cluster == "local" and job.num_tasks > 1:
            place = submitit.helpers.TorchDistributedEnvironment()
            place.master_addr = "127.0.0.1"  # the machine's own name need not resolve, in a container for example
            place.master_port = random.Random(f"{job.job_id}.{self._n_requeues}").randint(*_LOCAL_PORTS)
            # Which device is whose is decided in dinov2.distributed, from the local rank.
            place.export(set_cuda_visible_devices=False, overwrite=True)
