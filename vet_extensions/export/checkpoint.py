"""A run's teacher -> a file in the layout of the released DINOv2 backbones. Called by `vetdino export` and the demo.

The file is a plain state dict (flat block names, float32, official key order) that `torch.hub`-style constructors, timm and the
Hugging Face conversion read; a JSON sidecar beside it says how to build the model and prepare images. It gets its name only
after `parity.verify_export` has loaded it again and found the source's outputs.
"""

import json
import logging
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from dinov2.eval.run_folder import find_checkpoint, preprocessing_of, read_config
from dinov2.models.pos_embed import interpolate_grid, resample_pos_embed, square_grid
from dinov2.models.state_dicts import dechunk_state_dict
from dinov2.models.vision_transformer import DinoVisionTransformer
from dinov2.utils.utils import read_checkpoint
from vet_extensions.errors import UserError
from vet_extensions.export.parity import (
    HUB_INTERPOLATION,
    SIDECAR_FORMAT,
    SIDECAR_VERSION,
    Architecture,
    ParityReport,
    file_sha256,
    load_hub_file,
    read_sidecar,
    sidecar_path,
    verify_export,
)

__all__ = ["ExportReport", "export_hub", "load_hub_file"]

logger = logging.getLogger("vet_extensions")


@dataclass(frozen=True)
class ExportReport:
    """What was written. hub_constructor: the `dinov2.hub.backbones` function that loads the file with strict names, or None."""

    path: Path
    sidecar: Path
    architecture: Architecture
    trained_img_size: int
    n_tensors: int
    n_parameters: int
    hub_constructor: str | None
    source_sha256: str
    parity: ParityReport

    def __str__(self) -> str:
        a = self.architecture
        return (
            f"{self.path.name}: {a.arch}/{a.patch_size}, {self.n_parameters:,} parameters in {self.n_tensors} tensors, "
            f"position grid of {a.img_size} px (trained at {self.trained_img_size} px).\n"
            f"Loads into: {self.hub_constructor or 'vet_extensions.export.checkpoint.load_hub_file'}.\n{self.parity}"
        )


def export_hub(
    source: Path,
    out_path: Path,
    *,
    img_size: int | None = None,
    arch: str | None = None,
    require_hub: bool = True,
    fresh_process: bool = True,
) -> ExportReport:
    """Write the teacher's backbone as a hub file with its sidecar, verified; returns what was written.

    source: a run folder (its newest teacher checkpoint) or a `teacher_checkpoint.pth`.
    img_size: resample the position embedding to the grid of images of this many pixels (the hub's constructors: 518). An
        enlarged grid is made so that, at the training size, the exported model gives the teacher's outputs.
    arch: name of the architecture, needed only where no config.yaml lies with the checkpoint.
    require_hub: refuse a network that the hub's constructor of its size could not load; False writes a file for `load_hub_file`.
    fresh_process: verify in a new process.

    A file already at `out_path` is replaced only if it came from the same checkpoint. Raises `UserError` for what the user
    can mend, and `parity.ParityError` for a file that does not compute what the teacher does, which is left as `<name>.failed`.
    """
    source, out_path = Path(source), Path(out_path)
    checkpoint, config_path = find_checkpoint(source)
    config = None if config_path is None else read_config(config_path, sections=("student",))
    source_sha256 = file_sha256(checkpoint)
    _refuse_to_replace(out_path, source_sha256)
    state = _read_backbone(checkpoint)
    trained = _architecture(state, config, arch=arch)
    teacher = trained.build()
    _load(teacher, state)
    hub_constructor = _hub_constructor(trained, require_hub=require_hub)
    target = _target(trained, img_size or trained.img_size, is_for_hub=hub_constructor is not None)
    weights = _weights(teacher, trained, target)

    unverified = out_path.with_name(f"{out_path.stem}.unverified{out_path.suffix}")
    out_path.parent.mkdir(parents=True, exist_ok=True)
    _write(unverified, weights)
    sidecar = {
        "format": SIDECAR_FORMAT,
        "version": SIDECAR_VERSION,
        "architecture": asdict(target),
        "trained_img_size": trained.img_size,
        "hub_constructor": hub_constructor,
        "preprocessing": _preprocessing(config),
        "weights_sha256": file_sha256(unverified),
        "source_sha256": source_sha256,
    }
    _write(sidecar_path(unverified), json.dumps(sidecar, indent=2).encode() + b"\n")
    parity = verify_export(
        teacher, unverified, final=out_path, sizes=(trained.img_size, target.img_size), fresh_process=fresh_process
    )
    sidecar_path(unverified).replace(sidecar_path(out_path))
    unverified.replace(out_path)
    logger.info("exported %s, patch tokens within %.1e of the teacher's", out_path.name, parity.max_abs_patch)
    return ExportReport(
        path=out_path,
        sidecar=sidecar_path(out_path),
        architecture=target,
        trained_img_size=trained.img_size,
        n_tensors=len(weights),
        n_parameters=sum(tensor.numel() for tensor in weights.values()),
        hub_constructor=hub_constructor,
        source_sha256=source_sha256,
        parity=parity,
    )


