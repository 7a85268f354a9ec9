"""Findings of public data sets: how their names are written, and what an uncertain or a blank cell stands for; adapters call it.

What was decided is a value (`LabelPolicy`) that goes into intake.json, since results on the same data differ with it.
"""

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from vet_extensions.errors import UserError
from vet_extensions.intake.labels import NOT_STATED

UNCERTAIN: dict[str, int] = {"keep": -1, "to_positive": 1, "to_negative": 0, "missing": NOT_STATED}
"""What -1 becomes, by the policy's name."""

BLANK: dict[str, int] = {"missing": NOT_STATED, "absent": 0}
"""What an empty cell becomes, by the policy's name."""

CHEXPERT_FINDINGS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
"""The fourteen columns of the CheXpert labeller (arXiv 1901.07031); MIMIC-CXR-JPG and BRAX have them too."""

_SYNONYMS = {"airspace_opacity": "lung_opacity"}
"""Findings that differ between releases in name only."""

_EMPTY = ("", "nan", "na", "null", "none")
_WORDS = {"true": 1, "false": 0}


@dataclass(frozen=True)
class LabelPolicy:
    """uncertain: a key of `UNCERTAIN`, for cells of -1. blank: a key of `BLANK`, for empty cells of a row that has labels.

    An image whose study the label table does not list has no labels under either. Errors: UserError.
    """

    uncertain: str = "keep"
    blank: str = "missing"

    def __post_init__(self) -> None:
        for option, allowed in (("uncertain", UNCERTAIN), ("blank", BLANK)):
            value = getattr(self, option)
            if value not in allowed:
                raise UserError(f"{option}={value!r} is no label policy.{nearest(value, allowed)} {_one_of(allowed)}")

    def apply(self, values: np.ndarray) -> np.ndarray:
        """int8 of 1, 0, -1 and -128 (empty) -> int8 after the policy, same shape."""
        uncertain = np.where(values == -1, np.int8(UNCERTAIN[self.uncertain]), values)
        return np.where(values == NOT_STATED, np.int8(BLANK[self.blank]), uncertain)

    def to_json(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class LabelRows:
    """The labels of a table's images.

    names: the findings. values: int8 [labelled, findings], -128 not stated. row_of: int64 [images], the row of `values` that
    speaks of an image, -1 where none does; None where image and row have the same number.
    """

    names: tuple[str, ...]
    values: np.ndarray
    row_of: np.ndarray | None = None

    def labels_of(self, image: int) -> dict[str, int]:
        """finding -> value of the image with this number; what is not stated is left out."""
        row = image if self.row_of is None else int(self.row_of[image])
        if row < 0:
            return {}
        return {name: value for name, value in zip(self.names, self.values[row].tolist()) if value != NOT_STATED}


def finding_name(text: str) -> str:
    """A finding in lower_snake_case ("Pleural Effusion" -> "pleural_effusion"), one name where releases differ."""
    cleaned = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    return _SYNONYMS.get(cleaned, cleaned)


def finding_names(texts: Iterable[str]) -> tuple[str, ...]:
    """`finding_name` of each."""
    return tuple(finding_name(text) for text in texts)


def parse_labels(columns: Sequence[pa.ChunkedArray], names: Sequence[str], *, policy: LabelPolicy) -> np.ndarray:
    """int8 [rows, findings] from columns of texts: 1, 0, -1 (also 1.0, true, false), empty; the policy applied.

    names: the findings, for the error. Errors: UserError where a cell holds something else.
    """
    parsed = [_parse_column(column, name) for column, name in zip(columns, names, strict=True)]
    return policy.apply(np.stack(parsed, axis=1))


def nearest(word: object, allowed: Iterable[str]) -> str:
    """' Did you mean ...?' where something allowed is near, "" where nothing is."""
    by_lower = {name.lower(): name for name in allowed}
    near = difflib.get_close_matches(str(word).lower(), list(by_lower), n=1)
    return f" Did you mean '{by_lower[near[0]]}'?" if near else ""


def _parse_column(column: pa.ChunkedArray, name: str) -> np.ndarray:
    encoded = column.combine_chunks().dictionary_encode()
    numbers = [_parse_cell(text) for text in encoded.dictionary.to_pylist()]
    wrong = sum(number is None for number in numbers)
    if wrong:
        raise UserError(
            f"The labels of '{name}' hold {wrong} values that are neither 1 (present), 0 (absent), -1 (uncertain) nor empty. "
            "Correct them, or name another column."
        )
    values = np.array([number for number in numbers if number is not None], np.int8)
    return values[encoded.indices.to_numpy()]


def _parse_cell(text: str) -> int | None:
    """1, 0, -1 or -128; None for anything else."""
    lowered = text.strip().lower()
    if lowered in _EMPTY:
        return NOT_STATED
    if lowered in _WORDS:
        return _WORDS[lowered]
    try:
        number = float(lowered)
    except ValueError:
        return None
    return int(number) if math.isfinite(number) and number in (-1.0, 0.0, 1.0) else None


def _one_of(allowed: Iterable[str]) -> str:
    return f"Allowed are {', '.join(allowed)}."
