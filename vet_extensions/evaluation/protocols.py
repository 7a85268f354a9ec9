"""The protocols on frozen features by name: which function a suite's `protocols` entry calls, with which of its settings.

`scoring` asks here for the candidates of every bank and set of queries, and for the scores of a chosen one fitted anew.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
from numpy.typing import NDArray

from vet_extensions.evaluation.knn import knn_probe, ml_knn_probe
from vet_extensions.evaluation.linear_grid import Inputs, linear_grid_probe
from vet_extensions.evaluation.logistic import linear_probe
from vet_extensions.evaluation.probes import Candidates, ProbeData
from vet_extensions.evaluation.suite_config import SuiteConfig

REFITTED = ("knn", "ml_knn", "linear", "linear_grid")
"""Protocols whose chosen candidate can be fitted anew on train and val, which needs no validation split any more."""


def frozen_candidates(
    parts: Sequence[ProbeData], config: SuiteConfig, *, protocol: str, task: str, inputs: Inputs | None = None
) -> Candidates | None:
    """The candidates of one protocol; None where the bank has too few rows for any k.

    parts: bank, validation, test. inputs: what the heads of a grid read.
    """
    bank, val, test = parts
    if protocol == "linear":
        grid, n_max = config.linear.c_grid, config.linear.max_iterations
        return linear_probe(bank, val=val, test=test, c_grid=grid, max_iterations=n_max)
    if protocol == "linear_grid":
        settings = asdict(config.linear_grid)
        del settings["n_blocks"]  # they are in the inputs
        return linear_grid_probe(bank, val=val, test=test, inputs=inputs, task=task, **settings)
    if protocol == "ml_knn":
        ks = tuple(k for k in config.knn.ks if k < len(bank.labels))  # a bank image is no neighbour of itself
        return ml_knn_probe(bank, val=val, test=test, ks=ks) if ks else None
    assert protocol == "knn", f"no protocol on frozen features is called {protocol!r}"
    ks = tuple(k for k in config.knn.ks if k <= len(bank.labels))
    if not ks:
        return None
    return knn_probe(bank, val=val, test=test, ks=ks, temperature=config.knn.temperature, task=task)


def refitted_scores(
    parts: Sequence[ProbeData],
    config: SuiteConfig,
    place: int,
    *,
    chosen: Candidates,
    protocol: str,
    task: str,
    inputs: Inputs | None,
) -> NDArray[np.floating]:
    """Test scores [n_test, L] of candidate `place` of `chosen`, fitted anew on train and val with the same hyper-parameters."""
    bank, val, test = parts
    both = ProbeData(*(np.concatenate([getattr(bank, name), getattr(val, name)]) for name in ("features", "labels")))
    value = chosen.values[place]
    if protocol == "linear":
        alone = replace(config, linear=replace(config.linear, c_grid=(value,)))
    elif protocol == "linear_grid":
        alone = replace(config, linear_grid=replace(config.linear_grid, learning_rates=(value,)))
        inputs = inputs and {chosen.reads[place]: inputs[chosen.reads[place]]}
    else:
        alone = replace(config, knn=replace(config.knn, ks=(int(value),)))
    found = frozen_candidates([both, val, test], alone, protocol=protocol, task=task, inputs=inputs)
    assert found is not None, "the bank has grown, so that it cannot have become too small"
    return found.test[0]
