"""The worker pool: order, laziness, limits, and what the loss of a worker costs: the item that it had in hand, never another."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from vet_extensions.errors import UserError
from vet_extensions.intake.pool import CHUNKS_AHEAD, WorkerPool
from vet_extensions.intake.worker import Worker

BAD = 13
GIB = 2**30


class Panic(BaseException):
    """Stands for the PanicException of pyo3, which is no Exception either."""


def double(number: int) -> int:
    return 2 * number


def be_killed(number: int) -> int:
    if number == BAD:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


def crash(number: int) -> int:
    if number == BAD:
        os.kill(os.getpid(), signal.SIGSEGV)
    return 2 * number


def leave(number: int) -> int:
    if number == BAD:
        os._exit(0)
    return 2 * number


def exit_politely(number: int) -> int:
    if number == BAD:
        sys.exit(0)
    return 2 * number


def panic(number: int) -> int:
    if number == BAD:
        raise Panic
    return 2 * number


def hang(number: int) -> int:
    if number == BAD:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        while True:
            signal.pause()
    return 2 * number


def devour(number: int) -> int:
    if number == BAD:
        np.ones(GIB, dtype=np.uint8)
    return 2 * number


def answer_too_much(number: int) -> object:
    """More than the parent can be sent within the limit: pickling copies it."""
    return np.ones(GIB // 3, dtype=np.uint8) if number == BAD else 2 * number


def fail(number: int) -> int:
    if number == BAD:
        raise ValueError("thirteen")
    return 2 * number


def answer_unsendably(number: int) -> Callable[[], int]:
    return lambda: number


def die_once(task: tuple[Path, int]) -> int:
    mark, number = task
    if number == BAD and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


def no_loss(number: int) -> int:
    raise AssertionError(f"no worker should have been lost at {number}")


def all_but_bad(n_items: int, *, answer: int) -> list[int]:
    return [answer if number == BAD else 2 * number for number in range(n_items)]


@pytest.fixture(autouse=True)
def no_process_stays() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("n_workers", [0, 1, 3])
def test_results_come_in_the_order_of_the_items(n_workers: int) -> None:
    with WorkerPool(n_workers) as pool:
        results = list(pool.ordered_map(double, range(50), chunk_size=3, on_death=no_loss))
    assert results == [2 * number for number in range(50)]


def test_one_crew_serves_several_calls() -> None:
    with WorkerPool(2) as pool:
        for _ in range(2):
            assert list(pool.ordered_map(double, range(9), chunk_size=2, on_death=no_loss)) == list(range(0, 18, 2))
            crew = {child.pid for child in multiprocessing.active_children()}
            assert len(crew) == 2


@pytest.mark.parametrize("task", [be_killed, crash, leave, exit_politely, panic])
def test_a_dead_worker_costs_one_item(task: Callable[[int], int]) -> None:
    with WorkerPool(2) as pool:
        results = list(pool.ordered_map(task, range(30), chunk_size=4, on_death=lambda number: -number))
    assert results == all_but_bad(30, answer=-BAD)


def test_an_item_at_which_something_else_killed_the_worker_gets_a_second_try(tmp_path: Path) -> None:
    tasks = [(tmp_path / "mark", number) for number in range(20)]
    with WorkerPool(1) as pool:
        results = list(pool.ordered_map(die_once, tasks, chunk_size=20, on_death=lambda _: -1))
    assert results == [2 * number for number in range(20)]
    assert (tmp_path / "mark").exists()


def test_an_item_that_hangs_is_given_up_at_its_limit() -> None:
    with WorkerPool(2) as pool:
        results = pool.ordered_map(
            hang, range(20), chunk_size=20, on_death=no_loss, on_timeout=lambda number: -number, limit_s=0.3
        )
        assert list(results) == all_but_bad(20, answer=-BAD)


def test_an_item_that_wants_all_memory_is_refused_it() -> None:
    with WorkerPool(1, memory_bytes=GIB // 2) as pool:
        results = pool.ordered_map(
            devour, range(20), chunk_size=20, on_death=no_loss, on_out_of_memory=lambda number: -number
        )
        assert list(results) == all_but_bad(20, answer=-BAD)


def test_a_result_too_large_to_be_sent_costs_one_item() -> None:
    with WorkerPool(1, memory_bytes=GIB // 2) as pool:
        results = list(pool.ordered_map(answer_too_much, range(10, 16), chunk_size=6, on_death=lambda number: -number))
    assert results == [20, 22, 24, -13, 28, 30]


def test_every_loss_counts_as_death_where_nothing_else_is_said() -> None:
    with WorkerPool(1) as pool:
        results = list(pool.ordered_map(hang, [1, BAD, 2], chunk_size=3, on_death=lambda _: -1, limit_s=0.3))
    assert results == [2, -1, 4]


def test_the_results_do_not_depend_on_who_was_lost_when() -> None:
    for chunk_size in (1, 7, 40):
        with WorkerPool(2) as pool:
            items = [number % 20 for number in range(40)]
            results = list(pool.ordered_map(be_killed, items, chunk_size=chunk_size, on_death=lambda _: -1))
        assert results == 2 * all_but_bad(20, answer=-1)


def test_the_items_are_taken_only_as_far_ahead_as_promised() -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    with WorkerPool(1) as pool:
        results = pool.ordered_map(double, items(), chunk_size=5, on_death=no_loss)
        assert next(results) == 0
        assert len(taken) <= CHUNKS_AHEAD * 5
        results.close()


def test_a_call_that_is_left_early_leaves_a_pool_that_works() -> None:
    with WorkerPool(2) as pool:
        results = pool.ordered_map(double, range(1000), chunk_size=5, on_death=no_loss)
        assert next(results) == 0
        results.close()
        assert list(pool.ordered_map(double, [1, 2], chunk_size=1, on_death=no_loss)) == [2, 4]


def test_an_exception_of_the_task_comes_through_with_its_place() -> None:
    with WorkerPool(1) as pool, pytest.raises(ValueError, match="thirteen") as caught:
        list(pool.ordered_map(fail, range(20), chunk_size=4, on_death=no_loss))
    assert "in fail" in caught.value.__notes__[0]


def test_a_result_that_cannot_be_sent_is_an_error_and_no_loss() -> None:
    with WorkerPool(1) as pool, pytest.raises((AttributeError, TypeError, RuntimeError)):
        list(pool.ordered_map(answer_unsendably, range(3), chunk_size=3, on_death=no_loss))


def test_an_error_in_the_caller_ends_workers_that_hang() -> None:
    with WorkerPool(2) as pool:
        results = pool.ordered_map(hang, range(12, 40), chunk_size=1, on_death=no_loss, limit_s=600)
        assert next(results) == 24
        with pytest.raises(KeyboardInterrupt):
            results.throw(KeyboardInterrupt)


def test_ctrl_c_ends_parent_and_workers(tmp_path: Path) -> None:
    program = (
        "import signal\n"
        "from test_intake_pool import hang, no_loss\n"
        "from vet_extensions.intake.pool import WorkerPool\n"
        "if __name__ == '__main__':\n"
        "    with WorkerPool(2) as pool:\n"
        "        for _ in pool.ordered_map(hang, range(11, 40), chunk_size=1, on_death=no_loss, limit_s=600):\n"
        "            print('one', flush=True)\n"
    )
    (tmp_path / "program.py").write_text(program)
    roots = (Path(__file__).parents[4], Path(__file__).parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, roots))}
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "one\n"
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)  # ends only when no worker holds the pipes any more
    assert "KeyboardInterrupt" in errors
    assert process.returncode in (-signal.SIGINT, 1)


def test_workers_that_cannot_start_are_an_error_with_a_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    kill = Worker.send
    monkeypatch.setattr(Worker, "send", lambda self, work: (self._process.kill(), kill(self, work)))
    with WorkerPool(1) as pool, pytest.raises(UserError, match="before it could work"):
        list(pool.ordered_map(double, range(3), chunk_size=1, on_death=no_loss))


def out_of_memory(item: int) -> int:
    if item == 1:
        raise MemoryError
    return item


def test_in_this_process_too_what_takes_too_much_memory_costs_itself_alone():
    with WorkerPool(0) as pool:
        answers = pool.ordered_map(
            out_of_memory, range(3), chunk_size=1, on_death=lambda _: -1, on_out_of_memory=lambda _: -2
        )
        assert list(answers) == [0, -2, 2]
