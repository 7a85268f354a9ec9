"""Turning a list of augmented samples into one training batch; called in the loader's workers.

The official part: crops stacked crop-major (crop 0 of every sample, then crop 1, ...) and iBOT masks drawn for the global crops.
The additive part serves samples whose teacher crops differ from the student's: see `collate_data_and_cast`.

Shape legend: B samples, S student global crops, L local crops, T teacher global crops, N patches of a global crop,
M masked patches of the batch, C channels.
"""

import itertools
import random
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dinov2.data.masking import MaskingGenerator, RandomSource


class CropsToMake(Protocol):
    """The crops of a batch before they are made, which `dinov2.train.device_batch.to_device` does beside the network.

    May hold tensors; workers pickle it. With a method `pin_memory`, which returns the object to use, the loader pins it.
    """

    def crops(self, device: torch.device) -> dict[str, Tensor]:
        """`collated_global_crops`, `collated_local_crops` and, with `crop_sources`, `collated_global_crops_teacher`.

        As in the batch of `collate_data_and_cast`, on the device. On the device `meta` they have their shapes and types alone.
        """
        ...


class DrawnCrops(Protocol):
    """The crops of one sample before they are made; stands in an augmentation's dictionary under `crops_on_device`."""

    def collate(self, samples: Sequence[Any]) -> CropsToMake:
        """The crops of a batch. samples: these objects of all of its samples in order, this one first."""
        ...


def collate_data_and_cast(
    samples_list: Sequence[Any],
    mask_ratio_tuple: tuple[float, float],
    mask_probability: float,
    dtype: torch.dtype,
    n_tokens: int | None = None,
    mask_generator: MaskingGenerator | None = None,
    rng: RandomSource | None = None,
) -> dict[str, Any]:
    """One batch from samples whose element 0 is the dictionary of an augmentation.

    mask_ratio_tuple: lowest and highest share of masked patches. mask_probability: share of the global crops that get a mask.
    dtype: of the crops in the batch; uint8 crops stay uint8, for the device normalises them.
    n_tokens: N; by default that of the mask generator. mask_generator: None draws no masks.
    rng: where the draws come from; the module `random` by default, as official.

    Returns the official seven keys: `collated_global_crops` [S*B, C, H, W], `collated_local_crops` [L*B, C, h, w] (with L = 0
    an empty tensor), `collated_masks` [S*B, N] bool, `mask_indices_list` [M] int64 (flat indices into S*B*N), `masks_weight` [M]
    float32 (1 / masked patches of the same crop), `upperbound` int (M never exceeds it), `n_masked_patches` [1] int64.

    Samples that hold `crop_sources` ({"student_globals": S ints, "student_locals": L ints, "teacher_globals": T ints}, the image
    of the sample that each crop was cut from), `n_shared` and `teacher_groups` (T ints) add
    `collated_global_crops_teacher` [T*B, C, H, W], `crop_sources_student_globals` [S, B], `crop_sources_student_locals` [L, B],
    `crop_sources_teacher_globals` [T, B], `teacher_groups` [T, B] (all int64) and `n_shared` int. Only the first `n_shared`
    global crops, which student and teacher share, are then masked; since they come first in both lists, `mask_indices_list` is
    valid for the teacher's tokens too.

    Samples that hold `crops_on_device` (`DrawnCrops`) and `crop_sources` have no crops yet. Their batch holds `crops_on_device`
    (`CropsToMake`) in place of the crops, and the rest as above.
    """
    crops = [sample[0] for sample in samples_list]
    has_sources = "crop_sources" in crops[0]
    is_made = "crops_on_device" not in crops[0]
    n_global = len(crops[0]["global_crops"] if is_made else crops[0]["crop_sources"]["student_globals"])
    n_maskable = _common_n_shared(crops) if has_sources else n_global

    masks, upperbound = _draw_masks(
        n_maskable * len(crops), mask_ratio_tuple, mask_probability, n_tokens, mask_generator, rng
    )
    unmasked = masks.new_zeros((n_global - n_maskable) * len(crops), masks.shape[1])
    masks = torch.cat([masks, unmasked])  # [S*B, N]
    mask_indices = masks.flatten().nonzero().flatten()  # [M]
    weight_of_crop = 1 / masks.sum(-1).clamp(min=1.0)  # [S*B]

    batch: dict[str, Any] = {
        **(_student_crops(crops, dtype) if is_made else _crops_to_make(crops)),
        "collated_masks": masks,
        "mask_indices_list": mask_indices,
        "masks_weight": weight_of_crop.unsqueeze(-1).expand_as(masks)[masks],
        "upperbound": upperbound,
        "n_masked_patches": torch.full((1,), fill_value=mask_indices.shape[0], dtype=torch.long),
    }
    if has_sources and is_made:
        batch["collated_global_crops_teacher"] = _stack_crop_major([c["global_crops_teacher"] for c in crops], dtype)
    if has_sources:
        batch.update(_source_part(crops, n_shared=n_maskable))
    return batch


