"""Blocks: lists of crops, stochastic depth, the causal block."""

import pytest
import torch
from torch import nn

from dinov2.layers import CausalAttentionBlock, MemEffAttention, NestedTensorBlock
from dinov2.layers.block import add_residual, drop_add_residual_stochastic_depth, get_branges_scales


def make_block(**settings):
    torch.manual_seed(0)
    defaults = {"init_values": 0.5, "attn_class": MemEffAttention, "qkv_bias": True}
    return NestedTensorBlock(32, 2, **{**defaults, **settings})


def make_crops():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(b, n, 32, generator=generator) for b, n in ((4, 17), (6, 5), (2, 26))]


@pytest.mark.parametrize("init_values", [0.5, None])
@pytest.mark.parametrize("training", [True, False])
def test_a_list_of_crops_equals_each_crop_alone(init_values, training):
    block = make_block(init_values=init_values).train(training)
    for got, crop in zip(block(make_crops()), make_crops(), strict=True):
        torch.testing.assert_close(got, block(crop))


def test_gradients_of_a_list_equal_the_sum_of_separate_gradients():
    block = make_block()
    together = torch.autograd.grad(sum(out.square().sum() for out in block(make_crops())), list(block.parameters()))
    apart = [torch.autograd.grad(block(c).square().sum(), list(block.parameters())) for c in make_crops()]
    for got, parts in zip(together, zip(*apart), strict=True):
        torch.testing.assert_close(got, sum(parts), rtol=1e-4, atol=1e-4)


def test_list_with_stochastic_depth_leaves_the_unpicked_samples_alone():
    block = make_block(drop_path=0.5).train()
    crops = make_crops()
    torch.manual_seed(3)
    outputs = block(crops)
    torch.manual_seed(3)
    picked_by_attention = [set(torch.randperm(len(c))[: len(c) // 2].tolist()) for c in crops]
    picked_by_ffn = [set(torch.randperm(len(c))[: len(c) // 2].tolist()) for c in crops]
    for out, crop, first, second in zip(outputs, crops, picked_by_attention, picked_by_ffn, strict=True):
        changed = {i for i in range(len(crop)) if not torch.equal(out[i], crop[i])}
        assert changed == first | second


def test_subset_stochastic_depth_keeps_the_expected_residual():
    x = torch.zeros(10, 1, 1)
    torch.manual_seed(0)
    runs = [drop_add_residual_stochastic_depth(x, torch.ones_like, 0.4) for _ in range(400)]
    assert all(run.sum().item() == pytest.approx(10) for run in runs)
    assert (torch.stack(runs).mean(0) - 1).abs().max() < 0.2


@pytest.mark.parametrize(("batch", "ratio", "kept"), [(10, 0.9, 1), (10, 0.4, 6), (1, 0.5, 1), (3, 0.1, 2)])
def test_subset_size_follows_official_rounding(batch, ratio, kept):
    picked, scale = get_branges_scales(torch.zeros(batch, 1), ratio)
    assert len(picked) == kept
    assert scale == batch / kept


def test_residual_is_added_in_the_dtype_of_the_stream():
    x, residual = torch.ones(3, 2, 4), torch.ones(1, 2, 4, dtype=torch.bfloat16)
    out = add_residual(x, torch.tensor([1]), residual, 3.0, torch.full((4,), 2.0))
    assert out.dtype == torch.float32
    assert out[:, 0, 0].tolist() == [1, 7, 1]


def test_low_rates_use_the_first_drop_path_for_both_branches():
    block = make_block(drop_path=0.05).train()
    block.drop_path1, block.drop_path2 = nn.Identity(), nn.Module()  # calling the second would raise
    x = make_crops()[0]
    torch.testing.assert_close(block(x), block.eval()(x))


def test_evaluation_ignores_stochastic_depth():
    block = make_block(drop_path=0.9).eval()
    plain = make_block(drop_path=0.0).eval()
    plain.load_state_dict(block.state_dict())
    torch.testing.assert_close(block(make_crops()[0]), plain(make_crops()[0]))


def test_list_needs_the_attention_that_can_take_it():
    from dinov2.layers import Attention

    with pytest.raises(AssertionError, match="MemEffAttention"):
        make_block(attn_class=Attention)(make_crops())
    with pytest.raises(AssertionError, match="tuple"):
        make_block()(tuple(make_crops()))


def test_causal_block_ignores_later_tokens():
    torch.manual_seed(0)
    block = CausalAttentionBlock(32, 2, ls_init_value=0.1).eval()
    block.init_weights()
    x = make_crops()[0]
    changed = x.clone()
    changed[:, 10:] = 0
    torch.testing.assert_close(block(x)[:, :10], block(changed)[:, :10])
    assert block.feed_forward.fc1.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)
