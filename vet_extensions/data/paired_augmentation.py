"""Crops of two views of a study for student and teacher, radiograph-safe: `augmentation.name: paired_views`.

Slots and their source images follow the routing's layout; crops leave as uint8 grey [1, s, s] and are normalised on the
device. Colour, solarisation and (by default) mirroring have no meaning on a radiograph and are not there.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from dinov2.loss.routing import CropLayout
from dinov2.utils.registry import checked_options
from vet_extensions.data.study_dataset import StudySample, sample_rng
from vet_extensions.errors import UserError
from vet_extensions.schema import View, ViewFamily, view_family

_FAMILIES = list(ViewFamily)


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


class RadiographCrop:
    """Cuts and varies one crop of one grey image; all randomness comes from the generator it is given."""

    def __init__(self, settings: CropSettings) -> None:
        self.settings = settings

    def __call__(self, pixels: np.ndarray, *, is_global: bool, rng: np.random.Generator) -> Tensor:
        """pixels: [H, W] uint8 or uint16 -> uint8 tensor [1, s, s], s the global or local crop size."""
        s = self.settings
        scale, size = (s.global_scale, s.global_size_px) if is_global else (s.local_scale, s.local_size_px)
        crop = self._cut(pixels, scale, size, rng).astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)
        crop = self._vary(crop, rng)
        return torch.from_numpy(np.rint(crop * 255).astype(np.uint8))[None]

    def _cut(self, pixels: np.ndarray, scale: tuple[float, float], size: int, rng: np.random.Generator) -> np.ndarray:
        """A random box of the given share of the area, turned and mirrored, resized with antialiasing to size x size."""
        s = self.settings
        height, width = pixels.shape
        area = rng.uniform(*scale) * height * width
        ratio = math.exp(rng.uniform(math.log(s.aspect_ratio[0]), math.log(s.aspect_ratio[1])))
        box_w, box_h = min(math.sqrt(area * ratio), width), min(math.sqrt(area / ratio), height)
        left, top = rng.uniform(0, width - box_w), rng.uniform(0, height - box_h)
        angle = s.rotation_deg * float(rng.standard_normal()) if s.rotation_deg else 0.0
        mirror = bool(rng.random() < s.hflip_probability)
        # Halving by area averaging until less than a factor of 2 is left: what bilinear sampling then does is alias-free.
        shrink = 1
        while min(box_w, box_h) / (2 * shrink) >= size:
            shrink *= 2
        if shrink > 1:
            pixels = cv2.resize(
                pixels, (max(width // shrink, 1), max(height // shrink, 1)), interpolation=cv2.INTER_AREA
            )
        scale_x, scale_y = pixels.shape[1] / width, pixels.shape[0] / height
        to_source = _box_transform(left, top, box_w, box_h, size=size, angle_deg=angle, mirror=mirror)
        to_source = np.diag([scale_x, scale_y]) @ to_source
        # Pixel centres stand at +0.5: shift before and after the area scaling.
        to_source[:, 2] += to_source[:, :2] @ (0.5, 0.5) - 0.5
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(
            pixels, to_source, (size, size), flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=0
        )

    def _vary(self, crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Exposure-like changes of grey values in [0, 1]: gamma, contrast about the mean, brightness, blur, noise."""
        s = self.settings
        gamma, contrast, brightness = rng.standard_normal(3)
        crop = np.power(crop, np.float32(math.exp(s.gamma_sigma * gamma)))
        mean = crop.mean()
        crop = (crop - mean) * np.float32(math.exp(s.contrast_sigma * contrast)) + mean
        crop = crop + np.float32(s.brightness_sigma * brightness)
        if rng.random() < s.blur_probability:
            crop = cv2.GaussianBlur(crop, (0, 0), rng.uniform(*s.blur_sigma_px))
        if s.noise_sigma:
            crop = crop + np.float32(s.noise_sigma) * rng.standard_normal(crop.shape, dtype=np.float32)
        return np.clip(crop, 0, 1)


