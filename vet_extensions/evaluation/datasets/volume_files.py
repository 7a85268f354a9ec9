"""Files of volumes, all turned to one orientation. `volumes` and the adapters read through it.

A volume is a NIfTI file, or a folder that holds a DICOM series; here alone this is told apart. nibabel, an optional package,
reads the first and turns both.
Shape legend: Z slices from the feet up, H rows from front to back, W columns from the patient's right to the left.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vet_extensions.errors import UserError
from vet_extensions.evaluation.datasets.dicom_series import series_files, series_grid, series_values

MRI_PERCENTILES = (0.5, 99.5)
HELD_BYTES = 2**30
"""Of slices that a reader holds: six whole CT of 300 slices, or sixty thinned by `every=10`. Each worker process has its own."""


@dataclass(frozen=True)
class VolumeGrid:
    """Where the voxels lie. shape: (Z, H, W). spacing: mm along each. corners: [2, 3], the first and the last voxel's place in mm
    to the patient's right, front and up, which tells whether two volumes lie on each other."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    corners: NDArray[np.float64]


def read_volume(path: Path, *, channel: int = 0) -> NDArray[np.float32]:
    """[Z, H, W], the values that the file means (Hounsfield units of CT). channel: which of a 4-D NIfTI file.

    path: a NIfTI file, or a folder that holds a DICOM series.
    Errors: UserError for a damaged file, an absent channel, or a folder that holds no even stack of one series.
    """
    if path.is_dir():
        _refuse_channel(path, channel, n_channels=1)
        values, grid = series_values(path)
        affine = grid.affine
    else:
        values, affine = _nifti_values(path, channel)
    nibabel = import_nibabel()
    canonical = nibabel.apply_orientation(values, nibabel.io_orientation(affine))  # to the right, front, up
    return np.ascontiguousarray(canonical[::-1, ::-1].transpose(2, 1, 0))


def read_grid(path: Path) -> VolumeGrid:
    """From the headers alone. Errors: UserError, as `read_volume`."""
    if path.is_dir():
        series = series_grid(path)
        shape, spacing, affine = series.shape, series.spacing, series.affine
    else:
        image = _open_nifti(path)
        shape, spacing, affine = image.shape[:3], image.header.get_zooms()[:3], image.affine
    nibabel = import_nibabel()
    orientation = nibabel.io_orientation(affine)
    affine = affine @ nibabel.orientations.inv_ornt_aff(orientation, shape)
    z, h, w = (int(axis) for axis in np.argsort(orientation[:, 0])[::-1])  # axes of the file
    last = np.array([shape[w], shape[h], shape[z]]) - 1
    ends = np.array([[last[0], last[1], 0], [0, 0, last[2]]])  # of [Z, H, W], whose rows and columns run the other way
    return VolumeGrid(
        (int(shape[z]), int(shape[h]), int(shape[w])),
        (float(spacing[z]), float(spacing[h]), float(spacing[w])),
        nibabel.affines.apply_affine(affine, ends),
    )


def volume_content(path: Path) -> list[tuple[str, int]]:
    """Names and sizes in bytes of the files that make up a volume, for a content hash."""
    files = series_files(path) if path.is_dir() else [path]
    return [(file.name, file.stat().st_size) for file in files]


def read_grey(path: Path, *, window: tuple[float, float] | None, channel: int = 0) -> NDArray[np.uint16]:
    """[Z, H, W], black at 0. window: the values that become black and white; None takes percentiles of the volume."""
    values = read_volume(path, channel=channel)
    low, high = window or map(float, np.percentile(values, MRI_PERCENTILES))
    values -= low  # in place: a CT has a third of a gigabyte
    values /= max(high - low, 1e-6)
    np.clip(values, 0, 1, out=values)
    values *= 65535
    return np.rint(values, out=values).astype(np.uint16)


class HeldSlices:
    """Slices by their number, read volume by volume; of the volumes that were read last, the slices in use are held.

    Asked for in order, each volume is read once. Asked for at random, as training does, so are the volumes of a set whose slices
    in use fit into `max_bytes`; of a larger set, one is read for nearly every slice.
    read_volume: number of a volume -> [Z, H, W]. places: of each slice its volume and z.
    """

    def __init__(
        self,
        read_volume: Callable[[int], np.ndarray],
        places: Sequence[tuple[int, int]],
        *,
        max_bytes: int = HELD_BYTES,
    ) -> None:
        self._read_volume, self._places, self._max_bytes = read_volume, tuple(places), max_bytes
        self._used: dict[int, list[int]] = {}
        for volume, z in self._places:
            self._used.setdefault(volume, []).append(z)
        self._held: OrderedDict[int, dict[int, np.ndarray]] = OrderedDict()
        self._n_bytes = 0

    def __len__(self) -> int:
        return len(self._places)

    def read(self, row_index: int, /) -> np.ndarray:
        """[H, W]."""
        volume, z = self._places[row_index]
        if volume not in self._held:
            self._hold(volume)
        self._held.move_to_end(volume)
        return self._held[volume][z]

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "_held": OrderedDict(),
            "_n_bytes": 0,
        }  # a copy for a worker process brings no volume along

    def _hold(self, volume: int) -> None:
        read = self._read_volume(volume)
        slices = {z: read[z].copy() for z in self._used[volume]}  # views would keep the whole volume
        self._n_bytes += _n_bytes(slices)
        while self._held and self._n_bytes > self._max_bytes:
            self._n_bytes -= _n_bytes(self._held.popitem(last=False)[1])
        self._held[volume] = slices


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


def describe_window(window: tuple[float, float] | None) -> str:
    """In words, for the results."""
    if window is None:
        return f"{MRI_PERCENTILES[0]:g} to {MRI_PERCENTILES[1]:g} percentile of the volume"
    return f"{window[0]:g} to {window[1]:g} HU"


def import_nibabel() -> Any:
    """The module. Errors: UserError where it is not installed."""
    try:
        return import_module("nibabel")
    except ImportError:
        raise UserError(
            "Volumes are read with nibabel, which is not installed: pip install 'vet-dino[volumes]'."
        ) from None


def _n_bytes(slices: Mapping[int, np.ndarray]) -> int:
    return sum(pixels.nbytes for pixels in slices.values())


def _open_nifti(path: Path) -> Any:
    nibabel = import_nibabel()
    try:
        image = nibabel.load(path)
    except (nibabel.filebasedimages.ImageFileError, OSError, EOFError) as error:
        raise _damaged(path, error) from None
    if not 3 <= len(image.shape) <= 4:
        raise UserError(f"A volume has three dimensions, or four with channels; {path.name} has {len(image.shape)}.")
    return image


def _nifti_values(path: Path, channel: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """One channel in the order of the file, and the affine."""
    image = _open_nifti(path)
    has_channels = len(image.shape) == 4
    _refuse_channel(path, channel, n_channels=image.shape[3] if has_channels else 1)
    try:
        values = np.asarray(image.dataobj[..., channel] if has_channels else image.dataobj, dtype=np.float32)
    except (OSError, EOFError, ValueError) as error:
        raise _damaged(path, error) from None
    return values, image.affine


def _refuse_channel(path: Path, channel: int, *, n_channels: int) -> None:
    if channel >= n_channels:
        raise UserError(f"{path.name} has {n_channels} channels, and number {channel} was asked for.")


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path.name} is no readable NIfTI file ({type(error).__name__}). Download it again; of a DICOM series, give the folder."
    )
