"""The backbone: shapes, masks, registers, nested crops, intermediate layers, attention, positions, initialisation."""

import pytest
import torch
from torch import nn

from dinov2.models import vision_transformer as vits
from dinov2.models.vision_transformer import DinoVisionTransformer
from dinov2.utils.errors import UserError


def make_model(**settings):
    torch.manual_seed(0)
    defaults = {"patch_size": 14, "img_size": 56, "init_values": 0.5, "block_chunks": 0}
    return vits.vit_micro(**{**defaults, **settings}).eval()


def images(n=2, height=56, width=56, seed=0):
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("registers", [0, 2])
def test_forward_features_gives_the_official_dictionary(registers):
    features = make_model(num_register_tokens=registers).forward_features(images())
    shapes = {key: tuple(value.shape) for key, value in features.items() if value is not None}
    assert shapes == {
        "x_norm_clstoken": (2, 128),
        "x_norm_regtokens": (2, registers, 128),
        "x_norm_patchtokens": (2, 16, 128),
        "x_prenorm": (2, 17 + registers, 128),
    }
    assert list(features)[-1] == "masks"


def test_forward_returns_the_class_token_unless_training():
    model = make_model()
    features = model(images(), is_training=True)
    assert torch.equal(model(images()), features["x_norm_clstoken"])


def test_a_list_of_crops_gives_the_features_of_each_crop():
    model = make_model(num_register_tokens=2, block_chunks=2)
    mask = torch.rand(2, 16, generator=torch.Generator().manual_seed(0)) > 0.5
    crops, masks = [images(), images(5, 28, 28)], [mask, None]
    for got, crop, crop_mask in zip(model(crops, masks=masks, is_training=True), crops, masks, strict=True):
        want = model.forward_features(crop, crop_mask)
        torch.testing.assert_close(got["x_prenorm"], want["x_prenorm"])
        assert got["masks"] is crop_mask


@pytest.mark.parametrize(
    "settings",
    [{"block_chunks": 0}, {"block_chunks": 2}, {"block_chunks": 4, "num_register_tokens": 3}, {"drop_path_rate": 0.5}],
)
def test_used_patches_and_class_tokens_come_as_if_all_had_been_computed(settings):
    model = make_model(**settings).train()
    mask = torch.rand(4, 16, generator=torch.Generator().manual_seed(0)) > 0.5
    used = mask[:2].flatten().nonzero().flatten()  # of the first images only, as where some have no target
    crops, masks = [images(4), images(6, 28, 28)], [mask, None]
    found = []
    for options in ({}, {"used_patches": [used, None]}):
        torch.manual_seed(1)
        first, second = model(crops, masks=masks, is_training=True, **options)
        whole = first.get("x_norm_patchtokens")
        patches = first["x_norm_usedpatchtokens"] if whole is None else whole.flatten(0, 1)[used]
        outputs = [first["x_norm_clstoken"], patches, second["x_norm_clstoken"]]
        loss = sum((out * torch.sin(torch.arange(out.numel())).view_as(out)).sum() for out in outputs)
        found.append([*outputs, *torch.autograd.grad(loss, list(model.parameters()))])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * max(1.0, want.abs().max().item()))
    assert second["x_norm_usedpatchtokens"].shape == (0, 128)


def test_used_patches_of_one_batch_are_those_of_a_list_of_one():
    model, used = make_model(), torch.tensor([1, 20])
    features = model(images(), used_patches=used, is_training=True)
    whole = model.forward_features(images())
    torch.testing.assert_close(features["x_norm_clstoken"], whole["x_norm_clstoken"])
    torch.testing.assert_close(features["x_norm_usedpatchtokens"], whole["x_norm_patchtokens"].flatten(0, 1)[used])


def test_masked_patches_hide_their_pixels_from_everyone():
    model, x = make_model(), images()
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[:, 0] = True
    changed = x.clone()
    changed[:, :, :14, :14] = 9.0
    assert torch.equal(model.forward_features(x, mask)["x_prenorm"], model.forward_features(changed, mask)["x_prenorm"])
    assert not torch.equal(model(x), model(changed))


@pytest.mark.parametrize("block_chunks", [0, 1, 2])
def test_intermediate_layers_come_in_block_order_and_end_with_the_output(block_chunks):
    model = make_model(block_chunks=block_chunks, num_register_tokens=2)
    last_two = model.get_intermediate_layers(images(), n=2)
    listed = model.get_intermediate_layers(images(), n=[3, 2])
    pairs = model.get_intermediate_layers(images(), n=1, return_class_token=True)
    assert all(torch.equal(a, b) for a, b in zip(last_two, listed, strict=True))
    assert torch.equal(last_two[-1], model.forward_features(images())["x_norm_patchtokens"])
    assert torch.equal(pairs[0][1], model(images()))


def test_reshaped_layers_are_maps_of_the_patch_grid():
    model, x = make_model(), images(2, 28, 70)
    (tokens,), (maps,) = model.get_intermediate_layers(x), model.get_intermediate_layers(x, reshape=True)
    assert maps.shape == (2, 128, 2, 5)
    assert maps.is_contiguous()
    assert torch.equal(maps[:, :, 1, 3], tokens[:, 8])


