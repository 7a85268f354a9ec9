"""Files of volumes, all turned to one orientation. `volumes` and the adapters read through `read_volume` and `read_geometry`.

NIfTI files are read with nibabel, an optional package.
Shape legend: Z slices from the feet up, H rows from front to back, W columns from the patient's right to the left.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vet_extensions.errors import UserError

MRI_PERCENTILES = (0.5, 99.5)


def read_volume(path: Path, *, channel: int = 0) -> NDArray[np.float32]:
    """[Z, H, W], the values that the file means (Hounsfield units of CT). channel: which of a 4-D NIfTI file.

    Errors: UserError for a damaged file or an absent channel.
    """
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


def read_geometry(path: Path) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """(Z, H, W) and the spacing along each in mm, from the header alone. Errors: UserError for a damaged file."""
    image, orientation = _opened(path)
    order = np.argsort(orientation[:, 0])[::-1]  # axes of the file for Z, H, W
    zooms = image.header.get_zooms()
    z, h, w = (int(axis) for axis in order)
    return (image.shape[z], image.shape[h], image.shape[w]), (float(zooms[z]), float(zooms[h]), float(zooms[w]))


def read_grey(path: Path, *, window: tuple[float, float] | None, channel: int = 0) -> NDArray[np.uint16]:
    """[Z, H, W], black at 0. window: the values that become black and white; None takes percentiles of the volume."""
    values = read_volume(path, channel=channel)
    low, high = window or np.percentile(values, MRI_PERCENTILES)
    scaled = (values - low) / max(float(high) - float(low), 1e-6)
    return np.rint(np.clip(scaled, 0, 1) * 65535).astype(np.uint16)


class HeldSlices:
    """Slices by their number. The volume read last is held: asked for in order, each volume is read once.

    read_volume: number of a volume -> [Z, H, W]. places: of each slice its volume and z.
    """

    def __init__(self, read_volume: Callable[[int], np.ndarray], places: Sequence[tuple[int, int]]) -> None:
        self._read_volume, self._places = read_volume, tuple(places)
        self._held: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self._places)

    def read(self, row_index: int, /) -> np.ndarray:
        """[H, W]."""
        volume, z = self._places[row_index]
        if self._held is None or self._held[0] != volume:
            self._held = (volume, self._read_volume(volume))
        return self._held[1][z]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": None}  # a copy for a worker process brings no volume along


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


def import_nibabel() -> Any:
    """The module. Errors: UserError where it is not installed."""
    try:
        return import_module("nibabel")
    except ImportError:
        raise UserError(
            "NIfTI files are read with nibabel, which is not installed: pip install 'vet-dino[volumes]'."
        ) from None


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


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path.name} is no readable NIfTI file ({type(error).__name__}). Download it again.")
