"""Folders of DICOM slices as volumes: the same voxels as NIfTI gives, whatever the order of the files, and refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import JPEGLSLossless, RLELossless

from tests.factories import make_dicom, make_uid
from tests.series_factory import (
    PLANES,
    SPACING,
    asymmetric_phantom,
    slices_of,
    write_enhanced,
    write_nifti,
    write_series,
)
from vet_extensions.errors import UserError
from vet_extensions.evaluation.datasets.volume_files import read_grid, read_volume, volume_content

pytest.importorskip("nibabel")


@pytest.mark.parametrize("plane", sorted(PLANES))
def test_a_volume_reads_equal_as_nifti_and_as_series_of_any_plane(tmp_path: Path, plane: str) -> None:
    phantom = asymmetric_phantom()
    nifti = write_nifti(tmp_path / "a.nii.gz", phantom)
    folder = write_series(tmp_path / plane, slices_of(phantom, plane))
    values = read_volume(folder)
    assert values.dtype == np.float32
    assert np.array_equal(values, read_volume(nifti))
    # Independently of both readers: Z from the feet up, H from the front back, W from the patient's right to the left.
    assert np.array_equal(values, phantom[::-1, ::-1].transpose(2, 1, 0))
    grid, other = read_grid(folder), read_grid(nifti)
    assert grid.shape == other.shape == values.shape
    assert grid.spacing == pytest.approx(other.spacing)
    assert grid.spacing == pytest.approx(SPACING[::-1])
    assert grid.corners == pytest.approx(other.corners, abs=1e-4)


def test_corners_are_the_places_of_the_first_and_the_last_voxel(tmp_path: Path) -> None:
    phantom = asymmetric_phantom()
    corners = read_grid(write_nifti(tmp_path / "a.nii", phantom)).corners
    x, y, z = (np.array(phantom.shape) - 1) * SPACING
    assert corners == pytest.approx(np.array([[x, y, 0], [0, 0, z]]), abs=1e-4)  # right, front, feet; left, back, head


def test_neither_file_names_nor_instance_numbers_decide_the_order(tmp_path: Path) -> None:
    slices = slices_of(asymmetric_phantom())
    names = [f"IM{number:03d}" for number in np.random.default_rng(1).permutation(len(slices))]
    straight = write_series(tmp_path / "straight", slices)
    shuffled = write_series(tmp_path / "shuffled", slices, names=names)
    reversed_ = write_series(tmp_path / "reversed", [s | {"InstanceNumber": n} for n, s in enumerate(slices[::-1])])
    assert np.array_equal(read_volume(shuffled), read_volume(straight))
    assert np.array_equal(read_volume(reversed_), read_volume(straight))


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_compressed_series_read_equal(tmp_path: Path, syntax: str) -> None:
    phantom = asymmetric_phantom()
    folder = write_series(tmp_path / "s", slices_of(phantom), transfer_syntax=syntax)
    assert np.array_equal(read_volume(folder), phantom[::-1, ::-1].transpose(2, 1, 0))


@pytest.mark.parametrize("plane", ["axial", "sagittal"])
def test_an_enhanced_file_reads_as_its_slices_do(tmp_path: Path, plane: str) -> None:
    slices = slices_of(asymmetric_phantom(), plane)
    order = np.random.default_rng(2).permutation(len(slices))
    write_enhanced(tmp_path / "enhanced/all.dcm", [slices[index] for index in order])
    classic = write_series(tmp_path / "classic", slices)
    assert np.array_equal(read_volume(tmp_path / "enhanced"), read_volume(classic))
    assert read_grid(tmp_path / "enhanced").spacing == pytest.approx(read_grid(classic).spacing)


def test_each_slice_has_its_own_slope(tmp_path: Path) -> None:
    """PET scanners scale every slice by itself."""
    slices = slices_of(asymmetric_phantom())
    slopes = [0.5 + 0.25 * index for index in range(len(slices))]
    folder = write_series(
        tmp_path / "pet",
        [s | {"RescaleSlope": slope, "RescaleIntercept": 0} for s, slope in zip(slices, slopes, strict=True)],
    )
    expected = np.stack([s["pixels"] * np.float64(slope) for s, slope in zip(slices, slopes, strict=True)])
    assert np.allclose(read_volume(folder), expected)


def test_an_oblique_series_lies_as_its_nearest_axes(tmp_path: Path) -> None:
    angle = np.radians(20)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    slices = slices_of(asymmetric_phantom())
    tilted = []
    for attributes in slices:
        axes = np.array(attributes["ImageOrientationPatient"]).reshape(2, 3) @ turn.T
        place = turn @ np.array(attributes["ImagePositionPatient"])
        places = {
            "ImagePositionPatient": place.round(5).tolist(),
            "ImageOrientationPatient": axes.round(7).ravel().tolist(),
        }
        tilted.append(attributes | places)
    folder = write_series(tmp_path / "oblique", tilted)
    assert np.array_equal(read_volume(folder), read_volume(write_series(tmp_path / "straight", slices)))
    assert read_grid(folder).spacing == pytest.approx(SPACING[::-1], abs=1e-4)


def test_positions_rounded_to_tenths_of_a_millimetre_are_even_enough(tmp_path: Path) -> None:
    slices = slices_of(asymmetric_phantom())
    for index, attributes in enumerate(slices):
        attributes["ImagePositionPatient"][2] = round(0.625 * index, 1)
    assert read_grid(write_series(tmp_path / "s", slices)).spacing[0] == pytest.approx(0.625, abs=0.01)


def test_hidden_files_and_tables_of_contents_are_no_slices(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", slices_of(asymmetric_phantom()))
    for name in ("._IM0000.dcm", ".DS_Store", "DICOMDIR", "Thumbs.db"):
        (folder / name).write_bytes(b"nothing")
    assert read_grid(folder).shape[0] == 16
    assert len(volume_content(folder)) == 16


def damage_gap(slices: list[dict[str, Any]]) -> None:
    del slices[4]


def damage_uneven(slices: list[dict[str, Any]]) -> None:
    slices[-1]["ImagePositionPatient"][2] += 0.5


def damage_duplicate(slices: list[dict[str, Any]]) -> None:
    slices[5]["ImagePositionPatient"] = slices[6]["ImagePositionPatient"]


def damage_two_series(slices: list[dict[str, Any]]) -> None:
    for attributes in slices[:6]:
        attributes["SeriesInstanceUID"] = make_uid("another")


def damage_size(slices: list[dict[str, Any]]) -> None:
    slices[3]["pixels"] = np.zeros((20, 18), np.uint16)


def damage_orientation(slices: list[dict[str, Any]]) -> None:
    slices[3]["ImageOrientationPatient"] = [0.0, 1, 0, 0, 0, -1]


def damage_frame_of_reference(slices: list[dict[str, Any]]) -> None:
    slices[3]["FrameOfReferenceUID"] = make_uid("moved")


def damage_spacing(slices: list[dict[str, Any]]) -> None:
    slices[3]["PixelSpacing"] = [0.5, 0.5]


def damage_position(slices: list[dict[str, Any]]) -> None:
    slices[3]["ImagePositionPatient"] = None


def damage_axes(slices: list[dict[str, Any]]) -> None:
    for attributes in slices:
        attributes["ImageOrientationPatient"] = [1.0, 0, 0, 1, 0, 0]


def damage_tilt(slices: list[dict[str, Any]]) -> None:
    for index, attributes in enumerate(slices):
        attributes["ImagePositionPatient"][1] += 2.5 * index * np.tan(np.radians(15))
        attributes["ImagePositionPatient"] = [round(value, 4) for value in attributes["ImagePositionPatient"]]


def damage_frames(slices: list[dict[str, Any]]) -> None:
    slices[3] |= {"pixels": np.zeros((2, 17, 18), np.uint16), "NumberOfFrames": 2}


def damage_localiser(slices: list[dict[str, Any]]) -> None:
    del slices[1:]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (
            damage_gap,
            r"Between slices 4 and 5 of 15, .*IM0003.dcm' and 'IM0004.dcm'\), are 5.00 mm, usual are 2.50; 1 of 14",
        ),
        (damage_uneven, r"Between slices 15 and 16 of 16, .* are 3.00 mm, usual are 2.50"),
        (damage_duplicate, r"1 of 16 slices lie where another one does, such as 'IM0005.dcm' and 'IM0006.dcm'"),
        (damage_two_series, r"holds 2 series, of 10, 6 slices. Put each into a folder of its own"),
        (damage_size, r"1 of 16 slices have another size \(Rows, Columns\) than the rest, such as 'IM0003.dcm'"),
        (damage_orientation, r"1 of 16 slices have another ImageOrientationPatient"),
        (damage_frame_of_reference, r"1 of 16 slices have another FrameOfReferenceUID"),
        (damage_spacing, r"1 of 16 slices have another PixelSpacing"),
        (damage_position, r"'IM0003.dcm' states no ImagePositionPatient"),
        (damage_axes, r"'IM0000.dcm' has directions that are not at right angles"),
        (damage_tilt, r"shifted sideways by up to 10.0 mm \(a gantry tilted by 15.0 degrees\)"),
        (damage_frames, r"'IM0003.dcm' has 2 frames and states the places of 0"),
        (damage_localiser, r"holds 1 DICOM slices; a volume has at least 2"),
    ],
)
def test_what_is_no_even_stack_of_one_series_is_refused(tmp_path: Path, damage: Any, told: str) -> None:
    slices = slices_of(asymmetric_phantom())
    damage(slices)
    folder = write_series(tmp_path / "s", slices)
    for read in (read_grid, read_volume):
        with pytest.raises(UserError, match=told):
            read(folder)


def test_a_folder_without_slices_and_a_channel_that_is_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="'empty' holds 0 DICOM slices"):
        read_grid(tmp_path / "empty")
    folder = write_series(tmp_path / "s", slices_of(asymmetric_phantom()))
    with pytest.raises(UserError, match="s has 1 channels, and number 1 was asked for"):
        read_volume(folder, channel=1)


def test_a_file_that_is_no_dicom_or_is_torn_is_named(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", slices_of(asymmetric_phantom()))
    (folder / "notes.txt").write_text("read me")
    with pytest.raises(UserError, match=r"'notes.txt' cannot be read \(NOT_DICOM"):
        read_grid(folder)
    (folder / "notes.txt").unlink()
    whole = (folder / "IM0005.dcm").read_bytes()
    (folder / "IM0005.dcm").write_bytes(whole[:-40])
    with pytest.raises(UserError, match=r"'IM0005.dcm' cannot be read \(PIXEL_DATA_TRUNCATED"):
        read_volume(folder)


def test_a_torn_compressed_slice_is_not_filled_with_grey(tmp_path: Path) -> None:
    slices = slices_of(asymmetric_phantom())
    folder = write_series(tmp_path / "s", slices, transfer_syntax=JPEGLSLossless)
    torn = (folder / "IM0005.dcm").read_bytes().replace(b"\xff\xd9", b"\x00\x00")
    (folder / "IM0005.dcm").write_bytes(torn)
    with pytest.raises(UserError, match=r"'IM0005.dcm' cannot be read \(PIXEL_DATA_TRUNCATED"):
        read_volume(folder)


def test_who_gives_one_slice_for_its_series_is_told_to_give_the_folder(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", slices_of(asymmetric_phantom()))
    with pytest.raises(UserError, match=r"IM0005.dcm is no readable NIfTI file .* of a DICOM series, give the folder"):
        read_grid(folder / "IM0005.dcm")


def test_a_colour_picture_is_no_slice(tmp_path: Path) -> None:
    slices = slices_of(asymmetric_phantom())
    folder = write_series(tmp_path / "s", slices[:-1])
    colour: dict[str, Any] = slices[-1] | {"pixels": np.zeros((17, 18), np.uint8)}
    make_dicom(
        folder / "IM0015.dcm",
        **colour,
        SeriesInstanceUID=make_uid(f"{folder}/series"),
        FrameOfReferenceUID=make_uid(f"{folder}/frame"),
        SamplesPerPixel=3,
        PhotometricInterpretation="RGB",
        PlanarConfiguration=0,
        PixelData=bytes(17 * 18 * 3 + 17 * 18 * 3 % 2),
    )
    with pytest.raises(UserError, match=r"'IM0015.dcm' is in colour \(RGB\)"):
        read_volume(folder)
