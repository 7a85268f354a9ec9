"""Volumes with label maps as a value, and their axial slices as a `SegmentationSet`.

`volume_sets` makes them; protocols of volumes take `Volumes`, those of images `Volumes.slices`.
Shape legend: n volumes, Z slices from the feet up, H rows from front to back, W columns from the patient's right to the left.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vet_extensions.errors import UserError
from vet_extensions.evaluation.datasets.volume_files import HeldSlices, read_grey, read_grid, read_volume
from vet_extensions.evaluation.segmentation.sets import SegmentationSet, SlicedVolumes
from vet_extensions.schema import Split


@dataclass(frozen=True)
class Volumes:
    """Volumes with a label map each.

    images: [n] NIfTI files or folders of a DICOM series. labels: [n] NIfTI files. split: [n] of train, val, test. patients: [n]
    names. window: the values that become black and white (Hounsfield units of CT); None, for MRI, takes percentiles of each
    volume. channel: which of a 4-D image. class_names, content_hash, policy: as in `SegmentationSet`.
    every: of the axial slices of train and val `slices` takes each so-many-th.
    """

    name: str
    class_names: tuple[str, ...]
    images: tuple[Path, ...]
    labels: tuple[Path, ...]
    split: NDArray[np.str_]
    patients: NDArray[np.str_]
    window: tuple[float, float] | None
    content_hash: str
    channel: int = 0
    every: int = 1
    policy: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def grey(self, volume: int) -> NDArray[np.uint16]:
        """[Z, H, W], black at 0. Errors: UserError for a damaged file or an absent channel."""
        return read_grey(self.images[volume], window=self.window, channel=self.channel)

    def label_map(self, volume: int) -> NDArray[np.int64]:
        """[Z, H, W] class numbers."""
        return np.rint(read_volume(self.labels[volume])).astype(np.int64)

    def geometry(self, volume: int) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
        """(Z, H, W) and the spacing along each in mm, from the header. Errors: UserError where image and label map differ."""
        grid, other = read_grid(self.images[volume]), read_grid(self.labels[volume])
        if grid.shape != other.shape:
            raise UserError(
                f"{self.name}: the label map of volume {volume} has {list(other.shape)} voxels, its image {list(grid.shape)}. "
                "They must be of one size: download both again."
            )
        return grid.shape, grid.spacing

    def slices(self) -> SegmentationSet:
        """The axial slices as cases, every volume whole in one split. Slices are read volume by volume: ask for them in order.

        `every` thins train and val alone: a test volume has all its slices, or its scores would be those of another volume.
        """
        geometry = [self.geometry(volume) for volume in range(len(self))]
        steps = np.where(self.split == Split.TEST, 1, self.every).tolist()
        places = [(volume, z) for volume, (shape, _) in enumerate(geometry) for z in range(0, shape[0], steps[volume])]
        volume_of = np.array([volume for volume, _ in places])
        return SegmentationSet(
            name=self.name,
            class_names=self.class_names,
            split=self.split[volume_of],
            patient_codes=np.unique(self.patients, return_inverse=True)[1][volume_of],
            read=HeldSlices(self.grey, places).read,
            mask=HeldSlices(self.label_map, places).read,
            spacing_mm=np.array([geometry[volume][1][1:] for volume in volume_of]),
            content_hash=self.content_hash,
            policy={**self.policy, "cases": _cases_policy(self.every)},
            volumes=SlicedVolumes(volume_of, np.array([spacing for _, spacing in geometry]), self.images),
        )


def _cases_policy(every: int) -> str:
    return "axial slices" + (f"; of train and val one of every {every}, of test all" if every > 1 else "")
