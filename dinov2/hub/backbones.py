"""The released backbones by their official entry names, with the official or with your own weights.

`weights` takes the enum, its name, an http(s) address or a local path: a released file, a `teacher_checkpoint.pth` of a
training run, a training checkpoint, or an exported backbone, whatever its block names and position grid.
"""

from enum import Enum
from pathlib import Path
from typing import Any

from dinov2.hub.utils import locate_weights, make_backbone_url
from dinov2.models import vision_transformer as vits
from dinov2.models.state_dicts import extract_backbone_state
from dinov2.models.vision_transformer import DinoVisionTransformer
from dinov2.utils.errors import UserError
from dinov2.utils.utils import read_checkpoint


class Weights(Enum):
    """Released sets of weights."""

    LVD142M = "LVD142M"


WeightsSpec = Weights | str | Path


def _make_dinov2_model(
    *,
    arch_name: str = "vit_large",
    img_size: int = 518,
    patch_size: int = 14,
    init_values: float = 1.0,
    ffn_layer: str = "mlp",
    block_chunks: int = 0,
    num_register_tokens: int = 0,
    interpolate_antialias: bool = False,
    interpolate_offset: float = 0.1,
    pretrained: bool = True,
    weights: WeightsSpec = Weights.LVD142M,
    weights_option: str = "weights",
    **kwargs: Any,
) -> DinoVisionTransformer:
    """A backbone of the released shape; random without `pretrained`. Further keywords go to `DinoVisionTransformer`.

    weights_option: how the caller's users call `weights`, for messages.
    """
    url = make_backbone_url(arch_name, patch_size, num_register_tokens)
    location = locate_weights(weights, Weights, url, option=weights_option) if pretrained else None
    model = vits.__dict__[arch_name](
        img_size=img_size,
        patch_size=patch_size,
        init_values=init_values,
        ffn_layer=ffn_layer,
        block_chunks=block_chunks,
        num_register_tokens=num_register_tokens,
        interpolate_antialias=interpolate_antialias,
        interpolate_offset=interpolate_offset,
        **kwargs,
    )
    if location is not None:
        load_backbone(model, location)
    return model


def load_backbone(model: DinoVisionTransformer, path_or_url: str | Path) -> None:
    """Load a file of any layout into the model; every weight of the model must be in it, and nothing may be left over.

    Raises `UserError` otherwise, and when the file cannot be had or read.
    """
    state = model.adapt_state_dict(extract_backbone_state(read_checkpoint(path_or_url)))
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:4]]
        raise UserError(
            f"The weights in '{path_or_url}' are not those of this architecture. {' '.join(lines)[:600]} Use the entry of the "
            "size, patch size and registers that the file was made with; a model trained without LayerScale needs init_values=0."
        ) from error


def dinov2_vits14(
    *, pretrained: bool = True, weights: WeightsSpec = Weights.LVD142M, **kwargs: Any
) -> DinoVisionTransformer:
    """ViT-S/14, 384 channels."""
    return _make_dinov2_model(arch_name="vit_small", pretrained=pretrained, weights=weights, **kwargs)


def dinov2_vitb14(
    *, pretrained: bool = True, weights: WeightsSpec = Weights.LVD142M, **kwargs: Any
) -> DinoVisionTransformer:
    """ViT-B/14, 768 channels."""
    return _make_dinov2_model(arch_name="vit_base", pretrained=pretrained, weights=weights, **kwargs)


def dinov2_vitl14(
    *, pretrained: bool = True, weights: WeightsSpec = Weights.LVD142M, **kwargs: Any
) -> DinoVisionTransformer:
    """ViT-L/14, 1024 channels."""
    return _make_dinov2_model(arch_name="vit_large", pretrained=pretrained, weights=weights, **kwargs)


def dinov2_vitg14(
    *, pretrained: bool = True, weights: WeightsSpec = Weights.LVD142M, **kwargs: Any
) -> DinoVisionTransformer:
    """ViT-g/14, 1536 channels, SwiGLU feed-forward."""
    kwargs.setdefault("ffn_layer", "swiglufused")
    return _make_dinov2_model(arch_name="vit_giant2", pretrained=pretrained, weights=weights, **kwargs)


def dinov2_vits14_reg(
    *, pretrained: bool = True, weights: WeightsSpec = Weights.LVD142M, **kwargs: Any
) -> DinoVisionTransformer:
    """ViT-S/14 with 4 registers."""
    return dinov2_vits14(pretrained=pretrained, weights=weights, **{**REGISTERS, **kwargs})


def dinov2_vitb14_reg(
    *, pretrained: bool = True, weights: WeightsSpec = Weights.LVD142M, **kwargs: Any
) -> DinoVisionTransformer:
    """ViT-B/14 with 4 registers."""
    return dinov2_vitb14(pretrained=pretrained, weights=weights, **{**REGISTERS, **kwargs})


def dinov2_vitl14_reg(
    *, pretrained: bool = True, weights: WeightsSpec = Weights.LVD142M, **kwargs: Any
) -> DinoVisionTransformer:
    """ViT-L/14 with 4 registers."""
    return dinov2_vitl14(pretrained=pretrained, weights=weights, **{**REGISTERS, **kwargs})


def dinov2_vitg14_reg(
    *, pretrained: bool = True, weights: WeightsSpec = Weights.LVD142M, **kwargs: Any
) -> DinoVisionTransformer:
    """ViT-g/14 with 4 registers."""
    return dinov2_vitg14(pretrained=pretrained, weights=weights, **{**REGISTERS, **kwargs})


# Models with registers were trained with plain resizing of positions; see `pos_embed.interpolate_grid`.
REGISTERS: dict[str, Any] = {"num_register_tokens": 4, "interpolate_antialias": True, "interpolate_offset": 0.0}
