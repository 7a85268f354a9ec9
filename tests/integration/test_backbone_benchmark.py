"""The benchmark of the backbone runs; its figures are for people to read."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "backbone.py"


@pytest.mark.slow
def test_the_smoke_run_prints_every_table():
    command = [sys.executable, str(SCRIPT), "--smoke", "--memory", "--profile", "--precisions", "fp32"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    for head in (
        "| student | loss off by |",
        "| student, forward and backward |",
        "| teacher, forward |",
        "| operator |",
    ):
        assert head in answer.stdout
    assert answer.stdout.count("| used tokens, recomputed |") == 3
