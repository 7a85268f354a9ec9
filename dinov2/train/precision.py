"""Arithmetic of a run, from the configuration: one place that knows what a device cannot do."""

import contextlib
import logging
import platform

import torch
from omegaconf import DictConfig

from dinov2.utils.dtype import PRECISIONS
from dinov2.utils.errors import UserError

logger = logging.getLogger("dinov2")


def asked_dtype(cfg: DictConfig) -> torch.dtype:
    """What the configuration asks for: the dtype of the student backbone, which decides for the whole step. Errors: UserError."""
    name = cfg.compute_precision.student.backbone.mixed_precision.param_dtype
    if name not in PRECISIONS:
        raise UserError(
            f"compute_precision.student.backbone.mixed_precision.param_dtype is '{name}'. Allowed: {', '.join(PRECISIONS)}."
        )
    return PRECISIONS[name]


def autocast_dtype(cfg: DictConfig, device: torch.device) -> torch.dtype | None:
    """The reduced dtype of the forward pass, or None for float32.

    A CPU without matrix units for what is asked computes in float32, which is faster there and exact: instead of float16 on all
    of them, instead of bfloat16 where there is no AMX (half the speed of float32, measured).
    """
    asked = asked_dtype(cfg)
    if asked == torch.float32 or (device.type == "cpu" and not cpu_has_units_for(asked)):
        return None
    return asked


def tell_of_precision(cfg: DictConfig, reduced: torch.dtype | None) -> None:
    """Say in the log where the device's precision is not the one asked for. reduced: from `autocast_dtype`."""
    asked = asked_dtype(cfg)
    if reduced is None and asked != torch.float32:
        logger.info(
            "%s was asked for; this CPU has no matrix units for it, and float32 is faster: computing in float32", asked
        )


def cpu_has_units_for(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies matrices of this reduced dtype faster than those of float32, as far as PyTorch tells."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    # The public torch.cpu.get_capabilities() is younger than the oldest PyTorch that this project runs on.
    return dtype == torch.bfloat16 and (not is_x86 or torch.cpu._is_amx_tile_supported())


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
