"""The object that submitit sends to a job and calls in every process of it; `Trainer` and the `Evaluator`s are made of it."""

import argparse
import signal
import sys
from abc import ABC, abstractmethod
from typing import Any, NoReturn

from dinov2.utils.stop import StopRequested, warning_signal


class SubmittedTask(ABC):
    """A command line, and what to do with it inside a job. Subclasses say so in `_main`."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self._stopped_by = 0

    def __call__(self) -> Any:
        """Run in this process of the job; returns what the entry point gives."""
        self._setup_args()
        requeue = signal.getsignal(warning_signal())
        numbers = (signal.SIGTERM, warning_signal())
        for number in numbers:
            signal.signal(number, self._on_signal)
        try:
            return self._main(self.args)
        except StopRequested as stop:
            self._leave(stop.number, requeue)
        except Exception:
            if not self._stopped_by:
                raise
            # In the middle of writing a checkpoint torch makes an ordinary error of the request to stop.
            self._leave(self._stopped_by, requeue)

    def _on_signal(self, number: int, _frame: Any) -> None:
        self._stopped_by = number
        raise StopRequested(number)

    def _leave(self, number: int, requeue: Any) -> NoReturn:
        """Put the job back into the queue, where that is what the signal means; all processes leave without a result file."""
        for ignored in (signal.SIGTERM, warning_signal()):
            signal.signal(ignored, signal.SIG_IGN)
        if callable(requeue) and number != signal.SIGINT:
            requeue(number, None)
        sys.exit(0)

    def checkpoint(self) -> Any:
        """What submitit puts back into the queue when the time limit nears or the job is preempted: the same command line.

        It goes on from the newest checkpoint, also where the first start had `--no-resume`.
        """
        import submitit.helpers

        again = {"no_resume": False} if hasattr(self.args, "no_resume") else {}
        args = argparse.Namespace(**{**vars(self.args), **again})
        return submitit.helpers.DelayedSubmission(type(self)(args))

    @abstractmethod
    def _main(self, args: argparse.Namespace) -> Any:
        """Call the entry point; it is imported here, so that submitting needs none of it."""

    def _setup_args(self) -> None:
        """Put the job's number for `%j` in the output folder, and the job's processes under the names that torch reads."""
        import submitit
        import submitit.helpers

        job = submitit.JobEnvironment()
        output_dir = str(self.args.output_dir).replace("%j", job.job_id)
        self.args = argparse.Namespace(**{**vars(self.args), "output_dir": output_dir})
        if job.num_tasks > 1:
            place = submitit.helpers.TorchDistributedEnvironment()
            if job.num_nodes == 1:  # the machine's own name need not resolve, in a container for example
                place.master_addr = "127.0.0.1"
            # Which device is whose is decided in dinov2.distributed, from the local rank.
            place.export(set_cuda_visible_devices=False, overwrite=True)
