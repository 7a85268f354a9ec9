"""What is segmented: grey images with a label map each, their splits and patients. Training and scoring take this value.

A folder of images and masks is opened here (`open_mask_folder`); `vetdino organs` writes one, and adapters of public data sets
make the same value from theirs.
"""

import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vet_extensions.errors import UserError
from vet_extensions.schema import Split

IGNORED = 255
"""In a label map: a pixel that nobody has labelled. It counts neither in a loss nor in a score."""

CASES_FILE, CLASSES_FILE = "cases.csv", "classes.json"
_COLUMNS = ("case", "patient", "split")
_SPACING = ("row_spacing_mm", "column_spacing_mm")


@dataclass(frozen=True)
class SlicedVolumes:
    """That the cases are slices of V volumes; test volumes are whole, so that predictions can be stacked and scored in 3-D.

    number: [n] which volume a case is of, never falling; the slices of a volume follow each other from the feet up. spacing_mm:
    [V, 3] distance of slices, rows and columns. images: [V] files, on whose grids predictions are saved.
    """

    number: NDArray[np.integer]
    spacing_mm: NDArray[np.float64]
    images: tuple[Path, ...]


@dataclass(frozen=True)
class SegmentationSet:
    """Images with label maps, in a fixed order of n cases.

    class_names: by number in the label maps; class 0 is the background and is never scored. split: [n] texts of `Split`;
    patient_codes: [n]. read(i): grey image [H, W], uint8 or uint16. mask(i): label map [H, W] int64 of the same size, values
    below len(class_names), or `IGNORED`. spacing_mm: [n, 2] distance of rows and of columns, NaN where it is not known.
    content_hash: of all that decides images, label maps and splits. policy: what was decided, in words, for the results. volumes:
    of slices, how they make up volumes; None for images.
    """

    name: str
    class_names: tuple[str, ...]
    split: NDArray[np.str_]
    patient_codes: NDArray[np.integer]
    read: Callable[[int], np.ndarray]
    mask: Callable[[int], NDArray[np.int64]]
    spacing_mm: NDArray[np.float64]
    content_hash: str
    policy: Mapping[str, str] = field(default_factory=dict)
    volumes: SlicedVolumes | None = None

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            raise UserError(
                f"The data set has {len(self.class_names)} classes; a segmentation needs background and at least one more."
            )
        if len(self.class_names) > IGNORED:
            raise UserError(f"The data set has {len(self.class_names)} classes; allowed are at most {IGNORED}.")
        unknown = sorted(set(self.split.tolist()) - set(map(str, Split)))
        if unknown:
            raise UserError(f"Unknown split {unknown[0]!r}. Allowed: {', '.join(Split)}.")
        absent = [str(name) for name in Split if not (self.split == name).any()]
        if absent:
            raise UserError(
                f"No case is in split {' and '.join(absent)}. The decoder is fitted on train, chosen on val and scored on test: "
                "put whole patients into each."
            )
        splits_of = {
            code: set(self.split[self.patient_codes == code].tolist()) for code in np.unique(self.patient_codes)
        }
        n_torn = sum(len(splits) > 1 for splits in splits_of.values())
        if n_torn:
            raise UserError(
                f"{n_torn} of {len(splits_of)} patients have cases in more than one split, so that the test would be of patients "
                "seen in training. Give every patient one split."
            )

    def rows(self, split: str) -> NDArray[np.intp]:
        """The cases of one split."""
        return np.flatnonzero(self.split == split)

    def checked_mask(self, row: int, *, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """The label map of a case, refused where its size or its values do not fit."""
        found = np.asarray(self.mask(row), dtype=np.int64)
        if found.shape != shape:
            raise UserError(
                f"Case {row}: the label map has {list(found.shape)} pixels and its image {list(shape)}. They must be of one size."
            )
        wrong = sorted(set(np.unique(found).tolist()) - {*range(len(self.class_names)), IGNORED})
        if wrong:
            raise UserError(
                f"Case {row}: the label map holds {wrong[0]}, which is no class. Allowed: 0 to {len(self.class_names) - 1} "
                f"({', '.join(self.class_names)}), and {IGNORED} for what is not labelled."
            )
        return found


def open_mask_folder(folder: str | Path) -> SegmentationSet:
    """A folder with cases.csv, classes.json, images/<case>.png and masks/<case>.png.

    cases.csv has the columns case, patient, split and, where they are known, row_spacing_mm and column_spacing_mm.
    classes.json: {"classes": ["background", ...], "name": ..., "policy": {...}}, the last two may be left out. Images are grey
    with 8 or 16 bit; masks hold class numbers. All files are read once, for the content hash. Raises `UserError` where files are
    missing or do not fit.
    """
    root = Path(folder)
    listing, classes_file = root / CASES_FILE, root / CLASSES_FILE
    for path in (listing, classes_file):
        if not path.is_file():
            raise UserError(
                f"'{root.name}' has no {path.name}. Give a folder with {CASES_FILE}, {CLASSES_FILE}, images/ and masks/ (see "
                "docs/evaluation_segmentation.md), or write one with `vetdino organs`."
            )
    described = _read_classes(classes_file)
    cases = _read_cases(listing)
    files = [(root / "images" / f"{case['case']}.png", root / "masks" / f"{case['case']}.png") for case in cases]
    _check_files(files)
    patients = {name: code for code, name in enumerate(dict.fromkeys(case["patient"] for case in cases))}
    return SegmentationSet(
        name=str(described.get("name", "mask folder")),
        class_names=tuple(map(str, described["classes"])),
        split=np.array([case["split"] for case in cases]),
        patient_codes=np.array([patients[case["patient"]] for case in cases]),
        read=partial(_read_image, tuple(image for image, _ in files)),
        mask=partial(_read_mask, tuple(mask for _, mask in files)),
        spacing_mm=np.array([[_millimetres(case, name) for name in _SPACING] for case in cases]),
        content_hash=_hash_files([listing, classes_file, *(path for pair in files for path in pair)]),
        policy={str(key): str(value) for key, value in described.get("policy", {}).items()},
    )


def _read_classes(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path.name} is no readable JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("classes"), list):
        raise UserError(f'{path.name} must look like {{"classes": ["background", "lung", "heart"]}}.')
    return content


