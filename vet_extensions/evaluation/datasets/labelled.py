"""Importing this registers the adapters of labelled images; `registry.open_data` does so once a data set is asked for by name."""

from vet_extensions.evaluation.datasets import cases, generic, labelled_volumes, medmnist, sourced
from vet_extensions.evaluation.datasets.registry import DATA_SETS

__all__ = ["DATA_SETS", "cases", "generic", "labelled_volumes", "medmnist", "sourced"]
