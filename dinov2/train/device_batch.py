"""A batch on its device: normalised crops, and which image of its sample each crop was cut from. Called by `SSLMetaArch`.

Shape legend: S student global crops, L local crops, T teacher crops, B samples, N patches of a global crop, M masked patches.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dinov2.loss.routing import CropLayout, CropSlots

_CROPS = ("collated_global_crops", "collated_local_crops", "collated_global_crops_teacher")


def to_device(images: Mapping[str, Any], device: torch.device, *, mean: Tensor, std: Tensor) -> dict[str, Any]:
    """The batch of a collate function with its tensors on `device`, and crops of uint8 normalised with mean and deviation.

    mean, std: [3] float32, on `device`.

    Crops that are not made yet (`crops_on_device`, see `dinov2.data.collate`) are made there.
    """
    batch: dict[str, Any] = {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for key, value in images.items()
    }
    if "crops_on_device" in batch:
        batch.update(batch.pop("crops_on_device").crops(device))
    for key in _CROPS:
        if key in batch and batch[key].dtype == torch.uint8:
            batch[key] = _normalise(batch[key], mean, std)
    return batch


def slots_of(batch: Mapping[str, Any], layout: CropLayout) -> CropSlots:
    """The crop slots of a batch: its own where the augmentation said them, else those of the routing's layout."""
    if "crop_sources_teacher_globals" in batch:
        return CropSlots(
            student_globals=batch["crop_sources_student_globals"],
            student_locals=batch["crop_sources_student_locals"],
            teacher_globals=batch["crop_sources_teacher_globals"],
            n_shared=batch["n_shared"],
        )
    crops = batch["collated_global_crops"]
    return CropSlots.of_layout(layout, crops.shape[0] // len(layout.student_globals), crops.device)


def count_single_images(slots: CropSlots, layout: CropLayout) -> dict[str, Tensor]:
    """Where a routing asks for several images of a sample: how many samples of the batch had only one."""
    if layout.n_sources < 2:
        return {}
    sources = torch.cat([slots.student_globals, slots.student_locals, slots.teacher_globals])
    return {"single_image_samples": (sources == sources[0]).all(0).sum().float()}


def masked_patches(patch_tokens: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """[crops * B, N, D] -> [M, D]. Shared slots come first for student and teacher, so one index serves both."""
    return patch_tokens.flatten(0, 1).index_select(0, batch["mask_indices_list"])


def _normalise(crops: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 [n, 1 or 3, H, W] -> float32 [n, 3, H, W]; grey is repeated."""
    return (crops.float().div(255.0) - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)
