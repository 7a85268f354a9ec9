"""The released backbones with a linear classifier, by their official entry names; ImageNet's thousand classes, or your own.

`weights` is the classifier's: the enum, its name, an http(s) address or a local path. `backbone_weights` is the backbone's and
takes what the backbone entries take, so that both can be had without a network.
"""

from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinov2.hub import backbones
from dinov2.hub.utils import locate_weights, make_linear_head_url
from dinov2.utils.errors import UserError
from dinov2.utils.utils import read_checkpoint

N_IMAGENET_CLASSES = 1000
LAYERS = (1, 4)
"""How many of the last blocks a classifier may read."""


class Weights(Enum):
    """Released classifiers."""

    IMAGENET1K = "IMAGENET1K"


WeightsSpec = Weights | str | Path


class _LinearClassifierWrapper(nn.Module):
    """A backbone and the linear layer on its features.

    layers=1: [class token, mean patch token]; layers=4: [class tokens of the last four blocks, earliest first, mean patch token
    of the last]. All normalised by the backbone's final norm. Images [B, 3, H, W] -> logits [B, C].
    """

    def __init__(self, backbone: nn.Module, linear_head: nn.Module, layers: int = 4) -> None:
        super().__init__()
        _check_layers(layers)
        self.backbone = backbone
        self.linear_head = linear_head
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        backbone: Any = self.backbone
        if self.layers == 1:
            features = backbone.forward_features(x)
            cls_tokens, patches = [features["x_norm_clstoken"]], features["x_norm_patchtokens"]
        else:
            blocks = backbone.get_intermediate_layers(x, n=self.layers, return_class_token=True)
            cls_tokens, patches = [cls for _, cls in blocks], blocks[-1][0]
        return self.linear_head(torch.cat([*cls_tokens, patches.mean(dim=1)], dim=1))  # [B, (layers + 1) * D]


def _make_dinov2_linear_classifier(
    *,
    arch_name: str = "vit_large",
    layers: int = 4,
    pretrained: bool = True,
    weights: WeightsSpec = Weights.IMAGENET1K,
    num_register_tokens: int = 0,
    interpolate_antialias: bool = False,
    interpolate_offset: float = 0.1,
    backbone_weights: backbones.WeightsSpec = backbones.Weights.LVD142M,
    **kwargs: Any,
) -> _LinearClassifierWrapper:
    """A backbone with a linear classifier; both random without `pretrained`. Further keywords go to the backbone.

    weights: a file with `weight` [classes, (layers + 1) * D] and `bias` [classes]; it decides the number of classes.
    Raises `UserError` for a file that does not fit, and as the backbone entries do.
    """
    _check_layers(layers)
    patch_size = kwargs.get("patch_size", 14)
    url = make_linear_head_url(arch_name, patch_size, num_register_tokens, layers=layers)
    # Before the backbone, which may be a gigabyte to fetch.
    head_state = _read_head(locate_weights(weights, Weights, url)) if pretrained else None
    backbone = backbones._make_dinov2_model(
        arch_name=arch_name,
        pretrained=pretrained,
        weights=backbone_weights,
        weights_option="backbone_weights",
        num_register_tokens=num_register_tokens,
        interpolate_antialias=interpolate_antialias,
        interpolate_offset=interpolate_offset,
        **kwargs,
    )
    n_classes = len(head_state["bias"]) if head_state is not None else N_IMAGENET_CLASSES
    head = nn.Linear((1 + layers) * backbone.embed_dim, n_classes)
    if head_state is not None:
        _load_head(head, head_state, weights, layers, backbone.embed_dim)
    return _LinearClassifierWrapper(backbone, head, layers)


def dinov2_vits14_lc(
    *, layers: int = 4, pretrained: bool = True, weights: WeightsSpec = Weights.IMAGENET1K, **kwargs: Any
) -> _LinearClassifierWrapper:
    """ViT-S/14 and a linear classifier on its last 1 or 4 layers."""
    return _make_dinov2_linear_classifier(
        arch_name="vit_small", layers=layers, pretrained=pretrained, weights=weights, **kwargs
    )


def dinov2_vitb14_lc(
    *, layers: int = 4, pretrained: bool = True, weights: WeightsSpec = Weights.IMAGENET1K, **kwargs: Any
) -> _LinearClassifierWrapper:
    """ViT-B/14 and a linear classifier on its last 1 or 4 layers."""
    return _make_dinov2_linear_classifier(
        arch_name="vit_base", layers=layers, pretrained=pretrained, weights=weights, **kwargs
    )


