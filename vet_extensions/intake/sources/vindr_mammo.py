"""VinDr-Mammo 1.0.0 (PhysioNet): images/<study_id>/<image_id>.dicom and two tables of annotations.

Source of the layout: https://physionet.org/content/vindr-mammo; Nguyen et al. 2023, Sci Data 10:277.
"""

import ast
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from vet_extensions.errors import UserError
from vet_extensions.intake.labels import NOT_STATED
from vet_extensions.intake.sources.labelling import LabelPolicy, LabelRows, finding_name, finding_names
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
from vet_extensions.intake.sources.tables import first_view, read_columns
from vet_extensions.intake.views import decide_laterality
from vet_extensions.schema import View

BREASTS, FINDINGS = "breast-level_annotations.csv", "finding_annotations.csv"
CATEGORIES = (
    "Mass",
    "Suspicious Calcification",
    "Asymmetry",
    "Focal Asymmetry",
    "Global Asymmetry",
    "Architectural Distortion",
    "Skin Thickening",
    "Skin Retraction",
    "Nipple Retraction",
    "Suspicious Lymph Node",
    "No Finding",
)
SUFFIXES = (".dicom", ".dcm", ".png", ".jpg")
"""As published, and as mirrors convert it."""

_OF_BREAST = ("suspicious_birads", "dense_breast")
_BIRADS = {"1": 0, "2": 0, "3": -1, "4": 1, "5": 1}
_DENSITY = {"A": 0, "B": 0, "C": 1, "D": 1}


class VinDrMammo(TabledSource):
    """20,000 mammograms of 5,000 exams, four of each: CC and MLO of both breasts.

    The files are DICOM and their items have facts all the same. Labels and split come from the facts, and so do the
    identifiers, since no header repeats the tables' names. View and laterality are the tables', as the labels are; the header
    counts where they are silent. An exam is a patient: whether two exams are of one person is not published.

    Labels: `suspicious_birads` (BI-RADS 4 and 5 present, 1 and 2 absent, 3 uncertain), `dense_breast` (density C and D), and
    whether any finding of a category was marked in the image.
    """

    name = "VinDr-Mammo"

    def __init__(self, root: Path, *, uncertain: str = "keep", blank: str = "absent") -> None:
        """root: holds `images/` and the tables. blank: for categories that are not marked in an image. Errors: UserError."""
        self.root = root
        self.label_names = (*_OF_BREAST, *finding_names(CATEGORIES))
        self._policy = LabelPolicy(uncertain=uncertain, blank=blank)
        for name in (BREASTS, FINDINGS):
            find_file(root, [name], dataset=self.name)

    @property
    def label_policy(self) -> dict[str, str]:
        return self._policy.to_json() | {"suspicious_birads": "4 and 5; 3 is uncertain", "dense_breast": "C and D"}

    def rows(self) -> ImageRows:
        """The rows of the table of breasts, one an image."""
        wanted = ["study_id", "image_id", "laterality", "view_position", "breast_birads", "breast_density", "split"]
        table = read_columns(find_file(self.root, [BREASTS], dataset=self.name), wanted)
        n_rows = table.num_rows
        stem = join("images/", table["study_id"], "/", table["image_id"])
        return ImageRows(
            path=join(stem, file_suffix(self.root, stem, SUFFIXES)),
            patient=table["study_id"],
            study=table["study_id"],
            image=table["image_id"],
            view=decide_each(_view, table["view_position"]),
            species=same_for_all(HUMAN, n_rows),
            body_part=same_for_all("BREAST", n_rows),
            laterality=decide_each(breast_side, table["laterality"]),
            split=decide_each(split_of, table["split"]),
            labels=LabelRows(self.label_names, self._labels(table)),
        )

    def _labels(self, table: pa.Table) -> np.ndarray:
        """int8 [images, labels]."""
        values = np.full((table.num_rows, len(self.label_names)), NOT_STATED, np.int8)
        for column, (name, meaning) in enumerate((("breast_birads", _BIRADS), ("breast_density", _DENSITY))):
            # "BI-RADS 4" and "DENSITY C": the last letter is the category.
            found = decide_each(lambda text, meaning=meaning: meaning.get(text[-1:].upper(), NOT_STATED), table[name])
            values[:, column] = np.array(found.values, np.int8)[found.codes]
        findings = read_columns(find_file(self.root, [FINDINGS], dataset=self.name), ["image_id", "finding_categories"])
        row_of = rows_of(findings["image_id"], table["image_id"])
        marked = decide_each(_categories, findings["finding_categories"])
        place = {name: column for column, name in enumerate(self.label_names)}
        is_listed = np.zeros(table.num_rows, bool)
        is_listed[row_of[row_of >= 0]] = True
        for number, row in enumerate(row_of.tolist()):
            if row >= 0:
                values[row, [place[name] for name in marked[number]]] = 1
        # Blank means "not marked" only where someone looked: neither for BI-RADS nor for an image that the table lacks.
        decided = self._policy.apply(values)
        decided[:, : len(_OF_BREAST)] = LabelPolicy(self._policy.uncertain).apply(values[:, : len(_OF_BREAST)])
        decided[~is_listed, len(_OF_BREAST) :] = NOT_STATED
        return decided


def file_suffix(root: Path, stems: Texts, suffixes: Sequence[str]) -> str:
    """The first of `suffixes` with which one of the first hundred stems is a file below `root`; `suffixes[0]` where none is."""
    some = stems.slice(0, 100).to_pylist()
    return next((s for s in suffixes if any((root / f"{stem}{s}").is_file() for stem in some)), suffixes[0])


def breast_side(text: str) -> str:
    """L or R, "" for anything else."""
    side = decide_laterality(image_laterality=text, laterality="")
    return side if side in ("L", "R") else ""


def _view(position: str) -> tuple[View, str]:
    return first_view([("view_position", position)], dataset="VinDr-Mammo", exceptions={"CC": View.CC})


def _categories(text: str) -> tuple[str, ...]:
    """The findings in a cell such as "['Mass', 'Skin Thickening']"."""
    try:
        names = ast.literal_eval(text) if text else []
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"A cell of finding_categories in VinDr-Mammo's {FINDINGS} is no list of names. "
            "Use the table as it is published."
        )
    known = finding_names(CATEGORIES)
    return tuple(found for found in map(finding_name, names) if found in known)
