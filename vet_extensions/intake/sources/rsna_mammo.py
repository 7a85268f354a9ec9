"""RSNA Screening Mammography Breast Cancer Detection (Kaggle 2022): train_images/<patient_id>/<image_id>.dcm and train.csv.

Source of the layout: https://www.kaggle.com/competitions/rsna-breast-cancer-detection/data. The test images have no labels
and are not read.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from vet_extensions.intake.labels import NOT_STATED
from vet_extensions.intake.sources.labelling import LabelPolicy, LabelRows, parse_labels
from vet_extensions.intake.sources.listing import (
    HUMAN,
    ImageRows,
    TabledSource,
    decide_each,
    find_file,
    join,
    same_for_all,
)
from vet_extensions.intake.sources.tables import first_view, read_columns
from vet_extensions.intake.sources.vindr_mammo import breast_side, file_suffix
from vet_extensions.schema import View

TABLE = "train.csv"
FLAGS = ("cancer", "biopsy", "invasive", "implant", "difficult_negative_case")
"""Columns of 0 and 1, or False and True."""

SUFFIXES = (".dcm", ".png", ".jpg")

_RECALL = {"0": 1, "1": 0, "2": 0}
_DENSITY = {"A": 0, "B": 0, "C": 1, "D": 1}
_VIEWS = {"CC": View.CC, "ML": View.LATERAL, "LM": View.LATERAL, "LMO": View.OBLIQUE}


class RsnaMammo(TabledSource):
    """54,706 mammograms of 11,913 patients from two sites; no official split but a hidden test set.

    The files are DICOM and their items have facts all the same. Labels come from the facts, and so do the identifiers, which the
    tables know under other names than the headers. View and laterality are the table's, as the labels are (many headers here
    are silent); the header counts where it names none. There is no study: a patient's images are one.

    Labels: the table's flags, per breast (implant at site 1 per patient); `recalled` (BIRADS 0 against 1 and 2) and
    `dense_breast` (density C and D). Site 2 states neither BIRADS nor density.
    """

    name = "RSNA mammography"

    def __init__(self, root: Path, *, uncertain: str = "keep") -> None:
        """root: holds `train_images/` and train.csv. uncertain: no cell is; taken for likeness. Errors: UserError."""
        self.root = root
        self.label_names: tuple[str, ...] = (*FLAGS, "recalled", "dense_breast")
        self._policy = LabelPolicy(uncertain=uncertain)
        find_file(root, [TABLE], dataset=self.name)

    @property
    def label_policy(self) -> dict[str, str]:
        return self._policy.to_json() | {"recalled": "BIRADS 0", "dense_breast": "C and D"}

    def rows(self) -> ImageRows:
        """The rows of train.csv."""
        wanted = ["patient_id", "image_id", "laterality", "view", *FLAGS]
        path = find_file(self.root, [TABLE], dataset=self.name)
        table = read_columns(path, wanted, optional=["BIRADS", "density"])
        n_rows = table.num_rows
        stem = join("train_images/", table["patient_id"], "/", table["image_id"])
        return ImageRows(
            path=join(stem, file_suffix(self.root, stem, SUFFIXES)),
            patient=table["patient_id"],
            study=table["patient_id"],
            image=table["image_id"],
            view=decide_each(_view, table["view"]),
            species=same_for_all(HUMAN, n_rows),
            body_part=same_for_all("BREAST", n_rows),
            laterality=decide_each(breast_side, table["laterality"]),
            labels=LabelRows(self.label_names, self._labels(table)),
        )

    def _labels(self, table: pa.Table) -> np.ndarray:
        """int8 [images, labels]."""
        flags = parse_labels([table[name] for name in FLAGS], FLAGS, policy=self._policy)
        columns = [flags]
        for name, meaning in (("BIRADS", _RECALL), ("density", _DENSITY)):
            # pandas writes 0.0 where a column has empty cells.
            found = decide_each(
                lambda text, meaning=meaning: meaning.get(text.removesuffix(".0").upper(), NOT_STATED), table[name]
            )
            columns.append(np.array(found.values, np.int8)[found.codes][:, None])
        return np.concatenate(columns, axis=1)


def _view(text: str) -> tuple[View, str]:
    return first_view([("view", text)], dataset="RSNA mammography", exceptions=_VIEWS)
