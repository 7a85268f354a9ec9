"""What the policies for frames, raw detector values and collimation do, through both passes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import make_dicom, make_pixels, make_uid

from tests.source_files import DISK
from vet_extensions.errors import UserError
from vet_extensions.intake.collimation import visible_field
from vet_extensions.intake.deidentify import Pseudonyms
from vet_extensions.intake.header import HeaderReader
from vet_extensions.intake.image import ImageReader, StoredImage
from vet_extensions.intake.options import POLICIES, IntakeOptions
from vet_extensions.intake.pixels import WHITE
from vet_extensions.manifest.build import build_table
from vet_extensions.schema import Crop, ImageRecord, Note, Rejection, RejectionCode, Split

PSEUDONYMS = Pseudonyms("test salt")
FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.1.1"


def headers(path: Path, **options) -> tuple[ImageRecord, ...] | Rejection:
    return HeaderReader(PSEUDONYMS, IntakeOptions(**options), DISK)((str(path), "file", None))


def image(path: Path, *, frame: int = 0, **options) -> StoredImage:
    answer = ImageReader(IntakeOptions(**options), DISK)((str(path), frame))
    assert isinstance(answer, StoredImage), answer
    return answer


def rejection(path: Path, **options) -> RejectionCode:
    answer = headers(path, **options)
    if not isinstance(answer, Rejection):
        pixels = ImageReader(IntakeOptions(**options), DISK)((str(path), 0))
        assert isinstance(pixels, Rejection), "the file was accepted"
        return pixels.code
    return answer.code


@pytest.mark.parametrize("name", POLICIES)
def test_an_unknown_policy_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(UserError, match=", ".join(POLICIES[name])):
        replace(IntakeOptions(), **{name: "perhaps"})


# Frames


def make_frames(path: Path, n_frames: int = 3) -> Path:
    frames = np.stack([make_pixels(32, 40, seed=k) for k in range(n_frames)])
    return make_dicom(path, pixels=frames, NumberOfFrames=n_frames)


def test_several_frames_are_rejected_by_default(tmp_path: Path) -> None:
    assert rejection(make_frames(tmp_path / "image.dcm")) == RejectionCode.MULTI_FRAME


def test_the_policy_first_makes_one_record(tmp_path: Path) -> None:
    path = make_frames(tmp_path / "image.dcm")
    records = headers(path, multi_frame="first")
    assert not isinstance(records, Rejection)
    assert [record.frame for record in records] == [0]
    assert image(path, multi_frame="first").notes == (Note.FIRST_OF_FRAMES,)


def test_the_policy_each_makes_a_record_a_frame_with_its_own_pixels(tmp_path: Path) -> None:
    path = make_frames(tmp_path / "image.dcm")
    records = headers(path, multi_frame="each")
    assert not isinstance(records, Rejection)
    assert [record.frame for record in records] == [0, 1, 2]
    assert len({record.image_id for record in records}) == 3
    assert len({record.study_id for record in records}) == 1
    images = [image(path, frame=k, multi_frame="each") for k in range(3)]
    assert len({answer.pixel_hash for answer in images}) == 3
    assert images[2].notes == (Note.ONE_OF_FRAMES,)


def test_the_first_frame_keeps_the_files_pseudonym_so_that_labels_find_it(tmp_path: Path) -> None:
    records = headers(make_frames(tmp_path / "image.dcm"), multi_frame="each")
    assert not isinstance(records, Rejection)
    assert records[0].image_id == PSEUDONYMS.image(make_uid("image/instance"))


def test_an_absurd_number_of_frames_is_too_large(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "image.dcm", NumberOfFrames=2_000_000_000)
    assert rejection(path, multi_frame="each") == RejectionCode.TOO_LARGE


# FOR PROCESSING


def make_raw(path: Path, pixels: np.ndarray, **overrides) -> Path:
    attributes: dict[str, Any] = {
        "SOPClassUID": FOR_PROCESSING,
        "PresentationIntentType": "FOR PROCESSING",
        "PixelIntensityRelationship": "LIN",
        "PixelIntensityRelationshipSign": 1,
        "WindowCenter": None,
        "WindowWidth": None,
    }
    return make_dicom(path, pixels=pixels, **(attributes | overrides))


def make_beam() -> tuple[np.ndarray, np.ndarray]:
    """(thickness 0 to 1 from left to right, 12-bit beam intensity behind it): what a linear detector measures."""
    thickness = np.tile(np.linspace(0, 1, 64), (48, 1))
    return thickness, np.rint(4000 * np.exp(-3 * thickness)).astype(np.uint16)


def test_raw_values_are_rejected_by_default(tmp_path: Path) -> None:
    assert rejection(make_raw(tmp_path / "image.dcm", make_beam()[1])) == RejectionCode.FOR_PROCESSING


def test_the_log_of_a_linear_detectors_values_grows_evenly_with_thickness(tmp_path: Path) -> None:
    thickness, beam = make_beam()
    answer = image(make_raw(tmp_path / "image.dcm", beam), for_processing="log", bits=16)
    np.testing.assert_allclose(answer.pixels[:, 2:-2] / WHITE, thickness[:, 2:-2], atol=0.02)
    assert answer.notes == (Note.FOR_PROCESSING,)


@pytest.mark.parametrize(
    ("sign", "photometric"), [(1, "MONOCHROME1"), (1, "MONOCHROME2"), (-1, "MONOCHROME1"), (-1, "MONOCHROME2")]
)
@pytest.mark.parametrize("relationship", ["LIN", "LOG"])
def test_what_absorbs_is_bright_whatever_the_sign(
    tmp_path: Path, sign: int, photometric: str, relationship: str
) -> None:
    beam = make_beam()[1]
    values = beam if sign == 1 else 4095 - beam
    path = make_raw(
        tmp_path / "image.dcm",
        values,
        PixelIntensityRelationship=relationship,
        PixelIntensityRelationshipSign=sign,
        PhotometricInterpretation=photometric,
    )
    pixels = image(path, for_processing="log").pixels.astype(int)
    assert pixels[:, :8].max() < pixels[:, -8:].min()


def test_a_missing_sign_is_taken_from_the_photometric_interpretation_and_noted(tmp_path: Path) -> None:
    path = make_raw(
        tmp_path / "image.dcm",
        make_beam()[1],
        PixelIntensityRelationshipSign=None,
        PhotometricInterpretation="MONOCHROME1",
    )
    answer = image(path, for_processing="log")
    assert answer.pixels[0, 0] < answer.pixels[0, -1]
    assert answer.notes == (Note.FOR_PROCESSING, Note.SIGN_ASSUMED)


def test_raw_values_of_unknown_relationship_stay_rejected(tmp_path: Path) -> None:
    path = make_raw(tmp_path / "image.dcm", make_beam()[1], PixelIntensityRelationship=None)
    assert rejection(path, for_processing="log") == RejectionCode.FOR_PROCESSING


# Collimation


def make_field(*, top: int = 40, left: int = 30, rows: int = 200, columns: int = 150, noise: float = 20) -> np.ndarray:
    """A limb in an exposed field inside blades, 12 bits of 300 x 240, white under the blades."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[0:rows, 0:columns]
    middle = columns / 2 + 10 * np.sin(y / 40)
    limb = 1800 * np.exp(-(((x - middle) / (0.22 * columns)) ** 4))
    picture = np.full((300, 240), 4000.0)
    picture[top : top + rows, left : left + columns] = 200 + limb
    return np.clip(picture + generator.normal(0, noise, picture.shape), 0, 4095).astype(np.uint16)


