"""Stochastic depth by sample subsets against plain indexing and autograd, and the last block on some tokens only."""

import pytest
import torch

from dinov2.layers import MemEffAttention, NestedTensorBlock
from dinov2.layers.kernels import CropGroups, split_heads
from dinov2.layers.sample_subsets import Subset, add_branch_to_subsets, add_residual, get_attn_bias_and_cat

SHAPES = ((6, 17), (9, 5))


def crops_of(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(b, n, 32, generator=generator).to(dtype).requires_grad_() for b, n in SHAPES]


def draw_subsets(kept=(4, 6)):
    generator = torch.Generator().manual_seed(2)
    return [Subset(torch.randperm(b, generator=generator)[:k], b / k) for (b, _), k in zip(SHAPES, kept, strict=True)]


def plain_add(x_list, branch, subsets, gamma):
    groups, packed = get_attn_bias_and_cat(x_list, [s.samples for s in subsets])
    residuals = groups.split(branch(packed, groups))
    return [add_residual(x, s.samples, r, s.factor, gamma) for x, s, r in zip(x_list, subsets, residuals, strict=True)]


def results(function, x_list, gamma, weight, subsets):
    """Outputs, and gradients of everything, of two branches one after the other."""

    def branch(packed, groups):
        return torch.tanh(packed.to(weight.dtype) @ weight)

    outputs = function(function(x_list, branch, subsets, gamma), branch, subsets[:], gamma)
    loss = sum((out * torch.sin(torch.arange(out.numel())).view_as(out)).sum() for out in outputs)
    wanted = [*x_list, weight, *([] if gamma is None else [gamma])]
    return [*outputs, *torch.autograd.grad(loss, wanted)]


@pytest.mark.parametrize("has_gamma", [True, False])
@pytest.mark.parametrize("kept", [(4, 6), (1, 9), (6, 9)])
def test_adding_to_subsets_equals_plain_indexing_forward_and_backward(has_gamma, kept):
    gamma = torch.linspace(0.1, 1, 32).requires_grad_() if has_gamma else None
    weight = torch.eye(32).requires_grad_()
    ours, plain = (
        results(function, crops_of(), gamma, weight, draw_subsets(kept))
        for function in (add_branch_to_subsets, plain_add)
    )
    for got, want in zip(ours[: len(SHAPES)], plain):
        assert torch.equal(got, want)
    for got, want in zip(ours, plain, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_a_branch_in_bf16_adds_to_a_stream_in_fp32():
    gamma = torch.linspace(0.1, 1, 32).requires_grad_()
    weight = torch.eye(32, dtype=torch.bfloat16).requires_grad_()
    ours, plain = (
        results(function, crops_of(), gamma, weight, draw_subsets()) for function in (add_branch_to_subsets, plain_add)
    )
    for got, want in zip(ours, plain, strict=True):
        assert got.dtype == want.dtype
        assert (got.float() - want.float()).norm() <= 0.01 * want.float().norm()


def test_gradients_handed_in_by_the_caller_are_not_written_to():
    outputs = add_branch_to_subsets(x_list := crops_of(), lambda packed, groups: packed * 2, draw_subsets())
    grads = [torch.ones_like(out) for out in outputs]
    torch.autograd.grad(outputs, x_list, grads)
    assert all((grad == 1).all() for grad in grads)


def test_split_heads_equals_splitting_each_group_forward_and_backward():
    groups = CropGroups(SHAPES)
    packed = torch.randn(1, sum(b * n for b, n in SHAPES), 96, generator=torch.Generator().manual_seed(0))
    packed.requires_grad_()
    ours = [view for qkv in split_heads(packed, groups, 2) for view in qkv]
    plain = [
        view for x in groups.split(packed) for view in x.view(*x.shape[:2], 3, 2, 16).permute(2, 0, 3, 1, 4).unbind(0)
    ]
    gradients = []
    for views in (ours, plain):
        loss = sum((i + 1) * view.square().sum() for i, view in enumerate(views))
        gradients.append(torch.autograd.grad(loss, packed)[0])
    assert all(torch.equal(got, want) for got, want in zip(ours, plain, strict=True))
    assert torch.equal(*gradients)


ROWS = [torch.tensor([0, 17, 34, 3, 50, 51, 101]), torch.tensor([0, 5, 40])]


@pytest.mark.parametrize(
    "settings", [{"drop_path": 0.5}, {"drop_path": 0.05}, {}, {"init_values": None, "drop_path": 0.5}]
)
def test_a_block_for_some_tokens_equals_those_tokens_of_the_whole_block(settings):
    torch.manual_seed(0)
    block = NestedTensorBlock(
        32, 2, **{"init_values": 0.5, "attn_class": MemEffAttention, "qkv_bias": True, **settings}
    ).train()
    found = []
    for pruned in (True, False):
        x_list = crops_of()
        torch.manual_seed(3)
        outputs = block(x_list, ROWS) if pruned else block(x_list)
        if not pruned:
            outputs = [out.flatten(0, 1)[rows] for out, rows in zip(outputs, ROWS, strict=True)]
        loss = sum((out * torch.sin(torch.arange(out.numel())).view_as(out)).sum() for out in outputs)
        found.append([*outputs, *torch.autograd.grad(loss, [*x_list, *block.parameters()]), torch.rand(3)])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=2e-6)


def test_a_block_for_some_tokens_draws_nothing_where_no_depth_is_dropped():
    block = NestedTensorBlock(32, 2, drop_path=0.5, attn_class=MemEffAttention).eval()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    block(crops_of(), ROWS)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_block_for_some_tokens_keeps_the_arithmetic_of_a_subclass():
    class Doubled(MemEffAttention):
        def forward(self, x, attn_bias=None):
            return 2 * super().forward(x, attn_bias)

    block = NestedTensorBlock(32, 2, attn_class=Doubled).eval()
    for got, want, rows in zip(block(crops_of(), ROWS), block(crops_of()), ROWS, strict=True):
        torch.testing.assert_close(got, want.flatten(0, 1)[rows])
