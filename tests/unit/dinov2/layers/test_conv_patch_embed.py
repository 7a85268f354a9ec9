"""The convolutional patch embedding."""

import pytest
import torch

from dinov2.layers import ConvPatchEmbed
from dinov2.models.vision_transformer import vit_micro_conv
from dinov2.utils.errors import UserError
from dinov2.utils.param_groups import get_params_groups_with_decay


@pytest.mark.parametrize("patch", [2, 4, 8, 16])
def test_it_gives_one_token_a_patch_like_the_linear_one(patch):
    embed = ConvPatchEmbed(img_size=32, patch_size=patch, embed_dim=64)
    assert embed(torch.randn(2, 3, 32, 48)).shape == (2, 32 // patch * 48 // patch, 64)


def test_tokens_are_in_row_major_order_of_the_patches():
    torch.manual_seed(0)
    embed = ConvPatchEmbed(img_size=64, patch_size=8, embed_dim=32).eval()
    image = torch.zeros(1, 3, 64, 64)
    bright = image.clone()
    bright[..., 24:32, 40:48] = 1.0  # patch (3, 5)
    change = (embed(bright) - embed(image)).norm(dim=-1)[0].view(8, 8)
    # The norms spread a little of it everywhere; a convolution sees over the edge of its patch.
    strongest = {divmod(cell, 8) for cell in change.flatten().topk(4).indices.tolist()}
    assert strongest == {(3, 5), (3, 6), (4, 5), (4, 6)}


@pytest.mark.parametrize("patch", [1, 14, (8, 4)])
def test_patches_that_cannot_be_halved_are_refused(patch):
    with pytest.raises(UserError, match="2, 4, 8, 16"):
        ConvPatchEmbed(patch_size=patch, embed_dim=64)


def test_its_normalisation_is_exempt_from_weight_decay_and_all_of_it_counts_as_patch_embedding():
    groups = {g["name"]: g for g in get_params_groups_with_decay(vit_micro_conv(block_chunks=0), 0.5, 0.1)}
    assert groups["patch_embed.proj.norm0.weight"]["wd_multiplier"] == 0
    assert groups["patch_embed.proj.conv0.weight"]["wd_multiplier"] == 1
    rates = {g["lr_multiplier"] for name, g in groups.items() if name.startswith("patch_embed")}
    assert rates == {0.1 * 0.5**4}


def test_flops_count_every_convolution():
    embed = ConvPatchEmbed(img_size=32, patch_size=4, in_chans=3, embed_dim=32)
    assert embed.flops() == 16 * 16 * 9 * 3 * 16 + 8 * 8 * 9 * 16 * 32
