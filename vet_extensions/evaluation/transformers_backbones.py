"""Vision models that Hugging Face transformers saved, from a local folder (`hf:FOLDER`). Called by `backbones.open_backbone`.

Any model that `transformers.AutoModel` opens: plain vision transformers with all their blocks (ViT, DeiT, DINOv2 with and without
registers, RAD-DINO, DINOv3, CLIP, SigLIP, MAE, MSN, BEiT, I-JEPA), others by the one vector that they pool to. Nothing is
downloaded, and no code of the folder runs.
"""

import inspect
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinov2.data.transforms import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from dinov2.utils.files import file_sha256
from vet_extensions.errors import UserError
from vet_extensions.evaluation.embedding import Backbone, BlockTokens, untrained
from vet_extensions.evaluation.features import short_hash

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_NORMS = ("layernorm", "norm", "post_layernorm")
"""What the final norm is called among the models."""


def open_folder(folder: Path) -> Backbone:
    """The vision model of a folder with config.json and weights. Raises `UserError` where it is none."""
    auto = _transformers()
    weights = sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern))
    if not (folder / "config.json").is_file() or not weights:
        raise UserError(
            f"'{folder.name}' is no folder that transformers saved: it lacks "
            f"{'weights' if (folder / 'config.json').is_file() else 'config.json'}. Give hf:FOLDER of a folder with config.json "
            "and model.safetensors; nothing is downloaded."
        )
    try:
        whole: Any = auto.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, KeyError, OSError) as error:
        raise UserError(
            f"transformers cannot read the config.json of '{folder.name}' ({str(error).splitlines()[0]}). Its model may be newer "
            "than the installed version, or need code of its own, which is never run."
        ) from error
    config = getattr(whole, "vision_config", whole)
    if not hasattr(config, "num_channels"):
        raise UserError(
            f"'{folder.name}' holds a {whole.model_type}, which is no vision model. Give one that takes images."
        )
    patch_size = _patch_size(config)
    mean, std, size_px = _preprocessing(folder, config)
    files = {path.name: file_sha256(path) for path in weights}
    # What is random in a folder's model is its own: the masking of MAE is switched off by `_build`.
    known = Backbone(
        name=f"hf:{folder.resolve().name}",
        weights_hash=short_hash(files),
        architecture=short_hash({"transformers": json.loads((folder / "config.json").read_text(encoding="utf-8"))}),
        embed_dim=int(config.hidden_size if hasattr(config, "hidden_size") else config.hidden_sizes[-1]),
        patch_size=patch_size,
        n_blocks=int(config.num_hidden_layers) if patch_size else 0,
        mean=mean,
        std=std,
        image_size_px=size_px // (patch_size or 1) * (patch_size or 1),
        build=partial(_load, folder),
        read=_read_tokens if patch_size else _read_pooled,
    )
    return replace(known, untrained=partial(untrained, known, lambda: _vision_part(auto.AutoModel.from_config(whole))))


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"hf:FOLDER needs the package transformers ({error}). Install it: pip install 'vet-dino[hf]'"
        ) from error
    return transformers


def _patch_size(config: Any) -> int | None:
    """The patch size of a plain vision transformer; None for networks whose grid or width changes on the way."""
    is_plain = all(hasattr(config, name) for name in ("hidden_size", "num_hidden_layers", "patch_size"))
    if not is_plain or hasattr(config, "depths"):
        return None
    return int(config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0])


def _preprocessing(folder: Path, config: Any) -> tuple[tuple[float, ...], tuple[float, ...], int]:
    """(mean, std, side in pixels) of preprocessor_config.json; ImageNet's, and the side of config.json, without one."""
    path = folder / "preprocessor_config.json"
    try:
        stated = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"The {path.name} of '{folder.name}' is no readable JSON. Copy the folder again.") from error
    mean, std = stated.get("image_mean", IMAGENET_DEFAULT_MEAN), stated.get("image_std", IMAGENET_DEFAULT_STD)
    if stated.get("do_normalize", True) is False:
        mean, std = (0.0,) * 3, (1.0,) * 3
    crop = stated.get("crop_size") if stated.get("do_center_crop", True) else None
    size: Any = crop or stated.get("size") or getattr(config, "image_size", None) or 224
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge") or size.get("longest_edge")
    side = int(size[0] if isinstance(size, list | tuple) else size)
    return tuple(float(value) for value in mean), tuple(float(value) for value in std), side


