"""Crops of many images at once by matrix products, for a GPU with time to spare beside few CPU cores.

The same plans as `radiograph_crop` carries out one by one in a worker: there with short filters on the pixels of the box, here
with a matrix along either side of the whole image, which is more arithmetic and no search for memory. Not part of a training:
`benchmarks/data.py` calls it, and whoever feeds a network by other means than a loader may.

Legend: N images padded to [H, W], C crops [s, s].
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vet_extensions.data.radiograph_crop import CropPlan
from vet_extensions.errors import UserError

_BICUBIC_A = -0.5
_BLUR_SIGMAS = 4


def crops_on_device(
    images: Tensor,
    plans: Sequence[CropPlan],
    *,
    of_image: Sequence[int],
    shapes: Sequence[tuple[int, int]],
    size: int,
    noise_sigma: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """uint8 [C, 1, s, s] on the device of `images`: what the workers' crops of these plans are, to about a grey level.

    images: [N, H, W] uint8, each in the upper left corner of its place. shapes: height and width of each image. of_image: which
    one each crop is of. noise_sigma: as `CropSettings`; drawn from `generator` of that device, not from a sample's own.
    Errors: UserError for a plan that turns its box.
    """
    if any(plan.angle_deg for plan in plans):
        raise UserError(
            "Crops on the device cannot be turned. Set augmentation.rotation_deg=0, or crop in the workers."
        )

    boxes = _floats([plan.box for plan in plans], like=images)  # [C, 4] left, top, width, height
    sides = _floats([shapes[i] for i in of_image], like=images)  # [C, 2] height, width
    rows = resize_matrices(boxes[:, 1], boxes[:, 3], size=size, n_pixels=sides[:, 0], n_columns=images.shape[1])
    columns = resize_matrices(boxes[:, 0], boxes[:, 2], size=size, n_pixels=sides[:, 1], n_columns=images.shape[2])
    is_mirrored = torch.tensor([plan.is_mirrored for plan in plans], device=images.device)
    columns = torch.where(is_mirrored[:, None, None], columns.flip(1), columns)
    pixels = images[torch.tensor(of_image, device=images.device)].float()  # [C, H, W]
    crops = torch.bmm(torch.bmm(rows, pixels), columns.mT).clamp_(0, 255).round_().div_(255)  # [C, s, s]
    crops = _varied(crops, plans)
    if noise_sigma:
        crops = crops + noise_sigma * torch.randn(crops.shape, generator=generator, device=crops.device)
    return (crops * 255).round_().clamp_(0, 255).to(torch.uint8).unsqueeze(1)


def resize_matrices(start: Tensor, length: Tensor, *, size: int, n_pixels: Tensor, n_columns: int) -> Tensor:
    """[C, size, n_columns]: Pillow's antialiased bicubic filter of one side of each box. start, length, n_pixels: [C] in pixels.

    Rows sum to 1 over the image's own `n_pixels`; the columns beyond, which are padding, are 0.
    """
    step = (length / size)[:, None, None]
    centres = (
        start[:, None, None] + (torch.arange(size, device=start.device)[:, None] + 0.5) * step - 0.5
    )  # [C, size, 1]
    places = torch.arange(n_columns, device=start.device)
    x = ((places - centres) / step.clamp(min=1)).abs()  # [C, size, n_columns]
    a = _BICUBIC_A
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, a * (((x - 5) * x + 8) * x - 4)
    weights = torch.where(x < 1, near, far) * ((x < 2) & (places < n_pixels[:, None, None]))
    return weights / weights.sum(2, keepdim=True)


def blur_matrices(sigma_px: Tensor, *, size: int) -> Tensor:
    """[C, size, size]: a Gaussian along one side, mirrored about the outermost pixels; the identity where sigma_px [C] is 0.

    As wide as OpenCV makes it for more than 8 bits: the next odd number of pixels to 4 standard deviations on either side.
    """
    reach = int(torch.round(_BLUR_SIGMAS * sigma_px.max()).item())
    offsets = torch.arange(-reach, reach + 1, device=sigma_px.device)
    is_within = offsets.abs() <= torch.round(_BLUR_SIGMAS * sigma_px)[:, None]
    weights = torch.exp(-0.5 * (offsets / sigma_px.clamp(min=1e-6)[:, None]) ** 2) * is_within  # [C, 2 reach + 1]
    weights = weights / weights.sum(1, keepdim=True)
    target = (torch.arange(size, device=sigma_px.device)[:, None] + offsets).abs()
    target = (size - 1) - ((size - 1) - target).abs()  # [size, 2 reach + 1], mirrored at either end
    matrices = torch.zeros(len(sigma_px), size, size, device=sigma_px.device)
    return matrices.scatter_add_(2, target.expand(len(sigma_px), -1, -1), weights[:, None].expand(-1, size, -1))


def _varied(crops: Tensor, plans: Sequence[CropPlan]) -> Tensor:
    """Tone curves and blur of each plan; crops: [C, s, s] in [0, 1], may leave it."""
    curves = _floats([(plan.curve.gamma, plan.curve.contrast, plan.curve.brightness) for plan in plans], like=crops)
    gamma, contrast, brightness = curves.t()[:, :, None, None]  # [C, 1, 1] each
    crops = crops**gamma
    mean = crops.mean((1, 2), keepdim=True)
    crops = (crops - mean) * contrast + mean + brightness
    if not any(plan.blur_sigma_px for plan in plans):
        return crops
    blur = blur_matrices(_floats([plan.blur_sigma_px for plan in plans], like=crops), size=crops.shape[1])
    return torch.bmm(torch.bmm(blur, crops), blur.mT)


def _floats(values: Any, *, like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)
