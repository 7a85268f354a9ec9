"""The benchmark of the data path runs; its figures are for people to read."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "data.py"


@pytest.mark.slow
def test_the_smoke_run_of_the_data_path_prints_every_table_with_what_is_asked_for():
    answer = subprocess.run([sys.executable, str(SCRIPT), "--smoke"], capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    for head in (
        "| 2 x 224 + 8 x 98 crops |",
        "| step of a sample ",
        "| crops of pairs of ",
        "| image | crop |",
        "| DICOM, 2500 x 2048 |",
    ):
        assert head in answer.stdout
    for row in ("shard to crops", "noise", "letters and grain", "uncompressed", "JPEG lossless .70"):
        assert f"\n| {row} |" in answer.stdout
    assert answer.stdout.count(">= ") == 5
