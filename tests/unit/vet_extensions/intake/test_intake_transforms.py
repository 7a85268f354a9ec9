"""Bit depths, look-up tables and the presentation shape, against pydicom's own functions and on pydicom's own images."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import make_dataset, make_pixels
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_files
from pydicom.dataset import FileMetaDataset
from pydicom.pixels import apply_modality_lut, apply_presentation_lut, apply_voi_lut
from pydicom.uid import ExplicitVRLittleEndian

from vet_extensions.intake.decode import read_frame
from vet_extensions.intake.dicom import PixelLayout, pixel_layout
from vet_extensions.intake.pixels import WHITE, stored_values, to_grey
from vet_extensions.intake.refusal import Refusal


def make(**overrides: Any) -> Dataset:
    """`make_dataset` as if it came from a file, so that the byte order of its tables is known."""
    dataset = make_dataset(**overrides)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.set_original_encoding(False, True)
    return dataset


def grey(dataset: Dataset) -> np.ndarray:
    """The pipeline on a data set in memory: uint16 [rows, columns]."""
    layout = pixel_layout(dataset, max_pixels=10**8)
    return to_grey(read_frame(dataset, layout)[0], dataset, layout)


def make_lut(entries: np.ndarray, *, first: int, bits: int, packed: bool) -> Dataset:
    """A LUT item. packed: LUTData as OW, entries of up to 8 bits two a word; else as US."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries), first, bits])
    if packed:
        data = entries.astype("u1" if bits <= 8 else "<u2").tobytes()
        item.add_new("LUTData", "OW", data + b"\0" * (len(data) % 2))
    else:
        item.add_new("LUTData", "US", entries.tolist())
    return item


@pytest.mark.parametrize("bits", range(1, 17))
def test_every_bit_depth_is_read_wherever_its_high_bit_is(bits: int) -> None:
    generator = np.random.default_rng(bits)
    for shift in range(17 - bits):
        for signed in (False, True):
            low = -(2 ** (bits - 1)) if signed else 0
            values = generator.integers(low, low + 2**bits, 500)
            noise = generator.integers(0, 2**16, 500)
            mask = (2**bits - 1) << shift
            patterns = ((values & (2**bits - 1)) << shift) | (noise & ~mask & 0xFFFF)
            layout = PixelLayout(20, 25, 16, bits, bits - 1 + shift, signed)
            np.testing.assert_array_equal(stored_values(patterns, layout), values)


@pytest.mark.parametrize("bits", [10, 11, 12, 13, 15, 16])
@pytest.mark.parametrize("packed", [False, True])
def test_voi_lut_of_any_depth_equals_pydicoms(bits: int, packed: bool) -> None:
    entries = np.rint(np.linspace(0, 1, 3000) ** 2 * (2**bits - 1)).astype(int)
    dataset = make(VOILUTSequence=[make_lut(entries, first=500, bits=bits, packed=packed)])
    shown = apply_voi_lut(make_pixels(), dataset, prefer_lut=True)
    np.testing.assert_allclose(grey(dataset), shown.astype(float) / (2**bits - 1) * WHITE, atol=0.51)


@pytest.mark.parametrize("packed", [False, True])
def test_modality_lut_equals_pydicoms(packed: bool) -> None:
    entries = np.rint(np.linspace(0, 1, 4095) ** 0.5 * WHITE).astype(int)
    lut = make_lut(entries, first=1, bits=16, packed=packed)
    dataset = make(ModalityLUTSequence=[lut], WindowCenter=2**15, WindowWidth=2**16)
    values = apply_modality_lut(make_pixels(), dataset)
    np.testing.assert_allclose(grey(dataset), values, atol=0.51)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bits", [8, 9])
def test_short_entries_are_read_by_the_standard_where_pydicom_deviates(bits: int, packed: bool) -> None:
    """PS3.3 C.11.1.1: 8 bits may be packed two a word; 8 to 16 bits are allowed. pydicom 3.0 refuses packed tables and 9 bits,
    and its index wraps at 256 if an entry has 8 bits."""
    entries = np.rint(np.linspace(0, 1, 3000) ** 2 * (2**bits - 1)).astype(int)
    dataset = make(VOILUTSequence=[make_lut(entries, first=500, bits=bits, packed=packed)])
    expected = entries[np.clip(make_pixels().astype(int) - 500, 0, 2999)]
    np.testing.assert_allclose(grey(dataset), expected / (2**bits - 1) * WHITE, atol=0.51)


