"""Labelled NIfTI volumes as a value, their reading, and their axial slices as a `SegmentationSet`.

`volume_sets` and `masks` make them; protocols of volumes take `Volumes`, those of images `Volumes.slices`. Needs nibabel.
Shape legend: n volumes, Z slices from the feet up, H rows from front to back, W columns from the patient's right to the left.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vet_extensions.errors import UserError
from vet_extensions.evaluation.segmentation.sets import SegmentationSet

MRI_PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class Volumes:
    """Volumes with a label map each.

    images, labels: [n] files. split: [n] of train, val, test. patients: [n] names. window: the values that become black and white
    (Hounsfield units of CT); None, for MRI, takes percentiles of each volume. channel: which of a 4-D image. class_names,
    content_hash, policy: as in `SegmentationSet`. every: of the axial slices `slices` takes each so-many-th.
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
        values = _read(self.images[volume], channel=self.channel)
        low, high = self.window or np.percentile(values, MRI_PERCENTILES)
        scaled = (values - low) / max(float(high) - float(low), 1e-6)
        return np.rint(np.clip(scaled, 0, 1) * 65535).astype(np.uint16)

    def label_map(self, volume: int) -> NDArray[np.int64]:
        """[Z, H, W] class numbers."""
        return np.rint(_read(self.labels[volume], channel=0)).astype(np.int64)

    def geometry(self, volume: int) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
        """(Z, H, W) and the spacing along each in mm, from the header. Errors: UserError where image and label map differ."""
        shape, spacing = _geometry(self.images[volume])
        other, _ = _geometry(self.labels[volume])
        if shape != other:
            raise UserError(
                f"{self.name}: the label map of volume {volume} has {list(other)} voxels, its image {list(shape)}. They must be "
                "of one size: download both again."
            )
        return shape, spacing

    def slices(self) -> SegmentationSet:
        """The axial slices as cases, every volume whole in one split. Slices are read volume by volume: ask for them in order."""
        geometry = [self.geometry(volume) for volume in range(len(self))]
        places = [(volume, z) for volume, (shape, _) in enumerate(geometry) for z in range(0, shape[0], self.every)]
        volume_of = np.array([volume for volume, _ in places])
        reader = _SliceReader(self, tuple(places))
        return SegmentationSet(
            name=self.name,
            class_names=self.class_names,
            split=self.split[volume_of],
            patient_codes=np.unique(self.patients, return_inverse=True)[1][volume_of],
            read=reader.read,
            mask=reader.mask,
            spacing_mm=np.array([geometry[volume][1][1:] for volume in volume_of]),
            content_hash=self.content_hash,
            policy={**self.policy, "cases": "axial slices" + (f", every {self.every}th" if self.every > 1 else "")},
        )


class _SliceReader:
    """Slices by their number; the volume that was read last is held."""

    def __init__(self, volumes: Volumes, places: Sequence[tuple[int, int]]) -> None:
        self._volumes, self._places = volumes, places
        self._held: dict[str, tuple[int, np.ndarray]] = {}

    def read(self, row: int) -> np.ndarray:
        return self._slice(row, "grey")

    def mask(self, row: int) -> NDArray[np.int64]:
        return self._slice(row, "label_map")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": {}}

    def _slice(self, row: int, what: str) -> np.ndarray:
        volume, z = self._places[row]
        if what not in self._held or self._held[what][0] != volume:
            self._held[what] = (volume, getattr(self._volumes, what)(volume))
        return self._held[what][1][z]


def import_nibabel() -> Any:
    """The module. Errors: UserError where it is not installed."""
    try:
        return import_module("nibabel")
    except ImportError:
        raise UserError(
            "NIfTI files are read with nibabel, which is not installed: pip install 'vet-dino[volumes]'."
        ) from None


def parse_window(text: str, *, default: tuple[float, float] | None) -> tuple[float, float] | None:
    """`LOW,HIGH` as numbers, "percentiles" as None, "" as the default. Errors: UserError."""
    if text in ("", "percentiles"):
        return default if not text else None
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low, high = 0.0, 0.0
    if not low < high:
        raise UserError(f"window={text} must be two numbers LOW,HIGH such as -160,240, or percentiles.")
    return low, high


def _opened(path: Path) -> tuple[Any, np.ndarray]:
    """The image and its orientation, [3, 2]: of each axis, which it is (to the right, front, up) and its direction."""
    nibabel = import_nibabel()
    try:
        image = nibabel.load(path)
    except (nibabel.filebasedimages.ImageFileError, OSError, EOFError) as error:
        raise _damaged(path, error) from None
    if not 3 <= len(image.shape) <= 4:
        raise UserError(f"A volume has three dimensions, or four with channels; {path.name} has {len(image.shape)}.")
    return image, nibabel.io_orientation(image.affine)


def _geometry(path: Path) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    image, orientation = _opened(path)
    order = np.argsort(orientation[:, 0])[::-1]  # axes of the file for Z, H, W
    zooms = image.header.get_zooms()
    z, h, w = (int(axis) for axis in order)
    return (image.shape[z], image.shape[h], image.shape[w]), (float(zooms[z]), float(zooms[h]), float(zooms[w]))


def _read(path: Path, *, channel: int) -> NDArray[np.float32]:
    """[Z, H, W] of one channel."""
    image, orientation = _opened(path)
    n_channels = image.shape[3] if len(image.shape) == 4 else 1
    if channel >= n_channels:
        raise UserError(f"{path.name} has {n_channels} channels, and number {channel} was asked for.")
    try:
        values = np.asarray(image.dataobj[..., channel] if len(image.shape) == 4 else image.dataobj, dtype=np.float32)
    except (OSError, EOFError, ValueError) as error:
        raise _damaged(path, error) from None
    canonical = import_nibabel().apply_orientation(values, orientation)
    return np.ascontiguousarray(canonical[::-1, ::-1].transpose(2, 1, 0))


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path.name} is no readable NIfTI file ({type(error).__name__}). Download it again.")
