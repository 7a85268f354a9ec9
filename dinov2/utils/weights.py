"""Loading a weights file into a backbone, strictly: every parameter must come from the file, but for a named few.

Called by evaluation (`load_pretrained_weights`, the official name and signature) and, through the training room's
`initial_weights`, at the start of a training. `weight_files` reads, `weight_layouts` finds and renames; here the tensors are
compared with the model, and what differs is said with the configuration key that would mend it.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinov2.utils.errors import UserError
from dinov2.utils.weight_files import folder_settings, read_checkpoint
from dinov2.utils.weight_layouts import find_backbone

logger = logging.getLogger("dinov2")

_ARCHITECTURES = {
    (384, 12): "vit_small",
    (768, 12): "vit_base",
    (1024, 24): "vit_large",
    (1536, 40): "vit_giant2",
}


@dataclass(frozen=True)
class LoadReport:
    """What came of loading weights.

    matched: names loaded from the file; missing: names of the model that kept their value, or got a neutral one;
    unexpected: names of the file that were not used; notes: what else a reader should know, in sentences.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        counts = f"{len(self.matched)} matched, {_named(self.missing)} missing, {_named(self.unexpected)} not used"
        return ". ".join((counts, *self.notes))


def load_pretrained_weights(model: nn.Module, pretrained_weights: str | Path, checkpoint_key: str | None) -> LoadReport:
    """Load a weights file into a backbone for evaluation, and say what matched.

    pretrained_weights: any layout of `weight_layouts`. checkpoint_key: the level to take, if the file has it; without it, or
    without a level of that name, the teacher's. Raises `UserError` unless every parameter that the outputs depend on is in
    the file with its shape and finite values, and every weight of the file's backbone has a place in the model.
    """
    return load_backbone_weights(model, pretrained_weights, checkpoint_key=checkpoint_key)


def load_backbone_weights(
    model: nn.Module, path: str | Path, *, checkpoint_key: str | None = None, is_start_of_training: bool = False
) -> LoadReport:
    """As `load_pretrained_weights`; at the start of a training, register tokens may be new, since they will be learned.

    A model with a method `adapt_state_dict` may bring the weights to its own layout first.
    """
    found = find_backbone(read_checkpoint(path), source=path, key=checkpoint_key)
    own = model.state_dict()
    optional = ("mask_token", "register_tokens") if is_start_of_training else ("mask_token",)
    _refuse_other_architecture(found.state, own, source=path, optional=optional)
    _refuse_other_settings(model, path)

    adapt: Any = getattr(model, "adapt_state_dict", None)
    state: dict[str, Tensor] = found.state if adapt is None else adapt(found.state)
    matched = tuple(name for name in own if name in state)
    if not matched:
        raise UserError(
            f"No name in '{path}' matches the model. The file has {_named(state)}, the model {_named(own)}. Check the "
            f"architecture and the checkpoint key ('{checkpoint_key}')."
        )
    missing = tuple(name for name in own if name not in state)
    unused = tuple(name for name in state if name not in own)
    neutral = _neutral_layer_scale(own, missing)
    _refuse_other_shapes(state, own, matched, source=path)
    _refuse_gaps([name for name in missing if name not in (*optional, *neutral)], n_wanted=len(own), source=path)
    _refuse_leftovers([name for name in unused if _is_part_of(name, own)], source=path)
    refuse_non_finite({name: state[name] for name in matched}, source=path)

    model.load_state_dict({**{name: state[name] for name in matched}, **neutral}, strict=False)
    notes = [f"Taken from {found.path.rstrip('.')}"] if found.path else []
    if neutral:
        notes.append("The file has no LayerScale: the model's gains are 1, which computes the same")
    if kept := [name for name in missing if name not in neutral]:
        notes.append(f"Not in the file, so still the model's own: {', '.join(kept)}")
    if (old := found.state.get("pos_embed")) is not None and old.shape != own.get("pos_embed", old).shape:
        notes.append(f"pos_embed resampled from {old.shape[1] - 1} to {own['pos_embed'].shape[1] - 1} patches")
    report = LoadReport(matched, missing, (*unused, *found.others), tuple(notes))
    log = logger.warning if kept and is_start_of_training else logger.info
    log("Weights of %s loaded: %s", path, report)
    return report


