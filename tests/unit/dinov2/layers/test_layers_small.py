"""Drop path, LayerScale, patch embedding and the feed-forward branches."""

import pytest
import torch
import torch.nn.functional as F

from dinov2.layers import LayerScale, Mlp, PatchEmbed, SwiGLUFFN, SwiGLUFFNAligned, SwiGLUFFNFused
from dinov2.layers.drop_path import DropPath, drop_path
from dinov2.utils.errors import UserError


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    out = drop_path(torch.ones(4000, 3, 2), 0.25, training=True)
    per_sample = out.flatten(1)
    assert ((per_sample == 0).all(1) | (per_sample == 1 / 0.75).all(1)).all()
    assert out.mean().item() == pytest.approx(1, abs=0.05)


def test_drop_path_does_nothing_outside_training():
    x = torch.ones(8, 2)
    assert DropPath(0.5).eval()(x) is x
    assert DropPath(None).train()(x) is x
    assert drop_path(x, 1.0, training=True).sum() == 0


def test_layer_scale_is_meta_safe_and_can_be_reset():
    layer = LayerScale(4, 0.3, device="meta").to_empty(device="cpu")
    layer.reset_parameters()
    torch.testing.assert_close(layer(torch.ones(2, 4)), torch.full((2, 4), 0.3))


def test_layer_scale_in_place_changes_its_input():
    x = torch.ones(2, 4)
    with torch.no_grad():
        LayerScale(4, 0.5, inplace=True)(x)
    assert torch.equal(x, torch.full((2, 4), 0.5))


def test_patch_embed_flattens_rows_first():
    embed = PatchEmbed(img_size=(28, 42), patch_size=14, in_chans=1, embed_dim=8)
    x = torch.randn(2, 1, 28, 42, generator=torch.Generator().manual_seed(0))
    flat = embed(x)
    embed.flatten_embedding = False
    assert embed.patches_resolution == (2, 3)
    assert flat.shape == (2, 6, 8)
    assert torch.equal(embed(x)[:, 1, 2], flat[:, 5])
    one_patch = F.linear(x[:, :, 14:, 28:].flatten(1), embed.proj.weight.flatten(1), embed.proj.bias)
    torch.testing.assert_close(flat[:, 5], one_patch)


def test_patch_embed_says_which_sizes_fit():
    with pytest.raises(UserError, match="210 x 196"):
        PatchEmbed(patch_size=14)(torch.zeros(1, 3, 223, 200))


def test_patch_embed_refuses_lists_as_official():
    with pytest.raises(AssertionError):
        PatchEmbed(img_size=[224, 224])  # pyright: ignore[reportArgumentType]


def test_patch_embed_flops_count_the_projection():
    assert PatchEmbed(img_size=28, patch_size=14, embed_dim=8).flops() == 4 * 8 * 3 * 14 * 14


def test_mlp_sizes_default_to_the_input():
    mlp = Mlp(6)
    assert mlp.fc1.weight.shape == mlp.fc2.weight.shape == (6, 6)


def test_swiglu_gate_is_the_first_half():
    ffn = SwiGLUFFN(4, 6)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    gate, value = F.linear(x, ffn.w12.weight[:6], ffn.w12.bias[:6]), F.linear(x, ffn.w12.weight[6:], ffn.w12.bias[6:])
    torch.testing.assert_close(ffn(x), ffn.w3(F.silu(gate) * value))


def test_swiglu_widths_are_two_thirds_and_aligned():
    assert SwiGLUFFNFused(1536, 6144).w3.in_features == 4096
    assert SwiGLUFFNFused(32, 128).w3.in_features == 88
    assert SwiGLUFFNAligned(1024, 4096, align_to=64).w3.in_features == 2752


def test_aligned_swiglu_equals_the_packed_one_with_the_same_weights():
    packed, apart = SwiGLUFFNFused(8, 24), SwiGLUFFNAligned(8, 24)
    weights = packed.state_dict()
    apart.load_state_dict(
        {
            "w1.weight": weights["w12.weight"][:16],
            "w1.bias": weights["w12.bias"][:16],
            "w2.weight": weights["w12.weight"][16:],
            "w2.bias": weights["w12.bias"][16:],
            "w3.weight": weights["w3.weight"],
            "w3.bias": weights["w3.bias"],
        }
    )
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(packed(x), apart(x))
