"""Backbones of timm: its architecture names with the weights of a local file, or random. Called by `backbones.open_backbone`.

Networks with patch tokens give those of every block (`forward_intermediates`); others, and `cnn:`, the vector they pool to.
Nothing is downloaded.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinov2.utils.files import file_sha256
from dinov2.utils.utils import read_checkpoint
from vet_extensions.errors import UserError
from vet_extensions.evaluation.embedding import Backbone, BlockTokens, shape_only, untrained
from vet_extensions.evaluation.features import HASH_DIGITS, short_hash


def open_timm(name: str, file: Path | None, *, is_pooled_only: bool) -> Backbone:
    """A timm model. file: its weights; None where only `untrained` will be used. Raises `UserError` for names unknown to timm."""
    timm = _timm()
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.partition('.')[0]}*")[:4]
        raise UserError(
            f"timm has no model '{name}'.{' Near: ' + ', '.join(near) + '.' if near else ''} "
            "timm.list_models() lists all names."
        )
    if file is not None and not file.is_file():
        raise UserError(
            f"There is no weights file '{file.name}' for timm's {name}. Nothing is downloaded: give a local file."
        )
    shape: Any = shape_only(partial(_create, name))
    is_pooled_only = is_pooled_only or not _has_tokens(shape)
    patch_size = None if is_pooled_only else int(shape.patch_embed.patch_size[0])
    stated = shape.pretrained_cfg
    side = int((stated.get("input_size") or (3, 224, 224))[-1])
    known = Backbone(
        name=f"timm:{name}",
        weights_hash="" if file is None else file_sha256(file)[:HASH_DIGITS],
        architecture=short_hash({"timm": name, "is_pooled_only": is_pooled_only}),
        embed_dim=int(shape.num_features),
        patch_size=patch_size,
        n_blocks=0 if is_pooled_only else len(shape.blocks),
        mean=tuple(stated["mean"]),
        std=tuple(stated["std"]),
        image_size_px=side // (patch_size or 1) * (patch_size or 1),
        build=partial(_load, name, file),
        read=_read_pooled if is_pooled_only else _read_tokens,
    )
    return replace(known, untrained=partial(untrained, known, partial(_create, name)))


def _timm() -> Any:
    try:
        import timm  # pyright: ignore[reportMissingImports] - optional, and not in the development set
    except (ImportError, RuntimeError) as error:  # a torchvision of another torch raises the second
        raise UserError(
            f"timm:NAME and cnn:NAME need the packages timm and torchvision, the latter of the same release as torch ({error}). "
            "Install them: pip install 'vet-dino[timm]'"
        ) from error
    return timm


def _create(name: str, **options: Any) -> nn.Module:
    """The network without a classifier, for images of any size where the architecture allows that."""
    timm = _timm()
    try:
        return timm.create_model(name, **{"num_classes": 0, "dynamic_img_size": True, **options})
    except TypeError:  # convolutional networks take any size as they are, and do not know the option
        return timm.create_model(name, **{"num_classes": 0, **options})


def _load(name: str, file: Path | None) -> nn.Module:
    """The network with the file's weights, all of them; timm itself renames and resamples what its releases need."""
    assert file is not None, "only the untrained network was asked for"
    state = _bare(read_checkpoint(file))
    if not state:  # timm would look for its own release on the network
        raise UserError(f"'{file.name}' holds no weights. Give a file with the tensors of timm's {name}.")
    classifier = _timm().get_pretrained_cfg(name).classifier
    # With the file's own number of classes timm loads strictly, and then the classifier goes.
    weight = state.get(f"{classifier}.weight") if isinstance(classifier, str) else None
    n_classes = 0 if weight is None else len(weight)
    overlay = {"state_dict": state, "num_classes": n_classes}
    try:
        model: Any = _create(name, num_classes=n_classes, pretrained=True, pretrained_cfg_overlay=overlay)
    except RuntimeError as error:
        raise UserError(
            f"The weights in '{file.name}' are not those of timm's {name}: {' '.join(str(error).split())[:300]} Give the name of "
            "the architecture that the file was made with."
        ) from error
    model.reset_classifier(0)
    return model


def _bare(content: dict[str, Any]) -> dict[str, Any]:
    """The tensors of a file that keeps them one level down, as training scripts write them."""
    for level in ("state_dict_ema", "state_dict", "model_ema", "model"):
        if isinstance(content.get(level), dict):
            content = content[level]
            break
    return {key.removeprefix("module."): value for key, value in content.items()}


def _has_tokens(model: Any) -> bool:
    """Whether it is a plain vision transformer: one width, one grid, and blocks in a row."""
    wanted = ("blocks", "patch_embed", "num_prefix_tokens", "forward_intermediates")
    return all(hasattr(model, name) for name in wanted)


def _read_tokens(model: Any, images: Tensor, indices: Sequence[int]) -> tuple[BlockTokens, ...]:
    """Tokens after the wanted blocks, through the final norm. Without a class token, the image's vector is the model's own
    pooling for the last block, and the mean patch token elsewhere."""
    found = model.forward_intermediates(
        images, indices=list(indices), return_prefix_tokens=True, norm=True, intermediates_only=True
    )
    tokens = []
    for index, block in zip(indices, found, strict=True):
        patches, prefix = block if isinstance(block, tuple) else (block, None)
        patches = patches.permute(0, 2, 3, 1)  # [B, h, w, D]
        if getattr(model, "cls_token", None) is not None and prefix is not None:
            cls = prefix[:, 0]
        elif index == len(model.blocks) - 1:
            tokens_of_all = [patches.flatten(1, 2)] if prefix is None else [prefix, patches.flatten(1, 2)]
            cls = model.forward_head(torch.cat(tokens_of_all, dim=1), pre_logits=True)
        else:
            cls = patches.mean(dim=(1, 2))
        tokens.append(BlockTokens(cls, patches))
    return tuple(tokens)


def _read_pooled(model: nn.Module, images: Tensor, indices: Sequence[int]) -> tuple[BlockTokens, ...]:
    """What the network without its classifier gives: the pooled vector."""
    return (BlockTokens(model(images), None),)
