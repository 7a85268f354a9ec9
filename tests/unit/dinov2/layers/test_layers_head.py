"""The projection head, its additive flags, and its weight-normalised last layer."""

import copy
import warnings

import pytest
import torch

from dinov2.layers import DINOHead
from dinov2.layers.dino_head import standardise_per_group
from dinov2.layers.weight_norm import WeightNormLinear
from dinov2.utils.errors import UserError


def make_head(**flags):
    torch.manual_seed(0)
    return DINOHead(8, 16, hidden_dim=12, bottleneck_dim=6, **flags)


def rows(n=12, d=8):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0))


def test_fresh_head_gives_cosines_to_unit_prototypes():
    head = make_head()
    torch.testing.assert_close(head.last_layer.weight.norm(dim=1), torch.ones(16))
    assert head(rows()).abs().max() <= 1 + 1e-6


def test_head_takes_any_leading_dimensions():
    head = make_head(bottleneck_norm="batch_per_group")
    groups = torch.arange(12) % 3
    torch.testing.assert_close(head(rows().view(2, 6, 8), groups=groups.view(2, 6)).view(12, 16), head(rows(), groups))


def test_last_layer_follows_the_gain_and_trains_it():
    layer = WeightNormLinear(4, 3)
    with torch.no_grad():
        layer.weight_g.mul_(2)
    torch.testing.assert_close(layer.weight.norm(dim=1), torch.full((3,), 2.0))
    layer(rows(5, 4)).sum().backward()
    assert layer.weight_g.grad.abs().sum() > 0
    assert layer.weight_v.grad.abs().sum() > 0


def test_head_builds_and_copies_without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        head = copy.deepcopy(make_head())
    assert torch.isfinite(head(rows())).all()


def test_unnormalised_bottleneck_is_scaled_instead():
    plain, scaled = make_head(normalise=False), make_head(normalise=False, scale=4.0)
    torch.testing.assert_close(scaled(rows()), 4.0 * plain(rows()))
    bottleneck = plain.mlp(rows())
    torch.testing.assert_close(plain(rows()), bottleneck @ plain.last_layer.weight.T)


def test_frozen_prototypes_do_not_train_but_pass_gradients_on():
    head = make_head(freeze_prototypes=True)
    head(rows()).square().sum().backward()
    assert head.last_layer.weight_g.grad is None
    assert head.last_layer.weight_v.grad is None
    assert head.mlp[0].weight.grad.abs().sum() > 0


def test_each_group_is_standardised_on_its_own():
    x, groups = rows(40, 5), torch.arange(40) % 2
    x[groups == 1] = x[groups == 1] * 7 + 100
    z = standardise_per_group(x, groups)
    for group in (0, 1):
        torch.testing.assert_close(z[groups == group].mean(0), torch.zeros(5), atol=1e-4, rtol=0)
        torch.testing.assert_close(z[groups == group].var(0, correction=0), torch.ones(5), atol=1e-3, rtol=0)


def test_group_standardisation_equals_batch_norm_group_by_group():
    x, groups = rows(30, 5), torch.tensor([2, 0, 1]).repeat(10)
    z = standardise_per_group(x, groups)
    for group in (0, 1, 2):
        norm = torch.nn.BatchNorm1d(5, affine=False, track_running_stats=False)
        torch.testing.assert_close(z[groups == group], norm(x[groups == group]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(standardise_per_group(x), torch.nn.BatchNorm1d(5, affine=False)(x), rtol=1e-4, atol=1e-5)


def test_a_row_alone_in_its_group_takes_the_statistics_of_all_rows():
    x, groups = rows(9, 5), torch.tensor([0] * 8 + [1])
    torch.testing.assert_close(standardise_per_group(x, groups)[8], standardise_per_group(x)[8])


@pytest.mark.parametrize("n", [0, 1])
def test_batches_too_small_for_statistics_pass_unchanged(n):
    assert torch.equal(standardise_per_group(rows(n, 5), torch.zeros(n, dtype=torch.int64)), rows(n, 5))


def test_standardised_rows_keep_half_precision_and_stay_finite():
    z = standardise_per_group(torch.ones(4, 5, dtype=torch.float16), torch.zeros(4, dtype=torch.int64))
    assert z.dtype == torch.float16
    assert torch.equal(z, torch.zeros_like(z))


def test_groups_are_ignored_by_the_official_head():
    head = make_head()
    assert torch.equal(head(rows(), groups=torch.arange(12) % 2), head(rows()))


def test_unknown_bottleneck_norm_names_the_allowed_ones():
    with pytest.raises(UserError, match="batch_per_group"):
        make_head(bottleneck_norm="batch")  # pyright: ignore[reportArgumentType]
