"""An ablation on SLURM that loses a node and the process that submitted it, and one on this machine: the same table."""

import json
import subprocess
from pathlib import Path

import pytest
from killing import TINY
from slurm_cluster import Cluster
from slurm_jobs import SITE, VETDINO, facts, job_environment, nodes_of, succeed, wait_until
from study_factory import make_intake

pytestmark = pytest.mark.slurm

PLAN = """
name: small
question: Do both ways end with one table?
base: tiny.yaml
options: {optim.epochs: 2, train.OFFICIAL_EPOCH_LENGTH: 6, evaluation.eval_period_iterations: 12}
axes: {rate: {usual: {}, high: {optim.base_lr: 0.1}}}
baseline: {rate: usual}
seeds: [0, 1]
evaluation: suite.yaml
metrics: [knn/study/all/macro_auroc]
"""
SUITE = "{protocols: [knn], levels: [study], groups: [all], controls: [random_init], bootstrap: {n_resamples: 20}}"


def write_plan(folder: Path) -> Path:
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "suite.yaml").write_text(SUITE)
    (folder / "plan.yaml").write_text(PLAN)
    return folder / "plan.yaml"


def jobs_at_work(out: Path) -> list[str]:
    """The jobs of cells that train at this moment."""
    states = [(path.parent, json.loads(path.read_text())) for path in out.glob("cells/*/state.json")]
    return [
        state["owner"]["job"]
        for place, state in states
        if state["state"] == "running" and (place / "run" / "training_metrics.json").is_file()
    ]


def test_an_ablation_that_loses_a_node_and_its_submitter_ends_with_the_table_of_one_here(
    cluster: Cluster, tmp_path: Path
):
    data = make_intake(tmp_path / "studies", n_studies=60, split=None, findings=("nodule", "mass"))
    ablate = (VETDINO, "ablate", write_plan(tmp_path), "--data", data, "--jobs", "2")
    small = ("--site", SITE, "--nodes", "1", "--ngpus", "0", "--tasks-per-node", "1")
    on_slurm = [*ablate, *small, "--cluster", "slurm", "--wait", "--out", tmp_path / "slurm"]
    with subprocess.Popen(on_slurm, env=job_environment()) as submitter:
        wait_until(lambda: bool(jobs_at_work(tmp_path / "slurm")) or submitter.poll() is not None, "a cell to train")
        assert submitter.poll() is None
        submitter.kill()
    hit = jobs_at_work(tmp_path / "slurm")[0]
    (lost,) = nodes_of(hit)
    cluster.pull_the_plug(lost)
    try:
        succeed(*on_slurm)
    finally:
        cluster.start(lost)
    assert facts(hit)["Restarts"] == "1"
    succeed(*ablate, *small, "--cluster", "local", "--out", tmp_path / "here")
    assert (tmp_path / "slurm" / "table.csv").read_bytes() == (tmp_path / "here" / "table.csv").read_bytes()