def _read_cases(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise UserError(f"{path.name} lacks the columns {', '.join(missing)}. It needs {', '.join(_COLUMNS)}.")
        cases = list(reader)
    for line, case in enumerate(cases, start=2):
        if not all(case[name] for name in _COLUMNS):
            raise UserError(f"{path.name}, line {line}: case, patient or split is empty.")
        if Path(case["case"]).name != case["case"]:
            raise UserError(f"{path.name}, line {line}: a case is the name of a file without folder and '.png'.")
    if len({case["case"] for case in cases}) < len(cases):
        raise UserError(f"{path.name} names a case twice. Give every case one line.")
    return cases


def _check_files(files: Sequence[tuple[Path, Path]]) -> None:
    for place, kind in enumerate(("images", "masks")):
        lines = [line for line, pair in enumerate(files, start=2) if not pair[place].is_file()]
        if lines:
            raise UserError(
                f"{len(lines)} of {len(files)} cases of {CASES_FILE} have no file in {kind}/ (lines "
                f"{', '.join(map(str, lines[:5]))}{', ...' if len(lines) > 5 else ''}). Add <case>.png, or delete the lines."
            )


def _millimetres(case: Mapping[str, str | None], name: str) -> float:
    text = case.get(name) or "nan"
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if value <= 0 or np.isinf(value):
        raise UserError(f"{CASES_FILE}: {name} is {text!r}; give millimetres, or leave it empty where it is not known.")
    return value


def _hash_files(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _read_image(paths: Sequence[Path], row: int) -> np.ndarray:
    return _read_png(paths[row], kind="image", row=row)


def _read_mask(paths: Sequence[Path], row: int) -> NDArray[np.int64]:
    return _read_png(paths[row], kind="label map", row=row).astype(np.int64)


def _read_png(path: Path, *, kind: str, row: int) -> np.ndarray:
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 2 or pixels.dtype not in (np.uint8, np.uint16):
        found = "nothing readable" if pixels is None else f"{pixels.dtype} {list(pixels.shape)}"
        raise UserError(f"The {kind} of case {row} must be a grey PNG of 8 or 16 bit, found {found}.")
    return pixels
