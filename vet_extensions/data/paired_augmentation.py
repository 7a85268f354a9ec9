"""Crops of two views of a study for student and teacher, radiograph-safe: `augmentation.name: paired_views`.

Slots and their source images follow the routing's layout; `radiograph_crop` cuts the crops, or with `crops_on_device` only draws
them, and `device_crops` makes them beside the network.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from omegaconf import DictConfig
from torch import Tensor

from dinov2.loss.routing import CropLayout
from dinov2.utils.registry import checked_options
from vet_extensions.data.device_crops import Slot, StudyCrops
from vet_extensions.data.radiograph_crop import CropSettings, RadiographCrop
from vet_extensions.data.study_dataset import StudySample, sample_rng
from vet_extensions.errors import UserError
from vet_extensions.schema import View, ViewFamily, view_family

_FAMILIES = list(ViewFamily)
_ON_DEVICE = "crops_on_device"


class PairedViewAugmentation:
    """A study's images -> the crop dictionary of the core's collate, each crop labelled with its source image.

    Source 0 (image A) is the teacher's view. A study with a single image gives all crops from it.
    """

    draws_by_position = True
    """All draws come from (seed, position): `PositionSeededDataset` need not seed anything."""

    def __init__(
        self,
        crop: RadiographCrop,
        layout: CropLayout,
        *,
        seed: int,
        teacher_view: str = "random",
        crops_on_device: bool = False,
    ) -> None:
        """teacher_view: random, first (as the pairing drew them), or a view or family of views (VD, frontal), which is A in every
        pair that has one such image; else A is the first.

        crops_on_device: give the images and what was drawn (`crops_on_device` of the core's collate) in place of crops. All but
        the noise is drawn as without it.
        """
        if teacher_view not in ("random", "first", *ViewFamily, *View):
            raise UserError(
                f"routing.teacher_view is '{teacher_view}'. Allowed: random, first, a family of views ({', '.join(ViewFamily)}), "
                f"or a view: {', '.join(View)}."
            )
        if layout.n_sources > 2:
            raise UserError(f"paired_views crops two images of a study; the routing asks for {layout.n_sources}.")
        if crops_on_device and crop.settings.rotation_deg:
            raise UserError(
                f"augmentation.rotation_deg is {crop.settings.rotation_deg:g}, and crops on the device cannot be turned. Set "
                "augmentation.rotation_deg=0, or augmentation.crops_on_device=false to cut crops in the workers."
            )
        self.crop, self.layout, self.seed, self.teacher_view = crop, layout, seed, teacher_view
        self.crops_on_device = crops_on_device

    def __call__(self, sample: StudySample) -> dict[str, Any]:
        rng = sample_rng(self.seed, sample.position)
        images = self._teacher_first(sample, rng)[: self.layout.n_sources]
        last = len(images) - 1
        sources = {
            "student_globals": [min(v, last) for v in self.layout.student_globals],
            "student_locals": [min(v, last) for v in self.layout.student_locals],
            "teacher_globals": [min(v, last) for v in self.layout.teacher_globals],
        }
        make = self._drawn if self.crops_on_device else self._cut
        return {
            **make([pixels for pixels, _ in images], sources, rng),
            "offsets": (),
            "crop_sources": sources,
            "n_shared": self.layout.n_shared,
            "teacher_groups": [_FAMILIES.index(view_family(images[v][1])) for v in sources["teacher_globals"]],
            "position": sample.position,
        }

    def _cut(
        self, images: Sequence[np.ndarray], sources: Mapping[str, list[int]], rng: np.random.Generator
    ) -> dict[str, Any]:
        def cut(slots: list[int], *, is_global: bool) -> list[Tensor]:
            return self.crop.crops([images[v] for v in slots], is_global=is_global, rng=rng)

        n_shared = self.layout.n_shared
        student = cut(sources["student_globals"], is_global=True)
        teacher = student[:n_shared] + cut(sources["teacher_globals"][n_shared:], is_global=True)
        return {
            "global_crops": student,
            "global_crops_teacher": teacher,
            "local_crops": cut(sources["student_locals"], is_global=False),
        }

    def _drawn(
        self, images: Sequence[np.ndarray], sources: Mapping[str, list[int]], rng: np.random.Generator
    ) -> dict[str, Any]:
        """In the order of `_cut`, so that the draws are the same."""

        def draw(slots: list[int], *, is_global: bool) -> list[Slot]:
            plans = self.crop.plans_alone([images[v].shape for v in slots], is_global=is_global, rng=rng)
            return list(zip(slots, plans))

        n_shared = self.layout.n_shared
        student = draw(sources["student_globals"], is_global=True)
        crops = StudyCrops(
            settings=self.crop.settings,
            images=images,
            global_slots=[*student, *draw(sources["teacher_globals"][n_shared:], is_global=True)],
            local_slots=draw(sources["student_locals"], is_global=False),
            n_student=len(student),
            n_shared=n_shared,
            noise_seed=int(rng.integers(2**63)),
        )
        return {"crops_on_device": crops}

    def _teacher_first(self, sample: StudySample, rng: np.random.Generator) -> list[tuple[np.ndarray, View]]:
        images = list(zip(sample.pixels, sample.views))
        if self.teacher_view == "random":
            swap = bool(rng.integers(2))
        elif self.teacher_view == "first":
            swap = False
        else:
            fits = [self.teacher_view in (view, view_family(view)) for view in sample.views]
            swap = not fits[0] and any(fits)
        return images[::-1] if swap else images


def paired_views(cfg: DictConfig, layout: CropLayout) -> PairedViewAugmentation:
    """The augmentation that a configuration's `augmentation`, `crops` and `routing` sections describe."""
    tunable = [k for k in CropSettings.__dataclass_fields__ if not k.startswith(("global_", "local_"))]
    options = checked_options(
        cfg.augmentation, [*tunable, _ON_DEVICE], where="augmentation", common=("name", "mean", "std")
    )
    on_device = options.pop(_ON_DEVICE, False)
    if not isinstance(on_device, bool):
        raise UserError(f"augmentation.{_ON_DEVICE} is '{on_device}'. Allowed: true, false.")
    settings = CropSettings(
        global_scale=tuple(cfg.crops.global_crops_scale),
        local_scale=tuple(cfg.crops.local_crops_scale),
        global_size_px=cfg.crops.global_crops_size,
        local_size_px=cfg.crops.local_crops_size,
        **{key: _typed(value) for key, value in options.items()},
    )
    routing: Mapping[str, Any] = cfg.routing
    return PairedViewAugmentation(
        RadiographCrop(settings),
        layout,
        seed=cfg.train.seed,
        teacher_view=routing.get("teacher_view", "random"),
        crops_on_device=on_device,
    )


def _typed(value: Any) -> Any:
    return tuple(value) if not isinstance(value, (int, float)) else float(value)
