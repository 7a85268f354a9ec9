"""Random crops of radiographs: a box, resized and turned, its grey values varied as exposure varies them.

`paired_views` cuts its crops here, or draws what `device_crops` carries out. A crop leaves as uint8 grey [1, s, s] and is
normalised on the device. Colour, solarisation and (by default) mirroring have no meaning on a radiograph and are not there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from vet_extensions.data.photometrics import GaussianNoise, ToneCurve, varied
from vet_extensions.data.resampling import Box, resized_box

_N_UNIFORM, _N_NORMAL = 7, 4
"""Numbers that a crop takes whether it uses them or not, so that no setting shifts the draws of the others."""


@dataclass(frozen=True)
class CropSettings:
    """How one crop is cut and how its grey values are varied. Sigmas are of normal draws; 0 switches a term off."""

    global_scale: tuple[float, float]
    local_scale: tuple[float, float]
    global_size_px: int
    local_size_px: int
    aspect_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    rotation_deg: float = 0.0
    hflip_probability: float = 0.0
    gamma_sigma: float = 0.2
    contrast_sigma: float = 0.2
    brightness_sigma: float = 0.05
    noise_sigma: float = 0.01
    blur_probability: float = 0.2
    blur_sigma_px: tuple[float, float] = (0.1, 1.0)


@dataclass(frozen=True)
class CropPlan:
    """What was drawn for one crop, noise apart: where it lies and what is done to it, in this order.

    angle_deg: clockwise, of the box about its centre. blur_sigma_px: of a Gaussian, in pixels of the crop; 0 for none.
    """

    box: Box
    angle_deg: float
    is_mirrored: bool
    curve: ToneCurve
    blur_sigma_px: float


class RadiographCrop:
    """Cuts and varies crops of grey images; all randomness comes from the generator it is given."""

    def __init__(self, settings: CropSettings) -> None:
        self.settings = settings
        self._noise = GaussianNoise(settings.noise_sigma) if settings.noise_sigma else None

    def __call__(self, pixels: np.ndarray, *, is_global: bool, rng: np.random.Generator) -> Tensor:
        """pixels: [H, W] uint8 or uint16 -> uint8 tensor [1, s, s], s the global or local crop size."""
        return self.crops([pixels], is_global=is_global, rng=rng)[0]

    def crops(self, images: Sequence[np.ndarray], *, is_global: bool, rng: np.random.Generator) -> list[Tensor]:
        """One crop of each image, in order; an image may be there several times. images: as `__call__`'s pixels."""
        _use_one_thread()
        size = self.size_px(is_global=is_global)
        out = np.empty((len(images), 1, size, size), dtype=np.uint8)
        plans = self.plans([pixels.shape for pixels in images], is_global=is_global, rng=rng)
        for place, pixels, plan in zip(out, images, plans, strict=True):
            crop = resized_box(pixels, plan.box, size=size, angle_deg=plan.angle_deg)
            if plan.is_mirrored:
                crop = cv2.flip(crop, 1)
            place[0] = varied(crop, plan.curve, blur_sigma_px=plan.blur_sigma_px, noise=self._noise, rng=rng)
        return list(torch.from_numpy(out))

    def size_px(self, *, is_global: bool) -> int:
        """Side of a crop."""
        return self.settings.global_size_px if is_global else self.settings.local_size_px

    def plans_alone(
        self, shapes: Sequence[tuple[int, ...]], *, is_global: bool, rng: np.random.Generator
    ) -> list[CropPlan]:
        """The plans that `crops` would carry out, for crops that are made elsewhere; the generator goes on as after `crops`."""
        plans = self.plans(shapes, is_global=is_global, rng=rng)
        if self._noise is not None:
            size = self.size_px(is_global=is_global)
            for _ in plans:
                self._noise.skip((size, size), rng)
        return plans

    def plans(self, shapes: Sequence[tuple[int, ...]], *, is_global: bool, rng: np.random.Generator) -> list[CropPlan]:
        """Draw a crop of an image of each shape (height, width)."""
        s = self.settings
        scale = s.global_scale if is_global else s.local_scale
        uniform, normal = rng.random((len(shapes), _N_UNIFORM)), rng.standard_normal((len(shapes), _N_NORMAL))
        return [
            self._plan(shape, scale, *draws)
            for shape, *draws in zip(shapes, uniform.tolist(), normal.tolist(), strict=True)
        ]

    def _plan(
        self, shape: tuple[int, ...], scale: tuple[float, float], uniform: Sequence[float], normal: Sequence[float]
    ) -> CropPlan:
        s = self.settings
        u_mirror, u_blur, u_sigma = uniform[4:]
        z_angle, z_gamma, z_contrast, z_brightness = normal
        return CropPlan(
            box=self._box(shape, scale, uniform[:4]),
            angle_deg=s.rotation_deg * z_angle,
            is_mirrored=u_mirror < s.hflip_probability,
            curve=ToneCurve(
                gamma=math.exp(s.gamma_sigma * z_gamma),
                contrast=math.exp(s.contrast_sigma * z_contrast),
                brightness=s.brightness_sigma * z_brightness,
            ),
            blur_sigma_px=_between(s.blur_sigma_px, u_sigma) if u_blur < s.blur_probability else 0.0,
        )

    def _box(self, shape: tuple[int, ...], scale: tuple[float, float], uniform: Sequence[float]) -> Box:
        """A box of a share of the image's area within `scale`, log-uniform in its aspect ratio, anywhere inside.

        Its borders lie on whole pixels of the image, which needs no interpolation to be cut out exactly.
        """
        height, width = shape
        u_area, u_ratio, u_left, u_top = uniform
        low, high = self.settings.aspect_ratio
        area, ratio = _between(scale, u_area) * height * width, low * (high / low) ** u_ratio
        box_w = min(max(round(math.sqrt(area * ratio)), 1), width)
        box_h = min(max(round(math.sqrt(area / ratio)), 1), height)
        return Box(int(u_left * (width - box_w + 1)), int(u_top * (height - box_h + 1)), box_w, box_h)


def _between(bounds: tuple[float, float], share: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * share


def _use_one_thread() -> None:
    """OpenCV would start a thread for each core in every worker; crops are far too small to gain from it."""
    if cv2.getNumThreads() != 1:
        cv2.setNumThreads(1)
