"""Data parallelism of one sub-module, as its section of the configuration asks; called by the training room.

In one process a module stays as it is. In several, `NO_SHARD` wraps it in DDP, and `SHARD_GRAD_OP` and `FULL_SHARD` shard it in
place with FSDP2 (`fully_shard`), in the section's mixed precision. The names are those of the official room, which used FSDP1.
"""

import contextlib
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler as ShardedGradScaler
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from dinov2 import distributed
from dinov2.fsdp.checkpointer import FSDPCheckpointer, rankstr
from dinov2.utils.dtype import PRECISIONS
from dinov2.utils.errors import UserError

__all__ = [
    "FSDPCheckpointer",
    "ShardedGradScaler",
    "free_if_fsdp",
    "full_tensor",
    "get_fsdp_modules",
    "get_fsdp_wrapper",
    "gradient_sync",
    "is_fsdp",
    "is_sharded_fsdp",
    "local_tensor",
    "rankstr",
    "reshard_fsdp_model",
]

STRATEGIES = ("NO_SHARD", "SHARD_GRAD_OP", "FULL_SHARD")


def get_fsdp_wrapper(
    model_cfg: DictConfig, modules_to_wrap: Collection[type[nn.Module]] = frozenset()
) -> Callable[[nn.Module], nn.Module]:
    """A function that makes a module data-parallel and returns what is to be called in its place.

    model_cfg: a section such as `compute_precision.student.backbone`. modules_to_wrap: classes inside it that become units of
    their own, gathered and freed one after the other. All processes start from the main process's weights.
    """
    strategy = model_cfg.sharding_strategy
    if strategy not in STRATEGIES:
        raise UserError(f"sharding_strategy is '{strategy}'. Allowed: {', '.join(STRATEGIES)}.")

    def wrap(module: nn.Module) -> nn.Module:
        if distributed.get_global_size() == 1:
            return module
        _broadcast(module)
        if strategy == "NO_SHARD":
            return _replicated(module)
        device = next(module.parameters()).device
        options: dict[str, Any] = {
            "mesh": init_device_mesh(device.type, (distributed.get_global_size(),)),
            "mp_policy": _mixed_precision(model_cfg.mixed_precision, device),
            "reshard_after_forward": strategy == "FULL_SHARD",
        }
        for inner in [m for m in module.modules() if isinstance(m, tuple(modules_to_wrap)) and m is not module]:
            fully_shard(inner, **options)
        fully_shard(module, **options)  # in place
        # Tokens are views of one tensor. torch warns of work in place on such outputs, which nothing here does.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        return module

    return wrap


def is_fsdp(x: nn.Module) -> bool:
    """Whether a module is a sharded unit."""
    return isinstance(x, FSDPModule)


def is_sharded_fsdp(x: nn.Module) -> bool:
    """The same: an FSDP2 unit is always sharded (the official FSDP1 knew unsharded ones)."""
    return is_fsdp(x)


def free_if_fsdp(x: nn.Module) -> None:
    """Give back the gathered weights of a sharded unit; its own shard stays."""
    if isinstance(x, FSDPModule):
        x.reshard()


def get_fsdp_modules(x: nn.Module) -> list[nn.Module]:
    """Every sharded unit in a module, itself included."""
    return [module for module in x.modules() if is_fsdp(module)]


def reshard_fsdp_model(x: nn.Module) -> None:
    """`free_if_fsdp` for every unit of a module, so that its next forward pass gathers the weights of then."""
    for module in get_fsdp_modules(x):
        free_if_fsdp(module)


@contextlib.contextmanager
def gradient_sync(modules: Iterable[nn.Module], *, enabled: bool) -> Iterator[None]:
    """Forward and backward passes of data-parallel modules, with gradients averaged over processes at the end or not yet.

    modules: what `get_fsdp_wrapper` returned. Passes with `enabled=False` add up until one with True.
    """
    with contextlib.ExitStack() as stack:
        for module in modules:
            if isinstance(module, FSDPModule):
                module.set_requires_gradient_sync(enabled)
            elif isinstance(module, DistributedDataParallel) and not enabled:
                stack.enter_context(module.no_sync())
        yield


def local_tensor(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor; any other tensor as it is. Shares memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, gathered from all processes, which must call this together; any other one as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _replicated(module: nn.Module) -> nn.Module:
    if not any(parameter.requires_grad for parameter in module.parameters()):
        return module
    # No buffer changes in training, and every parameter takes part in every step.
    return DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True)


def _mixed_precision(cfg: DictConfig, device: torch.device) -> MixedPrecisionPolicy:
    """fp32 needs no casts. float16 is a CUDA matter and means fp32 on the CPU, as in `dinov2.train.precision`."""

    def dtype(key: str) -> torch.dtype | None:
        if cfg[key] not in PRECISIONS:
            raise UserError(f"mixed_precision.{key} is '{cfg[key]}'. Allowed: {', '.join(PRECISIONS)}.")
        wanted = PRECISIONS[cfg[key]]
        return None if wanted == torch.float32 or (wanted == torch.float16 and device.type == "cpu") else wanted

    param_dtype = dtype("param_dtype")
    reduce_dtype = dtype("reduce_dtype") or torch.float32
    return MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=reduce_dtype)


@torch.no_grad()
def _broadcast(module: nn.Module) -> None:
    for tensor in (*module.parameters(), *module.buffers()):
        torch.distributed.broadcast(tensor, src=0)
