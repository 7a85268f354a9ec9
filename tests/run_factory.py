"""Run folders as dinov2.train leaves them, with the smallest backbone, for tests that open, embed or evaluate one."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dinov2.configs import dinov2_default_config
from dinov2.models import build_model_from_cfg


def micro_config(*, student: dict[str, Any] | None = None, **sections: dict[str, Any]) -> DictConfig:
    """Four blocks of 128 channels on patches of 8 in images of 16 pixels; student, sections: what differs from the defaults."""
    small = {"student": {"arch": "vit_micro", "patch_size": 8}, "crops": {"global_crops_size": 16}}
    config = OmegaConf.merge(dinov2_default_config, small, {"student": student or {}}, sections)
    assert isinstance(config, DictConfig)
    return config


def write_run(
    folder: Path, *, iterations: tuple[int, ...] = (9,), weights_seed: int = 0, **sections: dict[str, Any]
) -> nn.Module:
    """Write config.yaml and a teacher checkpoint an iteration, each of other weights; returns the backbone of the last given.

    sections: as for `micro_config`. The head's tensor stands for those that a reader of backbones must leave out.
    """
    config, backbone = micro_config(**sections), nn.Module()
    for iteration in iterations:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1000 * weights_seed + iteration)
            backbone, _ = build_model_from_cfg(config, only_teacher=True)
        state = {f"backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}
        path = folder / "eval" / f"training_{iteration}" / "teacher_checkpoint.pth"
        path.parent.mkdir(parents=True)
        torch.save({"teacher": {**state, "dino_head.last_layer.weight": torch.zeros(1)}}, path)
    OmegaConf.save(config, folder / "config.yaml")
    return backbone.eval()
