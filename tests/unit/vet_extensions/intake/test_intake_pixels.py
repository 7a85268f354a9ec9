"""The grey-scale pipeline: rule by rule, and against pydicom's own functions."""

from pathlib import Path

import numpy as np
import pytest
from factories import make_dataset, make_pixels
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import FileMetaDataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import ExplicitVRLittleEndian

from vet_extensions.intake.decode import read_frame
from vet_extensions.intake.dicom import pixel_layout
from vet_extensions.intake.pixels import WHITE, to_grey
from vet_extensions.intake.refusal import Refusal
from vet_extensions.intake.resize import reduce_to, to_bits
from vet_extensions.schema import RejectionCode


def grey(dataset: Dataset) -> np.ndarray:
    """The pipeline on a data set in memory: uint16 [rows, columns]."""
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.set_original_encoding(False, True)
    layout = pixel_layout(dataset, max_pixels=10**8)
    return to_grey(read_frame(dataset, layout)[0], dataset, layout)


def refusal_of(dataset: Dataset) -> RejectionCode:
    with pytest.raises(Refusal) as caught:
        grey(dataset)
    return caught.value.rejection.code


def make_lut(entries: list[int], *, first: int, bits: int = 16) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item.LUTData = entries
    item["LUTDescriptor"].VR = "US" if first >= 0 else "SS"
    item["LUTData"].VR = "US"
    return item


def as_pydicom(dataset: Dataset) -> np.ndarray:
    """Modality and VOI by pydicom, scaled to 0..65535 by the window's own output range."""
    modality = apply_modality_lut(dataset.pixel_array, dataset)
    shown = apply_voi_lut(modality, dataset, prefer_lut=True).astype(np.float64)
    if dataset.get("VOILUTSequence"):
        return shown / (2 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1) * WHITE
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    if "ModalityLUTSequence" in dataset:
        low, high = 0, 2 ** dataset.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    elif dataset.PixelRepresentation:
        low, high = -(2 ** (dataset.BitsStored - 1)), 2 ** (dataset.BitsStored - 1) - 1
    else:
        low, high = 0, 2**dataset.BitsStored - 1
    if "ModalityLUTSequence" not in dataset and "RescaleSlope" in dataset:
        low, high = low * slope + intercept, high * slope + intercept
    return (shown - low) / (high - low) * WHITE


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("center", "width"), [(2048, 4096), (1500, 900), (-100, 800), (3000.5, 1)])
def test_window_functions_equal_pydicoms(function: str | None, center: float, width: float) -> None:
    dataset = make_dataset(WindowCenter=center, WindowWidth=width, VOILUTFunction=function)
    np.testing.assert_allclose(grey(dataset), as_pydicom(dataset), atol=0.51)


def test_rescale_then_window_equals_pydicom() -> None:
    dataset = make_dataset(RescaleSlope=2.5, RescaleIntercept=-700, WindowCenter=1000, WindowWidth=3000)
    np.testing.assert_allclose(grey(dataset), as_pydicom(dataset), atol=0.51)


def test_signed_pixels_equal_pydicom() -> None:
    pixels = (make_pixels().astype(np.int32) - 2048).astype(np.int16).view(np.uint16)
    dataset = make_dataset(pixels=pixels, PixelRepresentation=1, WindowCenter=0, WindowWidth=1000)
    np.testing.assert_allclose(grey(dataset), as_pydicom(dataset), atol=0.51)


