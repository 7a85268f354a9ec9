"""The worker pool: order, laziness, and what the death of a worker costs."""

import os
import signal

import pytest

from vet_extensions.intake.pool import CHUNKS_AHEAD, WorkerPool


def double(number: int) -> int:
    return 2 * number


def die_at_thirteen(number: int) -> int:
    if number == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


def fail_at_thirteen(number: int) -> int:
    if number == 13:
        raise ValueError("thirteen")
    return 2 * number


def no_death(number: int) -> int:
    raise AssertionError(f"no worker should have died at {number}")


@pytest.mark.parametrize("n_workers", [0, 2])
def test_results_come_in_the_order_of_the_items(n_workers: int) -> None:
    with WorkerPool(n_workers) as pool:
        results = list(pool.ordered_map(double, range(50), chunk_size=3, on_death=no_death))
    assert results == [2 * number for number in range(50)]


def test_a_killed_worker_costs_one_item() -> None:
    with WorkerPool(2) as pool:
        results = list(pool.ordered_map(die_at_thirteen, range(30), chunk_size=4, on_death=lambda number: -number))
    assert results == [-13 if number == 13 else 2 * number for number in range(30)]


def test_the_items_are_taken_only_as_far_ahead_as_promised() -> None:
    taken = []

    def items():
        for number in range(1000):
            taken.append(number)
            yield number

    with WorkerPool(1) as pool:
        results = pool.ordered_map(double, items(), chunk_size=5, on_death=no_death)
        assert next(results) == 0
        assert len(taken) <= CHUNKS_AHEAD * 5
        results.close()


def test_an_exception_of_the_task_comes_through() -> None:
    with WorkerPool(1) as pool, pytest.raises(ValueError, match="thirteen"):
        list(pool.ordered_map(fail_at_thirteen, range(20), chunk_size=4, on_death=no_death))
