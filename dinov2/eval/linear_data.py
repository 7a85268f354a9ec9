"""The data sets that a linear evaluation validates and tests on: which ones, how their classes are mapped, and whether they fit.

`dinov2.eval.linear` asks before the training, so that a mistake is told at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinov2.data import make_dataset
from dinov2.eval.metrics import MetricType
from dinov2.eval.utils import check_same_classes
from dinov2.utils.errors import UserError


@dataclass(frozen=True)
class TestSet:
    """A data set on which the best head is tested. class_mapping: the training class for each of its classes, [classes]."""

    dataset_str: str
    metric_type: MetricType
    class_mapping: np.ndarray | None


def list_tests(
    dataset_strs: Sequence[str] | None,
    metric_types: Sequence[MetricType] | None,
    class_mapping_paths: Sequence[str | None] | None,
    val_dataset_str: str,
    val_metric_type: MetricType,
) -> list[TestSet]:
    """The tests that the options ask for; none when the only one is the validation set."""
    if not dataset_strs or list(dataset_strs) == [val_dataset_str]:
        return []
    metric_types = metric_types or [val_metric_type] * len(dataset_strs)
    paths = class_mapping_paths or [None] * len(dataset_strs)
    if not len(metric_types) == len(paths) == len(dataset_strs):
        raise UserError(
            f"--test-datasets names {len(dataset_strs)} data sets, --test-metric-types {len(metric_types)} and "
            f"--test-class-mapping-fpaths {len(paths)}. Give one of each for every data set, or leave the latter two away."
        )
    mappings = [load_class_mapping(path) for path in paths]
    return [TestSet(*fields) for fields in zip(dataset_strs, metric_types, mappings, strict=True)]


def load_class_mapping(path: str | None) -> np.ndarray | None:
    """The training class for each class of a data set, an integer array of a .npy file; None for no path or the word None."""
    if path is None or path == "None":
        return None
    try:
        mapping = np.load(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"The class mapping '{path}' cannot be read ({error}). Wanted: an integer array from numpy.save."
        ) from error
    if mapping.ndim != 1 or not np.issubdtype(mapping.dtype, np.integer):
        raise UserError(
            f"The class mapping '{path}' is an array {mapping.dtype} {mapping.shape}. Wanted: one training class (an integer) "
            "for each class of the data set."
        )
    return mapping


def check_classes(
    train_dataset: Any, val_dataset: Any, val_mapping: np.ndarray | None, tests: list[TestSet], *, n_classes: int
) -> None:
    """Mistakes of validation and test data are told before the training, not after it."""
    for mapping in (val_mapping, *(test.class_mapping for test in tests)):
        if mapping is not None and (mapping.min() < 0 or mapping.max() >= n_classes):
            raise UserError(
                f"A class mapping holds classes from {mapping.min()} to {mapping.max()}, but training has 0 to {n_classes - 1}. "
                "Give for each class of the data set the index of a training class."
            )
    if val_mapping is None:
        check_same_classes(train_dataset, val_dataset, "validation")
    for test in tests:
        test_dataset = make_dataset(dataset_str=test.dataset_str)
        if test.class_mapping is None:
            check_same_classes(train_dataset, test_dataset, "test")