def test_modality_lut_comes_before_the_window_as_in_pydicom() -> None:
    entries = (np.arange(2000) ** 2 // 62).tolist()
    dataset = make_dataset(WindowCenter=30000, WindowWidth=50000, ModalityLUTSequence=[make_lut(entries, first=900)])
    np.testing.assert_allclose(grey(dataset), as_pydicom(dataset), atol=0.51)


def test_modality_lut_replaces_the_rescale() -> None:
    lut = make_lut(list(range(4096)), first=0)
    with_both = make_dataset(ModalityLUTSequence=[lut], RescaleSlope=7, RescaleIntercept=3)
    np.testing.assert_array_equal(grey(with_both), grey(make_dataset(ModalityLUTSequence=[lut])))


def test_voi_lut_is_used_before_the_window_as_in_pydicom() -> None:
    entries = np.linspace(0, 4095, 3000).astype(int).tolist()
    dataset = make_dataset(VOILUTSequence=[make_lut(entries, first=500, bits=12)])
    np.testing.assert_allclose(grey(dataset), as_pydicom(dataset), atol=0.51)


def test_voi_lut_stored_as_words_equals_the_same_lut_stored_as_numbers() -> None:
    entries = np.linspace(0, 65535, 4096).astype(np.uint16)
    words = make_lut(entries.tolist(), first=0)
    words.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    as_words, as_numbers = (make_dataset(VOILUTSequence=[lut]) for lut in (words, make_lut(entries.tolist(), first=0)))
    np.testing.assert_array_equal(grey(as_words), grey(as_numbers))


def test_the_first_of_several_windows_is_taken() -> None:
    both = make_dataset(WindowCenter=[1000, 3000], WindowWidth=[500, 90])
    np.testing.assert_array_equal(grey(both), grey(make_dataset(WindowCenter=1000, WindowWidth=500)))


def test_monochrome1_is_inverted_exactly_once() -> None:
    plain = grey(make_dataset())
    inverse = grey(make_dataset(PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(inverse, WHITE - plain)


def test_monochrome1_with_inverse_presentation_shape_is_inverted_exactly_once() -> None:
    plain = grey(make_dataset())
    both = grey(make_dataset(PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE"))
    np.testing.assert_array_equal(both, WHITE - plain)


def test_inverse_presentation_shape_alone_inverts() -> None:
    np.testing.assert_array_equal(grey(make_dataset(PresentationLUTShape="INVERSE")), WHITE - grey(make_dataset()))


def test_bits_above_bits_stored_do_not_count() -> None:
    pixels = make_pixels()
    with_overlay = pixels | (np.arange(pixels.size, dtype=np.uint16).reshape(pixels.shape) % 2 << 13)
    np.testing.assert_array_equal(grey(make_dataset(pixels=with_overlay)), grey(make_dataset(pixels=pixels)))


def test_values_in_the_upper_bits_are_read_by_high_bit() -> None:
    pixels = make_pixels()
    shifted = make_dataset(pixels=pixels << 4, HighBit=15)
    np.testing.assert_array_equal(grey(shifted), grey(make_dataset(pixels=pixels)))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_whatever_the_interpretation(photometric: str) -> None:
    pixels = make_pixels()
    pixels[:, :5] = 3
    dataset = make_dataset(pixels=pixels, PhotometricInterpretation=photometric, PixelPaddingValue=3)
    assert (grey(dataset)[:, :5] == 0).all()


@pytest.mark.parametrize(("value", "limit"), [(4000, 4095), (4095, 4000)])
def test_padding_range_is_taken_in_either_order(value: int, limit: int) -> None:
    pixels = np.clip(make_pixels(), 0, 3900)
    pixels[0] = np.linspace(4000, 4095, pixels.shape[1])
    dataset = make_dataset(pixels=pixels, PixelPaddingValue=value, PixelPaddingRangeLimit=limit)
    result = grey(dataset)
    assert (result[0] == 0).all()
    assert result[1:].max() > 0.9 * WHITE


def test_padding_does_not_set_the_scale_of_an_unwindowed_image() -> None:
    pixels = np.clip(make_pixels(), 1000, 1500)
    unpadded = grey(make_dataset(pixels=pixels, WindowCenter=None, WindowWidth=None))
    padded = np.concatenate([pixels, np.zeros_like(pixels)])
    dataset = make_dataset(pixels=padded, WindowCenter=None, WindowWidth=None, PixelPaddingValue=0)
    np.testing.assert_array_equal(grey(dataset)[: len(pixels)], unpadded)


def test_without_window_a_single_hot_pixel_does_not_set_the_scale() -> None:
    pixels = make_pixels(64, 64)
    pixels = 500 + pixels // 40
    pixels[0, 0] = 4095
    result = grey(make_dataset(pixels=pixels, WindowCenter=None, WindowWidth=None))
    assert np.median(result) == pytest.approx(WHITE / 2, rel=0.1)


def test_an_empty_window_counts_as_none() -> None:
    empty = make_dataset(WindowCenter="", WindowWidth="")
    np.testing.assert_array_equal(grey(empty), grey(make_dataset(WindowCenter=None, WindowWidth=None)))


@pytest.mark.parametrize(
    "attributes",
    [
        {"WindowWidth": 0},
        {"WindowWidth": -5},
        {"WindowWidth": 0.5},
        {"WindowWidth": None},
        {"WindowCenter": None},
        {"VOILUTFunction": "CUBIC"},
        {"RescaleSlope": 0, "RescaleIntercept": 0},
        {"RescaleSlope": float("nan"), "RescaleIntercept": 0},
        {"RescaleSlope": float("inf"), "RescaleIntercept": 0},
        {"VOILUTSequence": [make_lut([0, 1, 2, 3], first=0, bits=20)]},
    ],
)
def test_an_invalid_transformation_is_refused(attributes: dict) -> None:
    dataset = make_dataset()
    for keyword, value in attributes.items():
        if value is None:
            delattr(dataset, keyword)
        elif isinstance(value, float) and not np.isfinite(value):
            # pydicom refuses to write such numbers; files hold them nevertheless.
            dataset.add_new(keyword, "FD", value)
        else:
            setattr(dataset, keyword, value)
    assert refusal_of(dataset) == RejectionCode.INVALID_GREYSCALE_TRANSFORM


def test_a_lut_shorter_than_it_says_is_refused() -> None:
    lut = make_lut([0, 1, 2, 3], first=0)
    lut.LUTDescriptor = [4000, 0, 16]
    assert refusal_of(make_dataset(VOILUTSequence=[lut])) == RejectionCode.INVALID_GREYSCALE_TRANSFORM


@pytest.mark.parametrize(
    "dataset",
    [
        make_dataset(pixels=np.full((32, 32), 7, np.uint16)),
        make_dataset(pixels=np.full((32, 32), 7, np.uint16), PixelPaddingValue=7),
        make_dataset(WindowCenter=60000, WindowWidth=10),
    ],
    ids=["constant", "all padding", "window beside the values"],
)
def test_an_image_with_one_grey_value_is_refused(dataset: Dataset) -> None:
    assert refusal_of(dataset) == RejectionCode.CONSTANT_IMAGE


@pytest.mark.parametrize("name", ["MR_small.dcm", "CT_small.dcm"])
def test_bundled_pydicom_images_equal_pydicoms_functions(name: str) -> None:
    path = get_testdata_file(name)
    assert path is not None
    dataset = dcmread(Path(path))
    dataset.WindowCenter, dataset.WindowWidth = 600, 1600
    # pydicom's functions know nothing of padding.
    if "PixelPaddingValue" in dataset:
        del dataset.PixelPaddingValue
    np.testing.assert_allclose(grey(dataset), as_pydicom(dataset), atol=0.51)


def test_eight_bit_images_keep_their_levels() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    dataset = make_dataset(pixels=pixels, WindowCenter=128, WindowWidth=256)
    np.testing.assert_array_equal(to_bits(grey(dataset), bits=8), pixels)


def test_images_are_reduced_to_the_longest_side_with_their_proportions() -> None:
    assert reduce_to(np.zeros((300, 200), np.uint16), longest_side_px=100).shape == (100, 67)


def test_small_images_are_never_enlarged() -> None:
    pixels = np.arange(600, dtype=np.uint16).reshape(20, 30)
    assert reduce_to(pixels, longest_side_px=512) is pixels


def test_reducing_averages_instead_of_skipping() -> None:
    stripes = np.tile(np.array([0, WHITE], np.uint16), (64, 32))
    np.testing.assert_allclose(reduce_to(stripes, longest_side_px=16), WHITE / 2, atol=1)
