"""The benchmarks run and print their tables; the figures are for people to read."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def printed_by(script: str, *options: str) -> str:
    command = [sys.executable, str(FOLDER / script), "--smoke", *options]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.mark.slow
def test_the_step() -> None:
    printed = printed_by("step.py")
    for head in ("whole step", "clipping, optimizer, average", "heads and losses", "share of the roof", "peak memory"):
        assert f"| {head}" in printed
    assert printed.count("\n| ours |") == 6  # three tables in each precision


@pytest.mark.slow
def test_the_backbone() -> None:
    printed = printed_by("backbone.py", "--memory", "--profile", "--precisions", "fp32")
    for head in ("student | loss off by", "student, forward and backward", "teacher, forward", "operator"):
        assert f"| {head} |" in printed
    assert printed.count("| used tokens, recomputed |") == 3


@pytest.mark.slow
def test_the_data_path() -> None:
    printed = printed_by("data.py")
    for head in (
        "2 x 224 + 8 x 98 crops |",
        "step of a sample ",
        "crops of pairs of ",
        "image | crop |",
        "DICOM, 2500 x 2048 |",
    ):
        assert f"| {head}" in printed
    for row in ("shard to crops", "noise", "letters and grain", "uncompressed", "JPEG lossless .70"):
        assert f"\n| {row} |" in printed
    assert printed.count(">= ") == 5


@pytest.mark.slow
def test_what_lies_between_a_data_set_and_a_step() -> None:
    printed = printed_by("startup.py")
    assert printed.count("| what | measured | asked for |") == 4
    for row in ("grey bytes, with masks", "ShardedInfiniteSampler: first index", "VetStudies, 3,000 images: sent"):
        assert f"| {row} |" in printed
    assert "| batches of 64 |" in printed


@pytest.mark.slow
def test_the_k_nearest_neighbours() -> None:
    printed = printed_by("knn.py")
    assert printed.count("\n| official module |") == 4
    assert printed.count("\n| 8 bits, compared again in float32 |") == 4
    assert "| official neighbours found |" in printed
    assert printed.count(": operator | share of the time |") == 2


@pytest.mark.slow
def test_images_made_ahead_of_the_network() -> None:
    printed = printed_by("embed.py")
    assert printed.count("\n| one by one |") == printed.count("\n| made ahead |") == 5
    assert printed.count("Features equal to the last bit: yes") == 5


@pytest.mark.slow
def test_the_grid_of_linear_heads() -> None:
    printed = printed_by("probe.py")
    for way in ("the grid, 52 heads", "one head, own code", "one head, PyTorch"):
        assert f"\n| {way} |" in printed


@pytest.mark.slow
def test_the_controls_of_the_organs() -> None:
    printed = printed_by("organs.py")
    for row in ("position", "pixels"):
        assert f"\n| {row} |" in printed


@pytest.mark.slow
def test_the_quick_suite_again() -> None:
    printed = printed_by("suite.py")
    for clock in ("wall", "cpu"):
        assert f"\n| vit_micro/8, {clock} | 120 |" in printed