def _draw_masks(
    n_crops: int,
    mask_ratio_tuple: tuple[float, float],
    mask_probability: float,
    n_tokens: int | None,
    generator: MaskingGenerator | None,
    rng: RandomSource | None,
) -> tuple[Tensor, int]:
    """Masks [n_crops, N] in random order, and the most patches that they could have masked.

    The masked crops share the range of ratios: each draws its ratio from a slice of its own, so every batch spans the range.
    """
    if generator is None:
        return torch.zeros(n_crops, n_tokens or 0, dtype=torch.bool), 0
    source: RandomSource = random if rng is None else rng
    n_patches = generator.num_patches if n_tokens is None else n_tokens
    n_masked_crops = int(n_crops * mask_probability)
    # float32 on purpose, one operation at a time: official arithmetic rounds the number of patches from float32 tensors.
    edges = torch.linspace(*mask_ratio_tuple, n_masked_crops + 1).numpy()
    patches = np.float32(n_patches)
    masks, upperbound = [], 0
    for low, high in itertools.pairwise(edges):
        ratio = low + (high - low) * np.float32(source.random())
        masks.append(generator(int(patches * ratio), rng=source))
        upperbound += int(patches * high)
    masks += [generator(0, rng=source) for _ in range(n_crops - n_masked_crops)]
    source.shuffle(masks)
    if not masks:
        return torch.zeros(0, n_patches, dtype=torch.bool), 0
    return torch.from_numpy(np.stack(masks)).flatten(1), upperbound


def _stack_crop_major(crops_of_samples: Sequence[Sequence[Tensor]], dtype: torch.dtype) -> Tensor:
    """[n * B, C, H, W] from B lists of n crops [C, H, W]; copied and cast in one pass, for a batch is large."""
    first = crops_of_samples[0][0]
    n_crops = len(crops_of_samples[0])
    for position, crops in enumerate(crops_of_samples):
        if len(crops) != n_crops:
            raise ValueError(
                f"Sample {position} of the batch has {len(crops)} crops, the first one {n_crops}; an augmentation must return "
                "equally many crops for every sample."
            )
        for slot, crop in enumerate(crops):
            if crop.shape != first.shape or crop.dtype != first.dtype:  # copy_ would broadcast or cast in silence
                raise ValueError(
                    f"Crop {slot} of sample {position} is {tuple(crop.shape)} {crop.dtype}, the batch's first crop "
                    f"{tuple(first.shape)} {first.dtype}; an augmentation must return crops of one shape and type."
                )
    if first.dtype == torch.uint8:  # hundreds of small crops: one call for all costs a third of a call for each
        return torch.stack([crops[slot] for slot in range(n_crops) for crops in crops_of_samples])
    stacked = torch.empty((n_crops, len(crops_of_samples), *first.shape), dtype=dtype)
    for position, crops in enumerate(crops_of_samples):
        for slot, crop in enumerate(crops):
            stacked[slot, position].copy_(crop)  # `stack` casting floats to halves takes 1.4 times as long
    return stacked.flatten(0, 1)


def _student_crops(crops: Sequence[dict[str, Any]], dtype: torch.dtype) -> dict[str, Tensor]:
    """Global and local crops; without any local ones an empty tensor of the global crops' shape and type."""
    global_crops = _stack_crop_major([c["global_crops"] for c in crops], dtype)
    if crops[0]["local_crops"]:
        local_crops = _stack_crop_major([c["local_crops"] for c in crops], dtype)
    else:
        local_crops = global_crops.new_empty((0, *global_crops.shape[1:]))
    return {"collated_global_crops": global_crops, "collated_local_crops": local_crops}


def _crops_to_make(crops: Sequence[dict[str, Any]]) -> dict[str, CropsToMake]:
    drawn: list[DrawnCrops] = [c["crops_on_device"] for c in crops]
    return {"crops_on_device": drawn[0].collate(drawn)}


def _common_n_shared(crops: Sequence[dict[str, Any]]) -> int:
    """The batch's number of crops shared by student and teacher, which the flat mask indices need to be one number."""
    values = {int(c["n_shared"]) for c in crops}
    if len(values) != 1:
        raise ValueError(
            f"The samples of a batch must agree on n_shared, the number of crops that student and teacher share; got "
            f"{sorted(values)}. An augmentation must follow one crop layout for every sample."
        )
    return values.pop()


def _source_part(crops: Sequence[dict[str, Any]], *, n_shared: int) -> dict[str, Any]:
    """What each crop was cut from, for a batch whose teacher crops may differ from the student's."""
    sources = [c["crop_sources"] for c in crops]

    def slots_by_sample(rows: Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), -1).t().contiguous()  # [slots, B]

    return {
        "crop_sources_student_globals": slots_by_sample([s["student_globals"] for s in sources]),
        "crop_sources_student_locals": slots_by_sample([s["student_locals"] for s in sources]),
        "crop_sources_teacher_globals": slots_by_sample([s["teacher_globals"] for s in sources]),
        "teacher_groups": slots_by_sample([c["teacher_groups"] for c in crops]),
        "n_shared": n_shared,
    }
