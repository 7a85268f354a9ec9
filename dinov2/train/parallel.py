"""How the sub-modules of student and teacher run: spread over processes, compiled, with activations kept or not.

Called by `SSLMetaArch` once its modules are on their device. What is spread keeps its names in the state dict.
"""

from functools import partial

import torch
import torch.compiler.config
from omegaconf import DictConfig
from torch import nn
from torch.utils.checkpoint import checkpoint

from dinov2 import distributed
from dinov2.fsdp import get_fsdp_wrapper
from dinov2.layers.block import Block
from dinov2.models.block_chunks import BlockChunk
from dinov2.utils.errors import UserError


def make_parallel(cfg: DictConfig, modules: nn.ModuleDict, *, who: str) -> dict[str, nn.Module]:
    """What is to be called in place of each of the sub-modules, by the same names.

    who: student or teacher, for the sections of `compute_precision`. Sub-modules that take no part in the loss must be frozen.
    """
    sections = cfg.compute_precision[who]
    return {name: get_fsdp_wrapper(sections[name], _units(module))(module) for name, module in modules.items()}


def is_sharded(cfg: DictConfig, name: str) -> bool:
    """Whether a sub-module's weights are spread over the processes; student and teacher must agree, for one follows the other."""
    of = {who: cfg.compute_precision[who][name].sharding_strategy for who in ("student", "teacher")}
    if (of["student"] == "NO_SHARD") != (of["teacher"] == "NO_SHARD"):
        raise UserError(
            f"compute_precision.student.{name}.sharding_strategy is {of['student']}, the teacher's {of['teacher']}. The teacher "
            "averages the student's weights where they lie: make both NO_SHARD, or both SHARD_GRAD_OP or FULL_SHARD."
        )
    return distributed.get_global_size() > 1 and of["student"] != "NO_SHARD"


def set_up_blocks(modules: nn.ModuleDict, *, checkpoint_activations: bool, compiled: bool) -> None:
    """Transformer blocks that forget their activations until the backward pass, or go through `torch.compile`."""
    if compiled:
        # All blocks share one piece of code, and so one limit of 8: student and teacher, whole and for some tokens, and the
        # image sizes of an evaluation between the steps need more, beyond which blocks would silently run uncompiled.
        torch.compiler.config.recompile_limit = max(torch.compiler.config.recompile_limit, 32)
    for module in modules.values():
        for block in [m for m in module.modules() if isinstance(m, Block)]:
            if checkpoint_activations:
                # On the instance: a wrapping module would change the names in the state dict.
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
            if compiled:
                block.compile()


def _units(module: nn.Module) -> set[type[nn.Module]]:
    """Units that are gathered one after the other: the chunks of a chunked backbone (official), else its blocks."""
    chunked = any(isinstance(m, BlockChunk) for m in module.modules())
    return {BlockChunk} if chunked else {Block}
