"""The cluster of these tests, and the undisturbed training that others are held against: one for all processes of pytest."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import ROOT_VARIABLE, Cluster, running_cluster, why_not
from slurm_trainings import Scene

REQUIRED = "REQUIRE_SLURM"
"""Set where a cluster must be there, such as in CI: a test that cannot have one fails there and is skipped elsewhere."""


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The one that `slurm_cluster.py run` has brought up around pytest, else one for this process."""
    if ROOT_VARIABLE in os.environ:
        yield Cluster(Path(os.environ[ROOT_VARIABLE]))
        return
    if (reason := why_not()) is not None:
        if os.environ.get(REQUIRED):
            pytest.fail(f"{REQUIRED} is set, and there is no SLURM: {reason}")
        pytest.skip(f"no SLURM: {reason}")
    with running_cluster() as cluster, pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.environment().items():
            patch.setenv(name, value)
        yield cluster


@pytest.fixture(scope="session")
def scene(cluster: Cluster) -> Scene:
    """Data and trainings that tests share."""
    folder = cluster.root / "scene"
    folder.mkdir(exist_ok=True)
    return Scene(folder)
