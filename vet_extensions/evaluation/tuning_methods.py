"""Which parameters of a backbone a method trains, made so: `adapt`. The training in `finetune` calls it.

LoRA (arXiv 2106.09685), DoRA (2402.09353) and IA3 (2205.05638) are those of the package peft (Apache-2.0), put into the
backbone's own linear layers. The fused qkv is one layer to it, so IA3 scales queries beside keys and values, which adds nothing
that scaling the keys cannot do. BitFit: arXiv 2106.10199. Every method states by name what it means to train, from the layers
that it found and not from what happens to require a gradient, so that `tuning_checks` can hold the training to it.

For a vision transformer of K blocks and D channels with an MLP of 4 D, and the default targets qkv, fc1 and fc2:
lora 14 r D K; dora that and 8 D K; ia3 7 D K; vpt M D K (shallow: M D); norm 4 D K + 2 D; bitfit 11 D K + 2 D (K blocks, the
last norm, and the patch projection). Tests count them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dinov2.models.block_chunks import blocks_in_order
from dinov2.models.vision_transformer import DinoVisionTransformer
from vet_extensions.errors import UserError
from vet_extensions.evaluation.embedding import Backbone, ReadTokens
from vet_extensions.evaluation.prompts import PromptedBackbone, read_prompted
from vet_extensions.evaluation.tuning_checks import NotTrainedAsIntended
from vet_extensions.evaluation.tuning_config import (
    BITFIT,
    DORA,
    FINETUNE,
    IA3,
    LAST_K,
    LORA,
    NORM,
    TUNED_PROTOCOLS,
    VPT,
    TuningConfig,
)

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _BatchNorm)

_NOT_IN_IA3 = ("fc1", "w12", "up_proj", "query", "q_proj")
"""IA3 scales a feed-forward branch once, at what goes into its second layer; and keys and values, where they are layers."""
_SECOND_OF_MLP = ("fc2", "w3", "down_proj")
_ADAPTER = "default"


@dataclass(frozen=True)
class Adapted:
    """A network ready to be tuned. read: takes its tokens. trainable: names among its parameters; all others are frozen."""

    model: nn.Module
    read: ReadTokens
    trainable: frozenset[str]


def adapt(backbone: Backbone, method: str, config: TuningConfig, *, image_size_px: int, tokens: str = "cls") -> Adapted:
    """A new copy of the backbone, frozen but for what `method` trains. New weights are drawn from torch's generator.

    Raises `UserError` for an unknown method, a backbone that it does not fit, or where the package peft is missing.
    """
    if method not in TUNED_PROTOCOLS:
        raise UserError(f"Unknown method '{method}'. Allowed: {', '.join(TUNED_PROTOCOLS)}.")
    model, read = backbone.build(), backbone.read
    used = used_parameters(model, backbone, image_size_px=image_size_px, tokens=tokens)
    model.requires_grad_(False)
    if method in (LORA, DORA, IA3):
        trainable = _inject(model, method, config)
    elif method == VPT:
        model, read = (
            PromptedBackbone(model, n_prompts=config.n_prompts, is_deep=config.prompts == "deep"),
            read_prompted,
        )
        trainable = {"prompts"}
    elif method == LAST_K:
        trainable = _last_blocks(model, backbone, config.last_blocks) & used
    elif method == NORM:
        trainable = _names_of(model, (module for module in model.modules() if isinstance(module, NORMS))) & used
    elif method == BITFIT:
        trainable = {name for name in used if name.split(".")[-1] == "bias"}
    else:
        assert method == FINETUNE
        trainable = used
    if not trainable:
        raise UserError(f"{backbone.name} has no parameters that {method} trains. Use another method, or finetune.")
    parameters = dict(model.named_parameters())
    assert trainable <= parameters.keys(), (
        f"peft names its parameters otherwise: {sorted(trainable - parameters.keys())}"
    )
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trainable)
    return Adapted(model, read, frozenset(trainable))


def last_features(model: nn.Module, read: ReadTokens, images: Tensor, *, n_blocks: int, tokens: str) -> Tensor:
    """What a head sees of images [B, 3, H, W]: the last class token [B, D], or with it the mean patch token, [B, 2 D].

    Raises `UserError` where patch tokens are asked of a network without them.
    """
    last = read(model, images, [max(1, n_blocks) - 1])[-1]
    if tokens == "cls":
        return last.cls
    if last.patches is None:
        raise UserError("The backbone gives one vector an image and no patch features. Use tokens: cls.")
    return torch.cat([last.cls, last.patches.mean(dim=(1, 2))], dim=1)


def used_parameters(model: nn.Module, backbone: Backbone, *, image_size_px: int, tokens: str) -> set[str]:
    """Names of the parameters on which the features depend. Mask tokens and poolers that nothing reads are not among them.

    Raises `NotTrainedAsIntended` where none is, as when features are computed without gradients.
    """
    model.eval().requires_grad_(True)
    parameters = dict(model.named_parameters())
    images = torch.zeros(1, len(backbone.mean), image_size_px, image_size_px)
    with torch.enable_grad():
        features = last_features(model, backbone.read, images, n_blocks=backbone.n_blocks, tokens=tokens)
    if not parameters:
        return set()
    if not features.requires_grad:
        raise NotTrainedAsIntended(f"The features of {backbone.name} carry no gradient to any of its parameters.")
    gradients = torch.autograd.grad(features.float().sum(), list(parameters.values()), allow_unused=True)
    return {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}


def n_parameters(module: nn.Module, names: Iterable[str]) -> int:
    """How many numbers the named parameters hold."""
    parameters = dict(module.named_parameters())
    return sum(parameters[name].numel() for name in names)


def _inject(model: nn.Module, method: str, config: TuningConfig) -> set[str]:
    """Put adapters into the targets by peft; returns the names that they must have by peft's own naming."""
    try:
        from peft import IA3Config, LoraConfig, inject_adapter_in_model  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(f"The method {method} needs the package peft: pip install 'vet-dino[peft]'") from error
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(f".{name}".endswith(f".{target}") for target in config.targets)
    ]
    if not layers:
        raise UserError(
            f"No linear layer of {type(model).__name__} has a name that ends in {', '.join(config.targets)}. Give the ends of "
            "its layers' names as tuning.targets."
        )
    if method == IA3:
        layers = [name for name in layers if name.split(".")[-1] not in _NOT_IN_IA3]
        feedforward = [name for name in layers if name.split(".")[-1] in _SECOND_OF_MLP]
        inject_adapter_in_model(IA3Config(target_modules=layers, feedforward_modules=feedforward), model)
        return {f"{name}.ia3_l.{_ADAPTER}" for name in layers}
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft divides it by r; a fraction is as good
        lora_dropout=config.dropout,
        target_modules=layers,
        use_dora=method == DORA,
    )
    inject_adapter_in_model(settings, model)
    parts = ("lora_A", "lora_B", "lora_magnitude_vector") if method == DORA else ("lora_A", "lora_B")
    return {f"{name}.{part}.{_ADAPTER}.weight" for name in layers for part in parts}


def _last_blocks(model: Any, backbone: Backbone, n_blocks: int) -> set[str]:
    """The last blocks, and the last norm among the network's own children."""
    if isinstance(model, DinoVisionTransformer):
        blocks = list(blocks_in_order(model.blocks))
    else:
        lists = (module for module in model.modules() if isinstance(module, nn.ModuleList | nn.Sequential))
        blocks = list(next((found for found in lists if len(found) == backbone.n_blocks > 0), []))
    if n_blocks > len(blocks):
        raise UserError(
            f"tuning.last_blocks is {n_blocks}, but {backbone.name} has {len(blocks)} blocks. "
            f"{'Give at most that many.' if blocks else 'Use another method for this backbone.'}"
        )
    norms = [child for child in model.children() if isinstance(child, NORMS)]
    return _names_of(model, [*blocks[-n_blocks:], *norms[-1:]])


def _names_of(model: nn.Module, modules: Iterable[nn.Module]) -> set[str]:
    """Names, in the network, of all parameters of some of its modules."""
    wanted = {id(parameter) for module in modules for parameter in module.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in wanted}