def _load(folder: Path) -> nn.Module:
    """The vision part with the folder's weights in float32. Raises `UserError` where a weight that features need is missing."""
    auto = _transformers()
    try:
        model, found = auto.AutoModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"transformers cannot load the weights of '{folder.name}' ({str(error).splitlines()[0]}). Copy the folder again."
        ) from error
    # A pooler is left out of many files on purpose; vision transformers with a class token do not need it.
    missing = sorted(name for name in found["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise UserError(
            f"The weights of '{folder.name}' lack {len(missing)} of its model's tensors ({', '.join(missing[:3])}), which would "
            "stay random. Copy the folder again, or give the one that belongs to its config.json."
        )
    return _vision_part(model).float()


def _vision_part(model: Any) -> nn.Module:
    vision = getattr(model, "vision_model", model)
    if getattr(vision.config, "mask_ratio", 0):  # MAE would drop most patches at random, in evaluation too
        vision.config.mask_ratio = 0.0
    return vision


def _run(model: nn.Module, images: Tensor) -> Any:
    accepted = inspect.signature(model.forward).parameters
    options: dict[str, Any] = {}
    if "interpolate_pos_encoding" in accepted:
        options["interpolate_pos_encoding"] = True
    if "noise" in accepted:  # MAE orders the patches by it: ascending noise keeps their order
        n_patches = (images.shape[-2] * images.shape[-1]) // _patch_size(model.config) ** 2  # type: ignore[operator]
        options["noise"] = torch.linspace(0, 1, n_patches, device=images.device).expand(len(images), -1)
    return model(pixel_values=images, **options)


def _read_tokens(model: nn.Module, images: Tensor, indices: Sequence[int]) -> tuple[BlockTokens, ...]:
    """Tokens after the wanted blocks, through the final norm. Without a class token, the image's vector is the model's own
    pooling for the last block, and the mean patch token elsewhere."""
    blocks = _blocks(model)
    kept: dict[int, Tensor] = {}

    def keep(index: int, _module: nn.Module, _given: Any, out: Any) -> None:
        kept[index] = out if isinstance(out, Tensor) else out[0]

    hooks = [blocks[index].register_forward_hook(partial(keep, index)) for index in indices]
    try:
        result = _run(model, images)
    finally:
        for hook in hooks:
            hook.remove()
    norm: Any = next((getattr(model, name) for name in _NORMS if hasattr(model, name)), nn.Identity())
    patch_size = _patch_size(model.config)
    assert patch_size is not None, "only plain vision transformers have tokens to read"
    height, width = (side // patch_size for side in images.shape[-2:])
    found = []
    for index in indices:
        tokens = norm(kept[index])  # [B, prefix + h * w, D]
        n_prefix = tokens.shape[1] - height * width
        patches = tokens[:, n_prefix:].unflatten(1, (height, width))
        if n_prefix:
            cls = tokens[:, 0]
        elif index == len(blocks) - 1 and getattr(result, "pooler_output", None) is not None:
            cls = result.pooler_output
        else:
            cls = patches.mean(dim=(1, 2))
        found.append(BlockTokens(cls, patches))
    return tuple(found)


def _read_pooled(model: nn.Module, images: Tensor, indices: Sequence[int]) -> tuple[BlockTokens, ...]:
    """The model's own pooled vector; the mean over places where it has none."""
    result = _run(model, images)
    pooled = getattr(result, "pooler_output", None)
    if pooled is None:
        last = result.last_hidden_state
        pooled = last.mean(dim=1) if last.ndim == 3 else last.mean(dim=(2, 3))
    return (BlockTokens(pooled.flatten(1), None),)


def _blocks(model: nn.Module) -> nn.ModuleList:
    n_blocks = model.config.num_hidden_layers  # type: ignore[union-attr]
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_blocks:
            return module
    raise UserError(
        f"{type(model).__name__} does not keep its {n_blocks} blocks in one list, so their tokens cannot be read. Ask for "
        "support of this architecture, or use timm's version of it."
    )
