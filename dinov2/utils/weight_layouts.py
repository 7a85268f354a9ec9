"""Where a network's tensors sit in a weights file, and how other packages name them; recognised from the names alone.

Called by the loaders of `dinov2.utils.weights`, of the training room and of the hub. Layouts: bare names, or any of the levels
`teacher`, `student`, `model`, `state_dict` as nested dictionaries or as prefixes, with or without `backbone.`, `module.` and
what FSDP, torch.compile and activation checkpointing write into names; blocks flat or chunked; the names of Hugging Face's
Dinov2 models and of timm. What comes out has the official names: `cls_token`, `blocks.3.attn.qkv.weight`, ...
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinov2.utils.errors import UserError
from dinov2.utils.weight_files import refuse_slice

Names = Mapping[str, Tensor]

HEADS = ("dino_head", "ibot_head")

_LEVELS = ("teacher", "model", "state_dict", "student")
# The teacher first, also where a file has both networks: it is the one that evaluation uses.
_PREFIXES = ("module.", "model.", "teacher.", "student.")
_BACKBONE_PREFIXES = ("backbone.", "dinov2.", "dinov2_with_registers.")
_BARE_BACKBONE = ("cls_token", "embeddings.cls_token")
_WRAPPERS = re.compile(r"(?<![^.])(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
_CUT_IN_SLICES = re.compile(r"(?:attn\.qkv|attn\.proj|mlp\.fc1|mlp\.w12|patch_embed\.proj)\.weight$")


@dataclass(frozen=True)
class Found:
    """A network's tensors. path: the levels and prefixes that led there; others: names beside them, such as heads."""

    state: dict[str, Tensor]
    path: str
    others: tuple[str, ...]


def find_backbone(content: Mapping[str, Any], *, source: str | Path, key: str | None = None) -> Found:
    """The backbone's tensors, bare official names (blocks as in the file, flat or chunked).

    key: the level or prefix to prefer, for example "teacher". source: what messages call the file.
    Raises `UserError` when there are no tensors, or only one process's slice of them.
    """
    found = _descend(content, source=source, key=key)
    found = _peel(
        found,
        prefixes=(*_preferred(key, _PREFIXES), *_BACKBONE_PREFIXES),
        is_bare=lambda names: any(name in names for name in _BARE_BACKBONE),
    )
    return Found(from_foreign_names(found.state), found.path, found.others)


def find_heads(content: Mapping[str, Any], *, source: str | Path) -> dict[str, dict[str, Tensor]]:
    """Head name -> its tensors, of the heads of `HEADS` that are there; of the teacher's, where both networks are."""
    found = _descend(content, source=source, key="teacher")
    found = _peel(found, prefixes=_PREFIXES, is_bare=lambda names: any(name.startswith("dino_head.") for name in names))
    heads = {head: _below(found.state, f"{head}.") for head in HEADS}
    return {head: _old_weight_norm(state) for head, state in heads.items() if state}


def read_level(content: Mapping[str, Any], *, source: str | Path) -> dict[str, Tensor]:
    """The tensors of one level, with names freed of wrappers. Raises `UserError` for one process's slice."""
    state = {_WRAPPERS.sub("", str(name)): value for name, value in content.items()}
    is_cut = any(_CUT_IN_SLICES.search(name) and getattr(value, "ndim", 2) == 1 for name, value in state.items())
    if is_cut or any(name.split(".")[-1] == "_flat_param" for name in state):
        refuse_slice(source)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _descend(content: Mapping[str, Any], *, source: str | Path, key: str | None) -> Found:
    """Through nested dictionaries to the one with the tensors."""
    level, path = content, ""
    order = _preferred(key, _LEVELS)
    while below := next((name for name in order if isinstance(level.get(name), Mapping)), None):
        level, path = level[below], f"{path}{below}."
    state = read_level(level, source=source)
    if not state:
        raise UserError(
            f"No weights found in '{source}': it holds {', '.join(map(str, list(content)[:8])) or 'nothing'}. Tensors are "
            f"looked for at the top and under {', '.join(order)}."
        )
    return Found(state, path, ())


def _peel(found: Found, *, prefixes: tuple[str, ...], is_bare: Callable[[Names], bool]) -> Found:
    """Prefix by prefix to bare names; at each, names without it are set aside."""
    state, path, others = found.state, found.path, list(found.others)
    while not is_bare(state):
        prefix = next((p for p in prefixes if any(name.startswith(p) for name in state)), None)
        if prefix is None:
            break
        others += [name for name in state if not name.startswith(prefix)]
        state, path = _below(state, prefix), path + prefix
    return Found(state, path, tuple(others))


