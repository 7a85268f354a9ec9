"""Ranks and averages are those of scikit-learn and of plain loops; chance is what random features get."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from vet_extensions.evaluation.cohort import Cohort
from vet_extensions.evaluation.retrieval import (
    AVERAGE_PRECISION,
    MEDIAN_RANK,
    RETRIEVAL,
    chance_values,
    measure_retrieval,
    rank_relevant,
    retrieval_values,
)
from vet_extensions.evaluation.statistics import PatientBootstrap


def made_up(n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.normal(size=(n, 5)), generator.integers(0, 8, n)


def test_average_precision_and_first_rank_are_the_plain_ones() -> None:
    features, key = made_up()
    queries, gallery = np.arange(20), np.arange(20, 60)
    found = rank_relevant(features, queries=queries, gallery=gallery, relevant_key=key)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    expected = []
    for query in queries:
        similarity, relevant = unit[gallery] @ unit[query], key[gallery] == key[query]
        if relevant.any():
            first = 1 + int((similarity > similarity[relevant].max()).sum())
            expected.append((query, first, average_precision_score(relevant, similarity)))
    np.testing.assert_array_equal(found.queries, [row[0] for row in expected])
    np.testing.assert_array_equal(found.first_rank, [row[1] for row in expected])
    np.testing.assert_allclose(found.average_precision, [row[2] for row in expected])


def test_recall_and_median_count_a_query_as_often_as_its_weight() -> None:
    features, key = made_up()
    found = rank_relevant(features, queries=np.arange(20), gallery=np.arange(20, 60), relevant_key=key)
    weights = np.random.default_rng(1).integers(0, 4, (len(found.queries), 3)).astype(np.float64)
    values = retrieval_values(found, weights)
    for resample in range(3):
        ranks = np.sort(np.repeat(found.first_rank, weights[:, resample].astype(int)))
        assert values["recall_at_5"][resample] == pytest.approx((ranks <= 5).mean())
        assert values[MEDIAN_RANK][resample] == ranks[(len(ranks) - 1) // 2]


@pytest.mark.parametrize("same_features", [False, True])
def test_chance_is_what_features_get_that_tell_nothing(same_features: bool) -> None:
    generator = np.random.default_rng(0)
    key = generator.integers(0, 30, 400)
    values = []
    for seed in range(40):
        features = np.ones((400, 3)) if same_features else generator.normal(size=(400, 6))
        rows = {"queries": np.arange(60), "gallery": np.arange(60, 400)}
        found = rank_relevant(features, relevant_key=key, seed=seed, **rows)
        values.append({name: value[0] for name, value in retrieval_values(found).items()})
    chance = chance_values(found)
    for name in ("recall_at_1", "recall_at_10", AVERAGE_PRECISION):
        assert np.mean([value[name] for value in values]) == pytest.approx(chance[name], rel=0.2)
    assert np.mean([value[MEDIAN_RANK] for value in values]) == pytest.approx(chance[MEDIAN_RANK], rel=0.2)


def studies(n: int = 40) -> tuple[Cohort, np.ndarray]:
    """Test studies of two views, two studies a patient; features that tell the study and, weakly, the finding."""
    generator = np.random.default_rng(0)
    study = np.arange(2 * n) // 2
    labels = (study % 3 == 0).astype(np.int8)[:, None]
    cohort = Cohort(
        split=np.full(2 * n, "test"),
        family=np.tile(["lateral", "frontal"], n),
        patient_codes=study // 2,
        study_codes=study,
        labels=labels,
    )
    features = 2 * generator.normal(size=(n, 16))[study] + generator.normal(size=(2 * n, 16))
    return cohort, np.hstack([features, 6.0 * labels])


def test_the_other_view_and_the_same_finding_are_found_above_chance() -> None:
    cohort, features = studies()
    bootstrap = PatientBootstrap(cohort.patient_codes, n_resamples=20)
    arguments = {"label_names": ("mass",), "groups": {"all": [0]}, "bootstrap": bootstrap}
    rows = measure_retrieval(features, cohort, level="cross_view", **arguments)
    rows |= measure_retrieval(features, cohort, level="image", **arguments)
    for key in (("cross_view", "same_study", RETRIEVAL, "recall_at_1"), ("image", "all", RETRIEVAL, "recall_at_1")):
        assert rows[key].samples.values[0] > 1.3 * rows[key].config["chance"]
        assert rows[key].samples.samples.shape == (20, 1)
    assert rows["cross_view", "same_study", RETRIEVAL, MEDIAN_RANK].samples.values[0] < 5
    assert rows["cross_view", "same_study", RETRIEVAL, "recall_at_1"].n_images == 80
    assert measure_retrieval(features, cohort, level="lateral", **arguments) == {}


def test_images_of_the_same_patient_do_not_count_as_finding_the_finding() -> None:
    cohort, features = studies(n=4)
    found = rank_relevant(
        features, queries=np.arange(8), gallery=np.arange(8), relevant_key=cohort.labels[:, 0],
        left_out_key=cohort.patient_codes,
    )  # fmt: skip
    assert (found.n_gallery == 4).all()


def test_unknown_labels_are_neither_asked_for_nor_found() -> None:
    cohort, features = studies()
    cohort.labels[::5, 0] = -1
    bootstrap = PatientBootstrap(cohort.patient_codes, n_resamples=2)
    rows = measure_retrieval(
        features, cohort, level="image", label_names=("mass",), groups={"all": [0]}, bootstrap=bootstrap
    )
    assert rows["image", "all", RETRIEVAL, "recall_at_1"].n_images == int((cohort.labels == 1).sum())
