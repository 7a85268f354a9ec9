"""Public data sets and tables of one's own, as the protocols see them: `open_data("chexpert:root=FOLDER")`; see
docs/evaluation_datasets.md. Importing it registers the adapters of labelled images."""

from vet_extensions.evaluation.datasets import cases, generic, medmnist, sourced
from vet_extensions.evaluation.datasets.registry import DATA_SETS, archive_root, open_data

__all__ = ["DATA_SETS", "archive_root", "cases", "generic", "medmnist", "open_data", "sourced"]
