"""One file whose header passed, to the pixels that are stored: decode, grey scale, size, depth. `run` sends it to its workers."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vet_extensions.intake.decode import read_stored_values
from vet_extensions.intake.deidentify import ID_DIGITS
from vet_extensions.intake.dicom import open_dicom, pixel_layout
from vet_extensions.intake.options import IntakeOptions
from vet_extensions.intake.pixels import to_grey
from vet_extensions.intake.refusal import Refusal
from vet_extensions.intake.resize import reduce_to, to_bits
from vet_extensions.schema import Rejection, RejectionCode


@dataclass(frozen=True)
class StoredImage:
    """Pixels as they go into the shard, uint8 or uint16 [H, W], and their hash."""

    pixels: np.ndarray
    pixel_hash: str


@dataclass(frozen=True)
class ImageReader:
    """The pixel pass for one file, called in a worker with its path; picklable."""

    options: IntakeOptions

    def __call__(self, path: str) -> StoredImage | Rejection:
        try:
            return self.read_image(Path(path))
        except Refusal as refusal:
            return refusal.rejection
        except Exception as error:
            reason = f"the pixels cannot be interpreted ({type(error).__name__})"
            return Rejection(RejectionCode.DECODE_FAILED, reason)

    def read_image(self, path: Path) -> StoredImage:
        """Decode, bring to grey, reduce. Errors: Refusal."""
        options = self.options
        with open_dicom(path, with_pixels=True, max_pixels=options.max_pixels) as dataset:
            layout = pixel_layout(dataset, max_pixels=options.max_pixels)
            raw = read_stored_values(dataset, layout)
            grey = to_grey(raw, dataset, layout)
        pixels = to_bits(reduce_to(grey, longest_side_px=options.longest_side_px), bits=options.bits)
        if pixels.min() == pixels.max():
            raise Refusal(RejectionCode.CONSTANT_IMAGE, f"one grey value is left at {options.bits} bits")
        return StoredImage(pixels, hash_pixels(pixels))


def hash_pixels(pixels: np.ndarray) -> str:
    """SHA-256 over type, shape and little-endian pixels, first 16 hexadecimal digits."""
    little = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder("<"), copy=False))
    digest = hashlib.sha256(f"{little.dtype.str}{little.shape}".encode())
    digest.update(little.data)
    return digest.hexdigest()[:ID_DIGITS]
