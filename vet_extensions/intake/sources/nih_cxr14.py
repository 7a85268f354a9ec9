"""NIH ChestX-ray14: images_001/images/00000001_000.png ... (or one flat folder), Data_Entry_2017 and two lists of the split.

Source of the layout: Wang et al. 2017 (CVPR), README of the release at nihcc.app.box.com.
"""

import logging
import math
import os
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa

from vet_extensions.errors import UserError
from vet_extensions.intake.labels import NOT_STATED
from vet_extensions.intake.sources.labelling import LabelPolicy, LabelRows, finding_name, finding_names
from vet_extensions.intake.sources.listing import (
    HUMAN,
    ImageRows,
    PerRow,
    TabledSource,
    Texts,
    decide_each,
    find_file,
    rows_of,
    same_for_all,
)
from vet_extensions.intake.sources.tables import column_names, first_view, read_columns
from vet_extensions.schema import Split, View

_LOG = logging.getLogger("vet_extensions")

TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
"""The corrected one before the first."""
LISTS = {"train_val_list.txt": Split.TRAIN, "test_list.txt": Split.TEST}
"""The official split; a validation set is not prescribed, and must be cut from the first by patient."""

FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
    "No Finding",
)

# Two names of the header hold commas and so became four: "OriginalImage[Width,Height]" and "OriginalImagePixelSpacing[x,y]".
_GEOMETRY = ("OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]")


class NihChestXray14(TabledSource):
    """112,120 frontal chest radiographs of 30,805 patients; no laterals and no studies: an image is a study of its own.

    The pictures were brought to 1024 x 1024 pixels whatever their shape, so that the spacing of the original is scaled to the
    picture, along each axis by its own factor.
    """

    name = "ChestX-ray14"

    def __init__(self, root: Path, *, uncertain: str = "keep", blank: str = "absent") -> None:
        """root: holds the table, the lists and the folders of images. blank: for findings that an image's list leaves out.

        uncertain: no label is; taken for likeness. Errors: UserError.
        """
        self.root = root
        self.label_names = finding_names(FINDINGS)
        self._policy = LabelPolicy(uncertain=uncertain, blank=blank)
        find_file(root, TABLES, dataset=self.name)

    @property
    def label_policy(self) -> dict[str, str]:
        return self._policy.to_json()

    def rows(self) -> ImageRows:
        """The table's rows."""
        path = find_file(self.root, TABLES, dataset=self.name)
        geometry = _GEOMETRY if all(column_names(path).count(name) == 1 for name in _GEOMETRY) else ()
        wanted = ["Image Index", "Patient ID", "Finding Labels", "View Position"]
        table = read_columns(path, wanted, optional=geometry)
        name = table["Image Index"]
        paths = self._paths(name)
        return ImageRows(
            path=paths,
            patient=table["Patient ID"],
            study=name,
            image=name,
            view=decide_each(_view, table["View Position"]),
            species=same_for_all(HUMAN, table.num_rows),
            body_part=same_for_all("CHEST", table.num_rows),
            spacing_mm=self._spacing(table, paths) if geometry else None,
            split=self._split(name),
            labels=self._labels(table["Finding Labels"]),
        )

    def _paths(self, names: Texts) -> pa.Array:
        """Where each image lies: the release has twelve folders, copies have one. What is not found is expected in `images`."""
        folders = ["images", *sorted(f"{p.name}/images" for p in self.root.glob("images_*")), ""]
        folders += sorted(p.name for p in self.root.glob("images_*"))
        folder_of: dict[str, str] = {}
        for folder in reversed(folders):
            if (self.root / folder).is_dir():
                with os.scandir(self.root / folder) as entries:
                    prefix = f"{folder}/" if folder else ""
                    folder_of.update((entry.name, prefix) for entry in entries if entry.name.endswith(".png"))
        return pa.array([f"{folder_of.get(name, 'images/')}{name}" for name in names.to_pylist()], pa.string())

    def _spacing(self, table: pa.Table, paths: pa.Array) -> PerRow[tuple[float, float] | None] | None:
        """Of the pictures as they are on the disk; all have the size of the first that is there."""
        some = (self.root / path for path in paths.slice(0, 100).to_pylist())
        size = next((size for size in map(_png_size, some) if size is not None), None)
        if size is None:
            return None
        width, height = size

        def scaled(columns: str, rows: str, x: str, y: str) -> tuple[float, float] | None:
            try:
                spacing = float(y) * float(rows) / height, float(x) * float(columns) / width
            except ValueError:
                return None
            return spacing if all(math.isfinite(v) and v > 0 for v in spacing) else None

        return decide_each(scaled, *(table[name] for name in _GEOMETRY))

    def _split(self, names: Texts) -> PerRow[Split | None] | None:
        """None without the lists; an image on neither has no split."""
        lists = {self.root / file: split for file, split in LISTS.items() if (self.root / file).is_file()}
        if not lists:
            _LOG.info("%s: no list of the official split beside the table", self.name)
            return None
        codes = np.zeros(len(names), np.int8)
        for code, path in enumerate(lists, start=1):
            listed = pa.array(path.read_text(encoding="utf-8").split(), pa.string())
            codes[rows_of(names, listed) >= 0] = code
        return PerRow(codes, (None, *lists.values()))

    def _labels(self, column: Texts) -> LabelRows:
        place = {name: number for number, name in enumerate(self.label_names)}

        def values_of(text: str) -> np.ndarray:
            values = np.full(len(place), NOT_STATED, np.int8)
            for name in map(finding_name, text.split("|")):
                if name not in place:
                    raise UserError(
                        "A cell of 'Finding Labels' in ChestX-ray14's table holds another word than "
                        f"{', '.join(FINDINGS)}, with '|' between them. Use the table as it was downloaded."
                    )
                values[place[name]] = 1
            return self._policy.apply(values)

        each = decide_each(values_of, column)
        return LabelRows(
            self.label_names, np.array(each.values, np.int8).reshape(-1, len(place)), each.codes.astype(np.int64)
        )


def _png_size(path: Path) -> tuple[int, int] | None:
    """(width, height) from a PNG's header chunk, None where there is none (PNG specification, 11.2.1)."""
    try:
        with path.open("rb") as file:
            start = file.read(24)
    except OSError:
        return None
    if len(start) < 24 or start[12:16] != b"IHDR":
        return None
    width, height = struct.unpack(">II", start[16:24])
    return (width, height) if width and height else None


def _view(position: str) -> tuple[View, str]:
    return first_view([("View Position", position)], dataset="ChestX-ray14")
