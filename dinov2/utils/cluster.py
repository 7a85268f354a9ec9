"""What is known about the cluster that jobs are sent to; called by `dinov2.run.submit`.

The official functions know Meta's clusters by the machine's name. Here there is nothing to recognise: a cluster's partition,
account and memory come from the command line, and where nothing is given SLURM's own defaults hold.
"""

from enum import Enum
from pathlib import Path
from typing import Any


class ClusterType(Enum):
    """Meta's clusters. Taken for the sake of official callers; the functions below give the same answer for each."""

    AWS = "aws"
    FAIR = "fair"
    RSC = "rsc"


CPUS_PER_TASK = 10
"""Cores of a process: the ten workers that `train.num_workers` starts by default (official value)."""


def get_cluster_type() -> ClusterType | None:
    """None: this is none of Meta's clusters."""
    return None


def get_checkpoint_path(cluster_type: ClusterType | None = None) -> Path | None:
    """The cluster's folder for checkpoints: none is known."""
    return None


def get_user_checkpoint_path(cluster_type: ClusterType | None = None) -> Path | None:
    """The user's folder for checkpoints: none is known."""
    return None


def get_slurm_partition(cluster_type: ClusterType | None = None) -> str | None:
    """None: SLURM's default partition, unless one is given."""
    return None


def get_slurm_executor_parameters(
    nodes: int,
    num_gpus_per_node: int,
    cluster_type: ClusterType | None = None,
    **kwargs: Any,
) -> dict[str, Any]:
    """The parameters of a submitit executor: a process for each GPU, or one process a node where no GPU is asked for.

    kwargs: further parameters of submitit; they win over those made here, and None leaves one to submitit and SLURM.
    """
    parameters: dict[str, Any] = {
        "nodes": nodes,
        "gpus_per_node": num_gpus_per_node or None,
        "tasks_per_node": max(1, num_gpus_per_node),
        "cpus_per_task": CPUS_PER_TASK,
        "slurm_partition": get_slurm_partition(cluster_type),
    }
    return {name: value for name, value in {**parameters, **kwargs}.items() if value is not None}
