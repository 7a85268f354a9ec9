"""Leaving on request: what a signal raises, and how the train loop takes it down until it has saved.

Called by the train loop, and by the tasks of submitted jobs (`dinov2.run.task`), which put the job back into the queue.
"""

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
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class SupersededError(KeyboardInterrupt):
    """A later start of the same run has taken over its folder: this process writes nothing more and leaves."""


def warning_signal() -> signal.Signals:
    """The signal by which a job is warned of its end: USR2, or the one that `SUBMITIT_PREEMPT_SIGNAL` names."""
    from submitit.core.job_environment import JobEnvironment

    return signal.Signals[f"SIG{JobEnvironment.USR_SIG}"]


@dataclass
class StopRequests:
    """number: the signal that asked for a stop so far, 0 for none."""

    number: int = 0


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Takes SIGINT, SIGTERM and the warning of a job's end down, so that the loop can save and leave between two steps.

    A second Ctrl-C acts at once; a scheduler repeats its own signals, and they must not break off the saving. Outside the main
    thread, where handlers cannot be set, nothing changes.
    """
    stop = StopRequests()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, warning_signal())}

    def on_signal(number: int, _frame: Any) -> None:
        logger.info("%s received: finishing this step, then saving", signal.Signals(number).name)
        stop.number = max(stop.number, number)
        if number == signal.SIGINT:
            signal.signal(number, before[signal.SIGINT])

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
