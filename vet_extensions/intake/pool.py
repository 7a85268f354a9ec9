"""A pool of worker processes that gives results in order, holds little in memory, and survives the death of a worker.

`run` sends both passes over the files through one `WorkerPool`. Decoders are C, C++ and Rust code fed with foreign bytes: one
may crash its process. That must cost one file, not the run.
"""

import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

CHUNKS_AHEAD = 3
"""Chunks a worker that may be queued or wait for their turn: this bounds the memory."""


class WorkerPool:
    """Processes for `ordered_map`; a context manager. They start when there is work, and are replaced when one dies."""

    def __init__(self, n_workers: int) -> None:
        """n_workers: 0 works in this process (for debugging: a crashing decoder takes it along)."""
        self._n_workers = n_workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._dismiss()

    def ordered_map(
        self, task: Callable[[T], R], items: Iterable[T], *, chunk_size: int, on_death: Callable[[T], R]
    ) -> Iterator[R]:
        """task(item) for each item, in the items' order, whatever the number of workers.

        task: picklable; what it raises is raised here. on_death: gives the result for an item whose worker died; called in
        this process.
        """
        if self._n_workers == 0:
            yield from map(task, items)
            return
        source = iter(items)
        chunks = iter(lambda: list(itertools.islice(source, chunk_size)), [])
        waiting: deque[tuple[list[T], Future[list[R]]]] = deque()
        while True:
            for chunk in itertools.islice(chunks, CHUNKS_AHEAD * self._n_workers - len(waiting)):
                waiting.append((chunk, self._submit(task, chunk)))
            if not waiting:
                return
            chunk, future = waiting.popleft()
            try:
                results = future.result()
            except BrokenProcessPool:
                # Any of the chunks under way may hold the killer: take this one apart, send the others again.
                self._dismiss()
                results = _one_by_one(task, chunk, on_death)
                waiting = deque((other, self._again(task, other, answer)) for other, answer in waiting)
            yield from results

    def _submit(self, task: Callable[[T], R], chunk: list[T]) -> "Future[list[R]]":
        if self._pool is None:
            self._pool = _new_pool(self._n_workers)
        try:
            return self._pool.submit(_work, task, chunk)
        except BrokenProcessPool as error:
            failed: Future[list[R]] = Future()
            failed.set_exception(error)
            return failed

    def _again(self, task: Callable[[T], R], chunk: list[T], answer: "Future[list[R]]") -> "Future[list[R]]":
        is_kept = answer.done() and not answer.cancelled() and answer.exception() is None
        return answer if is_kept else self._submit(task, chunk)

    def _dismiss(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


def _one_by_one(task: Callable[[T], R], chunk: list[T], on_death: Callable[[T], R]) -> list[R]:
    """Each item in a pool of one process, so that a death has one suspect."""
    results: list[R] = []
    lone = _new_pool(1)
    for item in chunk:
        try:
            results += lone.submit(_work, task, [item]).result()
        except BrokenProcessPool:
            results.append(on_death(item))
            lone.shutdown()
            lone = _new_pool(1)
    lone.shutdown()
    return results


def _new_pool(n_workers: int) -> ProcessPoolExecutor:
    """Spawned, not forked: the caller may have threads, and a fork would copy their locks."""
    return ProcessPoolExecutor(n_workers, mp_context=multiprocessing.get_context("spawn"), initializer=_settle_in)


def _work(task: Callable[[T], R], chunk: list[T]) -> list[R]:
    return [task(item) for item in chunk]


def _settle_in() -> None:
    """In a new worker: leave Ctrl-C to the parent, use one thread, and end when the parent is gone (it may have been killed)."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
