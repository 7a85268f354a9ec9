"""PadChest (BIMCV): 16-bit PNG in the folders 0 to 54, and one table with, among much else, the findings as a written list.

Source of the layout: arXiv 1901.07441. The columns of reports and dates are not read.
"""

import ast
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vet_extensions.errors import UserError
from vet_extensions.intake.labels import NOT_STATED
from vet_extensions.intake.sources.labelling import BLANK, LabelPolicy, LabelRows, finding_names
from vet_extensions.intake.sources.listing import (
    HUMAN,
    ImageRows,
    TabledSource,
    Texts,
    decide_each,
    find_file,
    join,
    own_identifiers,
    own_patients,
    same_for_all,
)
from vet_extensions.intake.sources.tables import first_view, read_columns
from vet_extensions.intake.views import UNDECIDED
from vet_extensions.schema import View

_LOG = logging.getLogger("vet_extensions")

TABLES = ("PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv",)

META_LABELS = ("exclude", "suboptimal_study", "unchanged")
"""Labels that speak of the picture or of its comparison, not of a finding; kept, so that one can filter by them."""

_N_TRIED = 200


class PadChest(TabledSource):
    """160,861 chest radiographs of 67,000 patients; 174 findings and 19 diagnoses; no official split, nothing uncertain."""

    name = "PadChest"

    def __init__(self, root: Path, *, blank: str = "absent") -> None:
        """root: holds the table and the folders 0 to 54, unzipped, or `images/` that holds them.

        blank: whether a finding that an image's list leaves out is absent or missing. An image without a list has no labels.
        Reads the lists, since the findings are those that occur in them. Errors: UserError.
        """
        self.root = root
        self._policy = LabelPolicy(blank=blank)
        table = read_columns(self._table(), ["Labels"])
        self.label_names = _all_names(_lists(table["Labels"])[0])

    @property
    def label_policy(self) -> dict[str, str]:
        return {"blank": self._policy.blank, "meta_labels": ",".join(META_LABELS)}

    def rows(self) -> ImageRows:
        """The table's rows. Its first column has no name; where Projection does not tell, ViewPosition_DICOM may."""
        wanted = ["ImageID", "ImageDir", "StudyID", "PatientID", "Projection", "Labels"]
        table = read_columns(self._table(), wanted, optional=["ViewPosition_DICOM"])
        image = table["ImageID"]
        study = own_identifiers(table["StudyID"], image)
        return ImageRows(
            path=self._paths(table["ImageDir"], image),
            patient=own_patients(table["PatientID"], study),
            study=study,
            image=image,
            view=decide_each(_view, table["Projection"], table["ViewPosition_DICOM"]),
            species=same_for_all(HUMAN, table.num_rows),
            body_part=decide_each(lambda projection: "" if _is_excluded(projection) else "CHEST", table["Projection"]),
            labels=self._labels(table["Labels"]),
        )

    def _table(self) -> Path:
        return find_file(self.root, TABLES, dataset=self.name)

    def _paths(self, folder: Texts, image: Texts) -> Texts:
        """As unzipped beside the table, in `images/`, or all in one folder as some mirrors have it: whichever holds a picture."""
        image = pc.if_else(pc.equal(image, ""), None, image)
        choices = [join(folder, "/", image), join("images/", folder, "/", image), join("images/", image), image]
        for paths in choices:
            tried = pc.drop_null(paths)[:_N_TRIED].to_pylist()
            if any((self.root / path).is_file() for path in tried):
                return pc.fill_null(paths, "")
        return pc.fill_null(choices[0], "")

    def _labels(self, column: Texts) -> LabelRows:
        lists, codes = _lists(column)
        place = {name: number for number, name in enumerate(self.label_names)}
        values = np.full((len(lists), len(place)), NOT_STATED, np.int8)
        for row, names in enumerate(lists):
            if names is not None:
                values[row] = BLANK[self._policy.blank]
                values[row, [place[name] for name in names]] = 1
        n_without = int(np.isin(codes, [row for row, names in enumerate(lists) if names is None]).sum())
        _LOG.info("%s: %d images have no list of labels that can be read", self.name, n_without)
        return LabelRows(self.label_names, values, codes)


def _lists(column: Texts) -> tuple[list[tuple[str, ...] | None], np.ndarray]:
    """The distinct lists, None for what is none, and for each row the number of its list, int64 [rows]."""
    combined = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    encoded = combined.dictionary_encode()
    return [_parse_list(text) for text in encoded.dictionary.to_pylist()], encoded.indices.to_numpy().astype(np.int64)


def _parse_list(text: str) -> tuple[str, ...] | None:
    """The findings in "['pneumonia', ' pleural effusion', '']" (a Python literal, blanks and empty entries occur)."""
    try:
        entries = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        return None
    names = tuple(name for name in finding_names(entries) if name)
    return names or None


def _all_names(lists: list[tuple[str, ...] | None]) -> tuple[str, ...]:
    names = {name for each in lists if each is not None for name in each}
    if not names:
        raise UserError("PadChest: the column 'Labels' holds no list of findings. Use the table as it was downloaded.")
    return tuple(sorted(names))


def _is_excluded(projection: str) -> bool:
    return projection.upper() == "EXCLUDE"


def _view(projection: str, position: str) -> tuple[View, str]:
    """EXCLUDE marks what is no usable chest radiograph: its header's view is not believed either."""
    if _is_excluded(projection):
        return View.UNKNOWN, UNDECIDED
    return first_view([("Projection", projection), ("ViewPosition_DICOM", position)], dataset="PadChest")
