"""What follows the gradients (clipping, AdamW, the teacher's average) equals the plain official arithmetic."""

import copy
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from dinov2.train.ssl_meta_arch import SSLMetaArch
from dinov2.train.trainer import build_optimizer, clip_gradients
from dinov2.utils.param_groups import fuse_params_groups, get_params_groups_with_decay

CFG: Any = SimpleNamespace(optim=SimpleNamespace(adamw_beta1=0.9, adamw_beta2=0.999, layerwise_decay=0.9))


def a_module(*, gradient: float) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4))
    for parameter in module.parameters():
        parameter.grad = gradient * torch.randn_like(parameter)
    return module


@pytest.mark.parametrize("gradient", [1e-3, 10.0])
def test_gradients_are_clipped_as_torch_clips_them(gradient: float) -> None:
    ours, plain = a_module(gradient=gradient), a_module(gradient=gradient)
    norm = clip_gradients(ours, max_norm=3.0)
    want = torch.nn.utils.clip_grad_norm_(plain.parameters(), 3.0)
    assert norm == want
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0)


def test_a_frozen_module_has_no_gradients_to_clip() -> None:
    assert clip_gradients(nn.Linear(2, 2).requires_grad_(False), max_norm=3.0) == 0


def test_the_fused_optimizer_steps_as_the_plain_one_within_rounding() -> None:
    ours, plain = a_module(gradient=0.1), a_module(gradient=0.1)
    model = SimpleNamespace(cfg=SimpleNamespace(optim=SimpleNamespace(layerwise_decay=0.9, patch_embed_lr_mult=0.2)))
    groups = SSLMetaArch.get_maybe_fused_params_for_submodel(cast(SSLMetaArch, model), ours)
    assert all(group["fused"] for group in groups)
    optimizer = build_optimizer(CFG, groups)
    reference = torch.optim.AdamW(
        list(fuse_params_groups(get_params_groups_with_decay(plain, lr_decay_rate=0.9, patch_embed_lr_mult=0.2))),
        betas=(0.9, 0.999),
        foreach=False,
        fused=False,
    )
    for _ in range(3):
        for stepper in (optimizer, reference):
            for group in stepper.param_groups:
                group["lr"], group["weight_decay"] = 1e-2 * group["lr_multiplier"], 0.04 * group["wd_multiplier"]
            stepper.step()
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("momentum", [0.99, 1.0])
def test_the_teacher_is_the_moving_average_of_the_student(momentum: float) -> None:
    student, teacher = a_module(gradient=1.0), nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4))
    before = copy.deepcopy(teacher)
    SSLMetaArch.update_teacher(cast(SSLMetaArch, SimpleNamespace(teacher=teacher, student=student)), momentum)
    for now, was, towards in zip(teacher.parameters(), before.parameters(), student.parameters(), strict=True):
        if momentum == 1.0:
            assert torch.equal(now, was)
        torch.testing.assert_close(now, momentum * was + (1 - momentum) * towards, rtol=1e-6, atol=1e-8)
