"""Public data sets whose tables the intake knows: ChestX-ray14, CheXpert, MIMIC-CXR-JPG, MURA and VinDr-Mammo, read in place.

The intake's sources tell paths, patients, studies, views and labels with -1 and blanks kept; here stand the label policies, the
choice of views and labels, the published splits and the published numbers.
Shape legend: n images, L labels.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vet_extensions.evaluation.cohort import LabelledImages
from vet_extensions.evaluation.datasets.assembly import Description, Found, assemble, present_files
from vet_extensions.evaluation.datasets.options import choice
from vet_extensions.evaluation.datasets.pixels import FileReader
from vet_extensions.evaluation.datasets.policies import BLANK, COMPETITION, UNCERTAIN, apply_policy, describe_policy
from vet_extensions.evaluation.datasets.registry import DATA_SETS
from vet_extensions.evaluation.datasets.splitting import Cutting, read_cutting
from vet_extensions.intake.sources.chexpert import TABLES as CHEXPERT_TABLES
from vet_extensions.intake.sources.chexpert import CheXpert
from vet_extensions.intake.sources.labelling import LabelRows
from vet_extensions.intake.sources.listing import ImageRows, TabledSource, find_file, look_for
from vet_extensions.intake.sources.mimic_cxr import LABELLERS, MimicCxr
from vet_extensions.intake.sources.mura import Mura
from vet_extensions.intake.sources.nih_cxr14 import TABLES as NIH_TABLES
from vet_extensions.intake.sources.nih_cxr14 import NihChestXray14
from vet_extensions.intake.sources.tables import read_columns
from vet_extensions.intake.sources.vindr_mammo import VinDrMammo
from vet_extensions.schema import Split, view_family

NOT_STATED = np.int8(-128)
MISSING = ("refuse", "skip")

_VIEWS = ("frontal", "lateral", "all")
_CHEXPERT_IMAGES = {
    "all": {"train": 223_414, "val": 234, "test": 668},
    "frontal": {"train": 191_027, "val": 202, "test": 518},
    "lateral": {"train": 32_387, "val": 32, "test": 150},
}
_AGE_GROUPS = (("0-17", 17), ("18-39", 39), ("40-59", 59), ("60-79", 79), ("80-", 120))
_OLDEST = 120
_MIMIC_IMAGES = {"train": 368_960, "val": 2_991, "test": 5_159}
_MAMMO_LABELS = {"birads": ("suspicious_birads",), "density": ("dense_breast",)}


@DATA_SETS.register("nih_cxr14")
def nih_cxr14(
    root: Path, *, labels: str = "14", val: str = "0.1", seed: str = "0", missing: str = "refuse"
) -> LabelledImages:
    """NIH ChestX-ray14 (Wang et al., CVPR 2017): official test list; val is cut from train_val_list.txt by patient.

    labels: 14 findings, or 15 with "No Finding" as a label. A finding that an image's list leaves out is absent.
    """
    choice(labels, ("14", "15"), key="labels")
    source = NihChestXray14(root)
    names = [name for name in source.label_names if labels == "15" or name != "no_finding"]
    return _open(
        source,
        names,
        policy={"labels": f"{labels} labels", "blank": "absent"},
        published={"train": 86_524, "test": 25_596},
        persons=_persons(
            [find_file(root, NIH_TABLES, dataset=source.name)], "Image Index", "Patient Gender", "Patient Age"
        ),
        cutting=read_cutting(val, seed=seed),
        missing=missing,
    )


@DATA_SETS.register("chexpert")
def chexpert(
    root: Path,
    *,
    labels: str = "competition",
    uncertain: str = "zeros",
    blank: str = "zeros",
    views: str = "frontal",
    missing: str = "refuse",
) -> LabelledImages:
    """CheXpert v1.0 (arXiv 1901.07031): official train, valid and test; a missing `valid` is cut from train by patient.

    labels: the 5 of the competition, or all 14. uncertain, blank: keys of `policies.UNCERTAIN` and `BLANK`, for training images.
    views: frontal, lateral or all, by the names of the files.
    """
    source = CheXpert(root)
    rows = source.rows()
    family = np.where(["_lateral" in path for path in _texts(rows.path)], "lateral", "frontal")
    choice(views, _VIEWS, key="views")
    return _open(
        source,
        COMPETITION if choice(labels, ("competition", "all"), key="labels") == "competition" else source.label_names,
        rows=rows,
        family=family,
        kept=(family == views) | (views == "all"),
        policy={"labels": labels, "views": views},
        published=_CHEXPERT_IMAGES[views],
        persons=_persons([path for names in CHEXPERT_TABLES if (path := look_for(root, names))], "Path", "Sex", "Age"),
        cutting=Cutting(),
        missing=missing,
        uncertain=uncertain,
        blank=blank,
    )


@DATA_SETS.register("mimic_cxr")
def mimic_cxr(
    root: Path,
    *,
    labels: str = "competition",
    labeller: str = "chexpert",
    test_labels: str = "labeller",
    uncertain: str = "zeros",
    blank: str = "zeros",
    views: str = "frontal",
    missing: str = "refuse",
) -> LabelledImages:
    """MIMIC-CXR-JPG 2.0.0 and 2.1.0 with the official split; labels by study, so that its images share them.

    labeller: chexpert or negbio. Its reading is the truth in the test split too, and scores measure agreement with it; with
    test_labels=radiologist the truth is the radiologists' of release 2.1.0, who read some of the test studies.
    Otherwise as `chexpert`; views by ViewPosition, and images without one are neither frontal nor lateral.
    """
    choice(labeller, [name for name in LABELLERS if name != "radiologist"], key="labeller")
    source = MimicCxr(root, labels=labeller)
    rows = source.rows()
    if choice(test_labels, ("labeller", "radiologist"), key="test_labels") == "radiologist":
        rows = _other_labels_in_test(rows, MimicCxr(root, labels="radiologist").rows())
    assert rows.labels is not None, "MIMIC-CXR has labels"
    views_of = np.array([str(view) for view, _ in rows.view.values])[rows.view.codes]
    family = np.array([str(view_family(view)) for view in views_of])
    choice(views, _VIEWS, key="views")
    return _open(
        source,
        COMPETITION if choice(labels, ("competition", "all"), key="labels") == "competition" else rows.labels.names,
        rows=rows,
        family=family,
        kept=(family == views) | (views == "all"),
        policy={"labels": labels, "views": views, "labeller": labeller, "test_labels": test_labels},
        published=_MIMIC_IMAGES if views == "all" and test_labels == "labeller" else {},
        cutting=Cutting(),
        missing=missing,
        uncertain=uncertain,
        blank=blank,
    )


@DATA_SETS.register("mura")
def mura(root: Path, *, val: str = "0.1", seed: str = "0", missing: str = "refuse") -> LabelledImages:
    """MURA v1.1 (arXiv 1712.06957): normal or abnormal, by study.

    The test set was never published: the published `valid` is the test split here, as in papers, and val is cut from train.
    """
    source = Mura(root)
    return _open(
        source,
        source.label_names,
        split_names={Split.VAL: Split.TEST},
        policy={"labels": "abnormal, of the study", "test": "the published valid"},
        published={"train": 36_808, "test": 3_197},
        cutting=read_cutting(val, seed=seed),
        missing=missing,
    )


@DATA_SETS.register("vindr_mammo")
def vindr_mammo(
    root: Path, *, labels: str = "birads", val: str = "0.1", seed: str = "0", missing: str = "refuse"
) -> LabelledImages:
    """VinDr-Mammo 1.0.0 (Sci Data 10:277), DICOM or pictures: official test split; val is cut from training by exam.

    labels: birads (4 and 5 against 1 and 2; 3 is uncertain and never counted), density (C and D against A and B), findings
    (whether one of each category was marked in the image) or all.
    """
    choice(labels, (*_MAMMO_LABELS, "findings", "all"), key="labels")
    source = VinDrMammo(root)
    of_breast = [name for names in _MAMMO_LABELS.values() for name in names]
    findings = [name for name in source.label_names if name not in of_breast]
    names = {**_MAMMO_LABELS, "findings": findings, "all": source.label_names}[labels]
    return _open(
        source,
        names,
        policy={"labels": labels, "birads": "4 and 5 positive, 3 uncertain", "density": "C and D positive"},
        published={"train": 16_000, "test": 4_000},
        cutting=read_cutting(val, seed=seed),
        missing=missing,
    )


def _open(
    source: TabledSource,
    label_names: Sequence[str],
    *,
    policy: Mapping[str, str],
    published: Mapping[str, int],
    cutting: Cutting,
    missing: str,
    rows: ImageRows | None = None,
    family: NDArray[np.str_] | None = None,
    kept: NDArray[np.bool_] | None = None,
    split_names: Mapping[str, str] | None = None,
    persons: Mapping[str, NDArray[np.str_]] | None = None,
    uncertain: str = "ignore",
    blank: str = "ignore",
) -> LabelledImages:
    """The images that the source's tables name, with some of its labels.

    kept: [n], which of them belong to the task. persons: further facts, name -> [n] texts.
    """
    choice(missing, MISSING, key="missing")
    choice(uncertain, UNCERTAIN, key="uncertain")
    choice(blank, BLANK, key="blank")
    rows = source.rows() if rows is None else rows
    paths = [source.root / path for path in _texts(rows.path)]
    here = np.ones(len(paths), dtype=bool) if kept is None else kept.copy()
    chosen = np.flatnonzero(here)
    is_there, sizes = present_files([paths[row] for row in chosen], missing=missing, name=source.name)
    here[chosen] = is_there
    split = _split_words(rows, len(paths), split_names or {})
    values, is_listed = _label_values(rows, label_names, n=len(paths))
    found = Found(
        path=_texts(rows.path),
        labels=apply_policy(
            values,
            label_names,
            uncertain=uncertain,
            blank=blank,
            is_train=split == Split.TRAIN,
            is_listed=is_listed,
        ),
        patient=_texts(rows.patient),
        study=_texts(rows.study),
        split=split,
        view=np.array([str(view) for view, _ in rows.view.values])[rows.view.codes],
        family=family,
        facts={**_facts(rows), **(persons or {})},
    ).take(here)
    return assemble(
        found,
        Description(
            name=source.name,
            label_names=tuple(label_names),
            policy={**policy, **describe_policy(uncertain, blank, label_names, values)},
            published=published,
        ),
        reader=FileReader([paths[row] for row in np.flatnonzero(here)]),
        cutting=cutting,
        content=sizes[is_there].tolist(),
    )


def _texts(column: pa.Array | pa.ChunkedArray) -> NDArray[np.str_]:
    """A column as numpy texts, [n]."""
    return np.array(column.to_pylist(), dtype=str)


def _split_words(rows: ImageRows, n: int, renamed: Mapping[str, str]) -> NDArray[np.str_]:
    if rows.split is None:
        return np.full(n, "", dtype="<U5")
    words = ["" if word is None else str(renamed.get(word, word)) for word in rows.split.values]
    return np.array(words, dtype="<U5")[rows.split.codes]


def _label_values(rows: ImageRows, wanted: Sequence[str], *, n: int) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
    """The wanted labels of every image, [n, L], and whether the table of labels speaks of it, [n]."""
    assert rows.labels is not None, "every data set of this file has labels"
    at = np.arange(n) if rows.labels.row_of is None else rows.labels.row_of
    columns = [rows.labels.names.index(name) for name in wanted]
    values = np.where(at[:, None] >= 0, rows.labels.values[at][:, columns], NOT_STATED)
    return values.astype(np.int8), at >= 0


def _other_labels_in_test(rows: ImageRows, other: ImageRows) -> ImageRows:
    """The rows with `other`'s labels where the split is test; both of the same images, in one order. Findings that both know."""
    assert rows.labels is not None, "MIMIC-CXR has labels"
    assert other.labels is not None, "MIMIC-CXR has labels"
    names = tuple(name for name in rows.labels.names if name in other.labels.names)
    n = len(rows.path)
    is_test = _split_words(rows, n, {}) == Split.TEST
    (own, own_listed), (theirs, they_list) = (_label_values(part, names, n=n) for part in (rows, other))
    listed = np.where(is_test, they_list, own_listed)
    values = np.where(is_test[:, None], theirs, own)
    return replace(rows, labels=LabelRows(names, values, np.where(listed, np.arange(n), -1)))


