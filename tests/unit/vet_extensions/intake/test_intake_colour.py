"""Radiographs stored in colour become their luminance; pictures in colour are refused unless asked for."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import make_dicom, make_pixels
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_color_lut, convert_color_space, pixel_array
from pydicom.uid import RLELossless

from tests.source_files import DISK
from vet_extensions.intake.colour import colour_to_grey
from vet_extensions.intake.deidentify import Pseudonyms
from vet_extensions.intake.header import HeaderReader
from vet_extensions.intake.image import ImageReader, StoredImage
from vet_extensions.intake.options import IntakeOptions
from vet_extensions.intake.pixels import WHITE
from vet_extensions.intake.refusal import Refusal
from vet_extensions.schema import Note, Rejection, RejectionCode

COLOURED = (
    "SC_rgb_dcmtk_+eb+cr.dcm",
    "SC_rgb_dcmtk_+eb+cy+np.dcm",
    "SC_rgb_dcmtk_+eb+cy+n1.dcm",
    "SC_ybr_full_422_uncompressed.dcm",
    "SC_rgb_jpeg_gdcm.dcm",
    "SC_rgb_gdcm_KY.dcm",
    "SC_rgb_jls_lossy_line.dcm",
    "SC_rgb_rle_16bit.dcm",
    "GDCMJ2K_TextGBR.dcm",
    "SC_jpeg_no_color_transform.dcm",
    "SC_rgb_jpeg_app14_dcmd.dcm",
    "ExplVR_BigEnd.dcm",
    "examples_jpeg2k.dcm",
    "examples_ybr_color.dcm",
)
"""RGB, YBR_FULL, YBR_FULL_422 and YBR_RCT; native, RLE, JPEG, JPEG lossless, JPEG-LS and JPEG 2000."""


def bundled(name: str) -> str:
    path = get_testdata_file(name)
    assert path is not None
    return str(path)


def read(path: Path | str, **options) -> StoredImage | Rejection:
    """Both passes, as in a run."""
    chosen = IntakeOptions(**options)
    records = HeaderReader(Pseudonyms("test salt"), chosen, DISK)((str(path), "file", None))
    return records if isinstance(records, Rejection) else ImageReader(chosen, DISK)((str(path), 0))


def make_rgb(path: Path, rgb: np.ndarray, **overrides) -> Path:
    """A radiograph with three 8-bit samples a pixel. rgb: uint8 [rows, columns, 3]."""
    attributes: dict[str, Any] = {
        "PhotometricInterpretation": "RGB",
        "SamplesPerPixel": 3,
        "PlanarConfiguration": 0,
        "PixelData": rgb.tobytes(),
        "WindowCenter": None,
        "WindowWidth": None,
    }
    return make_dicom(path, pixels=np.ascontiguousarray(rgb[..., 0]), **(attributes | overrides))


def grey_as_rgb(*, noise: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(grey, rgb): uint8, three equal channels up to `noise` levels."""
    grey = make_pixels(48, 64, bits=8).astype(np.uint8)
    moved = np.random.default_rng(1).integers(-noise, noise + 1, (*grey.shape, 3)) + grey[..., None]
    return grey, np.clip(moved, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", COLOURED)
def test_the_luminance_is_that_of_pydicoms_rgb(name: str) -> None:
    path = bundled(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rgb = pixel_array(path, index=0).astype(np.float64)
    top = 65535 if name == "SC_rgb_rle_16bit.dcm" else 255
    expected = rgb @ [0.299, 0.587, 0.114] / top * WHITE
    answer = ImageReader(IntakeOptions(colour="grey", bits=16, longest_side_px=4096, multi_frame="each"), DISK)(
        (str(path), 0)
    )
    assert isinstance(answer, StoredImage)
    assert answer.notes[0] == Note.COLOUR_TO_GREY
    # pydicom rounds RGB to whole levels, and cuts what lies outside of it.
    error = np.abs(answer.pixels - expected) / WHITE * 255
    assert np.median(error) < 0.6
    assert np.quantile(error, 0.99) < 8


def test_a_palette_is_looked_up_as_pydicom_does() -> None:
    path = bundled("examples_palette.dcm")
    dataset = dcmread(path)
    rgb = apply_color_lut(dataset.pixel_array, dataset).astype(np.float64)
    expected = rgb @ [0.299, 0.587, 0.114] / np.iinfo(np.uint16).max * WHITE
    answer = ImageReader(IntakeOptions(colour="grey", bits=16, longest_side_px=4096), DISK)((str(path), 0))
    assert isinstance(answer, StoredImage)
    np.testing.assert_allclose(answer.pixels, expected, atol=0.51)


def test_grey_stored_as_three_channels_is_that_grey(tmp_path: Path) -> None:
    grey, rgb = grey_as_rgb()
    answer = read(make_rgb(tmp_path / "image.dcm", rgb))
    assert isinstance(answer, StoredImage)
    np.testing.assert_array_equal(answer.pixels, grey)
    assert answer.notes == (Note.COLOUR_TO_GREY,)


def test_channels_equal_within_the_noise_of_a_lossy_codec_count_as_grey(tmp_path: Path) -> None:
    _, rgb = grey_as_rgb(noise=4)
    assert isinstance(read(make_rgb(tmp_path / "image.dcm", rgb)), StoredImage)


def test_a_coloured_side_marker_does_not_make_a_colour_image(tmp_path: Path) -> None:
    _, rgb = grey_as_rgb()
    rgb[2:6, 2:6] = (255, 255, 0)
    assert isinstance(read(make_rgb(tmp_path / "image.dcm", rgb)), StoredImage)


def test_a_colour_image_is_refused_by_default_and_read_on_request(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    path = make_rgb(tmp_path / "image.dcm", rgb)
    answer = read(path)
    assert isinstance(answer, Rejection)
    assert answer.code == RejectionCode.UNSUPPORTED_PHOTOMETRIC
    assert isinstance(read(path, colour="grey"), StoredImage)


def test_the_policy_reject_takes_no_image_stored_in_colour(tmp_path: Path) -> None:
    _, rgb = grey_as_rgb()
    answer = read(make_rgb(tmp_path / "image.dcm", rgb), colour="reject")
    assert isinstance(answer, Rejection)
    assert answer.code == RejectionCode.UNSUPPORTED_PHOTOMETRIC


def test_planes_are_read_like_interleaved_pixels(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    planes = make_rgb(tmp_path / "planes.dcm", rgb, PlanarConfiguration=1, PixelData=np.moveaxis(rgb, -1, 0).tobytes())
    by_plane, by_pixel = (read(path, colour="grey") for path in (planes, make_rgb(tmp_path / "pixels.dcm", rgb)))
    assert isinstance(by_plane, StoredImage)
    assert isinstance(by_pixel, StoredImage)
    assert by_plane.pixel_hash == by_pixel.pixel_hash


def test_rle_stores_colour_by_planes_and_is_read_so(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    native = read(make_rgb(tmp_path / "native.dcm", rgb), colour="grey")
    path = make_rgb(tmp_path / "rle.dcm", rgb)
    dataset = dcmread(path)
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.save_as(path)
    answer = read(path, colour="grey")
    assert isinstance(answer, StoredImage)
    assert isinstance(native, StoredImage)
    assert answer.pixel_hash == native.pixel_hash


@pytest.mark.parametrize("entry_bits", [8, 16])
def test_a_grey_palette_is_a_grey_image(tmp_path: Path, entry_bits: int) -> None:
    pixels = make_pixels(48, 64, bits=8).astype(np.uint8)
    entries = (255 - np.arange(256)) * (257 if entry_bits == 16 else 1)
    data = entries.astype("<u2" if entry_bits == 16 else "u1").tobytes()
    palette: dict[str, Any] = {}
    for channel in ("Red", "Green", "Blue"):
        palette[f"{channel}PaletteColorLookupTableDescriptor"] = [256, 0, entry_bits]
        palette[f"{channel}PaletteColorLookupTableData"] = data
    path = make_dicom(tmp_path / "image.dcm", pixels=pixels, PhotometricInterpretation="PALETTE COLOR", **palette)
    answer = read(path)
    assert isinstance(answer, StoredImage)
    np.testing.assert_array_equal(answer.pixels, 255 - pixels)


def test_a_palette_in_colour_is_refused_by_default() -> None:
    answer = ImageReader(IntakeOptions(), DISK)((str(bundled("examples_palette.dcm")), 0))
    assert isinstance(answer, Rejection)
    assert answer.code == RejectionCode.UNSUPPORTED_PHOTOMETRIC


def test_luminance_of_ybr_is_its_first_channel() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (300, 20, 3), dtype=np.uint8)
    ybr = convert_color_space(rgb, "RGB", "YBR_FULL")
    as_ybr = colour_to_grey(ybr, bits=8, photometric="YBR_FULL").astype(int)
    np.testing.assert_allclose(as_ybr, ybr[..., 0].astype(int) * 257, atol=1)


def test_an_interpretation_without_a_rule_is_refused() -> None:
    with pytest.raises(Refusal):
        colour_to_grey(np.zeros((4, 4, 3), np.uint8), bits=8, photometric="YBR_ICT")
