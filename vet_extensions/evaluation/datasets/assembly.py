"""From what an adapter found on the disk to `LabelledImages`: files looked up, split completed, counts compared, all hashed.

Every adapter of images ends in `assemble`. Whether the result can be judged (no patient in two splits, no empty class) is
`checks.check_cohort`'s question, which the suite asks of every data set.
Shape legend: n images, L labels.
"""

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vet_extensions.errors import UserError
from vet_extensions.evaluation.cohort import MULTICLASS, MULTILABEL, Cohort, LabelledImages
from vet_extensions.evaluation.datasets.splitting import Cutting, complete_split
from vet_extensions.evaluation.features import HASH_DIGITS, PixelsSource, short_hash
from vet_extensions.schema import Split, View, view_family

logger = logging.getLogger("vet_extensions")

NOT_STATED = -128


@dataclass(frozen=True)
class Found:
    """Images as an adapter found them; all arrays have one entry an image.

    path: the files; or, where one file holds many images, what tells them apart. patient, study: names, "" for none. split:
    train, val, test, or "" where nothing is prescribed. labels: [n, L] int8 of 1, 0, -1 and -128. view: words of `View`.
    family: view families, where the data set tells them better than the view does. facts: see `LabelledImages`.
    """

    path: NDArray[np.str_]
    labels: NDArray[np.integer]
    patient: NDArray[np.str_]
    study: NDArray[np.str_] | None = None
    split: NDArray[np.str_] | None = None
    view: NDArray[np.str_] | None = None
    family: NDArray[np.str_] | None = None
    facts: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.path)

    def take(self, rows: NDArray[np.bool_] | NDArray[np.integer]) -> "Found":
        """Some images, in the order of `rows`."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "facts"}
        kept = {name: None if array is None else array[rows] for name, array in arrays.items()}
        return replace(self, **kept, facts={name: values[rows] for name, values in self.facts.items()})


@dataclass(frozen=True)
class Description:
    """What `assemble` says of a data set.

    policy: what was decided about labels and views, in words. published: split (or "all") -> number of images in the complete
    data set. has_patients: else every image counts as a patient of its own, and results say so. names_images: the names of
    images and patients are the public data set's own, and may be written beside predictions.
    """

    name: str
    label_names: tuple[str, ...]
    task: str = MULTILABEL
    policy: Mapping[str, str] = field(default_factory=dict)
    published: Mapping[str, int] = field(default_factory=dict)
    has_patients: bool = True
    names_images: bool = True


def one_hot(classes: Sequence[str] | NDArray[np.str_], names: Sequence[str]) -> NDArray[np.int8]:
    """Words [n] -> [n, L], 1 in the column of the word."""
    return (np.asarray(classes)[:, None] == np.asarray(names)).astype(np.int8)


def present_files(paths: Sequence[Path], *, missing: str, name: str) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which files are there, and their sizes in bytes (-1 where not). missing: "refuse" or "skip".

    Errors: UserError with "refuse" where one is not, and always where none is.
    """
    sizes = np.fromiter(map(_size, paths), dtype=np.int64, count=len(paths))
    n_missing = int((sizes < 0).sum())
    if n_missing and (missing == "refuse" or n_missing == len(sizes)):
        first = int(np.flatnonzero(sizes < 0)[0])
        raise UserError(
            f"{name}: {n_missing:,} of {len(sizes):,} images that its tables name are not below 'root' (the first is number "
            f"{first}, in folder '{paths[first].parent.name}'). Complete the download, or go on without them with missing=skip."
        )
    if n_missing:
        logger.warning("%s: %d of %d images are missing and left out", name, n_missing, len(sizes))
    return sizes >= 0, sizes


