"""Batches of images made on other threads while the caller computes with those before. `embedding.embed` calls it.

Threads suffice: reading, decoding and resizing release Python's lock. Only one of them ever reads, in order, because readers hold
open files or the volume that was read last; several may prepare, which touches one image alone.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from threading import Event
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item")
Made = TypeVar("Made")
Batch = TypeVar("Batch")

N_AHEAD = 2
"""Batches that are held beside the caller's: the second evens out images of unequal cost."""


def batches_ahead(
    batches: Iterable[NDArray[np.integer]],
    *,
    read: Callable[[int], np.ndarray],
    prepare: Callable[[np.ndarray], Made],
    join: Callable[[list[Made]], Batch],
    n_helpers: int = 0,
) -> Generator[Batch]:
    """`join([prepare(read(row)) for row in batch])` of every batch, in order, up to `N_AHEAD` of them before they are asked for.

    n_helpers: threads that prepare; with 0 the one that reads does it too. An error is raised where its batch is asked for, and
    nothing is read after it. Closing the generator (`contextlib.closing`) ends its threads after the image they are at, and waits
    for them.
    """
    stopped = Event()

    def pixels(batch: NDArray[np.integer]) -> Iterator[np.ndarray]:
        for row in batch:
            if stopped.is_set():
                raise CancelledError
            yield read(int(row))

    def make(batch: NDArray[np.integer]) -> Batch:
        images = pixels(batch)
        try:
            return join(list(_ahead(prepare, images, on=helpers, n=n_helpers) if n_helpers else map(prepare, images)))
        except BaseException:
            stopped.set()  # nobody will ask for what comes after
            raise

    with ThreadPoolExecutor(max(1, n_helpers)) as helpers, ThreadPoolExecutor(1) as reader:
        try:
            yield from _ahead(make, batches, on=reader, n=N_AHEAD)
        finally:
            stopped.set()


def _ahead(work: Callable[[Item], Made], items: Iterable[Item], *, on: Executor, n: int) -> Iterator[Made]:
    """`map(work, items)` with the next `n` items already handed to the executor, and no more."""
    waiting: deque[Future[Made]] = deque()
    try:
        for item in items:
            waiting.append(on.submit(work, item))
            if len(waiting) > n:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
