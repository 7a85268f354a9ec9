"""The benchmark of the step runs as it is called, small, and prints each of its tables."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "step.py"


@pytest.mark.slow
def test_the_benchmark_of_the_step_prints_its_tables() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--smoke"], capture_output=True, text=True, timeout=300, check=True)
    for head in ("whole step", "clipping, optimizer, average", "heads and losses", "share of the roof", "peak memory"):
        assert f"| {head}" in done.stdout
    assert done.stdout.count("\n| ours |") == 6  # three tables in each precision