def assemble(
    found: Found,
    description: Description,
    *,
    reader: PixelsSource,
    cutting: Cutting,
    content: object,
) -> LabelledImages:
    """The data set, its split completed. reader: reads the rows of `found`, by their numbers. content: JSON value that stands for
    the pixels.

    Rows without a split, where others have one, and rows without any label are left out and counted in the log.
    Errors: UserError where no image has a label, or where a split cannot be cut.
    """
    name = description.name
    split = _given_split(found)
    stated = (found.labels != NOT_STATED).any(axis=1)
    kept = stated & (split != "") if (split != "").any() else stated
    if not kept.all():
        logger.warning("%s: %d of %d images have no label or no split", name, int((~kept).sum()), len(kept))
    if not kept.any():
        raise UserError(f"{name}: no image has a label. Look at the tables in 'root', and at the label options.")
    rows = np.flatnonzero(kept)
    found, split = found.take(kept), split[kept]
    counts = {str(word): int((split == word).sum()) for word in Split} | {"all": len(split)}
    counted = compare_counts(counts, description.published, name=name)
    strata = _strata(found.labels, description)
    split, how = complete_split(split, patients=found.patient, strata=strata, cutting=cutting)
    policy = {**description.policy, "split": how, "counts": counted}
    if not description.has_patients:
        policy["patients"] = "not known: every image counts as one, and the split may leak"
        logger.warning("%s has no patient identifiers: every image counts as a patient, and the split may leak", name)
    study = found.patient if found.study is None else found.study
    names = {"image": found.path, "study": study, "patient": found.patient}
    parts = [found.path, split, found.patient, study]
    return LabelledImages(
        name=name,
        cohort=_cohort(found, split, study),
        label_names=description.label_names,
        reader=reader if kept.all() else SomeRows(reader, rows),
        content_hash=_hash_of(parts, found.labels, content, policy),
        task=description.task,
        facts={"view": _views(found), **found.facts},
        policy=policy,
        ids=names if description.names_images else {},
    )


@dataclass(frozen=True)
class SomeRows:
    """Some images of a reader, renumbered."""

    reader: PixelsSource
    rows: NDArray[np.integer]

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, row_index: int, /) -> np.ndarray:
        return self.reader.read(int(self.rows[row_index]))


def compare_counts(counted: Mapping[str, int], published: Mapping[str, int], *, name: str) -> str:
    """In words, how the images on the disk compare with the published numbers; a warning with both where they differ."""
    if not published:
        return "no published numbers to compare with"
    wrong = [f"{part}: {counted[part]:,} of {n:,}" for part, n in published.items() if counted[part] != n]
    if not wrong:
        return "as published"
    logger.warning(
        "%s is not as published: %s images. Results are not comparable with others'.", name, "; ".join(wrong)
    )
    return f"not as published: {'; '.join(wrong)}"


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 (half the cost of Path.stat, for 400,000 files)
    except OSError:
        return -1


def _given_split(found: Found) -> NDArray[np.str_]:
    return np.full(len(found), "", dtype="<U5") if found.split is None else found.split.astype("<U5")


def _strata(labels: NDArray[np.integer], description: Description) -> NDArray[np.str_]:
    """Classes keep their shares in a cut; of images with several findings only whether there is any."""
    if description.task == MULTICLASS:
        return np.array(description.label_names)[labels.argmax(axis=1)]
    return np.where((labels == 1).any(axis=1), "any label", "no label")


def _views(found: Found) -> NDArray[np.str_]:
    return np.full(len(found), str(View.UNKNOWN)) if found.view is None else found.view.astype(str)


def _cohort(found: Found, split: NDArray[np.str_], study: NDArray[np.str_]) -> Cohort:
    family = found.family
    if family is None:
        words, inverse = np.unique(_views(found), return_inverse=True)
        family = np.array([str(view_family(word)) for word in words])[inverse]
    patients, studies = (np.unique(names, return_inverse=True)[1] for names in (found.patient, study))
    return Cohort(split, family, patients, studies, found.labels.astype(np.int8))


def _hash_of(
    texts: Sequence[NDArray[np.str_]], labels: NDArray[np.integer], content: object, policy: Mapping[str, str]
) -> str:
    digest = hashlib.sha256(short_hash([content, dict(policy)]).encode())
    for array in texts:
        digest.update("\0".join(array.tolist()).encode("utf-8", "surrogateescape"))
    digest.update(np.ascontiguousarray(labels.astype(np.int8)).tobytes())
    return digest.hexdigest()[:HASH_DIGITS]
