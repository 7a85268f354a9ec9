"""ReXGradient-160K (Hugging Face, rajpurkarlab): PNG below deid_png/ and one JSON file a split that lists each study's images.

Source of the layout: the data set's card. The reports in the same JSON files are dropped while they are parsed.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vet_extensions.errors import UserError
from vet_extensions.intake.anatomy import decide_body_part
from vet_extensions.intake.sources.listing import (
    HUMAN,
    ImageRows,
    TabledSource,
    decide_each,
    find_file,
    same_for_all,
    split_of,
)
from vet_extensions.intake.sources.tables import first_view
from vet_extensions.schema import View

SPLITS = ("train", "valid", "test")

_FOLDERS = ("metadata", "download/metadata", ".")
_LISTS = ("ImagePath", "ImageViewPosition", "ImageBodyPart")
_COLUMNS = ("study", "split", "path", "view", "body_part")
_PATH = r"^(?:\.\./)?(?P<path>deid_png/(?P<patient>[^/]+)/.+)$"


class ReXGradient(TabledSource):
    """273,004 chest radiographs of 160,000 studies, with official splits; no labels, only reports, which are not read."""

    name = "ReXGradient-160K"

    def __init__(self, root: Path) -> None:
        """root: holds `deid_png/` and `metadata/`. Errors: UserError."""
        self.root = root
        self._files()

    @property
    def label_policy(self) -> dict[str, str]:
        return {}

    def rows(self) -> ImageRows:
        """The images of all splits that are there. Paths in the JSON files count from `metadata/` ("../deid_png/...")."""
        tables = [_read_split(path, split) for split, path in self._files().items()]
        table = pa.concat_tables(tables)
        parts = pc.extract_regex(table["path"], _PATH)
        if parts.null_count:
            raise UserError(
                f"{parts.null_count} of {len(parts)} paths in the tables of {self.name} are not of the form "
                "../deid_png/<PatientID>/<AccessionNumber>/... Use the tables as they were downloaded."
            )
        path = pc.struct_field(parts, "path")
        return ImageRows(
            path=path,
            patient=pc.struct_field(parts, "patient"),
            study=table["study"],
            image=path,
            view=decide_each(_view, table["view"]),
            species=same_for_all(HUMAN, table.num_rows),
            body_part=decide_each(lambda text: decide_body_part(examined=text) or "CHEST", table["body_part"]),
            split=decide_each(split_of, table["split"]),
        )

    def _files(self) -> dict[str, Path]:
        """split -> its JSON file. Errors: UserError where there is none."""
        found: dict[str, Path] = {}
        for split in SPLITS:
            for folder in _FOLDERS:
                path = self.root / folder / f"{split}_metadata_view_position.json"
                if path.is_file():
                    found.setdefault(split, path)
        if not found:
            expected = [f"metadata/{split}_metadata_view_position.json" for split in SPLITS]
            find_file(self.root, expected, dataset=self.name)
        return found


def _view(position: str) -> tuple[View, str]:
    return first_view([("ImageViewPosition", position)], dataset="ReXGradient")


def _read_split(path: Path, split: str) -> pa.Table:
    """An image a row, columns of texts."""
    try:
        with path.open(encoding="utf-8") as file:
            studies = json.load(file, object_pairs_hook=_without_reports)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"'{path.name}' cannot be read ({type(error).__name__}). Download it anew.") from None
    if not isinstance(studies, dict) or not studies or not all(isinstance(entry, dict) for entry in studies.values()):
        raise UserError(f"'{path.name}' holds no studies by their identifiers. Use the file as it was downloaded.")
    columns = list(zip(*_images(studies, split))) or [()] * len(_COLUMNS)
    return pa.table({name: pa.array(column, pa.string()) for name, column in zip(_COLUMNS, columns)})


def _without_reports(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object with nothing but the lists that are read, and objects."""
    return {name: value for name, value in pairs if name in _LISTS or isinstance(value, dict)}


def _images(studies: dict[str, dict[str, Any]], split: str) -> Iterator[tuple[str, str, str, str, str]]:
    for study, entry in studies.items():
        paths = _texts(entry.get("ImagePath"))
        others = [_texts(entry.get(name)) for name in _LISTS[1:]]
        # A list of another length cannot be laid beside the paths: it tells nothing.
        views, body_parts = (texts if len(texts) == len(paths) else [""] * len(paths) for texts in others)
        for path, view, body_part in zip(paths, views, body_parts):
            yield study, split, path, view, body_part


def _texts(value: Any) -> list[str]:
    """A list of texts; anything in it that is none (None, NaN) is ""."""
    values = value if isinstance(value, list) else [value] if isinstance(value, str) else []
    return [each if isinstance(each, str) else "" for each in values]
