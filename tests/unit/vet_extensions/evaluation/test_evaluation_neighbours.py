"""The search in 8 bits finds the neighbours that a comparison of everything finds, on benign and on hard banks."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from vet_extensions.errors import UserError
from vet_extensions.evaluation import neighbours
from vet_extensions.evaluation.neighbours import NeighbourSearch

TELLABLE = 1e-6
"""Float32 cannot order similarities that are closer than this."""


def random_bank(generator: np.random.Generator) -> np.ndarray:
    return generator.normal(size=(3001, 40))


def clusters(generator: np.random.Generator) -> np.ndarray:
    """30 heaps, far tighter than a step of 8 bits is wide."""
    return np.repeat(generator.normal(size=(30, 40)), 100, axis=0) + 1e-3 * generator.normal(size=(3000, 40))


def copies(generator: np.random.Generator) -> np.ndarray:
    """Every row 50 times."""
    return np.tile(generator.normal(size=(60, 40)), (50, 1))


def far_from_zero(generator: np.random.Generator) -> np.ndarray:
    """Nearly all of a row is what all share, and one component dwarfs the rest, as in features of large transformers."""
    return 30 + generator.normal(size=(2500, 40)) * np.geomspace(1e-2, 20, 40)


def with_empty_rows(generator: np.random.Generator) -> np.ndarray:
    bank = generator.normal(size=(2100, 40))
    bank[::7] = 0
    return bank


BANKS = [random_bank, clusters, copies, far_from_zero, with_empty_rows]


@pytest.mark.parametrize("make", BANKS)
@pytest.mark.parametrize(("query_rows", "bank_rows"), [(512, 131_072), (7, 640)])
def test_the_search_in_8_bits_has_recall_one(
    make: Callable[[np.random.Generator], np.ndarray], query_rows: int, bank_rows: int
) -> None:
    generator = np.random.default_rng(0)
    bank = make(generator)
    queries = np.concatenate([generator.normal(size=(20, 40)), bank[:20] + 0.01 * generator.normal(size=(20, 40))])
    search = NeighbourSearch(bank, query_rows=query_rows, bank_rows=bank_rows, in_8_bit=True)
    similarity, rows = search.all(queries, k=15)
    exact = unit(queries) @ unit(bank).T
    best = -np.sort(-exact, axis=1)[:, :15]
    np.testing.assert_allclose(similarity, best, atol=TELLABLE)
    np.testing.assert_allclose(np.take_along_axis(exact, rows.numpy(), axis=1), best, atol=TELLABLE)
    assert all(len(set(found)) == 15 for found in rows.tolist())


def test_few_candidates_are_compared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    compared: list[int] = []
    similarities = neighbours._similarities

    def count(queries: torch.Tensor, bank: torch.Tensor, pairs: neighbours._Pairs) -> torch.Tensor:
        compared.append(len(pairs.rows) // len(queries))
        return similarities(queries, bank, pairs)

    monkeypatch.setattr(neighbours, "_similarities", count)
    NeighbourSearch(generator.normal(size=(6400, 64)), in_8_bit=True).all(generator.normal(size=(30, 64)), k=20)
    assert 20 <= compared[0] < 100


def test_intervals_that_do_not_hold_send_the_block_to_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(2)
    bank, queries = generator.normal(size=(2000, 32)), generator.normal(size=(9, 32))
    monkeypatch.setattr(neighbours, "_DEVIATIONS", 0.05)
    similarity, _ = NeighbourSearch(bank, in_8_bit=True).all(queries, k=10)
    np.testing.assert_allclose(similarity, -np.sort(-(unit(queries) @ unit(bank).T), axis=1)[:, :10], atol=TELLABLE)


def test_float32_in_blocks_equals_all_at_once() -> None:
    generator = np.random.default_rng(3)
    bank, queries = generator.normal(size=(300, 8)), generator.normal(size=(11, 8))
    whole = NeighbourSearch(bank).all(queries, k=12)
    blocked = NeighbourSearch(bank, query_rows=4, bank_rows=32).all(queries, k=12)
    np.testing.assert_array_equal(whole[1], blocked[1])
    np.testing.assert_allclose(whole[0], blocked[0], atol=TELLABLE)


@pytest.mark.parametrize("k", [0, 301])
def test_k_outside_the_bank_is_refused_by_the_search(k: int) -> None:
    bank = np.random.default_rng(0).normal(size=(300, 8))
    with pytest.raises(UserError, match="between 1 and the 300"):
        NeighbourSearch(bank).all(bank[:2], k=k)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
