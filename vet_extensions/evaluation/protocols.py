"""The protocols on frozen features by name: which function a suite's `protocols` entry calls, with which of its settings.

`scoring` asks here for the candidates of every bank and set of queries.
"""

from collections.abc import Sequence
from dataclasses import asdict

from vet_extensions.evaluation.knn import knn_probe, ml_knn_probe
from vet_extensions.evaluation.linear_grid import linear_grid_probe
from vet_extensions.evaluation.logistic import linear_probe
from vet_extensions.evaluation.probes import Candidates, ProbeData
from vet_extensions.evaluation.results import SuiteConfig


def frozen_candidates(
    parts: Sequence[ProbeData], config: SuiteConfig, *, protocol: str, task: str
) -> Candidates | None:
    """The candidates of one protocol; None where the bank has too few rows for any k. parts: bank, validation, test."""
    bank, val, test = parts
    if protocol == "linear":
        grid, n_max = config.linear.c_grid, config.linear.max_iterations
        return linear_probe(bank, val=val, test=test, c_grid=grid, max_iterations=n_max)
    if protocol == "linear_grid":
        return linear_grid_probe(bank, val=val, test=test, task=task, **asdict(config.linear_grid))
    if protocol == "ml_knn":
        ks = tuple(k for k in config.knn.ks if k < len(bank.labels))  # a bank image is no neighbour of itself
        return ml_knn_probe(bank, val=val, test=test, ks=ks) if ks else None
    assert protocol == "knn", f"no protocol on frozen features is called {protocol!r}"
    ks = tuple(k for k in config.knn.ks if k <= len(bank.labels))
    if not ks:
        return None
    return knn_probe(bank, val=val, test=test, ks=ks, temperature=config.knn.temperature, task=task)
