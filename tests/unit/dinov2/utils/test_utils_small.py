"""Schedules, seeds, dtypes, the source revision, parameter groups."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from dinov2.layers import DINOHead
from dinov2.models import vision_transformer as vits
from dinov2.utils.dtype import as_torch_dtype
from dinov2.utils.errors import UserError
from dinov2.utils.param_groups import fuse_params_groups, get_params_groups_with_decay, get_vit_lr_decay_rate
from dinov2.utils.utils import CosineScheduler, fix_random_seeds, get_sha, has_batchnorms


def test_schedule_freezes_warms_up_and_falls():
    schedule = CosineScheduler(1.0, 0.2, 30, warmup_iters=10, start_warmup_value=0.1, freeze_iters=5)
    assert len(schedule.schedule) == 30
    assert (schedule.schedule[:5] == 0).all()
    assert schedule[5] == 0.1
    assert schedule[14] == schedule[15] == 1.0
    assert (np.diff(schedule.schedule[15:]) < 0).all()
    assert schedule[30] == schedule[10**9] == 0.2


def test_schedule_of_warm_up_alone_ends_at_its_final_value():
    schedule = CosineScheduler(0.07, 0.07, 30, warmup_iters=30, start_warmup_value=0.04)
    assert schedule[0] == pytest.approx(0.04)
    assert schedule[29] == pytest.approx(0.07)
    assert schedule[30] == 0.07


def test_schedule_shorter_than_its_warm_up_is_refused():
    with pytest.raises(UserError, match="10 iterations cannot hold"):
        CosineScheduler(1.0, 0.0, 10, warmup_iters=8, freeze_iters=3)


def test_seeding_repeats_all_three_streams():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002 - the stream under test

    fix_random_seeds(5)
    first = draw()
    fix_random_seeds(5)
    assert draw() == first


def test_sha_line_names_commit_state_and_branch():
    assert [part.split(":")[0] for part in get_sha().split(", ")] == ["sha", "status", "branch"]


def test_sha_without_git_is_not_available(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert get_sha() == "sha: N/A, status: clean, branch: N/A"


def test_batch_norms_are_found_in_submodules():
    assert has_batchnorms(nn.Sequential(nn.Sequential(nn.BatchNorm1d(2))))
    assert not has_batchnorms(nn.Sequential(nn.LayerNorm(2)))


@pytest.mark.parametrize("spec", ["float16", np.dtype("float16"), torch.float16])
def test_dtype_from_its_three_forms(spec):
    assert as_torch_dtype(spec) is torch.float16


def test_unknown_dtype_is_refused():
    with pytest.raises(AssertionError, match="float8"):
        as_torch_dtype("float8")


@pytest.mark.parametrize(
    ("name", "chunked", "power"),
    [
        ("backbone.pos_embed", False, 13),
        ("backbone.patch_embed.proj.bias", False, 13),
        ("backbone.register_tokens", False, 13),
        ("backbone.blocks.0.norm1.weight", False, 12),
        ("backbone.blocks.11.mlp.fc1.bias", False, 1),
        ("backbone.blocks.1.3.mlp.fc1.bias", True, 9),
        ("backbone.norm.weight", False, 0),
        ("dino_head.mlp.0.weight", False, 0),
    ],
)
def test_learning_rate_decays_by_depth(name, chunked, power):
    rate = get_vit_lr_decay_rate(name, 0.9, num_layers=12, chunked_blocks=chunked)
    assert rate == pytest.approx(0.9**power)


def test_default_twelve_blocks_give_28_fused_groups():
    with torch.device("meta"):
        model = vits.vit_small(init_values=1e-5, block_chunks=0)
    fused = list(fuse_params_groups(get_params_groups_with_decay(model, 0.9, 0.2)))
    assert len(fused) == 28
    assert sum(len(group["params"]) for group in fused) == 175
    assert all("name" not in group for group in fused)


def test_head_parameters_keep_the_full_rate_and_mark_the_last_layer():
    groups = {g["name"]: g for g in get_params_groups_with_decay(DINOHead(8, 16, hidden_dim=12, bottleneck_dim=4), 0.5)}
    assert {g["lr_multiplier"] for g in groups.values()} == {1.0}
    assert [name for name, g in groups.items() if g["is_last_layer"]] == ["last_layer.weight_g", "last_layer.weight_v"]
    assert groups["last_layer.weight_g"]["wd_multiplier"] == 1.0
    assert groups["mlp.0.bias"]["wd_multiplier"] == 0.0


def test_frozen_parameters_get_no_group():
    head = DINOHead(8, 16, hidden_dim=12, bottleneck_dim=4, freeze_prototypes=True)
    assert not any(group["is_last_layer"] for group in get_params_groups_with_decay(head))


def test_backbone_inside_a_wrapper_is_decayed_by_its_own_depth():
    wrapper = nn.ModuleDict({"backbone": vits.vit_micro(block_chunks=0)})
    groups = {g["name"]: g["lr_multiplier"] for g in get_params_groups_with_decay(wrapper, 0.5)}
    assert groups["backbone.blocks.3.attn.proj.weight"] == 0.5
    assert groups["backbone.cls_token"] == 0.5**5
