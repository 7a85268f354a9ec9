"""One image whose header passed, to the pixels that are stored: decode, grey scale, crop, size, depth. `run` calls it."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from pydicom import Dataset

from vet_extensions.intake.collimation import stated_field, visible_field
from vet_extensions.intake.colour import colour_to_grey, palette_to_grey
from vet_extensions.intake.decode import read_frame
from vet_extensions.intake.deidentify import ID_DIGITS
from vet_extensions.intake.dicom import PixelLayout, is_for_processing, largest_file, open_dicom, pixel_layout
from vet_extensions.intake.frames import frame_notes
from vet_extensions.intake.header import is_dicom
from vet_extensions.intake.opening import BoundedFile, opened
from vet_extensions.intake.options import IntakeOptions
from vet_extensions.intake.pixels import to_grey
from vet_extensions.intake.processing import processing_notes
from vet_extensions.intake.raster import grey_of_used_bits, largest_raster, probe_raster, read_raster
from vet_extensions.intake.refusal import Refusal
from vet_extensions.intake.resize import reduce_to, to_bits
from vet_extensions.intake.sources.base import Source
from vet_extensions.schema import Crop, ImageRecord, Note, Rejection, RejectionCode


@dataclass(frozen=True)
class StoredImage:
    """Pixels as they go into the shard, uint8 or uint16 [H, W], their hash, and what was done to them (see `ImageRecord`)."""

    pixels: np.ndarray
    pixel_hash: str
    crop: Crop | None = None
    notes: tuple[Note, ...] = ()

    def complete(self, record: ImageRecord) -> ImageRecord:
        """`record` of the header pass with what only the pixels tell; its spacing grows as the image shrinks."""
        rows, columns = self.pixels.shape
        field = Crop(0, 0, record.rows, record.columns) if self.crop is None else self.crop
        spacing = record.spacing_mm
        if spacing is not None:
            spacing = (spacing[0] * field.rows / rows, spacing[1] * field.columns / columns)
        return replace(
            record,
            stored_rows=rows,
            stored_columns=columns,
            pixel_hash=self.pixel_hash,
            spacing_mm=spacing,
            crop=self.crop,
            notes=tuple(note for note in Note if note in (*record.notes, *self.notes)),
        )


@dataclass(frozen=True)
class ImageReader:
    """The pixel pass for one image of `source`, called in a worker with its item's key and the number of its frame; picklable."""

    options: IntakeOptions
    source: Source

    def __call__(self, task: tuple[str, int]) -> StoredImage | Rejection:
        key, frame = task
        try:
            return self.read_image(key, frame=frame)
        except Refusal as refusal:
            return refusal.rejection
        except MemoryError:
            raise  # the pool names it
        except Exception as error:
            reason = f"the pixels cannot be interpreted ({type(error).__name__})"
            return Rejection(RejectionCode.DECODE_FAILED, reason)

    def read_image(self, key: str, *, frame: int = 0) -> StoredImage:
        """Decode, bring to grey, crop, reduce. Errors: Refusal."""
        options, max_pixels = self.options, self.options.max_pixels
        with opened(self.source, key, max_bytes=max(largest_file(max_pixels), largest_raster(max_pixels))) as file:
            grey, crop, notes = self._dicom(file, frame) if is_dicom(file) else self._raster(file)
        pixels = to_bits(reduce_to(grey, longest_side_px=options.longest_side_px), bits=options.bits)
        if pixels.min() == pixels.max():
            raise Refusal(RejectionCode.CONSTANT_IMAGE, f"one grey value is left at {options.bits} bits")
        return StoredImage(pixels, hash_pixels(pixels), crop, tuple(note for note in Note if note in notes))

    def _raster(self, file: BoundedFile) -> tuple[np.ndarray, Crop | None, set[Note]]:
        limits = {"max_pixels": self.options.max_pixels, "colour": self.options.colour}
        notes = set() if probe_raster(file, **limits).is_grey else {Note.COLOUR_TO_GREY}
        file.seek(0)
        grey = grey_of_used_bits(read_raster(file, **limits))
        crop = None if self.options.collimation == "keep" else visible_field(grey)
        if crop is None:
            return grey, None, notes
        inside = grey[crop.top : crop.top + crop.rows, crop.left : crop.left + crop.columns]
        return np.ascontiguousarray(inside), crop, {*notes, Note.CROPPED_BY_BORDER}

    def _dicom(self, file: BoundedFile, frame: int) -> tuple[np.ndarray, Crop | None, set[Note]]:
        options = self.options
        with open_dicom(file, with_pixels=True, max_pixels=options.max_pixels) as dataset:
            layout = pixel_layout(dataset, max_pixels=options.max_pixels)
            raw, photometric = read_frame(dataset, layout, frame=frame)
            grey, crop, crop_notes = self._field(raw, photometric, dataset, layout)
            notes = {*frame_notes(layout.n_frames, policy=options.multi_frame), *crop_notes}
            if not layout.is_monochrome:
                notes.add(Note.COLOUR_TO_GREY)
            elif is_for_processing(dataset):
                notes.update(processing_notes(dataset))
        return grey, crop, notes

    def _field(
        self, raw: np.ndarray, photometric: str, dataset: Dataset, layout: PixelLayout
    ) -> tuple[np.ndarray, Crop | None, set[Note]]:
        """The grey of the exposed field, where it lies, and how it was found.

        The grey scale is made from the field's pixels alone: a white border would take part in the percentiles.
        """
        if self.options.collimation == "keep":
            return self._grey(raw, photometric, dataset, layout), None, set()
        crop, note = stated_field(dataset, rows=layout.rows, columns=layout.columns), Note.CROPPED_BY_ATTRIBUTES
        if crop is None:
            whole = self._grey(raw, photometric, dataset, layout)
            crop, note = visible_field(whole), Note.CROPPED_BY_BORDER
            if crop is None:
                return whole, None, set()
        inside = raw[crop.top : crop.top + crop.rows, crop.left : crop.left + crop.columns]
        return self._grey(np.ascontiguousarray(inside), photometric, dataset, layout), crop, {note}

    def _grey(self, raw: np.ndarray, photometric: str, dataset: Dataset, layout: PixelLayout) -> np.ndarray:
        """uint16 [H, W]; raw may be a part of the frame."""
        if layout.is_monochrome:
            return to_grey(raw, dataset, layout)
        if layout.samples == 1:
            return palette_to_grey(raw, dataset, layout, policy=self.options.colour)
        samples = raw >> (layout.high_bit + 1 - layout.bits_stored)
        return colour_to_grey(samples, bits=layout.bits_stored, photometric=photometric, policy=self.options.colour)


def hash_pixels(pixels: np.ndarray) -> str:
    """SHA-256 over type, shape and little-endian pixels, first 16 hexadecimal digits."""
    little = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder("<"), copy=False))
    digest = hashlib.sha256(f"{little.dtype.str}{little.shape}".encode())
    digest.update(little.data)
    return digest.hexdigest()[:ID_DIGITS]
