"""The linear heads: inputs, names, initial weights and state-dict keys, and the grid with and without official collisions."""

import pytest
import torch
from torch import nn

from dinov2.eval.linear import (
    LEARNING_RATES,
    AllClassifiers,
    LinearClassifier,
    LinearPostprocessor,
    create_linear_input,
    has_ddp_wrapper,
    remove_ddp_wrapper,
    scale_lr,
    setup_linear_classifiers,
)
from dinov2.eval.linear_training import summed_cross_entropy


def tokens(batch: int = 2, n_blocks: int = 4, n_patches: int = 3, width: int = 5):
    generator = torch.Generator().manual_seed(0)
    return tuple(
        (torch.randn(batch, n_patches, width, generator=generator), torch.randn(batch, width, generator=generator))
        for _ in range(n_blocks)
    )


@pytest.mark.parametrize(("n", "avgpool", "width"), [(1, False, 5), (1, True, 10), (4, False, 20), (4, True, 25)])
def test_linear_input_is_the_last_cls_tokens_earliest_first_then_the_last_mean_patch(n, avgpool, width):
    blocks = tokens()
    parts = [cls for _, cls in blocks[-n:]] + ([blocks[-1][0].mean(1)] if avgpool else [])
    got = create_linear_input(blocks, n, avgpool)
    assert got.shape == (2, width)
    torch.testing.assert_close(got, torch.cat(parts, 1), rtol=0, atol=0)


def test_linear_input_is_float32_and_can_be_trained_on_although_tokens_come_from_inference_mode():
    with torch.inference_mode():
        blocks = tuple((p.bfloat16(), c.bfloat16()) for p, c in tokens())
    head = LinearClassifier(5, 1, False, num_classes=2)
    assert create_linear_input(blocks, 1, False).dtype == torch.float32
    head(blocks).sum().backward()
    assert head.linear.weight.grad is not None


def test_a_head_starts_with_small_normal_weights_drawn_from_its_generator_alone():
    head = LinearClassifier(400, 1, False, 100, generator=torch.Generator().manual_seed(1))
    again = LinearClassifier(400, 1, False, 100, generator=torch.Generator().manual_seed(1))
    assert torch.equal(head.linear.weight, again.linear.weight)
    assert head.linear.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert head.linear.weight.mean().item() == pytest.approx(0, abs=1e-3)
    assert not head.linear.bias.any()


def test_all_heads_together_give_what_each_gives_alone():
    heads = AllClassifiers({f"h{n}{a}": LinearClassifier(5 * (n + a), n, a, 3) for n in (1, 4) for a in (False, True)})
    together = heads(tokens())
    for name, head in heads.classifiers_dict.items():
        torch.testing.assert_close(together[name], head(tokens()))
    assert len(heads) == len(together) == 4


def test_state_dict_keys_are_official():
    heads, _ = setup_linear_classifiers(tokens(), [1], [0.1], batch_size=256, num_classes=3)
    names = ["classifier_1_blocks_avgpool_False_lr_0_10000", "classifier_1_blocks_avgpool_True_lr_0_10000"]
    assert list(heads.state_dict()) == [f"classifiers_dict.{n}.linear.{p}" for n in names for p in ("weight", "bias")]


def test_the_official_grid_on_one_device_keeps_48_of_52_heads_and_an_optimiser_group_for_each():
    heads, groups = setup_linear_classifiers(tokens(), [1, 4], LEARNING_RATES, batch_size=128, num_classes=2)
    assert (len(heads), len(groups)) == (48, 52)
    # 5e-6 and 1e-5 are both written 0.00001: the later one stays.
    kept = heads.classifiers_dict["classifier_4_blocks_avgpool_True_lr_0_00001"].linear.weight
    assert kept is groups[-12]["params"][0]
    assert groups[-12]["lr"] == pytest.approx(1e-5)


def test_unique_names_keep_all_heads():
    heads, groups = setup_linear_classifiers(
        tokens(), [1, 4], LEARNING_RATES, batch_size=128, num_classes=2, unique_names=True
    )
    assert (len(heads), len(groups)) == (52, 52)
    assert {"classifier_1_blocks_avgpool_False_lr_5e-06", "classifier_4_blocks_avgpool_True_lr_0_05"} < set(
        heads.classifiers_dict
    )


def test_dropped_heads_are_said_in_the_log(caplog):
    setup_linear_classifiers(tokens(), [1], [1e-5, 2e-5], batch_size=128, num_classes=2)
    assert "2 of 4 linear heads" in caplog.text


def test_learning_rates_are_for_256_images():
    assert scale_lr(0.1, 128) == pytest.approx(0.05)


def test_a_class_mapping_picks_the_logits_of_the_evaluated_classes():
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    targets = torch.tensor([1])
    got = LinearPostprocessor(nn.Identity(), class_mapping=[3, 0])(logits, targets)
    assert got["preds"].tolist() == [[3.0, 0.0]]
    assert got["target"] is targets
    assert LinearPostprocessor(nn.Identity())(logits, targets)["preds"] is logits


def test_the_loss_is_the_sum_of_the_heads_own_losses_and_gradients():
    labels = torch.tensor([0, 2])
    outputs = {name: torch.randn(2, 3, requires_grad=True) for name in "abc"}
    wanted = sum(nn.functional.cross_entropy(logits, labels) for logits in outputs.values())
    got = summed_cross_entropy(outputs, labels)
    torch.testing.assert_close(got, wanted)
    for own, together in zip(
        torch.autograd.grad(wanted, list(outputs.values())), torch.autograd.grad(got, list(outputs.values()))
    ):
        torch.testing.assert_close(own, together)


def test_a_diverged_head_does_not_spoil_the_others():
    outputs = {"good": torch.zeros(2, 3, requires_grad=True), "bad": torch.full((2, 3), torch.nan, requires_grad=True)}
    summed_cross_entropy(outputs, torch.tensor([0, 2])).backward()
    assert outputs["good"].grad is not None
    assert outputs["good"].grad.isfinite().all()


def test_a_module_without_wrapper_is_its_own_inside():
    module = nn.Identity()
    assert not has_ddp_wrapper(module)
    assert remove_ddp_wrapper(module) is module
