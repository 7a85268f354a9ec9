"""One worker process of `pool`: what its parent knows of it, and its own life, in which the kernel limits time and memory.

The limits are the kernel's because native code cannot be interrupted otherwise: an alarm signal that nobody handles ends the
process in the middle of a decoder, and memory beyond the limit is not given.
"""

import contextlib
import multiprocessing
import os
import pickle
import resource
import signal
import threading
import traceback
from collections.abc import Callable
from enum import Enum
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, TypeVar

from vet_extensions.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

MEMORY_BYTES = 4 * 2**30
"""Memory for one item, beyond what the worker has after its imports."""

_STARTING, _READY = -2, -1
_GOODBYE_S = 5.0
"""How long an idle worker may take to end by itself before it is killed."""


class Loss(Enum):
    """How an item was lost: its worker died or panicked, or a limit was met."""

    DIED = "died"
    TIMED_OUT = "timed out"
    OUT_OF_MEMORY = "out of memory"


class Worker:
    """One process as its parent sees it."""

    def __init__(self, memory_bytes: int) -> None:
        # Spawned, not forked: the caller may have threads, and a fork would copy their locks.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._place = context.RawValue("q", _STARTING)  # shared memory: survives the death of the worker
        self._process = context.Process(target=_serve, args=(theirs, self._place, memory_bytes), daemon=True)
        self._process.start()
        self.exit_code: int | None = None
        theirs.close()

    def send(self, work: tuple[Any, float, list[Any]]) -> None:
        """A worker that is dead already shows itself when its answer is awaited."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(work)

    def receive(self) -> Any:
        return self.connection.recv()

    def bury(self) -> tuple[Loss, int]:
        """How this dead worker was lost, and at which item. Errors: UserError if it never was ready to work."""
        self.kill()
        if self._place.value == _STARTING:
            raise UserError(
                f"A worker process ended (exit code {self.exit_code}) before it could work. In a script of your own, start "
                "intake below `if __name__ == '__main__':`; otherwise look for want of memory. n_workers=0 does "
                "without processes."
            )
        return (Loss.TIMED_OUT if self.exit_code == -signal.SIGALRM else Loss.DIED), self._place.value

    def dismiss(self) -> None:
        """End an idle worker: it leaves by itself when nobody can send it work any more."""
        self.connection.close()
        self._process.join(_GOODBYE_S)
        self.kill()

    def kill(self) -> None:
        """End it at once, and leave no zombie. One that died on its own keeps its exit code."""
        self.connection.close()
        self._process.kill()
        self._process.join()
        self.exit_code = self._process.exitcode
        self._process.close()


def _serve(connection: Connection, place: Any, memory_bytes: int) -> None:
    """The life of a worker: lists of items in, lists of results out, until the connection closes."""
    _settle_in()
    place.value = _READY
    has_limit = False
    while True:
        try:
            task, limit_s, items = connection.recv()  # the first time, this imports what the task needs
        except EOFError:
            return
        except Exception as error:
            connection.send(_portable(error))
            continue
        if not has_limit:
            _limit_memory(memory_bytes)
            has_limit = True
        answer = _work(task, items, place, limit_s)
        try:
            connection.send(answer)
        except (MemoryError, OSError):
            raise
        except Exception as error:  # a result that cannot be pickled; nothing of it was sent
            connection.send(_portable(error))
        place.value = _READY


def _work(task: Callable[[T], R], items: list[T], place: Any, limit_s: float) -> list[R | Loss] | Exception:
    results: list[R | Loss] = []
    for number, item in enumerate(items):
        place.value = number
        # Nobody handles SIGALRM, so that the kernel ends the process, in native code too.
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        try:
            results.append(task(item))
        except MemoryError:
            results.append(Loss.OUT_OF_MEMORY)
        except Exception as error:
            return _portable(error)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # what Rust code raises when it panics is no Exception
            results.append(Loss.DIED)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    place.value = len(items)
    return results


def _portable(error: Exception) -> Exception:
    """The error with the worker's own traceback as a note, in a form that can be sent."""
    error.add_note(f"In a worker process:\n{traceback.format_exc()}")
    try:
        pickle.loads(ForkingPickler.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__} in a worker process:\n{traceback.format_exc()}")
    return error


def _settle_in() -> None:
    """Leave Ctrl-C to the parent, use one thread, dump no core (it would hold pixels), and end when the parent is gone."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _limit_memory(memory_bytes: int) -> None:
    """Set this process's address space to its present size and `memory_bytes`. Only Linux tells the size."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return
    size = int(statm.read_text().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = size + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