def test_an_odd_number_of_packed_eight_bit_entries_keeps_the_last() -> None:
    entries = np.arange(255)
    lut = make_lut(entries, first=0, bits=8, packed=True)
    dataset = make(pixels=np.arange(256, dtype=np.uint8).reshape(16, 16), VOILUTSequence=[lut])
    np.testing.assert_array_equal(grey(dataset).ravel() // 257, [*entries, 254])


def test_a_voi_lut_over_signed_values_starts_below_zero() -> None:
    pixels = (make_pixels().astype(np.int32) - 2048).astype(np.int16)
    lut = make_lut(np.linspace(0, 65535, 4096).astype(int), first=2**16 - 2048, bits=16, packed=False)
    dataset = make(pixels=pixels.view(np.uint16), PixelRepresentation=1, VOILUTSequence=[lut])
    expected = np.linspace(0, 65535, 4096).astype(int)[pixels.astype(int) + 2048]
    np.testing.assert_array_equal(grey(dataset), expected)


@pytest.mark.parametrize("bits", [0, 5, 17])
def test_a_depth_of_entries_that_is_not_defined_is_refused(bits: int) -> None:
    lut = make_lut(np.arange(4096), first=0, bits=16, packed=False)
    lut.LUTDescriptor = [4096, 0, bits]
    with pytest.raises(Refusal, match="8 to 16 are defined"):
        grey(make(VOILUTSequence=[lut]))


@pytest.mark.parametrize("shape", ["IDENTITY", "INVERSE", None])
def test_presentation_shape_equals_pydicoms(shape: str | None) -> None:
    dataset = make(PresentationLUTShape=shape)
    shown = apply_presentation_lut(apply_voi_lut(make_pixels(), dataset), dataset)
    np.testing.assert_allclose(grey(dataset), shown / 4095 * WHITE, atol=0.51)


def test_pydicoms_own_grey_images_equal_its_functions() -> None:
    """All of one frame and 16 pixels or more; where a file has no window, one over its values is set, since pydicom sets none."""
    n_equal = 0
    for name in get_testdata_files("**/*"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dataset = dcmread(name)
                shown, expected = _both(dataset)
        except Exception:  # no image, or one that pydicom does not decode
            continue
        np.testing.assert_allclose(shown, expected, atol=0.51, err_msg=Path(name).name)
        n_equal += 1
    assert n_equal >= 45


def _both(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Our grey, and pydicom's modality, VOI and (which pydicom leaves out) MONOCHROME1, scaled from 0 to 65535."""
    if dataset.PhotometricInterpretation not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError("a colour image")
    values = apply_modality_lut(dataset.pixel_array, dataset)
    if "PixelPaddingValue" in dataset:  # pydicom's functions know nothing of padding
        del dataset.PixelPaddingValue
    if "VOILUTSequence" not in dataset:
        center, width = (float(values.min()) + float(values.max())) / 2, max(float(np.ptp(values)), 2.0)
        dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = center, width, "LINEAR_EXACT"
    shown = apply_voi_lut(values, dataset, prefer_lut=True).astype(np.float64)
    low, high = _output_range(dataset, values)
    expected = (shown - low) / (high - low) * WHITE
    return grey(dataset), WHITE - expected if dataset.PhotometricInterpretation == "MONOCHROME1" else expected


def _output_range(dataset: Dataset, values: np.ndarray) -> tuple[float, float]:
    """What pydicom's window functions take as black and white."""
    item: Any = dataset.get("VOILUTSequence") or dataset.get("ModalityLUTSequence")
    if item:
        return 0, 2 ** item[0].LUTDescriptor[2] - 1
    bits, signed = dataset.BitsStored, dataset.PixelRepresentation
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if "RescaleSlope" in dataset:
        slope, intercept = float(dataset.RescaleSlope), float(dataset.RescaleIntercept)
        return low * slope + intercept, high * slope + intercept
    return low, high
