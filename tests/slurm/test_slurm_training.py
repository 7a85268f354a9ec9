"""Trainings submitted to SLURM: undisturbed, and disturbed in every way that a busy cluster has."""

import pytest
from slurm_cluster import Cluster
from slurm_jobs import facts
from slurm_trainings import N_STEPS, Scene

pytestmark = pytest.mark.slurm


def test_a_submitted_training_of_two_nodes_with_two_processes_each_runs_to_its_end(cluster: Cluster, scene: Scene):
    training = scene.undisturbed()
    known = facts(training.job)
    assert (known["NumNodes"], known["NumTasks"], known["Restarts"]) == ("2", "4", "0")
    assert sorted(training.run.losses()) == list(range(N_STEPS))
    # Every process wrote its own part of the checkpoint.
    newest = training.run.out / "checkpoints" / f"{N_STEPS - 1:07d}"
    assert len(list(newest.glob("rank_*.pth"))) == 4
