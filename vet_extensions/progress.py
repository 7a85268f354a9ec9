"""Progress of long work: a bar with rate and time left on a terminal, a plain line every few seconds elsewhere.

The command line and the demo open a `Progress` and hand it to a room as `on_progress`; rooms themselves know only that they
may call `on_progress(done, total)`. `Stages` numbers the steps of a longer job: "[3/8] intake ...".
"""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

PLAIN_EVERY_S = 5.0
"""Seconds between two lines where the output is not a terminal, so that a log stays readable."""


def duration(seconds: float) -> str:
    """A span of time in plain words and at most two units: `8 s`, `2 min 5 s`, `3 h 20 min`."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class Progress:
    """One piece of work with a known or unknown number of units; use it as a context manager.

    It may be handed over as `on_progress`: called with (done, total) it shows that state, so that the number of units may
    become known only on the way. `advance(n)` counts up from where it stands. Nothing is shown before the first unit.
    """

    def __init__(
        self,
        label: str,
        *,
        total: int | None = None,
        unit: str = "",
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        every_s: float = PLAIN_EVERY_S,
    ) -> None:
        """label: what is going on, for example "intake". unit: what is counted, in the plural, for example "files".

        stream: where to show it, standard error by default. clock: seconds, replaceable in tests.
        """
        self.label = label
        self.total = total
        self.done = 0
        self._n_before = 0
        self._unit = f" {unit}" if unit else ""
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._every_s = every_s
        self._start = self._last_line = clock()
        self._bar: RichProgress | None = None

    def __enter__(self) -> Self:
        self._start = self._last_line = self._clock()
        if self._stream.isatty():
            self._bar = self._open_bar()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._show()
            self._bar.stop()
            self._bar = None
        self._write(self._last_words(whole=kind is None))

    def __call__(self, done: int, total: int | None = None) -> None:
        """Show that `done` units of `total` are finished."""
        self.done = done
        if total is not None:
            self.total = total
        self._show()

    def skip(self, n: int) -> None:
        """Count `n` units as finished before this work began: they are done, but say nothing of how fast it goes."""
        self._n_before += n
        self(self.done + n)

    def advance(self, n: int = 1) -> None:
        """Count `n` more units as finished."""
        self(self.done + n)

    def _open_bar(self) -> "RichProgress":
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        # markup=False: a label may hold brackets, and "[3/8]" is not a style.
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[facts]}", markup=False),
        )
        console = Console(file=self._stream, force_terminal=True)
        bar = RichProgress(*columns, console=console, transient=True, get_time=self._clock)
        bar.add_task(self.label, total=self.total, facts="")
        bar.start()
        return bar

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.done, total=self.total, facts=self._facts())
            return
        now = self._clock()
        is_finished = self.total is not None and self.done >= self.total
        if now - self._last_line >= self._every_s and not is_finished:
            self._last_line = now
            self._write(f"{self.label}: {self._facts()}")

    def _facts(self) -> str:
        """`120/400 files, 31.2 files/s, 9 s left`, as far as known."""
        parts = [f"{self.done}{'' if self.total is None else f'/{self.total}'}{self._unit}"]
        rate = self._rate()
        if rate > 0:
            parts.append(self._rate_text(rate))
            if self.total is not None:
                parts.append(f"{duration((self.total - self.done) / rate)} left")
        return ", ".join(parts)

    def _last_words(self, *, whole: bool) -> str:
        spent = duration(self._clock() - self._start)
        if not whole:
            of_total = "" if self.total is None else f" of {self.total}"
            return f"{self.label}: stopped after {self.done}{of_total}{self._unit}, {spent}"
        if self.done == self._n_before:
            return f"{self.label}: done in {spent}"
        rate = self._rate()
        before = f" ({self._n_before} of them earlier)" if self._n_before else ""
        return f"{self.label}: {self.done}{self._unit}{before} in {spent}" + (
            f" ({self._rate_text(rate)})" if rate > 0 else ""
        )

    def _rate(self) -> float:
        elapsed = self._clock() - self._start
        return (self.done - self._n_before) / elapsed if elapsed > 0 else 0.0

    def _rate_text(self, rate: float) -> str:
        return f"{rate:.1f}{self._unit}/s" if rate < 100 else f"{rate:.0f}{self._unit}/s"

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


class Stages:
    """The numbered steps of a longer job, each a `Progress` whose label begins with `[number/of]`."""

    def __init__(
        self,
        n_stages: int,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        every_s: float = PLAIN_EVERY_S,
    ) -> None:
        self._n_stages = n_stages
        self._number = 0
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._every_s = every_s
        self._start = clock()

    def next(self, label: str, *, total: int | None = None, unit: str = "") -> Progress:
        """Announce the next step and return its `Progress`, to be opened with `with`."""
        self._number += 1
        numbered = f"[{self._number}/{self._n_stages}] {label}"
        self._stream.write(f"{numbered} ...\n")
        self._stream.flush()
        return Progress(numbered, total=total, unit=unit, stream=self._stream, clock=self._clock, every_s=self._every_s)

    def elapsed_s(self) -> float:
        """Seconds since the job began."""
        return self._clock() - self._start
