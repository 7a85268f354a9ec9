"""Attention kernels against their plain twin, and packed crops against separate ones."""

import pytest
import torch
import torch.nn.functional as F

from dinov2.layers import Attention, MemEffAttention, kernels
from dinov2.layers.kernels import CropGroups, attention


def make_qkv(tokens, dtype=torch.float32):
    generator = torch.Generator().manual_seed(tokens)
    return [torch.randn(2, 3, tokens, 16, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


def plain_attention(q, k, v):
    return torch.softmax(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, dim=-1) @ v


def output_and_gradients(function, inputs):
    out = function(*inputs)
    weights = torch.sin(torch.arange(out.numel())).view_as(out).to(out.dtype)
    return [out, *torch.autograd.grad((out * weights).sum(), inputs)]


@pytest.mark.parametrize("tokens", [1, 7, 50, 130, 257])
def test_attention_equals_softmax_attention_forward_and_backward(tokens):
    inputs = make_qkv(tokens)
    for got, want in zip(output_and_gradients(attention, inputs), output_and_gradients(plain_attention, inputs)):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", [50, 257])
def test_bf16_saved_probability_attention_is_as_exact_as_the_dtype(tokens):
    inputs = make_qkv(tokens, torch.bfloat16)
    assert kernels._saving_pays(inputs[0])
    exact = output_and_gradients(plain_attention, [t.detach().double().requires_grad_() for t in inputs])
    ours = output_and_gradients(attention, inputs)
    for got, want in zip(ours, exact):
        error = (got.double() - want).norm() / want.norm()
        assert error < 0.02


def test_saved_probability_path_is_taken_only_where_it_pays():
    assert kernels._saving_pays(make_qkv(50)[0])
    assert not kernels._saving_pays(make_qkv(50)[0].detach())
    assert not kernels._saving_pays(make_qkv(257)[0])
    with torch.no_grad():
        assert not kernels._saving_pays(make_qkv(50)[0])


def test_saved_probability_path_keeps_its_dtype_under_autocast():
    q, k, v = make_qkv(50, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        out = attention(q, k, v)
        saved = {tensor.dtype for tensor in out.grad_fn.saved_tensors}
        out.float().sum().backward()
    assert saved == {out.dtype, q.grad.dtype} == {torch.bfloat16}


def test_attention_dropout_acts_while_training_only():
    module = MemEffAttention(32, num_heads=2, attn_drop=0.5)
    x = torch.randn(2, 30, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    assert not torch.allclose(module.train()(x), module(x))
    assert torch.equal(module.eval()(x), module(x))


def test_causal_attention_ignores_later_tokens():
    module = Attention(32, num_heads=2).eval()
    x = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, 4:] += 1
    torch.testing.assert_close(module(x, is_causal=True)[:, :4], module(changed, is_causal=True)[:, :4])
    assert not torch.allclose(module(x)[:, :4], module(changed)[:, :4])


def test_packed_crops_attend_only_within_their_own_sequence():
    module = MemEffAttention(32, num_heads=2, qkv_bias=True).eval()
    crops = [torch.randn(b, n, 32, generator=torch.Generator().manual_seed(n)) for b, n in ((3, 9), (4, 5), (1, 1))]
    groups = CropGroups(tuple((c.shape[0], c.shape[1]) for c in crops))
    packed = groups.split(module(CropGroups.pack(crops), attn_bias=groups))
    for got, crop in zip(packed, crops, strict=True):
        torch.testing.assert_close(got, module(crop))


def test_attention_probabilities_are_those_of_the_forward_pass():
    module = Attention(32, num_heads=2).eval()
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    weights = module.attention_probabilities(x)
    _, _, v = module._heads(module.qkv(x))
    by_hand = module.proj((weights @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 5))
    torch.testing.assert_close(by_hand, module(x))


def test_init_weights_follows_the_official_defaults():
    torch.manual_seed(0)
    module = Attention(64, num_heads=2, qkv_bias=True)
    module.init_weights(factor=0.5)
    assert module.qkv.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert module.proj.weight.std().item() == pytest.approx(0.5 * 64**-0.5, rel=0.1)
    assert module.qkv.bias.abs().max() == module.proj.bias.abs().max() == 0


def test_xformers_flags_are_published_where_the_official_code_has_them():
    from dinov2.layers import attention as attention_module
    from dinov2.layers import block, swiglu_ffn

    for module in (attention_module, block, swiglu_ffn):
        assert module.XFORMERS_AVAILABLE is False
        assert module.XFORMERS_ENABLED is False


def test_double_precision_takes_the_library_kernel():
    inputs = [t.detach().double().requires_grad_() for t in make_qkv(40)]
    torch.testing.assert_close(attention(*inputs), F.scaled_dot_product_attention(*inputs))
