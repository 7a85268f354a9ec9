"""Arrays become labelled, self-contained pictures."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from vet_extensions.analysis.pictures import (
    contact_sheet,
    crop_panel,
    interval_bars,
    picture,
    png_data_uri,
    resize_longest,
    to_uint8,
)
from vet_extensions.errors import UserError


def decode(uri: str) -> np.ndarray:
    head, content = uri.split(",", 1)
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def test_a_grey_picture_survives_its_data_uri():
    grey = np.arange(12 * 9, dtype=np.uint8).reshape(12, 9)
    np.testing.assert_array_equal(decode(png_data_uri(grey)), grey)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0, 2.0, -1.0, np.nan]], dtype=np.float32), [[0, 128, 255, 255, 0, 0]]),
        (np.array([[0, 256, 65535]], dtype=np.uint16), [[0, 1, 255]]),
        (np.array([[False, True]]), [[0, 255]]),
    ],
)
def test_every_kind_of_grey_value_becomes_eight_bit(array, expected):
    np.testing.assert_array_equal(to_uint8(array), expected)


@pytest.mark.parametrize(
    "array", [np.zeros((2, 2, 4)), np.zeros(5), np.zeros((0, 3)), np.zeros((2, 2), dtype=np.int64)]
)
def test_an_array_that_is_no_picture_is_refused(array):
    with pytest.raises(UserError, match="got"):
        to_uint8(array)


def test_a_picture_shrinks_to_its_longest_side_and_never_grows():
    assert resize_longest(np.zeros((100, 50), dtype=np.uint8), longest_px=40).shape == (40, 20)
    assert picture(np.zeros((30, 20)), label="VD", alt="small", longest_px=256).height == 30


def test_a_contact_sheet_keeps_the_order_of_studies_and_views():
    sheet = contact_sheet([(["LATERAL_LEFT", "VD"], [np.zeros((8, 8))] * 2), (["DV"], [np.ones((8, 8))])])
    assert [[item.label for item in row] for row in sheet] == [["LATERAL_LEFT", "VD"], ["DV"]]
    assert sheet[1][0].alt == "Radiograph of study 2, view DV"


def test_a_crop_panel_names_slot_and_arm_in_the_alternative_text():
    (item,) = crop_panel([np.zeros((4, 4))], ["student global 0 / view A"], arm="vet_dino")
    assert item.alt == "Crop of arm vet_dino: student global 0 / view A"


def test_labels_and_images_must_be_equally_many():
    with pytest.raises(UserError, match="got 2 and 1"):
        crop_panel([np.zeros((4, 4))], ["a", "b"], arm="same_image")


def test_intervals_share_one_axis_from_the_lowest_to_the_highest_end():
    first, missing, second = interval_bars([(0.5, 0.6, 0.7), None, (0.6, 0.8, 1.0)])
    assert (first.low, first.value, first.high) == pytest.approx((0, 20, 40))
    assert (second.low, second.value, second.high) == pytest.approx((20, 60, 100))
    assert missing is None


def test_intervals_without_extent_are_not_drawn():
    assert interval_bars([(0.5, 0.5, 0.5)]) == [None]
    assert interval_bars([None]) == [None]