def dinov2_vitl14_lc(
    *, layers: int = 4, pretrained: bool = True, weights: WeightsSpec = Weights.IMAGENET1K, **kwargs: Any
) -> _LinearClassifierWrapper:
    """ViT-L/14 and a linear classifier on its last 1 or 4 layers."""
    return _make_dinov2_linear_classifier(
        arch_name="vit_large", layers=layers, pretrained=pretrained, weights=weights, **kwargs
    )


def dinov2_vitg14_lc(
    *, layers: int = 4, pretrained: bool = True, weights: WeightsSpec = Weights.IMAGENET1K, **kwargs: Any
) -> _LinearClassifierWrapper:
    """ViT-g/14 and a linear classifier on its last 1 or 4 layers."""
    kwargs.setdefault("ffn_layer", "swiglufused")
    return _make_dinov2_linear_classifier(
        arch_name="vit_giant2", layers=layers, pretrained=pretrained, weights=weights, **kwargs
    )


def dinov2_vits14_reg_lc(
    *, layers: int = 4, pretrained: bool = True, weights: WeightsSpec = Weights.IMAGENET1K, **kwargs: Any
) -> _LinearClassifierWrapper:
    """ViT-S/14 with 4 registers, and a linear classifier on its last 1 or 4 layers."""
    return dinov2_vits14_lc(layers=layers, pretrained=pretrained, weights=weights, **{**backbones.REGISTERS, **kwargs})


def dinov2_vitb14_reg_lc(
    *, layers: int = 4, pretrained: bool = True, weights: WeightsSpec = Weights.IMAGENET1K, **kwargs: Any
) -> _LinearClassifierWrapper:
    """ViT-B/14 with 4 registers, and a linear classifier on its last 1 or 4 layers."""
    return dinov2_vitb14_lc(layers=layers, pretrained=pretrained, weights=weights, **{**backbones.REGISTERS, **kwargs})


def dinov2_vitl14_reg_lc(
    *, layers: int = 4, pretrained: bool = True, weights: WeightsSpec = Weights.IMAGENET1K, **kwargs: Any
) -> _LinearClassifierWrapper:
    """ViT-L/14 with 4 registers, and a linear classifier on its last 1 or 4 layers."""
    return dinov2_vitl14_lc(layers=layers, pretrained=pretrained, weights=weights, **{**backbones.REGISTERS, **kwargs})


def dinov2_vitg14_reg_lc(
    *, layers: int = 4, pretrained: bool = True, weights: WeightsSpec = Weights.IMAGENET1K, **kwargs: Any
) -> _LinearClassifierWrapper:
    """ViT-g/14 with 4 registers, and a linear classifier on its last 1 or 4 layers."""
    return dinov2_vitg14_lc(layers=layers, pretrained=pretrained, weights=weights, **{**backbones.REGISTERS, **kwargs})


def _check_layers(layers: int) -> None:
    if layers not in LAYERS:
        raise UserError(f"layers={layers!r}; a linear classifier reads the last 1 or the last 4 layers.")


def _read_head(location: str) -> dict[str, Tensor]:
    state = read_checkpoint(location)
    if (
        set(state) != {"weight", "bias"}
        or state["weight"].ndim != 2
        or state["bias"].shape != state["weight"].shape[:1]
    ):
        names = ", ".join(list(state)[:6])
        raise UserError(
            f"'{location}' is no linear classifier: it holds {names or 'nothing'}. Wanted: 'weight' [classes, features] and "
            "'bias' [classes], as the released files have. For the backbone's own weights there is backbone_weights=."
        )
    return state


def _load_head(head: nn.Linear, state: dict[str, Tensor], weights: WeightsSpec, layers: int, embed_dim: int) -> None:
    n_features = state["weight"].shape[1]
    if n_features != head.in_features:
        fitting = [n for n in LAYERS if n_features == (1 + n) * embed_dim]
        cure = f"Give layers={fitting[0]}." if fitting else "It was made for another size of backbone: take that entry."
        raise UserError(
            f"The classifier in '{weights}' reads {n_features} features; this backbone with layers={layers} gives "
            f"{head.in_features}. {cure}"
        )
    head.load_state_dict(state)
