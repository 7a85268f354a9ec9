"""A pool of worker processes that gives results in order, holds little in memory, and lets a bad item cost itself alone.

`run` sends both passes over the files through one `WorkerPool`. Decoders are C, C++ and Rust code fed with foreign bytes: one
may crash its process, never come back, or ask for all memory. Each item therefore has a limit of time and of memory, which the
kernel keeps and no decoder can catch, and the loss of a worker is charged to the item it had in hand.
"""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

from vet_extensions.intake.worker import MEMORY_BYTES, Loss, Worker

T = TypeVar("T")
R = TypeVar("R")

CHUNKS_AHEAD = 3
"""Chunks a worker that may be queued or wait for their turn: this bounds the memory."""

LIMIT_S = 120.0
"""Time for one item: a hundred times what a large radiograph takes."""

HEADER_LIMIT_S = 60.0
"""The same for a header."""


class WorkerPool:
    """Processes for `ordered_map`; a context manager. They start when there is work, and are replaced when one is lost."""

    def __init__(self, n_workers: int, *, memory_bytes: int = MEMORY_BYTES) -> None:
        """n_workers: 0 works in this process, for debugging: no limit holds there, and a crashing decoder takes it along.

        memory_bytes: what one item may take (address space, so that also what is only reserved counts).
        """
        self._n_workers = n_workers
        self._memory_bytes = memory_bytes
        self._idle: list[Worker] = []
        self._busy: dict[Connection, tuple[Worker, _Piece[Any, Any]]] = {}

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._drop_busy()
        for worker in self._idle:
            worker.dismiss()
        self._idle.clear()

    def ordered_map(
        self,
        task: Callable[[T], R],
        items: Iterable[T],
        *,
        chunk_size: int,
        on_death: Callable[[T], R],
        on_timeout: Callable[[T], R] | None = None,
        on_out_of_memory: Callable[[T], R] | None = None,
        limit_s: float = LIMIT_S,
    ) -> Generator[R]:
        """task(item) for each item, in the items' order, whatever the number of workers. One such call at a time.

        task: picklable; an `Exception` it raises is raised here, but for MemoryError. on_death: gives the result for an item
        whose worker died twice (the second time alone with it: the first may have been another program's doing), or that
        raised something that is no `Exception`, as Rust's panics are. on_timeout, on_out_of_memory: likewise for an item that
        took more than `limit_s` seconds or the pool's memory; `on_death` where not given. All three are called in this process.
        Errors: UserError if workers cannot start.
        """
        if self._n_workers == 0:
            for item in items:
                try:
                    answer = task(item)
                except MemoryError:
                    answer = (on_out_of_memory or on_death)(item)
                yield answer
            return
        answers = {
            Loss.DIED: on_death,
            Loss.TIMED_OUT: on_timeout or on_death,
            Loss.OUT_OF_MEMORY: on_out_of_memory or on_death,
        }
        source = iter(items)
        lists = iter(lambda: list(itertools.islice(source, chunk_size)), [])
        chunks: Iterator[_Chunk[T, R]] = (_Chunk(some) for some in lists)
        in_order: deque[_Chunk[T, R]] = deque()
        todo: deque[_Piece[T, R]] = deque()
        try:
            while True:
                for chunk in itertools.islice(chunks, CHUNKS_AHEAD * self._n_workers - len(in_order)):
                    in_order.append(chunk)
                    todo.append(_Piece(chunk, range(len(chunk.items))))
                if not in_order:
                    return
                self._hand_out(todo, task, limit_s)
                while in_order[0].n_missing:
                    self._take_in(todo)
                    self._hand_out(todo, task, limit_s)
                yield from in_order.popleft().answered(answers)
        finally:
            self._drop_busy()

    def _hand_out(self, todo: "deque[_Piece[T, R]]", task: Callable[[T], R], limit_s: float) -> None:
        while todo and len(self._busy) < self._n_workers:
            worker = self._idle.pop() if self._idle else Worker(self._memory_bytes)
            piece = todo.popleft()
            self._busy[worker.connection] = worker, piece
            worker.send((task, limit_s, [piece.chunk.items[i] for i in piece.indices]))

    def _take_in(self, todo: "deque[_Piece[T, R]]") -> None:
        """Wait for workers; note their results, and queue anew, at the front, what the lost ones leave undone."""
        for connection in wait(list(self._busy)):
            worker, piece = self._busy.pop(cast(Connection, connection))
            try:
                results = worker.receive()
            except (EOFError, OSError):
                todo.extendleft(reversed(_after_loss(piece, *worker.bury())))
                continue
            self._idle.append(worker)
            if isinstance(results, Exception):
                raise results
            for index, result in zip(piece.indices, results, strict=True):
                piece.chunk.note(index, result)

    def _drop_busy(self) -> None:
        for worker, _ in self._busy.values():
            worker.kill()
        self._busy.clear()


@dataclass
class _Chunk(Generic[T, R]):
    """Neighbouring items and what became of each."""

    items: list[T]
    results: dict[int, R | Loss] = field(default_factory=dict)

    @property
    def n_missing(self) -> int:
        return len(self.items) - len(self.results)

    def note(self, index: int, result: R | Loss) -> None:
        self.results[index] = result

    def answered(self, answers: dict[Loss, Callable[[T], R]]) -> Iterator[R]:
        for index, item in enumerate(self.items):
            result = self.results.pop(index)
            yield answers[result](item) if isinstance(result, Loss) else result


@dataclass(frozen=True)
class _Piece(Generic[T, R]):
    """Items of a chunk that one worker does in one go. is_last_try: the item is alone because it has cost a worker already."""

    chunk: _Chunk[T, R]
    indices: range
    is_last_try: bool = False


def _after_loss(piece: _Piece[T, R], loss: Loss, place: int) -> list[_Piece[T, R]]:
    """What is still to be done of the piece whose worker was lost while it worked at number `place` of it."""
    chunk, indices = piece.chunk, piece.indices
    if (
        not 0 <= place < len(indices)
    ):  # lost between the items, so any of them may be the reason (a result too large to send)
        place, rest = 0, [_Piece(chunk, indices[i : i + 1], is_last_try=True) for i in range(1, len(indices))]
    else:
        rest = [_Piece(chunk, part) for part in (indices[:place], indices[place + 1 :]) if part]
    if loss is Loss.DIED and not piece.is_last_try:
        rest.insert(0, _Piece(chunk, indices[place : place + 1], is_last_try=True))
    else:
        chunk.note(indices[place], loss)
    return rest