def refuse_non_finite(state: Mapping[str, Tensor], *, source: str | Path) -> None:
    """Raise `UserError` when a tensor holds NaN or an infinity: nothing computed from it would mean anything."""
    broken = [name for name, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if broken:
        raise UserError(
            f"Weights of '{source}' hold values that are not finite: {_named(broken)}. The training that wrote it has "
            "diverged, or the file is damaged: give an earlier checkpoint."
        )


def architecture_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a backbone's weights say about how to build it: configuration key, or words where there is none -> value.

    state: official names, blocks flat or chunked. Empty for anything but a vision transformer of this package.
    """
    if "cls_token" not in state or "norm.weight" not in state:
        return {}
    blocks: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        if match := re.fullmatch(r"blocks\.(?:\d+\.)?(\d+)\.([a-z].*)", name):
            blocks.setdefault(int(match[1]), {})[match[2]] = value
    first = blocks.get(0, {})
    is_gated = "mlp.w12.weight" in first
    facts: dict[str, Any] = {
        "embedding width": state["cls_token"].shape[-1],
        "number of blocks": len(blocks),
        "student.num_register_tokens": state["register_tokens"].shape[1] if "register_tokens" in state else 0,
        "student.ffn_layer": "swiglufused" if is_gated else "mlp",
        "student.layerscale": "ls1.gamma" in first,
        "student.qkv_bias": "attn.qkv.bias" in first,
        "student.proj_bias": "attn.proj.bias" in first,
        "student.ffn_bias": ("mlp.w12.bias" if is_gated else "mlp.fc1.bias") in first,
    }
    if (projection := state.get("patch_embed.proj.weight")) is not None:
        facts |= {"student.patch_size": projection.shape[-1], "number of input channels": projection.shape[1]}
    return facts


def _refuse_other_architecture(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], *, source: str | Path, optional: tuple[str, ...]
) -> None:
    """All differences at once, each with its cure; differences that loading can bridge pass."""
    theirs, ours = architecture_of(state), architecture_of(own)
    differing = [key for key in theirs if key in ours and theirs[key] != ours[key]]
    if theirs.get("student.layerscale") is False:
        differing = [key for key in differing if key != "student.layerscale"]
    if "register_tokens" in optional and theirs.get("student.num_register_tokens") == 0:
        differing = [key for key in differing if key != "student.num_register_tokens"]
    if differing:
        found = "; ".join(f"{key} is {theirs[key]} in the file, {ours[key]} in the model" for key in differing)
        cures = dict.fromkeys(_cure(key, theirs) for key in differing)
        raise UserError(f"'{source}' holds weights of another architecture: {found}. {' '.join(cures)}")


def _cure(key: str, theirs: Mapping[str, Any]) -> str:
    if key in ("embedding width", "number of blocks"):
        size = theirs["embedding width"], theirs["number of blocks"]
        name = _ARCHITECTURES.get(size)
        return (
            f"Set student.arch={name}." if name else f"Set student.arch to one of width {size[0]} and {size[1]} blocks."
        )
    if key == "number of input channels":
        return (
            "This package's backbones take 3 channels, grey images three times the same: write a file whose "
            "patch_embed.proj.weight is the one-channel weight three times (repeat(1, 3, 1, 1) / 3)."
        )
    if key == "student.layerscale":
        return "Set student.layerscale=1.0e-05 (any value above 0: the file's gains replace it)."
    if key == "student.num_register_tokens" and theirs[key]:
        return (
            f"Set student.num_register_tokens={theirs[key]} (released models with registers also have "
            "student.interpolate_antialias=true student.interpolate_offset=0.0)."
        )
    return f"Set {key}={str(theirs[key]).lower()}."


def _refuse_other_settings(model: nn.Module, path: str | Path) -> None:
    """A Hugging Face folder says what its tensors do not show; silence about it would give other features without an error."""
    settings = folder_settings(path)
    norm = getattr(model, "norm", None)
    ours = {
        "num_attention_heads": getattr(model, "num_heads", None),
        "layer_norm_eps": norm.eps if isinstance(norm, nn.LayerNorm) else None,
        "hidden_act": None if settings.get("use_swiglu_ffn") else "gelu",
    }
    differing = [
        f"{key} is {settings[key]}, the model's {value}"
        for key, value in ours.items()
        if value is not None and key in settings and settings[key] != value
    ]
    if differing:
        raise UserError(
            f"The config.json of '{path}' describes another network: {'; '.join(differing)}. Build the model with the "
            "architecture that the folder was made with (student.arch)."
        )


def _neutral_layer_scale(own: Mapping[str, Tensor], missing: Iterable[str]) -> dict[str, Tensor]:
    """Gains of 1 where the file has none for any block: a network without LayerScale is one whose gains are all 1."""
    gains = [name for name in own if re.fullmatch(r"blocks\..*\.ls[12]\.gamma", name)]
    lacking = [name for name in missing if name in gains]
    return {name: torch.ones_like(own[name]) for name in lacking} if len(lacking) == len(gains) else {}


def _refuse_other_shapes(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], matched: Iterable[str], *, source: str | Path
) -> None:
    wrong = [
        f"{n} {tuple(state[n].shape)} for {tuple(own[n].shape)}" for n in matched if state[n].shape != own[n].shape
    ]
    if wrong:
        raise UserError(
            f"{len(wrong)} weights of '{source}' have another shape than the model's: {'; '.join(wrong[:4])}. "
            "Build the model with the architecture, patch size and registers that the file was made with."
        )


def _refuse_gaps(lacking: list[str], *, n_wanted: int, source: str | Path) -> None:
    if lacking:
        raise UserError(
            f"'{source}' lacks {_named(lacking)} of the model's {n_wanted} weights, which would stay random. Build the model "
            "with the architecture that the file was made with, or give a whole file."
        )


def _refuse_leftovers(unused: list[str], *, source: str | Path) -> None:
    if unused:
        raise UserError(
            f"'{source}' holds weights that the model has no place for: {_named(unused)}. Build the model with the "
            "architecture that the file was made with."
        )


def _is_part_of(name: str, own: Mapping[str, Tensor]) -> bool:
    """Whether the name lies in one of the model's own submodules (or beside its own tensors of that name)."""
    return name.split(".")[0] in {known.split(".")[0] for known in own}


def _named(names: Iterable[str], n_shown: int = 4) -> str:
    """`3 (a, b, c)`; long lists are cut."""
    names = list(names)
    if not names:
        return "0"
    more = ", ..." if len(names) > n_shown else ""
    return f"{len(names)} ({', '.join(names[:n_shown])}{more})"
