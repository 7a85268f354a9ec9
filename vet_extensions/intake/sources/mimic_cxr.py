"""MIMIC-CXR-JPG 2.0.0 and 2.1.0 as PhysioNet gives it: files/p10/p10000032/s50414267/<dicom_id>.jpg beside its tables.

Source of the layout: https://physionet.org/content/mimic-cxr-jpg. The reports are another data set and are not read.
"""

from pathlib import Path

import pyarrow.compute as pc

from vet_extensions.errors import UserError
from vet_extensions.intake.sources.labelling import (
    CHEXPERT_FINDINGS,
    LabelPolicy,
    LabelRows,
    finding_name,
    finding_names,
    nearest,
    parse_labels,
)
from vet_extensions.intake.sources.listing import (
    HUMAN,
    ImageRows,
    TabledSource,
    Texts,
    decide_each,
    find_file,
    join,
    rows_of,
    same_for_all,
    split_of,
)
from vet_extensions.intake.sources.tables import HUMAN_DECUBITUS, column_names, first_view, read_columns
from vet_extensions.schema import View

LABELLERS: dict[str, tuple[str, ...]] = {
    "chexpert": ("mimic-cxr-2.0.0-chexpert.csv", "mimic-cxr-2.1.0-chexpert.csv"),
    "negbio": ("mimic-cxr-2.0.0-negbio.csv", "mimic-cxr-2.1.0-negbio.csv"),
    "radiologist": ("mimic-cxr-2.1.0-test-set-labeled.csv",),
}
"""Who labelled -> the table. The radiologist read 687 studies of the test split only."""

_METADATA = ("mimic-cxr-2.0.0-metadata.csv", "mimic-cxr-2.1.0-metadata.csv")
_SPLIT = ("mimic-cxr-2.0.0-split.csv", "mimic-cxr-2.1.0-split.csv")
_VIEW_COLUMNS = ("ViewPosition", "ViewCodeSequence_CodeMeaning")


class MimicCxr(TabledSource):
    """377,110 chest radiographs of 227,835 studies; labels are given by study, so that all its images share them."""

    name = "MIMIC-CXR-JPG"

    def __init__(
        self, root: Path, *, uncertain: str = "keep", blank: str = "missing", labels: str = "chexpert"
    ) -> None:
        """root: holds `files/` and the tables, plain or .gz. labels: a key of `LABELLERS`. Errors: UserError."""
        if labels not in LABELLERS:
            raise UserError(
                f"'{labels}' is no labeller of {self.name}.{nearest(labels, LABELLERS)} Allowed: {', '.join(LABELLERS)}. "
                "Give one of these, or leave it out for the first."
            )
        self.root = root
        self.label_names = finding_names(CHEXPERT_FINDINGS)
        self._policy = LabelPolicy(uncertain=uncertain, blank=blank)
        self._labeller = labels
        for names in (_METADATA, _SPLIT, LABELLERS[labels]):
            find_file(root, names, dataset=self.name)

    @property
    def label_policy(self) -> dict[str, str]:
        return {**self._policy.to_json(), "labeller": self._labeller}

    def rows(self) -> ImageRows:
        """The rows of the metadata table, with the split of each image and the labels of its study."""
        identifiers = ["dicom_id", "subject_id", "study_id"]
        metadata = find_file(self.root, _METADATA, dataset=self.name)
        table = read_columns(metadata, identifiers, optional=_VIEW_COLUMNS)
        image, patient, study = (table[name] for name in identifiers)
        return ImageRows(
            path=_paths(image, patient, study),
            patient=patient,
            study=study,
            image=image,
            view=decide_each(self._view, *(table[name] for name in _VIEW_COLUMNS)),
            species=same_for_all(HUMAN, table.num_rows),
            body_part=same_for_all("CHEST", table.num_rows),
            split=decide_each(split_of, self._splits(image)),
            labels=self._labels(study),
        )

    def _view(self, *cells: str) -> tuple[View, str]:
        return first_view(list(zip(_VIEW_COLUMNS, cells)), dataset="MIMIC-CXR", exceptions=HUMAN_DECUBITUS)

    def _splits(self, image: Texts) -> Texts:
        """The split's word of each image, "" where the table does not list it."""
        table = read_columns(find_file(self.root, _SPLIT, dataset=self.name), ["dicom_id", "split"])
        found = pc.index_in(image, value_set=table["dicom_id"].combine_chunks())
        return pc.fill_null(table["split"].take(found), "")

    def _labels(self, study: Texts) -> LabelRows:
        """The 2.1.0 test set calls Lung Opacity "Airspace Opacity", and its columns stand in another order."""
        path = find_file(self.root, LABELLERS[self._labeller], dataset=self.name)
        columns = {finding_name(name): name for name in column_names(path)}
        names = tuple(name for name in self.label_names if name in columns)
        if not names:
            raise UserError(f"The table '{path.name}' holds none of the findings {', '.join(CHEXPERT_FINDINGS)}.")
        table = read_columns(path, ["study_id", *(columns[name] for name in names)])
        values = parse_labels([table[columns[name]] for name in names], names, policy=self._policy)
        return LabelRows(names, values, rows_of(study, table["study_id"]))


def _paths(image: Texts, patient: Texts, study: Texts) -> Texts:
    """The folder above the patient's is called after the first two digits of the number."""
    return join("files/p", pc.utf8_slice_codeunits(patient, 0, 2), "/p", patient, "/s", study, "/", image, ".jpg")
