"""Public data sets and tables of one's own, as the protocols see them: `open_data("chexpert:root=FOLDER")`; see
docs/evaluation_datasets.md."""

from vet_extensions.evaluation.datasets.registry import DATA_SETS, archive_root, open_data

__all__ = ["DATA_SETS", "archive_root", "open_data"]
