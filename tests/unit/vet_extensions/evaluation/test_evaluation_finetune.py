"""Tuning on labels: it learns, it counts only what is known, it goes on exactly where it stopped, and it chooses on val alone."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tuning_factory import (
    DEPTH,
    QUICK,
    SIZE_PX,
    WIDTH,
    as_backbone,
    cohort_of,
    phantom_images,
    tiny_backbone,
    tiny_vit,
)

from vet_extensions.errors import UserError
from vet_extensions.evaluation.backbones import open_backbone, read_vit
from vet_extensions.evaluation.cohort import MULTICLASS, LabelledImages
from vet_extensions.evaluation.embedding import BlockTokens, cls_name, embed
from vet_extensions.evaluation.finetune import Tuned, tune
from vet_extensions.evaluation.logistic import fit_logistic
from vet_extensions.evaluation.metrics import AUROC, is_known, label_metrics, macro
from vet_extensions.evaluation.suite_config import LinearConfig
from vet_extensions.evaluation.tuning_checks import NotTrainedAsIntended
from vet_extensions.evaluation.tuning_config import BASE_LEARNING_RATES, TUNED_PROTOCOLS, TuningConfig
from vet_extensions.evaluation.tuning_data import TuningImages, epoch_batches, rows_of
from vet_extensions.evaluation.tuning_methods import adapt, n_parameters
from vet_extensions.evaluation.tuning_model import (
    TunedClassifier,
    class_log_odds,
    known_loss,
    make_optimizer,
    rate_share,
)
from vet_extensions.schema import Split


@pytest.fixture(scope="module")
def phantom() -> LabelledImages:
    return phantom_images()


def run(images: LabelledImages, method: str = "norm", config: TuningConfig = QUICK, **options: object) -> Tuned:
    return tune(tiny_backbone(), images, method=method, config=config, **options)  # type: ignore[arg-type]


def same(one: Tuned, other: Tuned) -> bool:
    pairs = [(one.candidates.val, other.candidates.val), (one.candidates.test, other.candidates.test)]
    facts = [[replace(fact, wall_s=0, peak_memory_bytes=0) for fact in tuned.facts] for tuned in (one, other)]
    return all(np.array_equal(a, b) for a, b in pairs) and facts[0] == facts[1]


class Stopped(Exception):
    """Stands for a scheduler's signal in the middle of an epoch."""


@pytest.mark.parametrize("method", TUNED_PROTOCOLS)
def test_every_method_runs_and_says_what_it_cost(method: str, phantom: LabelledImages) -> None:
    if method in ("lora", "dora", "ia3"):
        pytest.importorskip("peft")
    tuned = run(phantom, method)
    n_val, n_test = ((phantom.cohort.split == split).sum() for split in ("val", "test"))
    assert tuned.candidates.val.shape == (1, n_val, 2)
    assert tuned.candidates.test.shape == (1, n_test, 2)
    assert np.isfinite(tuned.candidates.test).all()
    (facts,) = tuned.facts
    assert facts.n_head == 2 * (WIDTH + 1)
    assert 0 < facts.n_trainable < facts.n_total
    assert facts.wall_s > 0
    assert facts.peak_memory_bytes > 0
    assert facts.learning_rate == BASE_LEARNING_RATES[method]


@pytest.mark.slow
def test_fine_tuning_fits_the_phantom_better_than_a_probe_of_the_frozen_backbone() -> None:
    """The probe has a fifth as many features as there are images, and the weakest penalty of the suite's own grid."""
    phantom = phantom_images(80)
    split = np.where(np.arange(80) < 72, "train", "test")
    images = replace(phantom, cohort=replace(phantom.cohort, split=split))
    backbone = as_backbone(partial(tiny_vit, width=16), embed_dim=16)
    train = rows_of(images, Split.TRAIN)
    labels = phantom.cohort.labels[train]
    parts = embed(backbone, phantom.reader, rows=train, names=[cls_name(1)], image_size_px=SIZE_PX)
    features = np.concatenate([found[cls_name(1)] for _, found in parts])
    logits = fit_logistic(features, labels=labels, c_grid=[max(LinearConfig().c_grid)]).scores(features)[0]
    total, n_known = known_loss(torch.from_numpy(logits), torch.from_numpy(labels), task=phantom.task)
    rates: dict[str, Any] = {"learning_rate_factors": (50.0,), "head_learning_rate": 0.01, "layer_decay": 1.0}
    config = replace(QUICK, epochs=60, augmentation="none", weight_decay=0.0, **rates)
    assert tune(backbone, images, method="finetune", config=config).facts[0].train_loss < float(total / n_known)


