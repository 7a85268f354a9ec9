"""The benchmark of what lies between a data set and a step runs; its figures are for people to read."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "startup.py"


@pytest.mark.slow
def test_the_smoke_run_prints_every_table_with_what_is_asked_for():
    answer = subprocess.run([sys.executable, str(SCRIPT), "--smoke"], capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("| what | measured | asked for |") == 4
    for row in ("grey bytes, with masks", "ShardedInfiniteSampler: first index", "VetStudies, 3,000 images: sent"):
        assert f"| {row} |" in answer.stdout
    assert "| batches of 64 |" in answer.stdout
