"""CheXpert v1.0 and v1.0-small (Stanford): train/patient00001/study1/view1_frontal.jpg beside train.csv, valid.csv and others.

Source of the layout: arXiv 1901.07031; of the test set: the CheXlocalize release.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from vet_extensions.errors import UserError
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
    Texts,
    decide_each,
    find_file,
    join,
    look_for,
    same_for_all,
    split_of,
)
from vet_extensions.intake.sources.tables import first_view, read_columns
from vet_extensions.intake.views import UNDECIDED
from vet_extensions.schema import View

TABLES: tuple[tuple[str, ...], ...] = (
    ("train.csv",),
    ("valid.csv",),
    ("test_labels.csv", "groundtruth.csv", "test.csv"),
)
"""Names of each split's table; any one of the three must be there."""

# Before it stands the release's own folder, "CheXpert-v1.0-small/" or nothing.
_PATH = (
    r"(?:^|/)(?P<split>train|valid|test)/(?P<patient>patient[0-9]+)/(?P<study>study[0-9]+)/"
    r"(?P<file>view[0-9]+_(?P<kind>[a-z]+)\.[a-z]+)$"
)


class CheXpert(TabledSource):
    """224,316 chest radiographs of 65,240 patients; four studies in five hold one image."""

    name = "CheXpert"

    def __init__(self, root: Path, *, uncertain: str = "keep", blank: str = "missing") -> None:
        """root: holds the tables and the folders `train`, `valid`, `test`, as far as they were downloaded. Errors: UserError."""
        self.root = root
        self.label_names = finding_names(CHEXPERT_FINDINGS)
        self._policy = LabelPolicy(uncertain=uncertain, blank=blank)
        self._tables()

    @property
    def label_policy(self) -> dict[str, str]:
        return self._policy.to_json()

    def rows(self) -> ImageRows:
        """The rows of all splits' tables."""
        table = pa.concat_tables(
            read_columns(path, ["Path", *CHEXPERT_FINDINGS], optional=["Frontal/Lateral", "AP/PA"])
            for path in self._tables()
        )
        split, patient, study, file, kind = self._parts_of(table["Path"])
        path = join(split, "/", patient, "/", study, "/", file)
        labels = parse_labels([table[name] for name in CHEXPERT_FINDINGS], CHEXPERT_FINDINGS, policy=self._policy)
        return ImageRows(
            path=path,
            patient=patient,
            study=join(patient, "/", study),
            image=path,
            view=decide_each(_view, table["Frontal/Lateral"], table["AP/PA"], kind),
            species=same_for_all(HUMAN, table.num_rows),
            body_part=same_for_all("CHEST", table.num_rows),
            split=decide_each(split_of, split),
            labels=LabelRows(self.label_names, labels),
        )

    def _tables(self) -> list[Path]:
        """Those that are there. Errors: UserError where none is."""
        found = [path for names in TABLES if (path := look_for(self.root, names)) is not None]
        return found or [find_file(self.root, [name for names in TABLES for name in names], dataset=self.name)]

    def _parts_of(self, path: Texts) -> list[Texts]:
        """split, patient, study, file name and the file name's word for the view."""
        parts = pc.extract_regex(path, _PATH)
        if parts.null_count:
            raise UserError(
                f"{parts.null_count} of {len(path)} paths in CheXpert's tables are not of the form "
                "train/patient00001/study1/view1_frontal.jpg. Use the tables as they were downloaded."
            )
        return [pc.struct_field(parts, name) for name in ("split", "patient", "study", "file", "kind")]


def _view(side: str, position: str, kind: str) -> tuple[View, str]:
    """The test tables have no columns for the view: there the file name tells laterals, and AP or PA stays open.

    17 images of the training set are called frontal and LL or RL at once: nothing is concluded.
    """
    if side == "Frontal":
        view, rule = first_view([("AP/PA", position)], dataset="CheXpert")
        return (view, rule) if view in (View.AP, View.PA) else (View.UNKNOWN, UNDECIDED)
    if side == "Lateral":
        return first_view([("AP/PA", position), ("Frontal/Lateral", side)], dataset="CheXpert")
    return first_view([("file name", kind)], dataset="CheXpert")