class PairedViewAugmentation:
    """A study's images -> the crop dictionary of the core's collate, each crop labelled with its source image.

    Source 0 (image A) is the teacher's view. A study with a single image gives all crops from it.
    """

    def __init__(self, crop: RadiographCrop, layout: CropLayout, *, seed: int, teacher_view: str = "random") -> None:
        """teacher_view: random, first (as the pairing drew them), or a view's name, which is A wherever the pair has it."""
        if teacher_view not in ("random", "first", *View):
            raise UserError(
                f"routing.teacher_view is '{teacher_view}'. Allowed: random, first, or a view: {', '.join(View)}."
            )
        if layout.n_sources > 2:
            raise UserError(f"paired_views crops two images of a study; the routing asks for {layout.n_sources}.")
        self.crop, self.layout, self.seed, self.teacher_view = crop, layout, seed, teacher_view

    def __call__(self, sample: StudySample) -> dict[str, Any]:
        rng = sample_rng(self.seed, sample.position)
        images = self._teacher_first(sample, rng)
        last = len(images) - 1
        sources = {
            "student_globals": [min(v, last) for v in self.layout.student_globals],
            "student_locals": [min(v, last) for v in self.layout.student_locals],
            "teacher_globals": [min(v, last) for v in self.layout.teacher_globals],
        }

        def cut(slots: list[int], *, is_global: bool) -> list[Tensor]:
            return [self.crop(images[v][0], is_global=is_global, rng=rng) for v in slots]

        n_shared = self.layout.n_shared
        student = cut(sources["student_globals"], is_global=True)
        teacher = student[:n_shared] + cut(sources["teacher_globals"][n_shared:], is_global=True)
        return {
            "global_crops": student,
            "global_crops_teacher": teacher,
            "local_crops": cut(sources["student_locals"], is_global=False),
            "offsets": (),
            "crop_sources": sources,
            "n_shared": n_shared,
            "teacher_groups": [_FAMILIES.index(view_family(images[v][1])) for v in sources["teacher_globals"]],
            "position": sample.position,
        }

    def _teacher_first(self, sample: StudySample, rng: np.random.Generator) -> list[tuple[np.ndarray, View]]:
        images = list(zip(sample.pixels, sample.views))
        if self.teacher_view == "random":
            swap = bool(rng.integers(2))
        elif self.teacher_view == "first":
            swap = False
        else:
            swap = sample.views[0] != self.teacher_view and self.teacher_view in sample.views
        return images[::-1] if swap else images


def paired_views(cfg: DictConfig, layout: CropLayout) -> PairedViewAugmentation:
    """The augmentation that a configuration's `augmentation`, `crops` and `routing` sections describe."""
    tunable = [k for k in CropSettings.__dataclass_fields__ if not k.startswith(("global_", "local_"))]
    options = checked_options(cfg.augmentation, tunable, where="augmentation", common=("name", "mean", "std"))
    settings = CropSettings(
        global_scale=tuple(cfg.crops.global_crops_scale),
        local_scale=tuple(cfg.crops.local_crops_scale),
        global_size_px=cfg.crops.global_crops_size,
        local_size_px=cfg.crops.local_crops_size,
        **{key: _typed(value) for key, value in options.items()},
    )
    routing: Mapping[str, Any] = cfg.routing
    return PairedViewAugmentation(
        RadiographCrop(settings), layout, seed=cfg.train.seed, teacher_view=routing.get("teacher_view", "random")
    )


def _typed(value: Any) -> Any:
    return tuple(value) if not isinstance(value, (int, float)) else float(value)


def _box_transform(
    left: float, top: float, box_w: float, box_h: float, *, size: int, angle_deg: float, mirror: bool
) -> np.ndarray:
    """[2, 3] map from crop coordinates (0..size) to source coordinates: the box, turned about its centre, mirrored."""
    cos, sin = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    step = np.array([[(-1 if mirror else 1) * box_w / size, 0.0], [0.0, box_h / size]])
    linear = np.array([[cos, -sin], [sin, cos]]) @ step
    centre = np.array([left + box_w / 2, top + box_h / 2])
    return np.column_stack([linear, centre - linear @ (size / 2, size / 2)])
