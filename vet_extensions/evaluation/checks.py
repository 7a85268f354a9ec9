"""What must hold of a data set before it is judged, so that nothing wrong is counted; the suite calls `check_cohort` first.

Every fault is an error that names all faults at once. A finding that the test images cannot measure is no fault: it is left out
of the averages, named in the log here and on the rows as skipped.
"""

import logging
from collections.abc import Iterator

import numpy as np

from vet_extensions.errors import UserError
from vet_extensions.evaluation.cohort import MULTICLASS, LabelledImages
from vet_extensions.evaluation.suite_config import SuiteConfig
from vet_extensions.schema import Split

logger = logging.getLogger("vet_extensions")

LABEL_VALUES = (1, 0, -1, -128)
"""Present, absent, uncertain, missing."""

_N_NAMED = 5
_SPLIT_CURE = "Split an intake folder by patient with: vetdino split. Mend the column 'split' of a table."


def check_cohort(images: LabelledImages, config: SuiteConfig) -> None:
    """Raises `UserError` for splits or labels outside the vocabulary, patients in several splits, classes without images, too few
    images for k, and images without pixels."""
    faults = [*_split_faults(images), *_label_faults(images), *_size_faults(images, config)]
    if faults:
        raise UserError(f"{images.name} cannot be judged as it is:\n" + "\n".join(f"- {fault}" for fault in faults))
    _tell_what_is_not_measured(images)


def _split_faults(images: LabelledImages) -> Iterator[str]:
    cohort = images.cohort
    found = {str(split) for split in np.unique(cohort.split)}
    if unknown := sorted(found - set(Split)):
        names = ", ".join(f"'{name}'" for name in unknown[:_N_NAMED])
        n_rows = int(np.isin(cohort.split, unknown).sum())
        yield f"{n_rows} images are in split {names}; allowed are {', '.join(Split)}. {_SPLIT_CURE}"
    if absent := [str(split) for split in (Split.TRAIN, Split.TEST) if split not in found]:
        yield f"There are no images in split {' and '.join(absent)}. {_SPLIT_CURE}"
    n_splits = np.zeros(len(np.unique(cohort.patient_codes)), dtype=np.intp)
    patients, patient = np.unique(cohort.patient_codes, return_inverse=True)
    for split in Split:
        n_splits += np.bincount(patient[cohort.split == split], minlength=len(patients)) > 0
    if torn := int((n_splits > 1).sum()):
        yield (
            f"{torn} of {len(patients)} patients have images in more than one split, so that a probe would be tested on patients "
            "that it was fitted on. Split an intake folder by patient with: vetdino split ROOT --replace. Mend the splits of a "
            "table, or leave its column of splits out: they are then cut by patient."
        )


def _label_faults(images: LabelledImages) -> Iterator[str]:
    labels, split = images.cohort.labels, images.cohort.split
    for column, name in enumerate(images.label_names):
        values = np.unique(labels[:, column])
        if outside := [int(value) for value in values if value not in LABEL_VALUES]:
            given = ", ".join(map(str, outside[:_N_NAMED]))
            yield f"Label '{name}' holds {given}; allowed are 1 present, 0 absent, -1 uncertain, null (-128) missing."
    is_train, is_test = split == Split.TRAIN, split == Split.TEST
    if images.task != MULTICLASS:
        both = [_is_measurable(labels[rows]) for rows in (is_train, is_test)]
        if is_train.any() and is_test.any() and not (both[0] & both[1]).any():
            yield (
                "No label has a positive and a negative image both in train and in test, so nothing can be measured. Give "
                "labels for more images, or split them with: vetdino split ROOT --stratify labels --replace"
            )
        return
    if n_wrong := int(((labels == 1).sum(axis=1) != 1).sum()):
        yield f"{n_wrong} images have no class or several; a multi-class data set has exactly one an image."
    for rows, where in ((is_train, Split.TRAIN), (is_test, Split.TEST)):
        empty = [name for name, n in zip(images.label_names, (labels[rows] == 1).sum(axis=0), strict=True) if n == 0]
        if empty and rows.any():
            yield f"Class {', '.join(empty)} has no image in split {where}. Leave the class out, or split the data set anew."


def _size_faults(images: LabelledImages, config: SuiteConfig) -> Iterator[str]:
    n_train = int((images.cohort.split == Split.TRAIN).sum())
    if "knn" in config.protocols and n_train and max(config.knn.ks) > n_train:
        yield (
            f"knn.ks asks for {max(config.knn.ks)} neighbours, but only {n_train} images are in train. Give a smaller k in the "
            "suite."
        )
    if len(images.reader) != len(images.cohort.split):
        yield (
            f"{len(images.cohort.split)} images are listed, but the pixels of {len(images.reader)} are there. Copy the folder "
            "anew, or repeat the intake."
        )


def _is_measurable(labels: np.ndarray) -> np.ndarray:
    """[n, L] -> [L], whether a label has a positive and a negative."""
    return (labels == 1).any(axis=0) & (labels == 0).any(axis=0)


def _tell_what_is_not_measured(images: LabelledImages) -> None:
    for split in (Split.TRAIN, Split.TEST):
        found = _is_measurable(images.cohort.labels[images.cohort.split == split])
        if absent := [name for name, is_there in zip(images.label_names, found, strict=True) if not is_there]:
            logger.warning("no positive or no negative image in %s, so not measured: %s", split, ", ".join(absent))
