"""Arithmetic of a run, from the configuration: one place that knows what a device cannot do."""

import contextlib
import logging

import torch
from omegaconf import DictConfig

from dinov2.utils.dtype import PRECISIONS
from dinov2.utils.errors import UserError

logger = logging.getLogger("dinov2")


def autocast_dtype(cfg: DictConfig, device: torch.device) -> torch.dtype | None:
    """The reduced dtype of the forward pass, or None for float32.

    The dtype of the student backbone decides for the whole step. float16 is a CUDA matter: on the CPU it means float32,
    because the CPU has no float16 matrix units and no gradient scaling is needed.
    """
    name = cfg.compute_precision.student.backbone.mixed_precision.param_dtype
    if name not in PRECISIONS:
        raise UserError(
            f"compute_precision.student.backbone.mixed_precision.param_dtype is '{name}'. Allowed: {', '.join(PRECISIONS)}."
        )
    dtype = PRECISIONS[name]
    if dtype == torch.float32 or (dtype == torch.float16 and device.type == "cpu"):
        return None
    return dtype


def autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager:
    """Mixed precision on `device` with `dtype`; does nothing for None."""
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device_type=device.type, dtype=dtype)


def grad_scaler(cfg: DictConfig, device: torch.device, dtype: torch.dtype | None) -> torch.amp.GradScaler | None:
    """A gradient scaler where float16 gradients would underflow, else None."""
    if not cfg.compute_precision.grad_scaler or dtype != torch.float16:
        return None
    return torch.amp.GradScaler(device=device.type)


def product_dtype(device: torch.device, reduced: torch.dtype | None) -> torch.dtype:
    """The dtype of the losses' own matrix products, given that of the forward pass.

    A CPU without AMX has no units for bfloat16: its products take twice as long as those of float32, which are also exact.
    """
    if reduced is None:
        return torch.float32
    if device.type == "cpu" and not torch.cpu.get_capabilities().get("amx_bf16", False):
        return torch.float32
    return reduced