@pytest.mark.parametrize("method", ["finetune", "lora"])
def test_an_interrupted_training_ends_in_the_same_bits(method: str, tmp_path: Path, phantom: LabelledImages) -> None:
    if method == "lora":
        pytest.importorskip("peft")
    config = replace(QUICK, epochs=3, dropout=0.5)
    whole = run(phantom, method, config, folder=tmp_path / "whole")
    n_train = len(rows_of(phantom, Split.TRAIN))

    def stop(done: int, total: int) -> None:
        if done > 2 * n_train:
            raise Stopped

    with pytest.raises(Stopped):
        run(phantom, method, config, folder=tmp_path / "parts", on_progress=stop)
    torch.rand(5)  # what happens between the two must not matter
    seen: list[int] = []
    resumed = run(phantom, method, config, folder=tmp_path / "parts", on_progress=lambda done, total: seen.append(done))
    assert min(seen) > 2 * n_train, "it began anew"
    assert same(whole, resumed)


def test_a_finished_training_is_read_and_not_repeated(tmp_path: Path, phantom: LabelledImages) -> None:
    first = run(phantom, folder=tmp_path)

    def build() -> torch.nn.Module:
        raise AssertionError("it trains again")

    assert tune(as_backbone(build), phantom, method="norm", config=QUICK, folder=tmp_path).facts == first.facts
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]
    with pytest.raises(AssertionError, match="trains again"):
        tune(as_backbone(build, weights_hash="1"), phantom, method="norm", config=QUICK, folder=tmp_path)


def test_torch_draws_as_if_nothing_had_been_trained(phantom: LabelledImages) -> None:
    before = torch.get_rng_state()
    run(phantom, "finetune")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_test_split_decides_nothing(phantom: LabelledImages) -> None:
    is_test = phantom.cohort.split == "test"
    labels = phantom.cohort.labels.copy()
    labels[is_test] = 1 - labels[is_test].clip(0, 1)
    turned = replace(phantom, cohort=replace(phantom.cohort, labels=labels))
    assert same(run(phantom, "finetune"), run(turned, "finetune"))


def test_the_epoch_is_the_best_on_validation(phantom: LabelledImages, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="vet_extensions")
    tuned = run(phantom, "finetune", replace(QUICK, epochs=6, learning_rate_factors=(20.0,)))
    values = [record.args[3] for record in caplog.records if isinstance(record.args, tuple) and len(record.args) == 4]
    assert len(values) == 6
    assert tuned.facts[0].epoch == int(np.argmax(values)) + 1 != 6
    is_val = phantom.cohort.split == "val"
    scored = label_metrics(tuned.candidates.val[0], labels=phantom.cohort.labels[is_val])[AUROC][:, 0]
    assert macro(scored)[0] == max(values)  # type: ignore[type-var]


def test_without_validation_images_the_last_epoch_counts(phantom: LabelledImages) -> None:
    split = np.where(phantom.cohort.split == "val", "test", phantom.cohort.split)
    tuned = run(replace(phantom, cohort=replace(phantom.cohort, split=split)))
    assert tuned.facts[0].epoch == QUICK.epochs
    assert tuned.candidates.val.shape == (1, 0, 2)


def test_each_learning_rate_is_a_candidate(phantom: LabelledImages) -> None:
    tuned = run(phantom, config=replace(QUICK, learning_rate_factors=(0.5, 2.0)))
    assert tuned.candidates.values == (0.5e-3, 2e-3)
    assert tuned.candidates.parameter == "learning_rate"
    assert not np.array_equal(tuned.candidates.val[0], tuned.candidates.val[1])
    alone = run(phantom, config=replace(QUICK, learning_rate_factors=(2.0,)))
    np.testing.assert_array_equal(tuned.candidates.test[1], alone.candidates.test[0])


