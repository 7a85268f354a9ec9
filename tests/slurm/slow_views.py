"""A plugin of trainings in these tests: `paired_views` that take their time, so that there is a middle to be disturbed in.

The crops are those of `paired_views`: how long they take (`augmentation.seconds`, each study) changes no weight.
"""

import time
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dinov2.data.registry import AUGMENTATIONS
from dinov2.loss.routing import CropLayout
from vet_extensions.data.paired_augmentation import PairedViewAugmentation, paired_views
from vet_extensions.data.study_dataset import StudySample


@dataclass
class SlowPairedViews:
    """Waits, then crops."""

    crops: PairedViewAugmentation
    seconds: float
    draws_by_position = True

    def __call__(self, sample: StudySample) -> dict[str, Any]:
        time.sleep(self.seconds)
        return self.crops(sample)


def slow_paired_views(cfg: DictConfig, layout: CropLayout) -> SlowPairedViews:
    """The augmentation that a configuration's section describes, without its `seconds`, and those."""
    section = {key: value for key, value in cfg.augmentation.items() if key != "seconds"}
    others = OmegaConf.merge({key: cfg[key] for key in ("crops", "routing", "train")}, {"augmentation": section})
    assert isinstance(others, DictConfig)
    return SlowPairedViews(paired_views(others, layout), float(cfg.augmentation.seconds))


def register() -> None:
    """Make it known as `slow_paired_views`."""
    AUGMENTATIONS.register("slow_paired_views")(slow_paired_views)