def _persons(tables: Sequence[Path], key: str, sex: str, age: str) -> dict[str, NDArray[np.str_]]:
    """Sex and age group of every row of the tables, in their order; "" where they are not stated, or there is no such column.

    Groups, and no ages: they are for subgroups, and an age says more of a person than a score needs.
    """
    columns = [read_columns(path, [key], optional=[sex, age]) for path in tables]
    sexes = np.concatenate([np.char.upper(_texts(table[sex]).astype("<U1")) for table in columns])
    ages = np.concatenate([_texts(table[age]) for table in columns])
    words, inverse = np.unique(ages, return_inverse=True)
    return {
        "sex": np.where(np.isin(sexes, ["F", "M"]), sexes, ""),
        "age_group": np.array([_age_group(word) for word in words])[inverse],
    }


def _age_group(text: str) -> str:
    """Of "57", "57.0" or "058Y" the group "40-59"; "" for anything else, and beyond 120, which are known errors."""
    found = re.fullmatch(r"(\d+)(?:\.0+)?Y?", text)
    if found is None or int(found[1]) > _OLDEST:
        return ""
    return next(name for name, last in _AGE_GROUPS if int(found[1]) <= last)


def _facts(rows: ImageRows) -> dict[str, NDArray[np.str_]]:
    parts = {"body_part": rows.body_part, "laterality": rows.laterality}
    return {name: np.array(part.values, dtype=str)[part.codes] for name, part in parts.items() if part is not None}
