"""Building backbones by name from a configuration."""

from types import SimpleNamespace

import pytest
import torch

from dinov2.models import build_model, build_model_from_cfg
from dinov2.models import vision_transformer as vits
from dinov2.utils.errors import UserError


def student(**overrides):
    settings = {
        "arch": "vit_micro",
        "patch_size": 14,
        "layerscale": 1e-5,
        "ffn_layer": "mlp",
        "block_chunks": 0,
        "qkv_bias": True,
        "proj_bias": True,
        "ffn_bias": True,
        "num_register_tokens": 0,
        "interpolate_offset": 0.1,
        "interpolate_antialias": False,
        "drop_path_rate": 0.3,
        "drop_path_uniform": True,
    }
    return SimpleNamespace(**{**settings, **overrides})


def test_only_the_student_has_stochastic_depth():
    built_student, teacher, embed_dim = build_model(student(), img_size=56)
    assert embed_dim == 128
    assert [block.sample_drop_ratio for block in built_student.blocks] == [0.3] * 4
    assert [block.sample_drop_ratio for block in teacher.blocks] == [0.0] * 4


def test_memeff_suffix_is_dropped_in_place():
    args = student(arch="vit_micro_memeff")
    teacher, embed_dim = build_model(args, only_teacher=True, img_size=56)
    assert args.arch == "vit_micro"
    assert teacher.embed_dim == embed_dim


def test_position_grid_is_that_of_the_global_crops():
    cfg = SimpleNamespace(student=student(), crops=SimpleNamespace(global_crops_size=70))
    teacher, _ = build_model_from_cfg(cfg, only_teacher=True)
    assert teacher.pos_embed.shape == (1, 26, 128)


def test_an_architecture_set_on_the_module_is_found(monkeypatch):
    monkeypatch.setattr(vits, "vit_mine", lambda **kwargs: vits.vit_micro(**kwargs), raising=False)
    teacher, _ = build_model(student(arch="vit_mine"), only_teacher=True, img_size=56)
    assert isinstance(teacher, torch.nn.Module)


@pytest.mark.parametrize("arch", ["vit_smal", "resnet50", "torch"])
def test_unknown_architecture_lists_the_known_ones(arch):
    with pytest.raises(UserError, match=r"vit_base.*vit_small"):
        build_model(student(arch=arch))
