"""Progress on a terminal and in a log, with a clock that the test moves."""

import io
from dataclasses import dataclass

import pytest

from vet_extensions.progress import Progress, Stages, duration


@dataclass
class Clock:
    """Seconds that pass only when a test says so."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_one_line_per_interval_and_a_last_one() -> None:
    log, clock = io.StringIO(), Clock()
    with Progress("intake", total=100, unit="files", stream=log, clock=clock, every_s=5) as progress:
        for _ in range(100):
            clock.now += 0.25
            progress.advance(1)
    assert log.getvalue().splitlines() == [
        "intake: 20/100 files, 4.0 files/s, 20 s left",
        "intake: 40/100 files, 4.0 files/s, 15 s left",
        "intake: 60/100 files, 4.0 files/s, 10 s left",
        "intake: 80/100 files, 4.0 files/s, 5 s left",
        "intake: 100 files in 25 s (4.0 files/s)",
    ]


def test_called_as_on_progress_it_learns_the_total_on_the_way() -> None:
    log, clock = io.StringIO(), Clock()
    with Progress("reading", stream=log, clock=clock, every_s=1) as progress:
        clock.now = 2.0
        progress(10, 40)
        assert (progress.done, progress.total) == (10, 40)
    assert log.getvalue().splitlines()[0] == "reading: 10/40, 5.0/s, 6 s left"


def test_work_of_unknown_length_shows_count_and_rate_without_a_time_left() -> None:
    log, clock = io.StringIO(), Clock()
    with Progress("search", unit="files", stream=log, clock=clock, every_s=1) as progress:
        clock.now = 2.0
        progress.advance(500)
    assert log.getvalue().splitlines()[0] == "search: 500 files, 250 files/s"


def test_work_that_fails_says_how_far_it_came_and_lets_the_error_through() -> None:
    log, clock = io.StringIO(), Clock()

    def fail_after_three() -> None:
        with Progress("intake", total=8, unit="files", stream=log, clock=clock) as progress:
            progress.advance(3)
            clock.now = 70.0
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_three()
    assert log.getvalue() == "intake: stopped after 3 of 8 files, 1 min 10 s\n"


def test_work_without_units_still_says_when_it_is_done() -> None:
    log, clock = io.StringIO(), Clock()
    with Progress("report", stream=log, clock=clock):
        clock.now = 3.0
    assert log.getvalue() == "report: done in 3 s\n"


def test_a_terminal_gets_a_bar_with_rate_and_time_left() -> None:
    screen, clock = Terminal(), Clock()
    with Progress("[1/2] intake", total=40, unit="files", stream=screen, clock=clock) as progress:
        clock.now = 2.0
        progress.advance(10)
        progress._bar.refresh()  # pyright: ignore[reportOptionalMemberAccess]
        shown = screen.getvalue()
    assert "\x1b[" in shown, "no bar was drawn"
    assert "[1/2] intake" in shown
    assert "10/40 files, 5.0 files/s, 6 s left" in shown
    assert screen.getvalue().endswith("[1/2] intake: 10 files in 2 s (5.0 files/s)\n")


def test_stages_are_numbered_and_each_says_when_it_is_done() -> None:
    log, clock = io.StringIO(), Clock()
    stages = Stages(2, stream=log, clock=clock)
    with stages.next("phantom studies", total=4, unit="studies") as progress:
        clock.now = 2.0
        progress(4, 4)
    with stages.next("report"):
        clock.now = 3.0
    assert log.getvalue().splitlines() == [
        "[1/2] phantom studies ...",
        "[1/2] phantom studies: 4 studies in 2 s (2.0 studies/s)",
        "[2/2] report ...",
        "[2/2] report: done in 1 s",
    ]
    assert stages.elapsed_s() == 3.0


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "0 s"), (59.6, "1 min 0 s"), (125, "2 min 5 s"), (12_000, "3 h 20 min"), (-1, "0 s")]
)
def test_durations_are_plain_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
