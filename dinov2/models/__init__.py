"""Backbones, built by name. `build_model_from_cfg` is what the training and evaluation rooms call."""

import logging
from typing import Any

from dinov2.models import vision_transformer as vits
from dinov2.models.vision_transformer import DinoVisionTransformer
from dinov2.utils.errors import UserError

logger = logging.getLogger("dinov2")

__all__ = ["build_model", "build_model_from_cfg"]


def build_model(args: Any, only_teacher: bool = False, img_size: int = 224) -> tuple[Any, ...]:
    """Teacher and student of one architecture: `(teacher, embed_dim)` if `only_teacher`, else `(student, teacher, embed_dim)`.

    args: the `student` section of a configuration, also for the teacher; a trailing `_memeff` is dropped from `args.arch` in
    place. The architecture is looked up by name among the functions of `dinov2.models.vision_transformer`, so a program adds
    one by setting an attribute there. Only the student has stochastic depth. Raises `UserError` for an unknown name.
    """
    if args.arch.endswith("_memeff"):
        args.arch = args.arch.removesuffix("_memeff")
    build = _find_architecture(args.arch)
    shared = {
        "img_size": img_size,
        "patch_size": args.patch_size,
        "init_values": args.layerscale,
        "ffn_layer": args.ffn_layer,
        "block_chunks": args.block_chunks,
        "qkv_bias": args.qkv_bias,
        "proj_bias": args.proj_bias,
        "ffn_bias": args.ffn_bias,
        "num_register_tokens": args.num_register_tokens,
        "interpolate_offset": args.interpolate_offset,
        "interpolate_antialias": args.interpolate_antialias,
    }
    teacher: DinoVisionTransformer = build(**shared)
    if only_teacher:
        return teacher, teacher.embed_dim
    student = build(**shared, drop_path_rate=args.drop_path_rate, drop_path_uniform=args.drop_path_uniform)
    return student, teacher, student.embed_dim


def build_model_from_cfg(cfg: Any, only_teacher: bool = False) -> tuple[Any, ...]:
    """`build_model` for a whole configuration; the position grid is that of its global crops."""
    return build_model(cfg.student, only_teacher=only_teacher, img_size=cfg.crops.global_crops_size)


def _find_architecture(name: str) -> Any:
    build = vits.__dict__.get(name) if name.startswith("vit_") else None
    if callable(build):
        return build
    known = sorted(key for key, value in vits.__dict__.items() if key.startswith("vit_") and callable(value))
    raise UserError(
        f"Unknown architecture student.arch='{name}'. Known: {', '.join(known)}. "
        "An architecture of your own is a function vit_<name> set on dinov2.models.vision_transformer."
    )
