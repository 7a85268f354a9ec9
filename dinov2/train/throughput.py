"""How fast a run is and how much of the device it uses: images a second, waiting for data, FLOP/s, memory; for the train loop.

FLOPs are those of the model: matrix products and convolutions, a multiplication and an addition counting as two. What activation
checkpointing computes again does not count, so that MFU compares runs by what they learn from.

Shape legend: S student global crops, L local crops, T teacher crops, B samples, M masked patches.
"""

import logging
import re
import resource
import sys
from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dinov2.models import build_model_from_cfg
from dinov2.train.heads import build_heads

logger = logging.getLogger("dinov2")

_CROPS = ("collated_global_crops", "collated_local_crops", "collated_global_crops_teacher")

_PEAKS: tuple[tuple[str, float, float | None], ...] = (
    ("B200", 2250e12, 2250e12),
    ("H200 NVL", 835e12, 835e12),
    ("H200", 989e12, 989e12),
    ("H100 PCIE", 756e12, 756e12),
    ("H100 NVL", 835e12, 835e12),
    ("H100", 989e12, 989e12),
    ("A100", 312e12, 312e12),
    ("A40", 150e12, 150e12),
    ("A30", 165e12, 165e12),
    ("A10", 125e12, 125e12),
    ("A6000", 155e12, 155e12),
    ("L40S", 362e12, 362e12),
    ("L40", 181e12, 181e12),
    ("L4", 121e12, 121e12),
    ("RTX 4090", 165e12, 165e12),
    ("RTX 3090", 71e12, 71e12),
    ("V100", 125e12, None),
    ("T4", 65e12, None),
)
"""Words of a device's name, dense peak in float16 and in bfloat16 (None: no such units), FLOP/s. The first entry whose words are
all in the name holds. Source: the vendor's data sheets, without sparsity, accumulating in float32 where both are given."""


def peak_flops_of(device: torch.device, dtype: torch.dtype | None, *, override_tflops: float = 0.0) -> float | None:
    """Dense peak of one device in FLOP/s, for MFU; None where it is not known.

    dtype: of the autocast region, None for float32, whose peak depends on whether TF32 is allowed and is not looked up.
    override_tflops: `train.peak_tflops`; above 0 it holds for any device, the CPU too.
    """
    if override_tflops > 0:
        return override_tflops * 1e12
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return None
    name = torch.cuda.get_device_name(device)
    peak = _listed_peak(name, dtype)
    if peak is None:
        logger.info("no peak is known of '%s' in %s, so MFU is not logged; train.peak_tflops sets it", name, dtype)
    return peak


def step_flops(cfg: DictConfig, batch: Mapping[str, Any]) -> float | None:
    """FLOPs of one forward and backward pass of this process on batches like this one; None where they cannot be counted.

    Student forward and backward (three times the forward pass) with the stochastic depth of the configuration, teacher forward,
    and the heads on the rows that they see. Counted on copies without storage, so that neither weights nor random states are
    touched. The losses are left out: below a hundredth of the rest.
    """
    n_channels = len(cfg.augmentation.mean)
    if "crops_on_device" in batch:
        batch = {**batch, **batch["crops_on_device"].crops(torch.device("meta"))}
    global_crops, local_crops, teacher_crops = (_on_meta(batch, name, n_channels) for name in _CROPS)
    teacher_crops = global_crops if teacher_crops is None else teacher_crops
    assert global_crops is not None, "a batch has global crops"
    assert teacher_crops is not None, "a batch has global crops"
    crops, masks = [global_crops], [batch["collated_masks"].to("meta")]
    if local_crops is not None and len(local_crops):
        crops, masks = [*crops, local_crops], [*masks, None]
    try:
        with torch.device("meta"):
            student, teacher, width = build_model_from_cfg(cfg)
            student_heads, teacher_heads = (build_heads(cfg, width, teacher=of_teacher) for of_teacher in (False, True))
        in_student = _count(student.train(), crops, masks=masks, is_training=True)
        in_teacher = _count(teacher.eval(), teacher_crops, is_training=True)
    except Exception as error:  # a backbone from a plugin may do anything that the meta device cannot
        logger.info("the FLOPs of '%s' cannot be counted (%s); FLOP/s and MFU are not logged", cfg.student.arch, error)
        return None
    n_masked = len(batch["mask_indices_list"]) if cfg.ibot.loss_weight > 0 else 0
    heads = _in_heads(student_heads, n_cls=sum(map(len, crops)), n_masked=n_masked, trained=True)
    heads += _in_heads(teacher_heads, n_cls=len(teacher_crops), n_masked=n_masked, trained=False)
    return float(3 * in_student + in_teacher + heads)


