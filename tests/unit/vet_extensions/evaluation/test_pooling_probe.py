"""Poolings of bags are learned from known labels of the bank alone, repeat themselves, and find the slice that decides."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from vet_extensions.errors import UserError
from vet_extensions.evaluation.bags import Bags
from vet_extensions.evaluation.cohort import MULTICLASS, MULTILABEL
from vet_extensions.evaluation.logistic import linear_probe
from vet_extensions.evaluation.metrics import auroc
from vet_extensions.evaluation.pooling import PoolingModel, fit_pooling, pooling_probe
from vet_extensions.evaluation.pooling_config import LEARNED_POOLINGS, POOLING_PROTOCOLS, PoolingConfig
from vet_extensions.evaluation.probes import Candidates, ProbeData

QUICK = PoolingConfig(learning_rates=(3e-3,), epochs=3, batch_size=8, width=8, n_layers=1, n_heads=2)
C_GRID = (0.01, 1.0)


def make_bags(n_bags: int, *, seed: int, width: int = 8, longest: int = 6, sign: float = 3.0) -> Bags:
    """Bags of 1 to `longest` slices; one slice of each positive bag is moved by `sign` along the first feature."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, n_bags)
    lengths[0] = longest
    bag_of = np.repeat(np.arange(n_bags), lengths)
    features = rng.normal(size=(len(bag_of), width)).astype(np.float32)
    labels = (np.arange(n_bags) % 2).astype(np.int8)[:, None]
    at = np.cumsum(lengths) - lengths + rng.integers(0, lengths)
    features[at[labels[:, 0] == 1], 0] += sign
    return Bags(features, bag_of, labels)


def relabelled(bags: Bags, labels: np.ndarray) -> Bags:
    return Bags(bags.features, bags.bag_of, labels.astype(np.int8))


def probe(how: str, *, config: PoolingConfig = QUICK, bank: Bags | None = None, task: str = MULTILABEL) -> Candidates:
    bank = bank or make_bags(30, seed=0)
    return pooling_probe(
        bank, val=make_bags(20, seed=1), test=make_bags(10, seed=2), how=how, config=config, task=task, c_grid=C_GRID
    )


def fit(how: str, bank: Bags, *, val: Bags | None = None, config: PoolingConfig = QUICK, **options) -> PoolingModel:
    val = make_bags(20, seed=1) if val is None else val
    return fit_pooling(bank, val=val, how=how, config=config, **options)


@pytest.mark.parametrize(("how", "of"), [("pool_mean", "mean"), ("pool_max", "max")])
def test_mean_and_max_are_linear_probes_of_the_pooled_features(how: str, of: str) -> None:
    data = [
        ProbeData(bags.pooled(of), bags.labels) for bags in (make_bags(n, seed=seed) for seed, n in enumerate((30, 20, 10)))
    ]  # fmt: skip
    expected, found = linear_probe(data[0], val=data[1], test=data[2], c_grid=C_GRID), probe(how)
    assert (found.parameter, found.values) == ("C", C_GRID)
    np.testing.assert_array_equal(found.test, expected.test)


@pytest.mark.parametrize("how", POOLING_PROTOCOLS)
def test_every_pooling_scores_all_bags_even_those_of_one_slice(how: str) -> None:
    found = probe(how)
    assert found.val.shape[1:] == (20, 1)
    assert found.test.shape[1:] == (10, 1)
    assert np.isfinite(found.val).all()
    assert np.isfinite(found.test).all()


