"""Open-I, the Indiana University chest radiographs: the National Library of Medicine's XML reports and PNGs, or Kaggle's re-pack.

Source of the layout: https://openi.nlm.nih.gov (NLMCXR_reports: ecgen-radiology/<n>.xml; NLMCXR_png) and the re-pack
"chest-xrays-indiana-university" (indiana_projections.csv, indiana_reports.csv, images/images_normalized).
"""

import logging
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from vet_extensions.intake.labels import NOT_STATED
from vet_extensions.intake.sources.labelling import LabelPolicy, LabelRows
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
)
from vet_extensions.intake.sources.tables import first_view, read_columns
from vet_extensions.schema import View

_LOG = logging.getLogger("vet_extensions")

PROJECTIONS, REPORTS = "indiana_projections.csv", "indiana_reports.csv"
XML_FOLDERS = ("ecgen-radiology", "NLMCXR_reports/ecgen-radiology", "reports/ecgen-radiology")
IMAGE_FOLDERS = ("images/images_normalized", "images_normalized", "images", "NLMCXR_png", "png", "")

HEADINGS = {
    "normal": "no_finding",
    "cardiomegaly": "cardiomegaly",
    "pulmonary atelectasis": "atelectasis",
    "pleural effusion": "effusion",
    "pneumothorax": "pneumothorax",
    "pneumonia": "pneumonia",
    "pulmonary edema": "edema",
    "pulmonary emphysema": "emphysema",
    "emphysema": "emphysema",
    "pulmonary fibrosis": "fibrosis",
    "consolidation": "consolidation",
    "infiltrate": "infiltration",
    "opacity": "opacity",
    "nodule": "nodule",
    "mass": "mass",
    "granuloma": "granuloma",
    "calcified granuloma": "calcified_granuloma",
    "hernia, hiatal": "hernia",
    "fractures, bone": "fracture",
}
"""The heading of an indexing term, before its first "/", to a finding. Other headings are not read."""

_NOT_INDEXED = ("no indexing", "")
_DOUBTFUL = "borderline"
"""A qualifier that stands behind its heading: Cardiomegaly/borderline."""


class OpenI(TabledSource):
    """7,470 chest radiographs of 3,955 reports, most a frontal and a lateral; no official split.

    A report is a study, and a patient: whether two reports are of one person is not published. "Frontal" does not tell PA from
    AP, so such a view stays UNKNOWN. The XML reports do not say which image is the lateral: there every view stays UNKNOWN.
    """

    name = "Open-I"

    def __init__(self, root: Path, *, uncertain: str = "keep", blank: str = "absent") -> None:
        """root: holds the re-pack's two tables, or the folder `ecgen-radiology`, and the images.

        uncertain: for "borderline" findings. blank: for findings that are not among a report's indexing terms; a report that
        was not indexed has no labels. Errors: UserError.
        """
        self.root = root
        self.label_names = tuple(dict.fromkeys(HEADINGS.values()))
        self._policy = LabelPolicy(uncertain=uncertain, blank=blank)
        if self._xml_folder() is None:
            for name in (PROJECTIONS, REPORTS):
                find_file(root, [name], dataset=self.name)

    @property
    def label_policy(self) -> dict[str, str]:
        return self._policy.to_json() | {"from": "indexing terms (MeSH major)"}

    def rows(self) -> ImageRows:
        """One row an image, of the re-pack where its tables are there."""
        if (self.root / PROJECTIONS).is_file() or self._xml_folder() is None:
            images = read_columns(self.root / PROJECTIONS, ["uid", "filename", "projection"])
            reports = read_columns(self.root / REPORTS, ["uid", "MeSH"])
            terms = [text.split(";") for text in reports["MeSH"].to_pylist()]
            listed: Texts = reports["uid"]
        else:
            images, listed, terms = self._from_xml()
        n_rows = images.num_rows
        path = join(self._image_folder(images["filename"]), images["filename"])
        return ImageRows(
            path=path,
            patient=images["uid"],
            study=images["uid"],
            image=images["filename"],
            view=decide_each(_view, images["projection"]),
            species=same_for_all(HUMAN, n_rows),
            body_part=same_for_all("CHEST", n_rows),
            labels=self._labels(images["uid"], listed, terms),
        )

    def _labels(self, uid: Texts, listed: Texts, terms: Sequence[Sequence[str]]) -> LabelRows:
        place = {name: column for column, name in enumerate(self.label_names)}
        values = np.full((len(terms), len(place)), NOT_STATED, np.int8)
        is_indexed = np.zeros(len(terms) + 1, bool)  # the last for images without a report
        for row, texts in enumerate(terms):
            for text in texts:
                heading, *qualifiers = [part.strip() for part in text.lower().split("/")]
                is_indexed[row] |= heading not in _NOT_INDEXED
                if heading in HEADINGS:
                    column = place[HEADINGS[heading]]
                    values[row, column] = max(values[row, column], -1 if _DOUBTFUL in qualifiers else 1)
        row_of = rows_of(uid, listed)
        row_of[~is_indexed[row_of]] = -1
        return LabelRows(self.label_names, self._policy.apply(values), row_of)

    def _xml_folder(self) -> Path | None:
        return next((self.root / name for name in XML_FOLDERS if (self.root / name).is_dir()), None)

    def _from_xml(self) -> tuple[pa.Table, Texts, list[list[str]]]:
        """Images (uid, filename, projection ""), the reports' uids, and the indexing terms of each report."""
        folder = self._xml_folder()
        assert folder is not None, "rows() looked for it"
        rows: list[tuple[str, str]] = []
        uids, terms, n_unreadable = [], [], 0
        for file in sorted(folder.glob("[!.]*.xml")):
            try:
                report = ET.parse(file).getroot()
            except (ET.ParseError, OSError):
                n_unreadable += 1
                continue
            uids.append(file.stem)
            terms.append([(term.text or "").strip() for term in report.iter("major")])
            rows += [
                (file.stem, f"{image.get('id', '')}.png") for image in report.iter("parentImage") if image.get("id")
            ]
        _LOG.info("%s: %d reports, %d that cannot be read", self.name, len(uids) + n_unreadable, n_unreadable)
        images = {
            "uid": pa.chunked_array([pa.array([uid for uid, _ in rows], pa.string())]),
            "filename": pa.chunked_array([pa.array([name for _, name in rows], pa.string())]),
            "projection": pa.chunked_array([pa.repeat("", len(rows))]),
        }
        return pa.table(images), pa.array(uids, pa.string()), terms

    def _image_folder(self, names: Texts) -> str:
        """Where the first images lie that are there, with "/" behind; the re-pack's folder where none is."""
        some = names.slice(0, 100).to_pylist()
        for folder in IMAGE_FOLDERS:
            if any((self.root / folder / name).is_file() for name in some if name):
                return f"{folder}/" if folder else ""
        return f"{IMAGE_FOLDERS[0]}/"


def _view(projection: str) -> tuple[View, str]:
    return first_view([("projection", projection)], dataset="Open-I")
