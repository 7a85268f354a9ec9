"""The request to leave, that a signal makes: raised by the train loop when it has saved, and by the tasks of jobs."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger("dinov2")


class StopRequested(KeyboardInterrupt):
    """A signal asked this process to leave, and it has saved what it had. Nothing went wrong.

    A KeyboardInterrupt, so that nothing that catches errors takes it for one.
    """

    def __init__(self, number: int) -> None:
        """number: of the signal; the highest one, where processes that leave together got several."""
        super().__init__(signal.Signals(number).name)
        self.number = number


def warning_signal() -> signal.Signals:
    """The signal by which submitit and SLURM warn a job of its end: USR2, or what `SUBMITIT_PREEMPT_SIGNAL` names."""
    from dinov2.distributed.launch import site_variables

    name = site_variables().get("SUBMITIT_PREEMPT_SIGNAL", "USR2")
    return signal.Signals[f"SIG{name}"]


@dataclass
class StopRequests:
    """number: the signal that asked for a stop so far, 0 for none."""

    number: int = 0


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Takes SIGINT, SIGTERM and the warning of a job's end down, so that the loop can save and leave between two steps.

    A second signal of the same kind acts at once. Outside the main thread, where handlers cannot be set, nothing changes.
    """
    stop = StopRequests()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = (signal.SIGINT, signal.SIGTERM, warning_signal())
    before = {number: signal.getsignal(number) for number in numbers}

    def on_signal(number: Any, _frame: Any) -> None:
        logger.info("%s received: finishing this step, then saving", signal.Signals(number).name)
        stop.number = max(stop.number, number)
        signal.signal(number, before[number])

    for number in numbers:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        for number in numbers:
            signal.signal(number, before[number])
