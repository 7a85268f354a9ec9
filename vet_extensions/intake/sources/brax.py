"""BRAX 1.1.0 (PhysioNet): images/id_<PatientID>/Study_<UID>/Series_<UID>/image-<UID>.png and one spreadsheet of everything.

Source of the layout: https://physionet.org/content/brax.
"""

from pathlib import Path

from vet_extensions.intake.sources.labelling import (
    CHEXPERT_FINDINGS,
    LabelPolicy,
    LabelRows,
    finding_names,
    parse_labels,
)
from vet_extensions.intake.sources.listing import (
    HUMAN,
    ImageRows,
    TabledSource,
    decide_each,
    find_file,
    own_identifiers,
    own_patients,
    same_for_all,
)
from vet_extensions.intake.sources.tables import HUMAN_DECUBITUS, first_view, read_columns
from vet_extensions.schema import View

SPREADSHEETS = ("master_spreadsheet_update.csv", "master_spreadsheet.csv")
"""The corrected one before the first."""


class Brax(TabledSource):
    """40,967 chest radiographs of 24,959 studies; no official split."""

    name = "BRAX"

    def __init__(self, root: Path, *, uncertain: str = "keep", blank: str = "missing") -> None:
        """root: holds `images/` and the spreadsheet. Errors: UserError."""
        self.root = root
        self.label_names = finding_names(CHEXPERT_FINDINGS)
        self._policy = LabelPolicy(uncertain=uncertain, blank=blank)
        find_file(root, SPREADSHEETS, dataset=self.name)

    @property
    def label_policy(self) -> dict[str, str]:
        return self._policy.to_json()

    def rows(self) -> ImageRows:
        """The spreadsheet's rows. A row without an accession number is a study of its own."""
        wanted = ["PngPath", "PatientID", "AccessionNumber", *CHEXPERT_FINDINGS]
        table = read_columns(find_file(self.root, SPREADSHEETS, dataset=self.name), wanted, optional=["ViewPosition"])
        path = table["PngPath"]
        study = own_identifiers(table["AccessionNumber"], path)
        labels = parse_labels([table[name] for name in CHEXPERT_FINDINGS], CHEXPERT_FINDINGS, policy=self._policy)
        return ImageRows(
            path=path,
            patient=own_patients(table["PatientID"], study),
            study=study,
            image=path,
            view=decide_each(_view, table["ViewPosition"]),
            species=same_for_all(HUMAN, table.num_rows),
            body_part=same_for_all("CHEST", table.num_rows),
            labels=LabelRows(self.label_names, labels),
        )


def _view(position: str) -> tuple[View, str]:
    return first_view([("ViewPosition", position)], dataset="BRAX", exceptions=HUMAN_DECUBITUS)