# ------------------------------------------------------------------------------------------------ reading the source


def _read_backbone(checkpoint: Path) -> dict[str, Tensor]:
    """The backbone's tensors with flat, bare names."""
    content = read_checkpoint(checkpoint)
    teacher = content.get("teacher") if isinstance(content, dict) else None
    prefix = "backbone."
    state = {k.removeprefix(prefix): v for k, v in (teacher or {}).items() if k.startswith(prefix)}
    if not state:
        held = ", ".join(map(str, list(content)[:5])) if isinstance(content, dict) else type(content).__name__
        raise UserError(
            f"'{checkpoint.name}' holds no teacher backbone: wanted 'teacher' with keys backbone.*, found {held or 'nothing'}. "
            "Give a teacher_checkpoint.pth of a run's eval/training_<iteration> folder."
        )
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise UserError(
            f"{len(broken)} tensors of '{checkpoint.name}' hold values that are not finite, the first {broken[0]}. The run "
            "has diverged: give an earlier checkpoint."
        )
    return dechunk_state_dict(state)


def _patch_size(state: dict[str, Tensor]) -> int:
    """Side of a patch: of the one convolution of a linear embedding, or two to the number of halving ones."""
    if "patch_embed.proj.weight" in state:
        return state["patch_embed.proj.weight"].shape[-1]
    return 2 ** sum(re.fullmatch(r"patch_embed\.proj\.conv\d+\.weight", name) is not None for name in state)


def _architecture(state: dict[str, Tensor], config: DictConfig | None, *, arch: str | None) -> Architecture:
    """The tensors say how the network is built; the configuration adds its name and how it interpolates positions."""
    if config is None and arch is None:
        raise UserError(
            "No config.yaml lies with the checkpoint, so the architecture is not known. Give the run folder, or the name: "
            "arch='vit_small' for example."
        )
    missing = [name for name in ("cls_token", "pos_embed", "norm.weight") if name not in state]
    if missing:
        raise UserError(f"The teacher backbone lacks {', '.join(missing)}: it is no vision transformer of dinov2.")
    student: Any = config.student if config is not None else {}
    configured = str(student.get("arch", arch)).removesuffix("_memeff")
    if arch is not None and arch != configured:
        raise UserError(f"arch='{arch}' was given, but the run's config.yaml says '{configured}'. Leave arch out.")
    n_registers = state["register_tokens"].shape[1] if "register_tokens" in state else 0
    antialias, offset = HUB_INTERPOLATION.get(n_registers, (False, 0.1))
    patch_size = _patch_size(state)
    side, _ = square_grid(state["pos_embed"].shape[1] - 1)
    is_gated = "blocks.0.mlp.w12.weight" in state
    return Architecture(
        arch=configured,
        patch_size=patch_size,
        img_size=side * patch_size,
        embed_dim=state["cls_token"].shape[-1],
        num_register_tokens=n_registers,
        has_layerscale="blocks.0.ls1.gamma" in state,
        ffn_layer="swiglufused" if is_gated else "mlp",
        qkv_bias="blocks.0.attn.qkv.bias" in state,
        proj_bias="blocks.0.attn.proj.bias" in state,
        ffn_bias=("blocks.0.mlp.w12.bias" if is_gated else "blocks.0.mlp.fc1.bias") in state,
        interpolate_antialias=bool(student.get("interpolate_antialias", antialias)),
        interpolate_offset=float(student.get("interpolate_offset", offset)),
    )


