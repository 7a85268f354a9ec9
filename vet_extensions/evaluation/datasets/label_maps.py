"""Images and volumes with label maps by name: `amos22:root=FOLDER` to `Volumes`, and `SegmentationSet`s of images or slices.

The segmentation's command calls `open_segmentation`; what judges whole volumes calls `open_volumes`.
"""

from pathlib import Path

from vet_extensions.evaluation.datasets import masks, volume_masks, volume_sets
from vet_extensions.evaluation.datasets.registry import KEY, MASK_SETS, VOLUME_SETS, open_named
from vet_extensions.evaluation.datasets.volumes import Volumes
from vet_extensions.evaluation.segmentation.sets import SegmentationSet, open_mask_folder

__all__ = ["masks", "open_segmentation", "open_volumes", "volume_masks", "volume_sets"]


def open_segmentation(what: str | Path) -> SegmentationSet:
    """Images with label maps: a folder as `open_mask_folder` reads it, a public data set of images, or the axial slices of one of
    volumes, by a string as `registry.open_data` takes it. Errors: UserError."""
    name, *parts = KEY.split(str(what))
    if Path(what).is_dir() or (not parts and name not in (*MASK_SETS, *VOLUME_SETS)):
        return open_mask_folder(what)
    if name in VOLUME_SETS:
        return open_volumes(str(what)).slices()
    return open_named(MASK_SETS, str(what), also=VOLUME_SETS.names())


def open_volumes(text: str) -> Volumes:
    """The volumes that a string `NAME:root=FOLDER:key=value` names. Errors: UserError."""
    return open_named(VOLUME_SETS, text)
