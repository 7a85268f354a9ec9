"""What is wrong with a data set stops its evaluation, in words; nothing wrong is counted."""

import logging
from dataclasses import replace

import numpy as np
import pytest

from vet_extensions.errors import UserError
from vet_extensions.evaluation.checks import check_cohort
from vet_extensions.evaluation.cohort import MULTICLASS, Cohort, LabelledImages
from vet_extensions.evaluation.suite_config import KnnConfig, SuiteConfig

N = 30


class Pixels:
    def __init__(self, n: int = N) -> None:
        self.n = n

    def read(self, row_index: int, /) -> np.ndarray:
        return np.full((4, 4), row_index, dtype=np.uint8)

    def __len__(self) -> int:
        return self.n


def images(**changes: object) -> LabelledImages:
    """30 images of 30 patients, 20 for training, two labels (or classes) in turn."""
    one = (np.arange(N) % 2).astype(np.int8)
    cohort = {
        "split": np.repeat(["train", "val", "test"], [20, 4, 6]),
        "family": np.full(N, "lateral"),
        "patient_codes": np.arange(N),
        "study_codes": np.arange(N),
        "labels": np.stack([one, 1 - one], axis=1),
    }
    given = {"name": "the folder", "label_names": ("effusion", "nodule"), "reader": Pixels(), "content_hash": "x"}
    of_cohort = {name: changes.pop(name) for name in list(changes) if name in cohort}
    return LabelledImages(cohort=Cohort(**{**cohort, **of_cohort}), **{**given, **changes})  # type: ignore[arg-type]


def labels_of(**columns: int) -> np.ndarray:
    labels = images().cohort.labels.copy()
    for name, values in columns.items():
        labels[:, ("effusion", "nodule").index(name)] = values
    return labels


def test_a_sound_data_set_passes() -> None:
    check_cohort(images(), SuiteConfig())
    check_cohort(images(task=MULTICLASS), SuiteConfig())


def test_a_patient_in_two_splits_is_refused() -> None:
    codes = np.arange(N)
    codes[25] = codes[3]
    with pytest.raises(UserError, match="1 of 29 patients have images in more than one split"):
        check_cohort(images(patient_codes=codes), SuiteConfig())


def test_labels_outside_the_vocabulary_are_named() -> None:
    labels = labels_of()
    labels[4, 1] = 7
    with pytest.raises(UserError, match="Label 'nodule' holds 7; allowed are 1 present, 0 absent"):
        check_cohort(images(labels=labels), SuiteConfig())


def test_a_split_outside_the_vocabulary_and_images_without_one_are_refused() -> None:
    split = images().cohort.split.astype("<U12").copy()
    split[:2], split[2] = "", "validation"
    with pytest.raises(UserError, match="3 images are in split '', 'validation'; allowed are train, val, test"):
        check_cohort(images(split=split), SuiteConfig())


def test_a_data_set_without_training_images_is_refused() -> None:
    with pytest.raises(UserError, match="no images in split train"):
        check_cohort(images(split=np.repeat(["val", "test"], 15)), SuiteConfig())


def test_fewer_training_images_than_neighbours_are_refused_rather_than_another_k_taken() -> None:
    with pytest.raises(UserError, match="asks for 50 neighbours, but only 20 images are in train"):
        check_cohort(images(), replace(SuiteConfig(), knn=KnnConfig(ks=(5, 50))))
    check_cohort(images(), replace(SuiteConfig(), knn=KnnConfig(ks=(50,)), protocols=("linear",)))


def test_images_without_pixels_are_refused() -> None:
    with pytest.raises(UserError, match="30 images are listed, but the pixels of 28 are there"):
        check_cohort(images(reader=Pixels(28)), SuiteConfig())


def test_an_empty_class_of_a_multi_class_data_set_is_refused_in_train_and_in_test() -> None:
    labels = labels_of()
    labels[24:] = [1, 0]
    with pytest.raises(UserError, match="Class nodule has no image in split test"):
        check_cohort(images(labels=labels, task=MULTICLASS), SuiteConfig())


def test_an_image_of_two_classes_or_of_none_is_refused() -> None:
    labels = labels_of()
    labels[0], labels[1] = [1, 1], [0, -128]
    with pytest.raises(UserError, match="2 images have no class or several"):
        check_cohort(images(labels=labels, task=MULTICLASS), SuiteConfig())


def test_an_empty_finding_is_named_and_the_others_are_measured(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="vet_extensions"):
        check_cohort(images(labels=labels_of(nodule=0)), SuiteConfig())
    assert "not measured: nodule" in caplog.text


def test_where_no_finding_can_be_measured_nothing_is_scored() -> None:
    with pytest.raises(UserError, match="No label has a positive and a negative image both in train and in test"):
        check_cohort(images(labels=labels_of(effusion=-128, nodule=-1)), SuiteConfig())


def test_all_faults_are_told_at_once() -> None:
    codes = np.arange(N)
    codes[25] = codes[3]
    with pytest.raises(UserError) as caught:
        check_cohort(images(patient_codes=codes, reader=Pixels(2), labels=labels_of(nodule=5)), SuiteConfig())
    assert len(str(caught.value).splitlines()) == 4
