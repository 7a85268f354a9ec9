"""Candidates are chosen on validation data; studies are judged by all of their images."""

import numpy as np
import pytest

from vet_extensions.errors import UserError
from vet_extensions.evaluation.cohort import Cohort
from vet_extensions.evaluation.probes import Candidates


def test_the_candidate_is_the_best_on_validation_labels() -> None:
    labels = np.array([[0], [1], [0], [1]], dtype=np.int8)
    good, bad = labels.astype(float), -labels.astype(float)
    candidates = Candidates("C", (0.1, 1.0, 10.0), val=np.stack([bad, good, good]), test=np.stack([good, bad, bad]))
    assert candidates.select(labels, columns=[0]) == 1


def test_a_choice_without_validation_labels_is_refused_with_the_cure() -> None:
    candidates = Candidates("C", (0.1, 1.0), val=np.zeros((2, 3, 1)), test=np.zeros((2, 3, 1)))
    with pytest.raises(UserError, match="single value of C"):
        candidates.select(np.zeros((3, 1), dtype=np.int8), columns=[0])


def small_cohort() -> Cohort:
    """Study 4: lateral and frontal; study 2: two laterals; study 9: frontal only."""
    return Cohort(
        split=np.array(["train", "train", "train", "train", "test"]),
        family=np.array(["lateral", "frontal", "lateral", "lateral", "frontal"]),
        patient_codes=np.array([0, 0, 1, 1, 2]),
        study_codes=np.array([4, 4, 2, 2, 9]),
        labels=np.array([[0, -1], [1, 0], [-128, 0], [-1, -128], [-128, -128]], dtype=np.int8),
    )


def test_a_studys_label_is_the_strongest_statement_among_its_images() -> None:
    studies = small_cohort().by_study()
    assert studies.study_codes.tolist() == [2, 4, 9]
    assert studies.labels.tolist() == [[-1, 0], [1, -1], [-128, -128]]
    assert studies.patient_codes.tolist() == [1, 0, 2]
    assert studies.split.tolist() == ["train", "train", "test"]


def test_study_features_are_a_mean_for_each_family_and_zeros_where_it_is_missing() -> None:
    features = np.array([[3.0, 0.0], [0.0, 2.0], [1.0, 0.0], [0.0, 1.0], [5.0, 0.0]])
    pooled, n_missing = small_cohort().pool_by_study(features)  # families in order: frontal, lateral
    np.testing.assert_allclose(pooled, [[0, 0, 0.5, 0.5], [0, 1, 1, 0], [1, 0, 0, 0]])
    assert n_missing.tolist() == [1, 0, 1]
