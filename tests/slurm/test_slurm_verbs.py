"""Verbs of `vetdino` as jobs of SLURM: an intake as an array of parts."""

from pathlib import Path

import pytest
from factories import make_dicom, make_pixels
from slurm_cluster import Cluster
from slurm_jobs import SITE, VETDINO, facts, job_numbers, succeed, wait_for_state

pytestmark = pytest.mark.slurm

N_PARTS = 3


def test_an_intake_of_several_jobs_writes_what_one_run_writes(cluster: Cluster, tmp_path: Path):
    for i in range(24):
        views = {"PatientID": f"TEST-{i // 4}", "ViewPosition": "VD" if i % 2 else "LL"}
        make_dicom(tmp_path / "archive" / f"{i}.dcm", pixels=make_pixels(64, 80, seed=i), **views)
    salt = ("--salt-file", tmp_path / "salt")
    succeed(VETDINO, "intake", tmp_path / "archive", tmp_path / "whole", *salt, "--workers", "1")
    said = succeed(VETDINO, "submit", "--site", SITE, "--parts", str(N_PARTS), "--",
                   "intake", tmp_path / "archive", tmp_path / "merged", *salt, "--workers", "1")  # fmt: skip
    array, merging = job_numbers(said)
    wait_for_state(merging, "COMPLETED")
    assert [facts(f"{array}_{part}")["JobState"] for part in range(N_PARTS)] == ["COMPLETED"] * N_PARTS
    for name in ("manifest.parquet", "rejected.csv"):
        assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
