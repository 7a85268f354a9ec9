"""Pixels of data sets that are read in place: picture and DICOM files, arrays of MedMNIST, slices of MATLAB files.

Each is a `features.PixelsSource`: row number -> grey [H, W], uint8 or uint16, opened when it is asked for and never written.
They hold paths and no open files, so that worker processes can have copies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from vet_extensions.errors import UserError
from vet_extensions.intake.image import ImageReader
from vet_extensions.intake.options import MIN_SIDE_PX, IntakeOptions
from vet_extensions.intake.refusal import Refusal
from vet_extensions.intake.sources.base import Source
from vet_extensions.schema import RejectionCode

_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""ITU-R BT.601, as `intake.colour` takes it."""


class _Disk:
    """As much of a `Source` as the intake's reader needs. Links are followed: folders of links are how people cut splits."""

    def open(self, key: str) -> BinaryIO:
        return Path(key).open("rb")


class FileReader:
    """Pictures (PNG, JPEG, TIFF) and DICOM files, made grey as the intake does it, at their own size and with 16 bits.

    A picture of one grey value shows nothing; it is read as black.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = [str(path) for path in paths]
        options = IntakeOptions(colour="grey", bits=16, longest_side_px=2**30)
        self._read = ImageReader(options, cast(Source, _Disk()))

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, row_index: int, /) -> np.ndarray:
        """Errors: UserError for a file that is no picture or is damaged."""
        try:
            return self._read.read_image(self._paths[row_index]).pixels
        except Refusal as refusal:
            rejection = refusal.rejection
            if rejection.code is RejectionCode.CONSTANT_IMAGE:
                return np.zeros((MIN_SIDE_PX, MIN_SIDE_PX), dtype=np.uint8)
            raise UserError(
                f"Image {row_index} of the data set cannot be read ({rejection.code}: {rejection.detail}). Download it again."
            ) from None


@dataclass
class NpzReader:
    """Images of an .npz file, split by split; only the split that was asked for last is held in memory.

    arrays: (name of the array, number of its images) in row order. An array is [n, H, W] or [n, H, W, 3], uint8.
    """

    path: Path
    arrays: tuple[tuple[str, int], ...]

    def __post_init__(self) -> None:
        self._held: tuple[str, NDArray[np.uint8]] | None = None

    def __len__(self) -> int:
        return sum(n for _, n in self.arrays)

    def __getstate__(self) -> Mapping[str, Any]:
        return {**self.__dict__, "_held": None}

    def read(self, row_index: int, /) -> np.ndarray:
        at = row_index
        for name, n in self.arrays:
            if at < n:
                return _grey(self._array(name)[at])
            at -= n
        raise IndexError(row_index)

    def _array(self, name: str) -> NDArray[np.uint8]:
        if self._held is None or self._held[0] != name:
            with np.load(self.path) as stored:
                self._held = (name, stored[name])
        return self._held[1]


class MatReader:
    """Slices of the figshare brain tumour files (MATLAB v7.3, which is HDF5), uint16.

    Intensities of MRI have no unit: 0 stays black and the 99.5th percentile of the slice becomes white. MATLAB stores columns
    first, so the arrays come transposed.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, row_index: int, /) -> np.ndarray:
        """Errors: UserError where h5py is missing."""
        with import_h5py().File(self._paths[row_index], "r") as file:
            values = np.asarray(file["cjdata/image"]).T.astype(np.float32)
        white = float(np.percentile(values, 99.5))
        return np.rint(np.clip(values / max(white, 1.0), 0, 1) * 65535).astype(np.uint16)


def import_h5py() -> Any:
    """The module. Errors: UserError where it is not installed."""
    try:
        return import_module("h5py")
    except ImportError:
        raise UserError(
            "Files of MATLAB v7.3 are read with h5py, which is not installed: pip install 'vet-dino[volumes]'."
        ) from None


def _grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return image if image.ndim == 2 else np.rint(image[..., :3] @ _LUMINANCE).astype(np.uint8)
