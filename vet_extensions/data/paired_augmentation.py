"""Crops of two views of a study for student and teacher, radiograph-safe: `augmentation.name: paired_views`.

Slots and their source images follow the routing's layout; `radiograph_crop` cuts the crops.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from omegaconf import DictConfig
from torch import Tensor

from dinov2.loss.routing import CropLayout
from dinov2.utils.registry import checked_options
from vet_extensions.data.radiograph_crop import CropSettings, RadiographCrop
from vet_extensions.data.study_dataset import StudySample, sample_rng
from vet_extensions.errors import UserError
from vet_extensions.schema import View, ViewFamily, view_family

_FAMILIES = list(ViewFamily)


class PairedViewAugmentation:
    """A study's images -> the crop dictionary of the core's collate, each crop labelled with its source image.

    Source 0 (image A) is the teacher's view. A study with a single image gives all crops from it.
    """

    draws_by_position = True
    """All draws come from (seed, position): `PositionSeededDataset` need not seed anything."""

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
            return self.crop.crops([images[v][0] for v in slots], is_global=is_global, rng=rng)

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
