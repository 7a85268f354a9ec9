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

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dinov2.models.block_chunks import blocks_in_order
from vet_extensions.errors import UserError
from vet_extensions.evaluation.prompts import PromptedBackbone
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

_UNUSED = "mask_token"
"""Stands for masked patches in pre-training; no image that is classified has any, so it gets no gradient."""
_FIRST_OF_MLP, _SECOND_OF_MLP = ("fc1", "w12"), ("fc2", "w3")
"""IA3 scales a feed-forward branch once, between its two layers: at what goes into the second."""
_ADAPTER = "default"


@dataclass(frozen=True)
class Adapted:
    """A backbone ready to be tuned. trainable: names among its parameters; all others are frozen."""

    backbone: nn.Module
    trainable: frozenset[str]


def adapt(backbone: nn.Module, method: str, config: TuningConfig) -> Adapted:
    """Freeze the backbone but for what `method` trains. Changes it in place, and draws new weights from torch's generator.

    Raises `UserError` for an unknown method, a backbone that it does not fit, or where the package peft is missing.
    """
    if method not in TUNED_PROTOCOLS:
        raise UserError(f"Unknown method '{method}'. Allowed: {', '.join(TUNED_PROTOCOLS)}.")
    backbone.requires_grad_(False)
    if method in (LORA, DORA, IA3):
        trainable = _inject(backbone, method, config)
    elif method == VPT:
        backbone = PromptedBackbone(backbone, n_prompts=config.n_prompts, is_deep=config.prompts == "deep")
        trainable = {"prompts"}
    elif method == LAST_K:
        trainable = _last_blocks(backbone, config.last_blocks)
    elif method == NORM:
        trainable = _names_of(backbone, (module for module in backbone.modules() if isinstance(module, NORMS)))
    elif method == BITFIT:
        trainable = {name for name, _ in backbone.named_parameters() if name.split(".")[-1] == "bias"}
    else:
        assert method == FINETUNE
        trainable = {name for name, _ in backbone.named_parameters() if name.split(".")[-1] != _UNUSED}
    parameters = dict(backbone.named_parameters())
    lost = sorted(trainable - parameters.keys())
    if not trainable or lost:
        raise UserError(
            f"{type(backbone).__name__} has no parameters that {method} trains{': ' + ', '.join(lost[:3]) if lost else ''}. "
            "Use another method, or finetune."
        )
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trainable)
    return Adapted(backbone, frozenset(trainable))


def n_parameters(module: nn.Module, names: Iterable[str]) -> int:
    """How many numbers the named parameters hold."""
    parameters = dict(module.named_parameters())
    return sum(parameters[name].numel() for name in names)


def _inject(backbone: nn.Module, method: str, config: TuningConfig) -> set[str]:
    """Put adapters into the targets by peft; returns the names that they must have by peft's own naming."""
    try:
        from peft import IA3Config, LoraConfig, inject_adapter_in_model  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(f"The method {method} needs the package peft: pip install 'vet-dino[peft]'") from error
    layers = [
        name
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and any(f".{name}".endswith(f".{target}") for target in config.targets)
    ]
    if not layers:
        raise UserError(
            f"No linear layer of {type(backbone).__name__} has a name that ends in {', '.join(config.targets)}. Give the ends of "
            "its layers' names as tuning.targets."
        )
    if method == IA3:
        layers = [name for name in layers if name.split(".")[-1] not in _FIRST_OF_MLP]
        feedforward = [name for name in layers if name.split(".")[-1] in _SECOND_OF_MLP]
        inject_adapter_in_model(IA3Config(target_modules=layers, feedforward_modules=feedforward), backbone)
        return {f"{name}.ia3_l.{_ADAPTER}" for name in layers}
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft divides it by r; a fraction is as good
        lora_dropout=config.dropout,
        target_modules=layers,
        use_dora=method == DORA,
    )
    inject_adapter_in_model(settings, backbone)
    parts = ("lora_A", "lora_B", "lora_magnitude_vector") if method == DORA else ("lora_A", "lora_B")
    return {f"{name}.{part}.{_ADAPTER}.weight" for name in layers for part in parts}


def _last_blocks(backbone: Any, n_blocks: int) -> set[str]:
    """The last blocks and the norm behind them."""
    blocks = list(blocks_in_order(backbone.blocks)) if hasattr(backbone, "blocks") else []
    if n_blocks > len(blocks):
        raise UserError(
            f"tuning.last_blocks is {n_blocks}, but {type(backbone).__name__} has {len(blocks)} blocks. "
            f"{'Give at most that many.' if blocks else 'Use another method for this backbone.'}"
        )
    return _names_of(backbone, [*blocks[-n_blocks:], *([backbone.norm] if hasattr(backbone, "norm") else [])])


def _names_of(backbone: nn.Module, modules: Iterable[nn.Module]) -> set[str]:
    """Names, in the backbone, of all parameters of some of its modules."""
    wanted = {id(parameter) for module in modules for parameter in module.parameters()}
    return {name for name, parameter in backbone.named_parameters() if id(parameter) in wanted}