class Throughput:
    """Turns the times of a step into the values that are logged."""

    def __init__(
        self,
        *,
        images_per_step: int,
        flops_per_step: float | None = None,
        peak_flops: float | None = None,
        device: torch.device | None = None,
    ) -> None:
        """
        images_per_step: samples between two changes of the weights, over all processes and accumulated batches.
        flops_per_step: of this process alone, likewise: `step_flops` times the accumulated batches.
        peak_flops: of this process's device, see `peak_flops_of`. device: whose memory is told; the CPU by default.
        """
        self._images_per_step = images_per_step
        self._flops_per_step = flops_per_step
        self._peak_flops = peak_flops
        self._device = device or torch.device("cpu")

    def update(self, iter_time_s: float, data_time_s: float) -> dict[str, float]:
        """Values of one step that took `iter_time_s` seconds, of which `data_time_s` were spent waiting for data.

        images_per_second (all processes), data_wait (share of the step, 0 to 1), max_memory_mb (greatest so far; on the CPU the
        resident memory of this process), and where they are known tflops (of one device, 10^12 a second) and mfu (0 to 1).
        """
        seconds = max(iter_time_s, 1e-9)
        values = {
            "images_per_second": self._images_per_step / seconds,
            "data_wait": data_time_s / seconds,
            "max_memory_mb": _max_memory_bytes(self._device) / 2**20,
        }
        if self._flops_per_step:
            values["tflops"] = self._flops_per_step / seconds / 1e12
            if self._peak_flops:
                values["mfu"] = self._flops_per_step / seconds / self._peak_flops
        return values


def _listed_peak(name: str, dtype: torch.dtype) -> float | None:
    words = set(re.split(r"[^A-Z0-9]+", name.upper()))
    for listed, in_fp16, in_bf16 in _PEAKS:
        if set(listed.split()) <= words:
            return in_fp16 if dtype == torch.float16 else in_bf16
    return None


def _on_meta(batch: Mapping[str, Any], name: str, n_channels: int) -> Tensor | None:
    """The crops' shape as the network sees it: grey crops of uint8 are repeated when they are normalised."""
    if name not in batch:
        return None
    crops: Tensor = batch[name]
    channels = n_channels if crops.dtype == torch.uint8 else crops.shape[1]
    return torch.empty(crops.shape[0], channels, *crops.shape[2:], device="meta")


def _count(model: nn.Module, *inputs: Any, **kwargs: Any) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs, **kwargs)
    return counter.get_total_flops()


def _in_heads(heads: Mapping[str, nn.Module], *, n_cls: int, n_masked: int, trained: bool) -> int:
    """FLOPs of the heads' linear layers; masked patches go through `ibot_head` where there is one."""
    per_row = {name: sum(_linear_flops(m, trained=trained) for m in head.modules()) for name, head in heads.items()}
    return n_cls * per_row["dino_head"] + n_masked * per_row.get("ibot_head", per_row["dino_head"])


def _linear_flops(module: nn.Module, *, trained: bool) -> int:
    """Of one row through this module itself; 0 for what is no linear layer."""
    forward = 2 * getattr(module, "in_features", 0) * getattr(module, "out_features", 0)
    if not trained:
        return forward
    is_frozen = not any(p.requires_grad for p in module.parameters(recurse=False))
    return forward * (2 if is_frozen else 3)  # frozen weights still pass a gradient on to the layers before them


def _max_memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
