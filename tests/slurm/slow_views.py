"""A plugin of trainings in these tests: `paired_views` that take their time, so that there is a middle to be disturbed in.

The file `augmentation.pace` holds the seconds that each study takes, and the megabytes that the worker of process 0 takes for
itself. It may change while a training runs. The crops are those of `paired_views`, whatever it says.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
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
    pace: Path
    taken: bytes = b""
    draws_by_position = True

    def __call__(self, sample: StudySample) -> dict[str, Any]:
        seconds, megabytes = map(float, self.pace.read_text().split())
        if megabytes and not self.taken and os.environ["SLURM_PROCID"] == "0":
            self.taken = b"x" * int(megabytes * 1e6)
        time.sleep(seconds)
        return self.crops(sample)


def slow_paired_views(cfg: DictConfig, layout: CropLayout) -> SlowPairedViews:
    """The augmentation that a configuration's section describes, at its `pace`."""
    section = {key: value for key, value in cfg.augmentation.items() if key != "pace"}
    others = OmegaConf.merge({key: cfg[key] for key in ("crops", "routing", "train")}, {"augmentation": section})
    assert isinstance(others, DictConfig)
    return SlowPairedViews(paired_views(others, layout), Path(cfg.augmentation.pace))


def register() -> None:
    """Make it known as `slow_paired_views`."""
    AUGMENTATIONS.register("slow_paired_views")(slow_paired_views)
