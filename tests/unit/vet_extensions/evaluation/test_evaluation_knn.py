"""k-NN: equal to plain maths, the official votes and another package's ML-kNN, deaf to unknown labels."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from feature_factory import bank_and_queries

from dinov2.eval.knn import KnnModule
from vet_extensions.errors import UserError
from vet_extensions.evaluation.cohort import MULTICLASS
from vet_extensions.evaluation.knn import class_codes, class_votes, knn_probe, knn_scores, ml_knn_scores
from vet_extensions.evaluation.probes import ProbeData

GOLDEN = Path(__file__).resolve().parents[3] / "parity" / "golden" / "golden_ssl_step.json"
MISSING, UNCERTAIN = -128, -1


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


def test_class_votes_are_the_official_packages() -> None:
    golden = {int(k): v for k, v in json.loads(GOLDEN.read_text())["knn"].items()}
    bank, queries = (
        torch.sin(torch.arange(n * 8) * k + shift).view(n, 8) for n, k, shift in ((40, 0.7, 0), (6, 0.9, 1))
    )
    votes = class_votes(queries, bank=bank, bank_classes=torch.arange(40) % 5, n_classes=5, ks=tuple(golden))
    for place, expected in enumerate(golden.values()):
        np.testing.assert_allclose(votes[place], expected, rtol=1e-5, atol=1e-7)


def test_class_votes_equal_the_official_module_for_many_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    bank, queries = (F.normalize(torch.randn(n, 24, generator=generator), dim=1) for n in (700, 50))
    classes = torch.randint(0, 90, (700,), generator=generator)
    official = KnnModule(bank, classes, [10, 20, 100], 0.07, "cpu", num_classes=90)(queries)
    votes = class_votes(queries, bank=bank, bank_classes=classes, n_classes=90, ks=(10, 20, 100))
    for place, k in enumerate((10, 20, 100)):
        np.testing.assert_allclose(votes[place], official[k], rtol=1e-5, atol=1e-7)


def test_a_class_is_voted_on_with_official_weights_in_the_probe() -> None:
    bank, labels, queries = bank_and_queries()
    labels = np.eye(3, dtype=np.int8)[labels.argmax(axis=1)]
    of_queries = ProbeData(queries, labels[: len(queries)])
    found = knn_probe(ProbeData(bank, labels), val=of_queries, test=of_queries, ks=(5, 20), task=MULTICLASS)
    votes = class_votes(queries, bank=bank, bank_classes=labels.argmax(axis=1), n_classes=3, ks=(5, 20))
    np.testing.assert_array_equal(found.val, votes)
    assert (found.test[0].sum(axis=1) < 1).all()  # five of the twenty that share the weight


def test_a_row_of_two_classes_or_none_is_refused() -> None:
    with pytest.raises(UserError, match="2 of 3 rows have no class, or several"):
        class_codes(np.array([[1, 0], [1, 1], [0, -1]], dtype=np.int8))


def plain_ml_knn(query: np.ndarray, bank: np.ndarray, labels: np.ndarray, *, k: int, smoothing: float) -> np.ndarray:
    """Posterior of one query's labels, loop by loop as in the paper, fully known labels."""
    n, n_labels = labels.shape
    posterior = []
    for label in range(n_labels):
        prior = (smoothing + sum(labels[:, label])) / (2 * smoothing + n)
        with_label, without_label = [0] * (k + 1), [0] * (k + 1)
        for i in range(n):
            others = [j for j in np.argsort(-(unit(bank) @ unit(bank)[i]), kind="stable") if j != i][:k]
            count = sum(labels[j, label] for j in others)
            (with_label if labels[i, label] else without_label)[count] += 1
        count = labels[np.argsort(-(unit(bank) @ unit(query[None])[0]))[:k], label].sum()
        likelihood = (smoothing + with_label[count]) / (smoothing * (k + 1) + sum(with_label))
        other = (smoothing + without_label[count]) / (smoothing * (k + 1) + sum(without_label))
        posterior.append(prior * likelihood / (prior * likelihood + (1 - prior) * other))
    return np.array(posterior)


@pytest.mark.parametrize("smoothing", [1.0, 0.3])
def test_ml_knn_is_the_papers(smoothing: float) -> None:
    bank, labels, queries = bank_and_queries(n_bank=50, n_queries=6)
    scores = ml_knn_scores(queries, bank=bank, bank_labels=labels, ks=(3, 8), smoothing=smoothing)
    for place, k in enumerate((3, 8)):
        expected = [plain_ml_knn(query, bank, labels, k=k, smoothing=smoothing) for query in queries]
        np.testing.assert_allclose(scores[place], expected, rtol=1e-12)


def test_ml_knn_equals_scikit_multilearn() -> None:
    """Its posteriors for these data (0.2.0, k 5, s 1, an image no neighbour of itself)."""
    generator = np.random.default_rng(5)
    bank = unit(generator.normal(size=(60, 4)))
    labels = (bank[:, :3] + 0.5 * generator.normal(size=(60, 3)) > 0.2).astype(np.int8)
    queries = unit(generator.normal(size=(6, 4)))
    expected = [
        [0.4809885932, 0.7354651163, 0.2618453865],
        [0.3934681182, 0.4516848918, 0.2618453865],
        [0.4809885932, 0.7354651163, 0.2618453865],
        [0.698509111, 0.2842696629, 0.2618453865],
        [0.3462196374, 0.4516848918, 0.6234096692],
        [0.3462196374, 0.4516848918, 0.5577689243],
    ]
    scores = ml_knn_scores(queries, bank=bank, bank_labels=labels, ks=(5,))
    np.testing.assert_allclose(scores[0], expected, atol=1e-9)


def test_ml_knn_of_a_label_asks_only_images_that_know_it() -> None:
    bank, labels, queries = bank_and_queries(n_bank=60, n_queries=5)
    labels[::3, 1] = MISSING
    labels[5:, 2] = UNCERTAIN
    scores = ml_knn_scores(queries, bank=bank, bank_labels=labels, ks=(5,))[0]
    known = labels[:, 1] >= 0
    alone = ml_knn_scores(queries, bank=bank[known], bank_labels=labels[known][:, 1:2], ks=(5,))[0]
    np.testing.assert_array_equal(scores[:, 1:2], alone)
    assert np.isnan(scores[:, 2]).all()  # five images know it, which are not five neighbours of one of them


def test_an_image_is_no_neighbour_of_itself_among_equals() -> None:
    bank = np.repeat(np.eye(2, dtype=np.float32), 6, axis=0)  # two heaps of equal images
    labels = np.repeat([[1], [0]], 6, axis=0).astype(np.int8)
    score = ml_knn_scores(bank[:1], bank=bank, bank_labels=labels, ks=(4,))[0, 0, 0]
    assert score == pytest.approx((7 / 11) / (7 / 11 + 1 / 11))