def test_classes_are_scored_by_log_odds_of_probabilities_that_sum_to_one(phantom: LabelledImages) -> None:
    labels = np.eye(3, dtype=np.int8)[np.arange(len(phantom.cohort.split)) % 3]
    images = cohort_of(phantom.reader.images, labels, phantom.cohort.split, task=MULTICLASS)  # type: ignore[attr-defined]
    odds = run(images).candidates.test
    np.testing.assert_allclose((1 / (1 + np.exp(-odds))).sum(axis=2), 1, rtol=1e-5)


def test_log_odds_of_classes_are_those_of_the_softmax_and_finite_where_it_saturates() -> None:
    logits = torch.randn(5, 4)
    torch.testing.assert_close(class_log_odds(logits), torch.logit(logits.softmax(dim=1)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(class_log_odds(torch.tensor([[500.0, 0.0]])), torch.tensor([[500.0, -500.0]]))


def test_a_label_without_both_values_in_training_has_no_score(phantom: LabelledImages) -> None:
    labels = phantom.cohort.labels.copy()
    labels[phantom.cohort.split == "train", 0] = 0
    tuned = run(replace(phantom, cohort=replace(phantom.cohort, labels=labels)))
    assert np.isnan(tuned.candidates.test[..., 0]).all()
    assert np.isfinite(tuned.candidates.test[..., 1]).all()


def test_another_resolution_interpolates_the_positions(phantom: LabelledImages) -> None:
    config = replace(QUICK, image_size_px=2 * SIZE_PX)
    assert not same(run(phantom, "finetune", config), run(phantom, "finetune"))


def test_mean_patch_tokens_widen_the_head(phantom: LabelledImages) -> None:
    assert run(phantom, tokens="cls+mean_patch").facts[0].n_head == 2 * (2 * WIDTH + 1)


def test_nothing_to_learn_from_is_an_error(phantom: LabelledImages) -> None:
    labels = np.where(phantom.cohort.split[:, None] == "train", -1, phantom.cohort.labels)
    with pytest.raises(UserError, match="None of the 24 training images of test has a label to learn from"):
        run(replace(phantom, cohort=replace(phantom.cohort, labels=labels)))


def test_a_loss_that_is_not_finite_is_an_error(phantom: LabelledImages) -> None:
    with pytest.raises(UserError, match=r"not finite in epoch \d at learning rate 1e\+36"):
        run(phantom, config=replace(QUICK, learning_rate_factors=(1e39,), clip_norm=1e9))


def test_an_unknown_method_is_an_error(phantom: LabelledImages) -> None:
    with pytest.raises(UserError, match=r"Unknown method 'adapter'\. Allowed: finetune, lora"):
        run(phantom, "adapter")


def test_a_head_in_front_of_detached_features_raises(phantom: LabelledImages) -> None:
    """The study's fault 2: methods that were asked for and never trained."""

    def read(model: torch.nn.Module, pixels: torch.Tensor, indices: Sequence[int]) -> tuple[BlockTokens, ...]:
        (tokens,) = read_vit(model, pixels, indices)
        return (BlockTokens(tokens.cls.detach() if model.training else tokens.cls, tokens.patches),)

    with pytest.raises(NotTrainedAsIntended, match="parameters that should train do not: backbone"):
        tune(as_backbone(tiny_vit, read=read), phantom, method="bitfit", config=QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["finetune", "lora", "last_k"])
def test_a_model_of_transformers_is_tuned_without_the_pooler_that_nothing_reads(
    method: str, phantom: LabelledImages, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("peft")
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.ViTConfig(image_size=SIZE_PX, patch_size=8, **sizes)
    transformers.ViTModel(config).save_pretrained(tmp_path)
    backbone = open_backbone(f"hf:{tmp_path}")
    adapted = adapt(backbone, method, QUICK, image_size_px=SIZE_PX)
    assert not any("pooler" in name for name in adapted.trainable)
    (facts,) = tune(backbone, phantom, method=method, config=QUICK).facts
    assert facts.n_trainable == n_parameters(adapted.model, adapted.trainable)


def test_only_known_labels_have_a_loss() -> None:
    logits = torch.randn(6, 3)
    labels = torch.tensor([[1, 0, -128], [0, -1, 1], [-128, -128, -1]] * 2, dtype=torch.int8)
    total, n_known = known_loss(logits, labels, task="multilabel")
    known = torch.from_numpy(is_known(labels.numpy()))
    expected = sum(
        float(F.softplus(-logit if label == 1 else logit)) for logit, label in zip(logits[known], labels[known])
    )
    assert int(n_known) == 8
    assert float(total) == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_classes_is_the_cross_entropy_of_rows_with_one() -> None:
    logits = torch.randn(3, 4)
    labels = torch.tensor([[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.int8)
    total, n_known = known_loss(logits, labels, task=MULTICLASS)
    expected = F.cross_entropy(logits[[0, 2]], torch.tensor([1, 3]), reduction="sum")
    assert int(n_known) == 2
    torch.testing.assert_close(total, expected)


def test_the_rate_rises_from_above_zero_and_falls_towards_zero() -> None:
    shares = [rate_share(step, n_steps=100, warmup_share=0.1) for step in range(100)]
    np.testing.assert_allclose(shares[:11], [*(np.arange(1, 11) / 10), 1.0])
    assert all(before > after for before, after in pairwise(shares[10:]))
    assert 0 < shares[-1] < 1e-3


@pytest.mark.parametrize("block_chunks", [0, 1])
def test_rates_fall_from_block_to_block_and_the_head_has_its_own(block_chunks: int) -> None:
    adapted = adapt(tiny_backbone(block_chunks=block_chunks), "finetune", QUICK, image_size_px=SIZE_PX)
    backbone: Any = adapted.model
    rates = torch.tensor([0.5])
    classifier = TunedClassifier(adapted, embed_dim=WIDTH, n_blocks=DEPTH, base_rates=rates, task="multilabel")
    config = TuningConfig(layer_decay=0.5, head_learning_rate=0.25, weight_decay=0.1)
    optimizer = make_optimizer(classifier, method="finetune", factor=1e4, config=config)  # peak 1.0
    peak = {id(p): group["peak_lr"] for group in optimizer.param_groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    blocks = list(backbone.blocks[0]) if block_chunks else list(backbone.blocks)
    assert [peak[id(block.attn.qkv.weight)] for block in blocks] == [0.5**k for k in range(DEPTH, 0, -1)]
    assert peak[id(backbone.pos_embed)] == 0.5 ** (DEPTH + 1)
    assert peak[id(backbone.norm.weight)] == 1.0
    assert peak[id(classifier.head.weight)] == 0.25
    assert (decay[id(blocks[0].attn.qkv.weight)], decay[id(blocks[0].attn.qkv.bias)]) == (0.1, 0.0)
    assert len(peak) == sum(p.requires_grad for p in classifier.parameters())


def test_an_epoch_shows_every_image_once_in_batches_of_nearly_one_size() -> None:
    rows = np.arange(100, 121)
    batches = epoch_batches(rows, epoch=3, batch_size=8, seed=0, is_varied=True)
    assert sorted(row for batch in batches for row, _ in batch) == rows.tolist()
    assert [len(batch) for batch in batches] == [7, 7, 7]
    assert sorted(place for batch in batches for _, place in batch) == list(range(3 * 21, 4 * 21))
    assert batches != epoch_batches(rows, epoch=4, batch_size=8, seed=0, is_varied=True)


def test_an_image_is_varied_by_its_place_alone_and_not_at_all_for_scoring() -> None:
    pixels = np.zeros((2, 40, 24), dtype=np.uint16)
    pixels[:, 10:30, 6:18] = 40_000
    images = TuningImages(cohort_of(pixels, np.ones((2, 1)), np.full(2, "train")).reader, image_size_px=16, seed=1)
    np.testing.assert_array_equal(images[0, 7], images[0, 7])
    assert not np.array_equal(images[0, 7], images[0, 8])
    np.testing.assert_array_equal(images[0, -1], images[1, -1])
    assert abs(float(images[0, 7].mean() - images[0, -1].mean())) < 0.15