def test_last_self_attention_rows_sum_to_one_and_explain_the_last_block():
    model = make_model(num_register_tokens=2, block_chunks=2)
    attention = model.get_last_self_attention(images())
    assert attention.shape == (2, 4, 19, 19)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 4, 19))
    block = model.blocks[-1][-1]
    before = model.get_intermediate_layers(images(), n=[2], norm=False, return_class_token=True)
    assert not torch.equal(before[0][0], model.get_intermediate_layers(images(), norm=False)[0])
    tokens = model._get_intermediate_layers_chunked(images(), [2])[0]
    qkv = block.attn.qkv(block.norm1(tokens)).view(2, 19, 3, 4, 32).permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(attention, torch.softmax(qkv[0] @ qkv[1].transpose(-2, -1) * 32**-0.5, -1))


def test_positions_of_the_own_grid_are_used_as_they_are():
    model = make_model()
    assert model.interpolate_pos_encoding(torch.zeros(1, 17, 128), 56, 56) is model.pos_embed


def test_as_many_patches_in_another_shape_are_interpolated():
    model = make_model()
    positions = model.interpolate_pos_encoding(torch.zeros(1, 17, 128), 28, 112)
    assert positions.shape == model.pos_embed.shape
    assert not torch.equal(positions, model.pos_embed)


def test_model_of_a_non_square_image_size_works_at_its_own_and_other_sizes():
    model = make_model(img_size=(56, 84))
    assert model(images(2, 56, 84)).shape == (2, 128)
    assert model(images(2, 84, 56)).shape == (2, 128)
    assert model.interpolate_pos_encoding(torch.zeros(1, 25, 128), 56, 84) is model.pos_embed


def test_positions_keep_the_class_position_and_the_dtype_of_the_tokens():
    model = make_model()
    positions = model.interpolate_pos_encoding(torch.zeros(1, 5, 128, dtype=torch.bfloat16), 28, 28)
    assert positions.dtype == torch.bfloat16
    torch.testing.assert_close(positions[:, 0], model.pos_embed[:, 0].bfloat16())


def test_released_grid_takes_every_size_up_to_119_patches():
    with torch.device("meta"):
        model = DinoVisionTransformer(img_size=518, patch_size=14, embed_dim=8, depth=1, num_heads=1)
    model.pos_embed = nn.Parameter(torch.zeros(1, 1370, 8))
    for side in (1, 7, 16, 36, 38, 73, 119):
        assert model.interpolate_pos_encoding(torch.zeros(1), side * 14, side * 14).shape == (1, side**2 + 1, 8)


def test_initialisation_follows_the_contract():
    model = make_model(num_register_tokens=2)
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)
    assert 0 < model.cls_token.abs().max() < 1e-5
    assert 0 < model.register_tokens.abs().max() < 1e-5
    assert model.mask_token.abs().max() == 0
    assert model.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.blocks[0].mlp.fc1.bias.abs().max() == 0
    assert model.patch_embed.proj.weight.std().item() == pytest.approx((3 * 3 * 14 * 14) ** -0.5, rel=0.05)


@pytest.mark.parametrize(("uniform", "rates"), [(True, [0.3] * 4), (False, [0.0, 0.1, 0.2, 0.3])])
def test_stochastic_depth_rates_rise_or_stay(uniform, rates):
    model = make_model(drop_path_rate=0.3, drop_path_uniform=uniform)
    assert [block.sample_drop_ratio for block in model.blocks] == pytest.approx(rates)


def test_chunked_and_flat_models_compute_the_same():
    flat, chunked = make_model(), make_model(block_chunks=2)
    chunked.load_state_dict(chunked.adapt_state_dict(flat.state_dict()), strict=True)
    assert torch.equal(flat(images()), chunked(images()))


def test_identity_feed_forward_and_unknown_feed_forward():
    assert make_model(ffn_layer="identity")(images()).shape == (2, 128)
    with pytest.raises(NotImplementedError, match="swiglufused"):
        make_model(ffn_layer="swiglue")


def test_images_that_are_no_whole_number_of_patches_are_refused():
    with pytest.raises(UserError, match="56 x 56"):
        make_model()(images(1, 60, 60))


def test_more_chunks_than_blocks_are_refused():
    with pytest.raises(AssertionError, match="4 blocks"):
        make_model(block_chunks=5)


def test_official_sizes():
    with torch.device("meta"):
        sizes = {n: vits.__dict__[n]() for n in ("vit_tiny", "vit_small", "vit_base", "vit_large", "vit_giant2")}
    got = {name: (m.embed_dim, m.n_blocks, m.num_heads) for name, m in sizes.items()}
    assert got == {
        "vit_tiny": (192, 12, 3),
        "vit_small": (384, 12, 6),
        "vit_base": (768, 12, 12),
        "vit_large": (1024, 24, 16),
        "vit_giant2": (1536, 40, 24),
    }