@pytest.mark.parametrize("how", LEARNED_POOLINGS)
def test_the_same_seed_gives_the_same_scores_and_leaves_the_generator_alone(how: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = probe(how).test
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    np.testing.assert_array_equal(probe(how).test, first)
    assert not np.array_equal(probe(how, config=replace(QUICK, seed=1)).test, first)


@pytest.mark.parametrize("how", LEARNED_POOLINGS)
def test_a_rate_of_a_grid_gives_what_it_gives_alone(how: str) -> None:
    together = probe(how, config=replace(QUICK, learning_rates=(1e-3, 3e-3)))
    assert (together.parameter, together.values) == ("learning_rate", (1e-3, 3e-3))
    np.testing.assert_array_equal(together.test[1], probe(how).test[0])


@pytest.mark.parametrize("how", LEARNED_POOLINGS)
def test_the_head_learns_and_the_features_stay_as_they_are(how: str) -> None:
    bank = make_bags(30, seed=0)
    features = bank.features.copy()
    trained, slow = fit(how, bank).head, fit(how, bank, learning_rate=1e-30).head
    np.testing.assert_array_equal(bank.features, features)
    begun = dict(slow.named_parameters())
    assert all(not torch.equal(parameter, begun[name]) for name, parameter in trained.named_parameters())


@pytest.mark.parametrize("how", LEARNED_POOLINGS)
@pytest.mark.parametrize("unknown", [-1, -128])
def test_bags_without_a_known_label_teach_nothing(how: str, unknown: int) -> None:
    bank = make_bags(30, seed=0)
    # the unknown bags repeat the others' slices, so that the features are standardised alike
    twice = Bags(
        np.concatenate([bank.features, bank.features]),
        np.concatenate([bank.bag_of, bank.bag_of + 30]),
        np.concatenate([bank.labels, np.full_like(bank.labels, unknown)]),
    )
    test = make_bags(10, seed=2)
    np.testing.assert_allclose(fit(how, twice).scores(test), fit(how, bank).scores(test), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("task", [MULTILABEL, MULTICLASS])
def test_an_unknown_label_is_not_a_negative_and_a_label_of_one_kind_has_no_model(task: str) -> None:
    bank, val = make_bags(30, seed=0), make_bags(20, seed=1)
    present = bank.labels[:, 0]
    if task == MULTICLASS:
        labels, n_models = np.stack([present, 1 - present, np.zeros(30)], axis=1), 2
        val = relabelled(val, np.stack([val.labels[:, 0], 1 - val.labels[:, 0], np.zeros(20)], axis=1))
    else:
        labels, n_models = np.stack([present, np.where(present == 1, 1, -1)], axis=1), 1
        val = relabelled(val, np.repeat(val.labels, 2, axis=1))
    scores = fit("abmil", relabelled(bank, labels), val=val, task=task).scores(val)
    assert np.isfinite(scores[:, :n_models]).all()
    assert np.isnan(scores[:, n_models:]).all()


def test_scores_of_classes_are_log_odds_of_a_softmax() -> None:
    bank, val = (
        relabelled(b, np.concatenate([b.labels, 1 - b.labels], axis=1))
        for b in (make_bags(30, seed=0), make_bags(20, seed=1))
    )
    scores = fit("abmil", bank, val=val, task=MULTICLASS).scores(val)
    np.testing.assert_allclose((1 / (1 + np.exp(-scores))).sum(axis=1), 1, rtol=1e-5)


def test_the_epoch_that_is_best_on_validation_is_kept() -> None:
    bank, val = make_bags(30, seed=0), make_bags(20, seed=1)
    flipped = relabelled(val, 1 - val.labels)
    config = replace(QUICK, epochs=12)
    chosen = {name: fit("abmil", bank, val=of, config=config) for name, of in (("val", val), ("flipped", flipped))}
    assert chosen["flipped"].epoch < chosen["val"].epoch  # what is learned makes the flipped labels' AUROC worse
    values = {name: auroc(model.scores(val)[:, 0], val.labels[:, 0]) for name, model in chosen.items()}
    assert values["flipped"] < values["val"]


def test_the_last_epoch_counts_where_validation_cannot_tell() -> None:
    val = make_bags(20, seed=1)
    assert fit("abmil", make_bags(30, seed=0), val=relabelled(val, np.ones_like(val.labels))).epoch == QUICK.epochs


@pytest.mark.parametrize("how", ["pool_attention", "abmil"])
def test_attention_finds_the_one_slice_that_decides(how: str) -> None:
    bank, val, test = (make_bags(n, seed=seed, longest=20, sign=6.0) for seed, n in enumerate((200, 100, 100)))
    config = PoolingConfig(width=16, epochs=15)
    model = fit(how, bank, val=val, config=config, learning_rate=1e-2)
    assert auroc(model.scores(test)[:, 0], test.labels[:, 0]) > 0.95
    weights = model.attention(test)
    np.testing.assert_allclose(np.bincount(test.bag_of, weights), 1, rtol=1e-5)
    looked_at = [
        test.features[test.bag_of == bag, 0].argmax() == weights[test.bag_of == bag].argmax()
        for bag in np.flatnonzero(test.labels[:, 0] == 1)
    ]
    assert np.mean(looked_at) > 0.9


@pytest.mark.parametrize("how", LEARNED_POOLINGS)
def test_slices_beyond_the_most_allowed_have_no_weight_and_are_told_of(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    bank, val = make_bags(30, seed=0), make_bags(20, seed=1)
    with caplog.at_level(logging.WARNING, logger="vet_extensions"):
        model = fit(how, bank, val=val, config=replace(QUICK, max_slices=3))
    weights = model.attention(val)
    np.testing.assert_array_equal(np.bincount(val.bag_of, weights > 0), np.minimum(val.lengths, 3))
    np.testing.assert_allclose(np.bincount(val.bag_of, weights), 1, rtol=1e-5)
    assert f"{(bank.lengths > 3).sum()} of 30 bags are longer than 3 slices" in caplog.text


def test_training_without_validation_or_labels_is_refused() -> None:
    bank = make_bags(30, seed=0)
    nothing = Bags(np.empty((0, 8)), np.empty(0, dtype=int), np.empty((0, 1), dtype=np.int8))
    with pytest.raises(UserError, match="no validation bags"):
        fit("abmil", bank, val=nothing)
    with pytest.raises(UserError, match="None of the 30 training bags has a known label"):
        fit("abmil", relabelled(bank, np.full((30, 1), -1)))
    with pytest.raises(UserError, match="30 of 30 training bags have no class, or several"):
        fit("abmil", relabelled(bank, np.ones((30, 2))), task=MULTICLASS)
    with pytest.raises(UserError, match="no pooling 'pool_median'"):
        probe("pool_median")


def test_a_loss_that_is_not_finite_is_reported() -> None:
    with pytest.raises(UserError, match=r"Give smaller pooling\.learning_rates"):
        fit("abmil", make_bags(30, seed=0), learning_rate=1e30)


def test_all_settings_that_cannot_be_are_named_at_once() -> None:
    with pytest.raises(UserError) as error:
        PoolingConfig(learning_rates=(), epochs=0, width=30, n_heads=4, positions="absolute", dropout=1.0)
    for name in ("learning_rates", "epochs", "width", "positions", "dropout"):
        assert name in str(error.value)
