"""Data sets of one's own: a table of images (`table`), and a folder whose folders are classes (`class_folder`).

Their names may be those of patients: neither images nor patients are named in what is written.
Shape legend: n images, L labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vet_extensions.errors import UserError
from vet_extensions.evaluation.cohort import MULTICLASS, MULTILABEL, LabelledImages
from vet_extensions.evaluation.datasets.assembly import (
    Description,
    Found,
    assemble,
    one_hot,
    present_files,
)
from vet_extensions.evaluation.datasets.options import choice
from vet_extensions.evaluation.datasets.pixels import FileReader
from vet_extensions.evaluation.datasets.registry import DATA_SETS
from vet_extensions.evaluation.datasets.splitting import read_cutting
from vet_extensions.intake.sources.image_folder import ImageFolder
from vet_extensions.intake.sources.labelling import LabelPolicy, finding_name, parse_labels
from vet_extensions.intake.sources.listing import split_of
from vet_extensions.intake.sources.tables import WELL_KNOWN, column_names, decide_view_word, read_columns
from vet_extensions.schema import LABEL_PREFIX

_SPLIT_FOLDERS = {"train", "training", "val", "valid", "validation", "test", "testing"}


@DATA_SETS.register("table")
def table(
    root: Path,
    *,
    file: str,
    label: str = "label",
    labels: str = "",
    classes: str = "",
    facts: str = "",
    missing: str = "refuse",
    val: str = "0.1",
    test: str = "0.2",
    seed: str = "0",
) -> LabelledImages:
    """Images that a CSV, TSV or Parquet table lists: columns path, a label, and where they exist patient, study, split and view.

    file: its name in `root`, from where the paths in it count. One class an image: `label` names the column of words, `classes`
    the vocabulary ("normal+tb"; without it, the words that occur). Several findings an image: `labels` names columns of 1, 0, -1
    and blanks ("effusion+nodule"); columns called `label.<finding>` are found by themselves. facts: further columns of words
    ("scanner+sex"), for subgroups and shortcuts.
    Errors: UserError for a missing table, column or file, and for a word outside the vocabulary.
    """
    listed = read_label_table(root / file, label=label, labels=labels, classes=classes, facts=facts)
    paths = [root / name for name in listed.found.path]
    is_there, sizes = present_files(paths, missing=choice(missing, ("refuse", "skip"), key="missing"), name="the table")
    return assemble(
        listed.found.take(is_there),
        listed.describe("table"),
        reader=FileReader([path for path, here in zip(paths, is_there, strict=True) if here]),
        cutting=read_cutting(val, test, seed=seed),
        content=sizes[is_there].tolist(),
    )


@dataclass(frozen=True)
class LabelTable:
    """The rows of a table, and what their labels are. task: MULTICLASS or MULTILABEL."""

    found: Found
    label_names: tuple[str, ...]
    task: str
    has_patients: bool

    def describe(self, name: str, *, policy: Mapping[str, str] | None = None) -> Description:
        """policy: what else was decided."""
        kind = "classes" if self.task == MULTICLASS else "findings, -1 and blanks not counted"
        return Description(
            name=name,
            label_names=self.label_names,
            task=self.task,
            policy={"labels": f"{len(self.label_names)} {kind}", **(policy or {})},
            has_patients=self.has_patients,
            names_images=False,
        )


def read_label_table(path: Path, *, label: str, labels: str, classes: str, facts: str) -> LabelTable:
    """The columns that `table` describes; `found.path` as the table writes it.

    Errors: UserError for a missing table or column, and for a word outside the vocabulary.
    """
    names = column_names(path)
    columns = labels.split("+") if labels else [name for name in names if name.startswith(LABEL_PREFIX)]
    roles = {role: next((n for n in known if n in names), "") for role, known in WELL_KNOWN.items()}
    if not roles["path"]:
        raise UserError(f"The table '{path.name}' has no column 'path'. Its columns: {', '.join(names[:40])}.")
    known_facts = facts.split("+") if facts else []
    used = [roles[role] for role in ("path", "patient", "study", "split", "view") if roles[role]]
    rows = read_columns(path, list(dict.fromkeys([*used, *(columns or [label]), *known_facts])))
    if columns:
        label_names = tuple(finding_name(name.removeprefix(LABEL_PREFIX)) for name in columns)
        values = parse_labels([rows[name] for name in columns], label_names, policy=LabelPolicy())
    else:
        label_names, values = _classes(_texts(rows, label), classes.split("+") if classes else None, column=label)
    image = _texts(rows, roles["path"])
    patient = _named(rows, roles["patient"], otherwise=image)
    found = Found(
        path=image,
        labels=values,
        patient=patient,
        study=_named(rows, roles["study"], otherwise=image, within=patient),
        split=np.array([str(split_of(word) or "") for word in _texts(rows, roles["split"])])
        if roles["split"]
        else None,
        view=np.array([str(decide_view_word(w)[0]) for w in _texts(rows, roles["view"])]) if roles["view"] else None,
        facts={name: _texts(rows, name) for name in known_facts},
    )
    return LabelTable(found, label_names, MULTILABEL if columns else MULTICLASS, bool(roles["patient"]))


@DATA_SETS.register("class_folder")
def class_folder(
    root: Path, *, layout: str = "", val: str = "0.1", test: str = "0.2", seed: str = "0"
) -> LabelledImages:
    """A folder of folders: CLASS/x.png, or with a split SPLIT/CLASS/x.png; pictures only.

    layout: what the levels of folders are, from the top, when there are more: finding (the class), split, patient, study, view
    and "-" for none, such as finding/patient. Errors: UserError for a class without pictures, or no class at all.
    """
    if not layout:
        tops = {path.name.lower() for path in root.glob("*/")}
        layout = "split/finding" if tops and tops <= _SPLIT_FOLDERS else "finding"
    source = ImageFolder(root, layout=layout)
    rows = source.rows()
    if rows.labels is None:
        raise UserError(
            f"The layout '{layout}' names no class, or there are no pictures below '{root}'. Name one level finding."
        )
    image = np.array(rows.path.to_pylist(), dtype=str)
    kept = np.array([not Path(name).name.startswith("._") for name in image])
    _refuse_empty_classes(root, image[kept], level=source.roles.index("finding"))
    has_patients = "patient" in source.roles
    split = None if rows.split is None else np.array([str(word) for word in rows.split.values])[rows.split.codes]
    words = np.array(rows.labels.names)[rows.labels.values.argmax(axis=1)]
    found = Found(
        path=image,
        labels=one_hot(words, source.label_names),
        patient=np.array(rows.patient.to_pylist(), dtype=str),
        study=np.array(rows.study.to_pylist(), dtype=str),
        split=split,
        view=np.array([str(view) for view, _ in rows.view.values])[rows.view.codes],
    ).take(kept)
    paths = [root / name for name in found.path]
    _, sizes = present_files(paths, missing="refuse", name="the folder")
    return assemble(
        found,
        Description("class folder", source.label_names, MULTICLASS, has_patients=has_patients, names_images=False),
        reader=FileReader(paths),
        cutting=read_cutting(val, test, seed=seed),
        content=sizes.tolist(),
    )


def _classes(
    words: NDArray[np.str_], vocabulary: Sequence[str] | None, *, column: str
) -> tuple[tuple[str, ...], NDArray[np.int8]]:
    """The classes, and [n, L] int8; a row with an empty cell states nothing."""
    occurring = sorted(set(words.tolist()) - {""})
    names = tuple(vocabulary or occurring)
    if outside := [word for word in occurring if word not in names]:
        raise UserError(
            f"Column '{column}' holds {len(outside)} words that are no class: {', '.join(outside[:5])}. The classes are "
            f"{', '.join(names)}: mend the table, or name all of them, classes=a+b."
        )
    if len(names) < 2:
        raise UserError(f"Column '{column}' holds {len(names)} class; at least 2 are needed to tell apart.")
    return names, np.where((words == "")[:, None], np.int8(-128), one_hot(words, names)).astype(np.int8)


def _texts(rows: pa.Table, column: str) -> NDArray[np.str_]:
    return np.array(rows[column].to_pylist(), dtype=str)


def _named(
    rows: pa.Table, column: str, *, otherwise: NDArray[np.str_], within: NDArray[np.str_] | None = None
) -> NDArray[np.str_]:
    """Names from a column, where it is and has one; studies may be numbered anew within each patient."""
    if not column:
        return otherwise
    names = _texts(rows, column)
    full = names if within is None else np.array([f"{a}/{b}" for a, b in zip(within, names, strict=True)])
    return np.where(names == "", otherwise, full)


def _refuse_empty_classes(root: Path, images: NDArray[np.str_], *, level: int) -> None:
    """Errors: UserError where a folder of the classes' level holds no picture."""
    folders = {path.relative_to(root).as_posix() for path in root.glob("/".join(["*"] * (level + 1))) if path.is_dir()}
    used = {"/".join(name.split("/")[: level + 1]) for name in images.tolist()}
    if empty := sorted(Path(folder).name for folder in folders - used if not Path(folder).name.startswith(".")):
        raise UserError(
            f"The class folder '{empty[0]}' holds no picture (PNG, JPEG or TIFF); {len(empty)} folders do not. Fill or remove "
            "them."
        )
