"""Meters: smoothed values, a logger over an iteration, and the JSON lines of `training_metrics.json`."""

import json
import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import torch

from dinov2 import distributed

logger = logging.getLogger("dinov2")
T = TypeVar("T")


class SmoothedValue:
    """A number followed over a window of its last values and over its whole life."""

    def __init__(self, window_size: int = 20, fmt: str | None = None) -> None:
        self.fmt = fmt or "{median:.4f} ({global_avg:.4f})"
        self.deque: deque[float] = deque(maxlen=window_size)
        self.total = 0.0
        self.count = 0

    def update(self, value: float, num: int = 1) -> None:
        """Add a value that stands for `num` observations."""
        self.deque.append(float(value))
        self.count += num
        self.total += float(value) * num

    def state(self) -> list[float]:
        """Count, total and window, as plain values."""
        return [float(self.count), self.total, *self.deque]

    def load_state(self, state: Sequence[float]) -> None:
        """The reverse of `state`."""
        self.count, self.total = int(state[0]), state[1]
        self.deque = deque(state[2:], maxlen=self.deque.maxlen)

    def synchronize_between_processes(self) -> None:
        """Add up count and total over all processes; the window stays this process's own."""
        pair = torch.tensor([float(self.count), self.total], dtype=torch.float64)
        distributed.all_reduce_sum(pair)
        self.count, self.total = int(pair[0]), float(pair[1])

    @property
    def median(self) -> float:
        """Median of the window (the lower one of an even number of values, as torch counts)."""
        ordered = sorted(self.deque)
        return ordered[(len(ordered) - 1) // 2] if ordered else float("nan")

    @property
    def avg(self) -> float:
        return fmean(self.deque) if self.deque else float("nan")

    @property
    def global_avg(self) -> float:
        return self.total / self.count if self.count else float("nan")

    @property
    def max(self) -> float:
        return max(self.deque) if self.deque else float("nan")

    @property
    def value(self) -> float:
        return self.deque[-1] if self.deque else float("nan")

    def __str__(self) -> str:
        return self.fmt.format(
            median=self.median, avg=self.avg, global_avg=self.global_avg, max=self.max, value=self.value
        )


class MetricLogger:
    """Named meters, printed every so many steps and appended as JSON lines to `output_file`."""

    def __init__(
        self,
        delimiter: str = "\t",
        output_file: str | Path | None = None,
        *,
        after_step: Callable[[int, float, float], Mapping[str, float]] | None = None,
        sink: Callable[[int, Mapping[str, float]], None] | None = None,
        between_steps: Callable[[int], None] | None = None,
    ) -> None:
        """
        after_step: called by `log_every` after each step with (iteration, seconds of the step, seconds of it spent waiting for
            data); what it returns is added to the meters. sink: called on the main process with (iteration, values) of every
            line of `output_file`, whether or not there is one. between_steps: called with the iteration when its line is
            written; what it takes belongs to no step's time. The place to save at: what is saved later has its line.
        """
        self.after_step = after_step
        self.sink = sink
        self.between_steps = between_steps
        self.meters: dict[str, SmoothedValue] = defaultdict(SmoothedValue)
        self.delimiter = delimiter
        self.output_file = Path(output_file) if output_file else None

    def update(self, **values: Any) -> None:
        """Add one value to each named meter; tensors of one element are accepted."""
        for name, value in values.items():
            self.meters[name].update(value.item() if isinstance(value, torch.Tensor) else float(value))

    def __getattr__(self, name: str) -> SmoothedValue:
        meters = self.__dict__.get("meters", {})
        if name in meters:
            return meters[name]
        raise AttributeError(f"{type(self).__name__} has no attribute or meter '{name}'")

    def __str__(self) -> str:
        return self.delimiter.join(f"{name}: {meter}" for name, meter in self.meters.items())

    def synchronize_between_processes(self) -> None:
        for meter in self.meters.values():
            meter.synchronize_between_processes()

    def state(self) -> dict[str, list[float]]:
        """The meters as plain values, so that the lines of a resumed run are those of one that was never stopped."""
        return {name: meter.state() for name, meter in self.meters.items()}

    def load_state(self, state: Mapping[str, Sequence[float]]) -> None:
        """The reverse of `state`."""
        for name, values in state.items():
            self.meters[name].load_state(values)

    def add_meter(self, name: str, meter: SmoothedValue) -> None:
        self.meters[name] = meter

    def dump_in_output_file(self, iteration: int, iter_time: float, data_time: float) -> None:
        """Append one line: iteration, times in seconds, and the median of the last 20 values of each meter."""
        if not distributed.is_main_process():
            return
        values = {"iter_time": iter_time, "data_time": data_time}
        values.update({name: meter.median for name, meter in self.meters.items()})
        if self.output_file is not None:
            with self.output_file.open("a") as file:
                file.write(json.dumps({"iteration": iteration, **values}) + "\n")
        if self.sink is not None:
            self.sink(iteration, values)

    def log_every(
        self,
        iterable: Iterable[T],
        print_freq: int,
        header: str | None = None,
        n_iterations: int | None = None,
        start_iteration: int = 0,
    ) -> Iterator[T]:
        """Yield from `iterable`, logging the meters every `print_freq` steps and at the last one.

        n_iterations is the index to stop at (the length of the iterable by default), not the number of steps still to do; a
        start_iteration at or beyond it yields nothing.
        """
        if n_iterations is None:
            n_iterations = len(iterable)  # pyright: ignore[reportArgumentType]
        if start_iteration >= n_iterations:
            return
        iter_time, data_time = SmoothedValue(fmt="{avg:.6f}"), SmoothedValue(fmt="{avg:.6f}")
        iteration, began, end = start_iteration, time.perf_counter(), time.perf_counter()
        for item in iterable:
            data_time.update(time.perf_counter() - end)
            yield item
            iter_time.update(time.perf_counter() - end)
            if self.after_step is not None:
                self.update(**self.after_step(iteration, iter_time.value, data_time.value))
            if iteration % print_freq == 0 or iteration == n_iterations - 1:
                self.dump_in_output_file(iteration, iter_time.avg, data_time.avg)
                left_s = iter_time.global_avg * (n_iterations - 1 - iteration)
                parts = [f"{header or ''} [{iteration}/{n_iterations}]", f"eta: {_clock(left_s)}", str(self)]
                parts += [f"time: {iter_time}", f"data: {data_time}", *_memory()]
                logger.info(self.delimiter.join(parts))
            if self.between_steps is not None:
                self.between_steps(iteration)
            iteration += 1
            end = time.perf_counter()
            if iteration >= n_iterations:
                break
        total_s = time.perf_counter() - began
        done = max(iteration - start_iteration, 1)
        logger.info("%s Total time: %s (%.6f s / it)", header or "", _clock(total_s), total_s / done)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _memory() -> list[str]:
    if not torch.cuda.is_available():
        return []
    return [f"max mem: {torch.cuda.max_memory_allocated() / 2**20:.0f} MB"]