def test_a_visible_border_is_cropped_and_recorded(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "image.dcm", pixels=make_field())
    answer = image(path, collimation="crop")
    assert answer.crop is not None
    found = (answer.crop.top, answer.crop.left, answer.crop.rows, answer.crop.columns)
    np.testing.assert_allclose(found, (40, 30, 200, 150), atol=2)
    assert answer.pixels.shape == (answer.crop.rows, answer.crop.columns)
    assert answer.notes == (Note.CROPPED_BY_BORDER,)


def test_the_border_of_a_monochrome1_image_is_found_after_inversion(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "image.dcm", pixels=4095 - make_field(), PhotometricInterpretation="MONOCHROME1")
    assert image(path, collimation="crop").notes == (Note.CROPPED_BY_BORDER,)


def test_the_border_is_kept_by_default(tmp_path: Path) -> None:
    answer = image(make_dicom(tmp_path / "image.dcm", pixels=make_field()))
    assert (answer.crop, answer.notes, answer.pixels.shape) == (None, (), (300, 240))


def test_a_border_on_one_side_alone_is_found(tmp_path: Path) -> None:
    pixels = make_field(top=0, left=60, rows=300, columns=180)
    answer = image(make_dicom(tmp_path / "image.dcm", pixels=pixels), collimation="crop")
    assert answer.crop is not None
    np.testing.assert_allclose((answer.crop.left, answer.crop.rows), (60, 300), atol=2)


def test_a_field_that_fills_the_image_is_not_cropped(tmp_path: Path) -> None:
    pixels = make_field(top=0, left=0, rows=300, columns=240)
    assert image(make_dicom(tmp_path / "image.dcm", pixels=pixels), collimation="crop").crop is None


def test_bright_tissue_that_reaches_the_rim_is_no_border() -> None:
    y, x = np.mgrid[0:300, 0:240]
    belly = WHITE * np.clip(1.3 - ((x - 120) / 150) ** 2 - ((y - 150) / 400) ** 2, 0, 1)
    assert visible_field(belly.astype(np.uint16)) is None


def test_a_slope_from_dark_to_white_is_no_border() -> None:
    for size in (32, 300):
        slope = np.tile(np.linspace(0, WHITE, size), (size, 1)).astype(np.uint16)
        assert visible_field(slope) is None
        assert visible_field(slope.T) is None


def test_a_small_field_in_a_large_white_plate_is_found(tmp_path: Path) -> None:
    pixels = make_field(top=100, left=80, rows=120, columns=100)
    answer = image(make_dicom(tmp_path / "image.dcm", pixels=pixels), collimation="crop")
    assert answer.crop is not None
    np.testing.assert_allclose((answer.crop.top, answer.crop.left, answer.crop.rows), (100, 80, 120), atol=2)


