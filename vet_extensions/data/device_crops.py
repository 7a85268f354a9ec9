"""Crops of a batch by matrix products on the device, for a GPU with time to spare beside few CPU cores.

With `augmentation.crops_on_device` `paired_views` gives `StudyCrops` in place of crops: the images of a study and the plans drawn
for it, which are those that `radiograph_crop` would carry out in the worker. `dinov2.data.collate` joins them to `BatchCrops`,
and `dinov2.train.device_batch` has the crops made. Where a worker applies short filters to the pixels of a box, a matrix along
either side of the whole image does the same here, with more arithmetic and no search for memory.

Legend: B samples, N images padded to [H, W], C crops [s, s]. A sample has S global and L local crops for the student, T for the
teacher.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vet_extensions.data.radiograph_crop import CropPlan, CropSettings

_BICUBIC_A = -0.5
_BLUR_SIGMAS = 4
_CROPS_AT_ONCE = 64
"""Each crop reads its image as float32, a MiB of an image of 512 x 512: so many bound the memory and still fill a GPU."""

Slot = tuple[int, CropPlan]
"""One crop: which image of the study it is of, and its plan."""


@dataclass(frozen=True)
class StudyCrops:
    """The crops of one sample as they were drawn. Globals: the student's first, then those that only the teacher sees.

    images: [H, W] each, uint8 or uint16. n_shared: how many of the student's globals, from the first, the teacher sees too.
    """

    settings: CropSettings
    images: Sequence[np.ndarray]
    global_slots: Sequence[Slot]
    local_slots: Sequence[Slot]
    n_student: int
    n_shared: int
    noise_seed: int

    def collate(self, samples: Sequence["StudyCrops"]) -> "BatchCrops":
        """The crops of a batch; the seed of its noise is this sample's, which is the first one."""
        images, sizes = _padded([image for sample in samples for image in sample.images])
        first = list(itertools.accumulate((len(sample.images) for sample in samples), initial=0))
        s, n = self.settings, len(samples)
        # Without local crops the batch has an empty tensor of the global crops' shape, as official.
        local_size_px = s.local_size_px if self.local_slots else s.global_size_px
        return BatchCrops(
            images=images,
            sizes=sizes,
            global_crops=_group([sample.global_slots for sample in samples], first, size_px=s.global_size_px),
            local_crops=_group([sample.local_slots for sample in samples], first, size_px=local_size_px),
            n_student=self.n_student * n,
            n_shared=self.n_shared * n,
            noise_sigma=s.noise_sigma,
            noise_seed=self.noise_seed,
        )


@dataclass(frozen=True)
class CropGroup:
    """C crops of one size. plans: float32 [C, 9], see `plan_table`. of_image: int64 [C], places among the images of the batch."""

    size_px: int
    plans: Tensor
    of_image: Tensor

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the crops when they are made."""
        return len(self.of_image), 1, self.size_px, self.size_px

    def pin_memory(self) -> "CropGroup":
        """See `BatchCrops.pin_memory`."""
        return replace(self, plans=self.plans.pin_memory(), of_image=self.of_image.pin_memory())


@dataclass(frozen=True)
class BatchCrops:
    """The crops of a batch as they were drawn, crop-major: what travels from a worker in their place.

    images: [N, H, W] uint8 or uint16, each in the upper left corner of its place. sizes: float32 [N, 2], heights and widths.
    global_crops: `n_student` (S*B) of the student, the first `n_shared` of which the teacher sees too; then the teacher's own.
    """

    images: Tensor
    sizes: Tensor
    global_crops: CropGroup
    local_crops: CropGroup
    n_student: int
    n_shared: int
    noise_sigma: float
    noise_seed: int

    def crops(self, device: torch.device) -> dict[str, Tensor]:
        """By their names in a batch: globals [S*B, 1, s, s], locals [L*B, 1, s, s], the teacher's [T*B, 1, s, s], all uint8."""
        groups = (self.global_crops, self.local_crops)
        if device.type == "meta":
            global_crops, local_crops = (torch.empty(g.shape, dtype=torch.uint8, device=device) for g in groups)
        else:
            images = self.images.to(device, non_blocking=True)
            generator = torch.Generator(device).manual_seed(self.noise_seed)
            global_crops, local_crops = (
                crops_on_device(images, g, sizes=self.sizes, noise_sigma=self.noise_sigma, generator=generator)
                for g in groups
            )
        student = global_crops[: self.n_student]
        return {
            "collated_global_crops": student,
            "collated_local_crops": local_crops,
            "collated_global_crops_teacher": torch.cat([student[: self.n_shared], global_crops[self.n_student :]]),
        }

    def pin_memory(self) -> "BatchCrops":
        """In memory that a GPU fetches by itself while the program goes on; the loader asks for it."""
        return replace(
            self,
            images=self.images.pin_memory(),
            sizes=self.sizes.pin_memory(),
            global_crops=self.global_crops.pin_memory(),
            local_crops=self.local_crops.pin_memory(),
        )


