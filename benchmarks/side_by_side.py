"""Ways of doing the same work, timed by turns in one process, so that ratios hold on a busy machine. Benchmarks of speed call it.

CPU seconds count all threads of this process and not what else the machine does; with one thread they are the figure to
trust. Wall seconds are for two threads and for CUDA, where the device is waited for.
"""

import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

_ROOF_SHAPES = ((4096, 4096, 4096), (4096, 384, 1536), (4096, 1536, 384))


@dataclass
class Timing:
    """Seconds of each turn of one way."""

    cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)

    def of(self, clock: str) -> list[float]:
        """clock: "cpu" or "wall"."""
        return {"cpu": self.cpu_s, "wall": self.wall_s}[clock]

    def median(self, clock: str) -> float:
        return statistics.median(self.of(clock))

    def spread(self, clock: str) -> float:
        """Half the range of the middle half of the turns, as a share of the median."""
        times = self.of(clock)
        low, high = (times[0], times[0]) if len(times) < 2 else statistics.quantiles(times, n=4)[::2]
        return (high - low) / 2 / self.median(clock)


def by_turns(
    ways: Mapping[str, Callable[[], object]], *, repeats: int, warm_up: int = 1, device: str = "cpu"
) -> dict[str, Timing]:
    """Every way once, then every way again, `repeats` times after `warm_up` rounds that do not count."""
    timings = {name: Timing() for name in ways}
    for turn in range(-warm_up, repeats):
        for name, work in ways.items():
            _wait_for(device)
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            _wait_for(device)
            if turn >= 0:
                timings[name].wall_s.append(time.perf_counter() - wall)
                timings[name].cpu_s.append(time.process_time() - cpu)
    return timings


def ratio(timings: Mapping[str, Timing], *, baseline: str, way: str, clock: str) -> float:
    """How many times as fast `way` is as `baseline`: the median over the turns of the quotient of neighbours in time."""
    pairs = zip(timings[baseline].of(clock), timings[way].of(clock), strict=True)
    return statistics.median(slow / fast for slow, fast in pairs)


def table(
    timings: Mapping[str, Timing], *, baseline: str, clock: str, what: str, items: int = 0, unit: str = "images"
) -> str:
    """Markdown: each way's median, spread and times as fast as the baseline; with `items` also how many a second.

    clock: "cpu" or "wall". what: heads the first column. items: units that one call works through.
    """
    head = f"| {what} | median, ms ({clock}) | spread | times as fast |" + (f" {unit}/s |" if items else "")
    rows = [head, "|---|---|---|---|" + ("---|" if items else "")]
    for name, timing in timings.items():
        median = timing.median(clock)
        times = ratio(timings, baseline=baseline, way=name, clock=clock)
        row = f"| {name} | {1000 * median:.2f} | {timing.spread(clock):.1%} | {times:.2f} |"
        rows.append(row + (f" {items / median:.0f} |" if items else ""))
    return "\n".join(rows)


def roof_flops(dtype: torch.dtype, *, device: str = "cpu", repeats: int = 3) -> float:
    """The fastest matrix product found on this device with this dtype, FLOP/s of wall time: what a share of the roof is of."""
    fastest = 0.0
    for m, k, n in _ROOF_SHAPES:
        a, b = torch.randn(m, k, device=device).to(dtype), torch.randn(k, n, device=device).to(dtype)
        timing = by_turns({"mm": lambda a=a, b=b: torch.mm(a, b)}, repeats=repeats, device=device)["mm"]
        fastest = max(fastest, 2 * m * k * n / min(timing.wall_s))
    return fastest


def peak_memory_mib(work: Callable[..., object], *args: Any) -> float:
    """Most resident memory of a fresh process that calls `work(*args)`, less what it holds before. Both must pickle."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measure_peak, (work, args))


def machine_facts() -> str:
    """One line for the head of a result page: processor, cores, threads, PyTorch and the GPU. No name of the machine."""
    model = next(
        (line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine()
    )
    flags = next((line.split() for line in _cpuinfo() if line.startswith("flags")), [])
    units = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{model} ({', '.join(units) or 'no AVX-512'}), {len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} threads"
        f"{gpu}, torch {torch.__version__}, numpy {np.__version__}, load {load}"
    )


def _cpuinfo() -> Sequence[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _measure_peak(work: Callable[..., object], args: tuple[Any, ...]) -> float:
    before = _peak_mib()
    work(*args)
    return _peak_mib() - before


def _peak_mib() -> float:
    """Of this process since its program began. getrusage tells the parent's where that was larger when it was started."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _wait_for(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