def _load(model: DinoVisionTransformer, state: dict[str, Tensor]) -> None:
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        first = next((line.strip() for line in str(error).splitlines()[1:]), "")
        raise UserError(
            f"The checkpoint's tensors do not fit the architecture it is said to have. {first} "
            "Check arch, or that config.yaml and checkpoint are of the same run."
        ) from error


def _preprocessing(config: DictConfig | None) -> dict[str, Any]:
    """How an image becomes the network's input."""
    mean, std = preprocessing_of(config)
    return {
        "scale": "grey values from 0 (black) to 1 (white)",
        "grey_to_rgb": "the grey channel three times",
        "mean": list(mean),
        "std": list(std),
    }


# ------------------------------------------------------------------------------------------------ the exported model


def _hub_constructor(trained: Architecture, *, require_hub: bool) -> str | None:
    """The hub function that will load the file; None where the hub has no such size, or cannot load it and need not."""
    obstacles = trained.hub_obstacles() if trained.hub_constructor else []
    if obstacles and require_hub:
        raise UserError(
            f"{trained.hub_constructor} could not load this backbone: {'; '.join(obstacles)}. Train with these settings for a "
            "hub file, or export with require_hub=False: then load_hub_file reads it, from its sidecar."
        )
    return None if obstacles else trained.hub_constructor


def _target(trained: Architecture, img_size: int, *, is_for_hub: bool) -> Architecture:
    """The exported architecture: the wanted grid, and the interpolation of the constructor that will load the file."""
    if img_size < trained.patch_size or img_size % trained.patch_size:
        lower = max(1, img_size // trained.patch_size) * trained.patch_size
        raise UserError(
            f"img_size={img_size} is not a whole number of patches of {trained.patch_size} pixels. "
            f"Use {lower} or {lower + trained.patch_size}."
        )
    fields = asdict(trained.at_size(img_size))
    if is_for_hub:
        antialias, offset = HUB_INTERPOLATION[trained.num_register_tokens]
        fields |= {"interpolate_antialias": antialias, "interpolate_offset": offset}
    return Architecture(**fields)


def _weights(teacher: DinoVisionTransformer, trained: Architecture, target: Architecture) -> dict[str, Tensor]:
    """The teacher's weights in official order, positions on the target's grid."""
    weights = dict(teacher.state_dict())
    side = target.img_size // target.patch_size
    positions = weights["pos_embed"]
    if target.img_size > trained.img_size:
        weights["pos_embed"] = resample_pos_embed(
            positions,
            (side, side),
            antialias=target.interpolate_antialias,
            round_trip_offset=target.interpolate_offset,
        )
    elif target.img_size < trained.img_size:
        patches = interpolate_grid(  # as the teacher itself does for images of this size
            positions[:, 1:].unflatten(1, square_grid(positions.shape[1] - 1)),
            (side, side),
            antialias=trained.interpolate_antialias,
            offset=trained.interpolate_offset,
        )
        weights["pos_embed"] = torch.cat([positions[:, :1], patches.flatten(1, 2)], dim=1)
    # A clone owns no more than its values: a view would drag its whole storage into the file.
    return {name: tensor.detach().float().contiguous().clone() for name, tensor in weights.items()}


# ------------------------------------------------------------------------------------------------ writing


def _refuse_to_replace(out_path: Path, source_sha256: str) -> None:
    """An existing file may be replaced by the export of the same checkpoint only."""
    if out_path.suffix in ("", ".json"):
        raise UserError(
            f"'{out_path.name}' is no name for weights, which end in .pth for example, beside a .json of that name."
        )
    if not out_path.exists():
        return
    try:
        held = read_sidecar(out_path).get("source_sha256")
    except UserError:
        held = None
    if held != source_sha256:
        raise UserError(
            f"'{out_path.name}' exists and came from another checkpoint. Remove it, or choose another name."
        )


def _write(path: Path, content: bytes | dict[str, Tensor]) -> None:
    """Write and flush to disk, so that the later rename never shows an empty file after a power cut."""
    with path.open("wb") as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