def _preferred(key: str | None, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names with `key`, written as they are, in front."""
    if not key:
        return names
    first = f"{key}." if names[0].endswith(".") else key
    return (first, *(name for name in names if name != first))


def _below(state: Names, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _old_weight_norm(state: Names) -> dict[str, Tensor]:
    """torch's newer weight normalisation names the length and the direction of the prototypes otherwise."""
    newer = {
        "last_layer.parametrizations.weight.original0": "last_layer.weight_g",
        "last_layer.parametrizations.weight.original1": "last_layer.weight_v",
    }
    return {newer.get(name, name): value for name, value in state.items()}


# ------------------------------------------------------------------------------------------------ other packages' names


def from_foreign_names(state: Names) -> dict[str, Tensor]:
    """A backbone with the names of transformers or timm -> with official ones; other names pass unchanged."""
    if "embeddings.cls_token" in state:
        return _from_hugging_face(state)
    return _from_timm(state)


_HF_TOP = {
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_HF_LAYER = re.compile(r"encoder\.layer\.(\d+)\.(.+)\.(\w+)")
# Files have the first name of a pair; transformers 5 has the second in memory.
_HF_MODULES = {
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "layer_scale1": "ls1",
    "layer_scale2": "ls2",
    "mlp.weights_in": "mlp.w12",
    "mlp.weights_out": "mlp.w3",
    "mlp.down_proj": "mlp.w3",
}
# Layers that the official network has as one: their rows follow each other in this order.
_HF_PARTS = {
    "attention.attention.query": ("attn.qkv", 0),
    "attention.attention.key": ("attn.qkv", 1),
    "attention.attention.value": ("attn.qkv", 2),
    "attention.q_proj": ("attn.qkv", 0),
    "attention.k_proj": ("attn.qkv", 1),
    "attention.v_proj": ("attn.qkv", 2),
    "mlp.gate_proj": ("mlp.w12", 0),
    "mlp.up_proj": ("mlp.w12", 1),
}
_N_PARTS = {"attn.qkv": 3, "mlp.w12": 2}


def _from_hugging_face(state: Names) -> dict[str, Tensor]:
    """Source: the weights that transformers writes for Dinov2Model and Dinov2WithRegistersModel."""
    converted: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for name, value in state.items():
        match = _HF_LAYER.fullmatch(name)
        if match is None:
            converted[_HF_TOP.get(name, name)] = value
            continue
        block, module, parameter = match.groups()
        if module in _HF_PARTS:
            whole, place = _HF_PARTS[module]
            parts.setdefault(f"blocks.{block}.{whole}.{parameter}", {})[place] = value
        else:
            parameter = "gamma" if parameter == "lambda1" else parameter
            converted[f"blocks.{block}.{_HF_MODULES.get(module, module)}.{parameter}"] = value
    for name, pieces in parts.items():
        n_wanted = _N_PARTS[name.rsplit(".", 1)[0].split(".", 2)[2]]
        if len(pieces) != n_wanted:
            raise UserError(
                f"The Hugging Face weights hold {len(pieces)} of the {n_wanted} parts of {name}. Copy the folder again."
            )
        converted[name] = torch.cat([pieces[place] for place in range(n_wanted)])
    return converted


def _from_timm(state: Names) -> dict[str, Tensor]:
    """timm drops the mask token, names the gated feed-forward like the plain one and, in models with registers, keeps the
    class position inside the class token. Source: the weights that timm has for vit_*_patch14_(reg4_)dinov2."""
    converted = dict(state)
    if "reg_token" in converted and "pos_embed" in converted:
        converted["register_tokens"] = converted.pop("reg_token")
        positions = converted["pos_embed"]  # [1, N, D]
        # The class token already contains its position: a zero one gives the same sum.
        converted["pos_embed"] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    renamed = {"mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"}
    gated = tuple(f"blocks.{block}.mlp." for block in _gated_blocks(state))
    return {
        re.sub(r"mlp\.fc[12]", lambda match: renamed[match[0]], name) if name.startswith(gated) else name: value
        for name, value in converted.items()
    }


def _gated_blocks(state: Names) -> list[str]:
    """Blocks whose first feed-forward layer gives a gate and a value for every input of the second."""
    fc1 = {match[1]: name for name in state if (match := re.fullmatch(r"blocks\.(\d+)\.mlp\.fc1\.weight", name))}
    return [
        block
        for block, name in fc1.items()
        if (fc2 := state.get(f"blocks.{block}.mlp.fc2.weight")) is not None and state[name].shape[0] == 2 * fc2.shape[1]
    ]
