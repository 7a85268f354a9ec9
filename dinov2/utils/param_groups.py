"""Parameter groups of the optimiser: layer-wise learning rate decay, and what escapes weight decay. Called by training."""

import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

logger = logging.getLogger("dinov2")

_FIRST_LAYER = ("pos_embed", "patch_embed", "mask_token", "cls_token", "register_tokens")
_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.(?:(\d+)\.)?")
# Names that wrappers put inside parameter names: the official sharding, and torch.compile.
_WRAPPER_NAMES = ("_fsdp_wrapped_module.", "_orig_mod.")


def get_vit_lr_decay_rate(
    name: str,
    lr_decay_rate: float = 1.0,
    num_layers: int = 12,
    force_is_backbone: bool = False,
    chunked_blocks: bool = False,
) -> float:
    """The factor of the learning rate for a parameter: decay ** (layers above it).

    Tokens, positions and patch embedding are layer 0, block i is layer i + 1, the rest num_layers + 1. Only names that start
    with `backbone`, or all of them with `force_is_backbone`, are looked at; others are the rest.
    """
    layer = num_layers + 1
    if force_is_backbone or name.startswith("backbone"):
        block = _BLOCK.search(name)
        if any(part in name.split(".") for part in _FIRST_LAYER):
            layer = 0
        elif block and "residual." not in name:
            index = block[2] if chunked_blocks else block[1]
            assert index is not None, f"'{name}' has no chunk and block index; is the model chunked?"
            layer = int(index) + 1
    return lr_decay_rate ** (num_layers + 1 - layer)


def get_params_groups_with_decay(
    model: nn.Module, lr_decay_rate: float = 1.0, patch_embed_lr_mult: float = 1.0
) -> list[dict[str, Any]]:
    """One group per trainable parameter: `params, is_last_layer, lr_multiplier, wd_multiplier, name`.

    Weight decay spares biases, norms and LayerScale; tokens, positions and the heads' `weight_g` do decay, as official.
    """
    n_blocks, chunked = _count_blocks(model)
    groups = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        for wrapper in _WRAPPER_NAMES:
            name = name.replace(wrapper, "")
        lr_multiplier = get_vit_lr_decay_rate(
            name, lr_decay_rate, num_layers=n_blocks, force_is_backbone=n_blocks > 0, chunked_blocks=chunked
        )
        if "patch_embed" in name:
            lr_multiplier *= patch_embed_lr_mult
        spared = name.endswith(".bias") or "norm" in name or "gamma" in name
        groups.append(
            {
                "params": parameter,
                "is_last_layer": "last_layer" in name,
                "lr_multiplier": lr_multiplier,
                "wd_multiplier": 0.0 if spared else 1.0,
                "name": name,
            }
        )
        logger.debug("%s: lr x %g, weight decay x %g", name, lr_multiplier, groups[-1]["wd_multiplier"])
    return groups


def fuse_params_groups(
    all_params_groups: Iterable[dict[str, Any]],
    keys: Sequence[str] = ("lr_multiplier", "wd_multiplier", "is_last_layer"),
) -> Iterable[dict[str, Any]]:
    """Groups that agree in `keys` joined into one with a list of `params`; in order of first appearance, without `name`."""
    fused: dict[tuple[Any, ...], dict[str, Any]] = {}
    for group in all_params_groups:
        joined = fused.setdefault(
            tuple(group[key] for key in keys), {"params": [], **{key: group[key] for key in keys}}
        )
        joined["params"].append(group["params"])
    return fused.values()


def _count_blocks(model: nn.Module) -> tuple[int, bool]:
    """How many blocks the model has (0 for a head) and whether their names are chunked."""
    candidates: tuple[Any, ...] = (model, getattr(model, "backbone", None))
    for candidate in candidates:
        if hasattr(candidate, "n_blocks"):
            return int(candidate.n_blocks), bool(getattr(candidate, "chunked_blocks", False))
        if hasattr(candidate, "blocks"):
            return len(candidate.blocks), False
    return 0, False