def crops_on_device(
    images: Tensor,
    group: CropGroup,
    *,
    sizes: Tensor,
    noise_sigma: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """uint8 [C, 1, s, s] on the device of `images`: what the workers' crops of these plans are, to about a grey level.

    images, sizes: as `BatchCrops`. noise_sigma: as `CropSettings`; drawn from `generator` of that device.
    """
    crops = torch.empty(group.shape, dtype=torch.uint8, device=images.device)
    is_any_blurred = bool(group.plans[:, 8].any())  # asked here, for a GPU would have to be waited for
    plans, of_image, sizes = (v.to(images.device, non_blocking=True) for v in (group.plans, group.of_image, sizes))
    for start in range(0, len(crops), _CROPS_AT_ONCE):
        part = slice(start, start + _CROPS_AT_ONCE)
        made = _cut(images[of_image[part]], plans[part], sizes[of_image[part]], size=group.size_px)
        made = _toned(made, plans[part])
        if is_any_blurred:
            blur = blur_matrices(plans[part, 8], size=group.size_px)
            made = torch.bmm(torch.bmm(blur, made), blur.mT)
        if noise_sigma:
            made = made + noise_sigma * torch.randn(made.shape, generator=generator, device=made.device)
        crops[part, 0] = (made * 255).round_().clamp_(0, 255).to(torch.uint8)
    return crops


def plan_table(plans: Sequence[CropPlan]) -> Tensor:
    """float32 [C, 9]: left, top, width, height, mirrored, gamma, contrast, brightness, blur in pixels."""
    assert not any(plan.angle_deg for plan in plans), "a turned box is not two matrices"
    rows = [
        (*plan.box, plan.is_mirrored, plan.curve.gamma, plan.curve.contrast, plan.curve.brightness, plan.blur_sigma_px)
        for plan in plans
    ]
    return torch.tensor(rows, dtype=torch.float32).reshape(len(rows), 9)


def resize_matrices(start: Tensor, length: Tensor, *, size: int, n_pixels: Tensor, n_columns: int) -> Tensor:
    """[C, size, n_columns]: Pillow's antialiased bicubic filter of one side of each box. start, length, n_pixels: [C] in pixels.

    Rows sum to 1 over the image's own `n_pixels`; the columns beyond, which are padding, are 0.
    """
    step = (length / size)[:, None, None]
    targets = torch.arange(size, device=start.device)[:, None]
    centres = start[:, None, None] + (targets + 0.5) * step - 0.5  # [C, size, 1]
    places = torch.arange(n_columns, device=start.device)
    x = ((places - centres) / step.clamp(min=1)).abs()  # [C, size, n_columns]
    a = _BICUBIC_A
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, a * (((x - 5) * x + 8) * x - 4)
    weights = torch.where(x < 1, near, far) * ((x < 2) & (places < n_pixels[:, None, None]))
    return weights / weights.sum(2, keepdim=True)


def blur_matrices(sigma_px: Tensor, *, size: int) -> Tensor:
    """[C, size, size]: a Gaussian along one side, mirrored about the outermost pixels; the identity where sigma_px [C] is 0.

    As wide as OpenCV makes it for more than 8 bits: the next odd number of pixels to 4 standard deviations on either side, which
    must be fewer than `size`. Summed over the mirror images of each pixel rather than scattered to it, so that a GPU repeats it.
    """
    i, j = torch.arange(size, device=sigma_px.device)[:, None], torch.arange(size, device=sigma_px.device)
    nowhere = 2 * size  # the outermost pixels are their own mirror images
    distances = (i - j, (i + j).where(j > 0, nowhere), (2 * (size - 1) - i - j).where(j < size - 1, nowhere))
    sigma = sigma_px[:, None, None]
    reach, sigma = torch.round(_BLUR_SIGMAS * sigma), sigma.clamp(min=1e-6)
    weights = sum(torch.exp(-0.5 * (d / sigma) ** 2) * (d.abs() <= reach) for d in distances)
    assert isinstance(weights, Tensor)
    return weights / weights.sum(2, keepdim=True)


def _cut(images: Tensor, plans: Tensor, sides: Tensor, *, size: int) -> Tensor:
    """float32 [C, s, s] in [0, 1]: the boxes of plans [C, 9], mirrored or not. images: [C, H, W]; sides: [C, 2], of each."""
    left, top, width, height, mirrored = plans[:, :5].unbind(1)
    rows = resize_matrices(top, height, size=size, n_pixels=sides[:, 0], n_columns=images.shape[1])
    columns = resize_matrices(left, width, size=size, n_pixels=sides[:, 1], n_columns=images.shape[2])
    columns = torch.where(mirrored[:, None, None] > 0, columns.flip(1), columns)
    white = torch.iinfo(images.dtype).max
    return torch.bmm(torch.bmm(rows, images.float()), columns.mT).clamp_(0, white).round_().div_(white)


def _toned(crops: Tensor, plans: Tensor) -> Tensor:
    """The tone curve of each plan; crops: [C, s, s] in [0, 1], may leave it."""
    gamma, contrast, brightness = plans[:, 5:8].t()[:, :, None, None]  # [C, 1, 1] each
    crops = crops**gamma
    mean = crops.mean((1, 2), keepdim=True)
    return (crops - mean) * contrast + mean + brightness


def _group(slots: Sequence[Sequence[Slot]], first: Sequence[int], *, size_px: int) -> CropGroup:
    """Crop-major: the first slot of every sample, then the second. slots: of each sample. first: place of its first image."""
    by_slot = [(first[i] + image, plan) for row in zip(*slots, strict=True) for i, (image, plan) in enumerate(row)]
    return CropGroup(
        size_px=size_px,
        plans=plan_table([plan for _, plan in by_slot]),
        of_image=torch.tensor([image for image, _ in by_slot], dtype=torch.int64),
    )


def _padded(images: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """[N, H, W] of all images in upper left corners, and float32 [N, 2] their sizes. Of 16 bits as soon as one of them is."""
    sizes = np.array([image.shape for image in images])
    dtype = np.result_type(*{image.dtype for image in images})
    batch = np.zeros((len(images), *sizes.max(0)), dtype=dtype)
    for place, image in zip(batch, images, strict=True):
        widened = image if image.dtype == dtype else image.astype(dtype) * 257
        place[: image.shape[0], : image.shape[1]] = widened
    return torch.from_numpy(batch), torch.from_numpy(sizes.astype(np.float32))
