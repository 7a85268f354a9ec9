"""k-NN and linear probe: equal to plain reference maths, deaf to unknown labels, chosen on validation data."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from vet_extensions.errors import UserError
from vet_extensions.evaluation.cohort import Cohort
from vet_extensions.evaluation.probes import Candidates, fit_logistic, knn_scores

MISSING, UNCERTAIN = -128, -1


def bank_and_queries(
    *, n_bank: int = 120, n_queries: int = 15, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bank features [n_bank, 6], bank labels [n_bank, 3] without unknowns, queries [n_queries, 6]."""
    generator = np.random.default_rng(seed)
    bank = generator.normal(size=(n_bank, 6)).astype(np.float32)
    labels = (bank[:, :3] + generator.normal(size=(n_bank, 3)) > 0.5).astype(np.int8)
    return bank, labels, generator.normal(size=(n_queries, 6)).astype(np.float32)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def plain_vote(query: np.ndarray, bank: np.ndarray, labels: np.ndarray, *, k: int, temperature: float) -> np.ndarray:
    """One query's scores, straight from the definition."""
    similarity = unit(bank) @ (query / np.linalg.norm(query))
    nearest = np.argsort(-similarity)[:k]
    weights = np.exp((similarity[nearest] - similarity[nearest].max()) / temperature)
    scores = []
    for column in labels[nearest].T:
        known = column >= 0
        scores.append((weights * (column == 1))[known].sum() / weights[known].sum())
    return np.array(scores)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_knn_scores_are_the_softmax_weighted_vote_of_the_nearest(temperature: float) -> None:
    bank, labels, queries = bank_and_queries()
    labels[::5, 0], labels[1::7, 2] = MISSING, UNCERTAIN
    scores = knn_scores(queries, bank=bank, bank_labels=labels, ks=(10, 30), temperature=temperature)
    for place, k in enumerate((10, 30)):
        expected = [plain_vote(query, bank, labels, k=k, temperature=temperature) for query in queries]
        np.testing.assert_allclose(scores[place], expected, atol=1e-5)


def test_knn_in_blocks_equals_knn_at_once() -> None:
    bank, labels, queries = bank_and_queries()
    whole = knn_scores(queries, bank=bank, bank_labels=labels, ks=(5, 20))
    blocked = knn_scores(queries, bank=bank, bank_labels=labels, ks=(5, 20), block_rows=4, bank_block_rows=13)
    np.testing.assert_allclose(blocked, whole, atol=1e-6)


def test_unknown_neighbours_have_no_vote() -> None:
    bank, labels, queries = bank_and_queries()
    labels[:, 0] = UNCERTAIN
    nearest = np.argsort(-(unit(bank) @ unit(queries[:1])[0]))
    labels[nearest[3], 0] = 1
    labels[nearest[100], 0] = 0
    assert knn_scores(queries[:1], bank=bank, bank_labels=labels, ks=(10,))[0, 0, 0] == pytest.approx(1.0)


def test_knn_falls_back_to_the_prevalence_and_is_nan_where_nobody_knows() -> None:
    bank, labels, queries = bank_and_queries()
    labels[:, 0] = MISSING
    nearest = np.argsort(-(unit(bank) @ unit(queries[:1])[0]))
    labels[nearest[-4:], 0] = [1, 0, 0, 0]
    labels[:, 1] = MISSING
    scores = knn_scores(queries[:1], bank=bank, bank_labels=labels, ks=(10,))[0, 0]
    assert scores[0] == pytest.approx(0.25)
    assert np.isnan(scores[1])


@pytest.mark.parametrize("k", [0, 121])
def test_k_outside_the_bank_is_refused(k: int) -> None:
    bank, labels, queries = bank_and_queries()
    with pytest.raises(UserError, match="between 1 and the 120"):
        knn_scores(queries, bank=bank, bank_labels=labels, ks=(k,))


def test_logistic_regressions_equal_scikit_learn_for_every_c_and_label() -> None:
    bank, labels, queries = bank_and_queries(n_bank=300)
    bank = bank @ np.diag([1.0, 5.0, 0.01, 1.0, 1.0, 1.0]) + 3
    labels[::4, 1] = MISSING
    labels[::9, 2] = UNCERTAIN
    grid = (1e-3, 0.1, 10.0)
    model = fit_logistic(bank, labels=labels, c_grid=grid)
    ours = model.scores(queries)
    standardised, queries_standardised = ((x - bank.mean(axis=0)) / bank.std(axis=0) for x in (bank, queries))
    for place, c in enumerate(grid):
        for column in range(3):
            known = labels[:, column] >= 0
            reference = LogisticRegression(C=c, tol=1e-10, solver="newton-cholesky")
            reference.fit(standardised[known], labels[known, column])
            expected = reference.decision_function(queries_standardised)
            np.testing.assert_allclose(ours[place, :, column], expected, rtol=1e-3, atol=1e-3)


def test_a_label_with_one_class_in_the_bank_has_no_model() -> None:
    bank, labels, queries = bank_and_queries()
    labels[:, 1] = 0
    scores = fit_logistic(bank, labels=labels, c_grid=(1.0,)).scores(queries)
    assert np.isnan(scores[0, :, 1]).all()
    assert np.isfinite(scores[0, :, [0, 2]]).all()


def test_separable_labels_and_constant_features_end_in_finite_scores() -> None:
    bank, labels, queries = bank_and_queries()
    labels[:, 0] = bank[:, 0] > 0
    bank[:, 5] = 2.5
    scores = fit_logistic(bank, labels=labels, c_grid=(1e-4, 1e4)).scores(queries)
    assert np.isfinite(scores).all()


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