def test_blades_at_an_angle_are_left(tmp_path: Path) -> None:
    y, x = np.mgrid[0:300, 0:240]
    turned = np.abs((x - 120) + 0.4 * (y - 150)) < 70
    pixels = np.where(turned, np.uint16(600), np.uint16(4000)) + make_field(noise=20) // 40
    assert image(make_dicom(tmp_path / "image.dcm", pixels=pixels), collimation="crop").crop is None


def test_a_white_border_does_not_set_the_scale_of_the_cropped_image(tmp_path: Path) -> None:
    unwindowed: dict[str, Any] = {"WindowCenter": None, "WindowWidth": None}
    path = make_dicom(tmp_path / "image.dcm", pixels=make_field(), **unwindowed)
    assert np.quantile(image(path, collimation="keep").pixels[60:220, 50:160], 0.99) < 140
    assert np.quantile(image(path, collimation="crop").pixels, 0.99) > 240


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        (
            {
                "CollimatorShape": "RECTANGULAR",
                "CollimatorLeftVerticalEdge": 11,
                "CollimatorRightVerticalEdge": 200,
                "CollimatorUpperHorizontalEdge": 21,
                "CollimatorLowerHorizontalEdge": 280,
            },
            Crop(20, 10, 260, 190),
        ),
        (
            {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [150, 120], "RadiusOfCircularShutter": 100},
            Crop(49, 19, 201, 201),
        ),
        (
            {"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [31, 21, 31, 200, 270, 220, 260, 41]},
            Crop(30, 20, 240, 200),
        ),
        (
            {
                "ShutterShape": ["RECTANGULAR", "CIRCULAR"],
                "ShutterLeftVerticalEdge": 61,
                "ShutterRightVerticalEdge": 240,
                "ShutterUpperHorizontalEdge": 1,
                "ShutterLowerHorizontalEdge": 300,
                "CenterOfCircularShutter": [150, 120],
                "RadiusOfCircularShutter": 100,
            },
            Crop(49, 60, 201, 160),
        ),
    ],
    ids=["rectangle", "circle", "polygon", "both"],
)
def test_the_stated_field_is_cropped_before_any_border_is_looked_for(
    tmp_path: Path, attributes: dict, expected: Crop
) -> None:
    answer = image(make_dicom(tmp_path / "image.dcm", pixels=make_field(), **attributes), collimation="crop")
    assert (answer.crop, answer.notes) == (expected, (Note.CROPPED_BY_ATTRIBUTES,))


@pytest.mark.parametrize(
    "attributes",
    [
        {"CollimatorShape": "RECTANGULAR"},
        {"CollimatorShape": "CIRCULAR", "CenterOfCircularCollimator": [150, 120], "RadiusOfCircularCollimator": 2},
        {
            "CollimatorShape": "RECTANGULAR",
            "CollimatorLeftVerticalEdge": 200,
            "CollimatorRightVerticalEdge": 10,
            "CollimatorUpperHorizontalEdge": 1,
            "CollimatorLowerHorizontalEdge": 300,
        },
    ],
    ids=["no edges", "a dot", "right of itself"],
)
def test_an_implausible_stated_field_is_passed_over(tmp_path: Path, attributes: dict) -> None:
    pixels = make_field(top=0, left=0, rows=300, columns=240)
    assert image(make_dicom(tmp_path / "image.dcm", pixels=pixels, **attributes), collimation="crop").crop is None


def test_the_manifest_holds_crop_frame_notes_and_the_spacing_of_what_was_kept(tmp_path: Path) -> None:
    edges = {
        "Left": ("Vertical", 1),
        "Right": ("Vertical", 200),
        "Upper": ("Horizontal", 101),
        "Lower": ("Horizontal", 300),
    }
    shutter: dict[str, Any] = {f"Shutter{side}{way}Edge": at for side, (way, at) in edges.items()}
    path = make_dicom(
        tmp_path / "image.dcm", pixels=make_field(), ShutterShape="RECTANGULAR", PixelSpacing=[0.2, 0.2], **shutter
    )
    records = headers(path)
    assert not isinstance(records, Rejection)
    record = image(path, collimation="crop", longest_side_px=100).complete(records[0])
    (row,) = build_table([record], splits={record.patient_id: Split.TRAIN}).to_pylist()
    assert [row[f"crop_{name}"] for name in ("top", "left", "rows", "columns")] == [100, 0, 200, 200]
    assert (row["frame"], row["notes"], row["stored_rows"]) == (0, "cropped-by-attributes", 100)
    assert row["spacing_row_mm"] == pytest.approx(0.4)


def test_an_uncropped_image_has_nulls_in_the_manifest(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "image.dcm")
    records = headers(path)
    assert not isinstance(records, Rejection)
    record = image(path).complete(records[0])
    (row,) = build_table([record], splits={record.patient_id: Split.TRAIN}).to_pylist()
    assert [row[f"crop_{name}"] for name in ("top", "left", "rows", "columns")] == [None] * 4
    assert row["notes"] == ""
