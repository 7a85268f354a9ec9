"""DICOM series on the disk, and the same volume as NIfTI, for the tests of volumes.

A phantom is int16 [X, Y, Z] to the patient's right, front and up, as NIfTI counts. Shape legend: N slices of rows x columns.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from tests.factories import make_dicom, make_uid

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
SPACING = (0.8, 0.9, 2.5)
"""mm along X, Y, Z."""
INTERCEPT = -1024

PLANES = {
    # Directions of growing columns and of growing rows, to the patient's left, back and up, as scanners write them.
    "axial": ((1, 0, 0), (0, 1, 0)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
}


def asymmetric_phantom(shape: tuple[int, int, int] = (18, 17, 16), *, seed: int = 0) -> np.ndarray:
    """No axis can be turned, and no two exchanged, without being seen. Hounsfield units."""
    x, y, z = np.indices(shape)
    noise = np.random.default_rng(seed).integers(0, 5, shape)
    return (-900 + 3 * x + 40 * y + 100 * z // 2 + noise).astype(np.int16)


def write_nifti(path: Path, values: np.ndarray, *, affine: np.ndarray | None = None) -> Path:
    nibabel = pytest.importorskip("nibabel")
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*SPACING, 1.0]) if affine is None else affine
    nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), affine), path)
    return path


def slices_of(phantom: np.ndarray, plane: str = "axial") -> list[dict[str, Any]]:
    """For each slice what `make_dicom` takes, along the scanner's direction.

    Written from the definition: the place of every voxel is asked for one by one, with no code of the reader's.
    """
    along_row, along_column = (np.array(axis) for axis in PLANES[plane])
    normal = np.cross(along_row, along_column)
    size, spacing = np.array(phantom.shape), np.array(SPACING)
    to_lps = np.array([-1, -1, 1])
    # Steps in indices of the phantom, and the corner from which all three run forward.
    steps = [axis * to_lps for axis in (normal, along_column, along_row)]
    corner = np.where(np.sum(steps, axis=0) > 0, 0, size - 1)
    n, rows, columns = (int(size[np.flatnonzero(step)[0]]) for step in steps)
    gap_mm, row_mm, column_mm = (float(spacing[np.flatnonzero(step)[0]]) for step in steps)
    made = []
    for index in range(n):
        pixels = np.empty((rows, columns), np.uint16)
        for row in range(rows):
            for column in range(columns):
                place = corner + index * steps[0] + row * steps[1] + column * steps[2]
                pixels[row, column] = phantom[tuple(place)] - INTERCEPT
        first = (corner + index * steps[0]) * spacing * to_lps
        made.append(
            {
                "pixels": pixels,
                "ImagePositionPatient": [round(float(value), 6) for value in first],
                "ImageOrientationPatient": [*map(float, along_row), *map(float, along_column)],
                "PixelSpacing": [row_mm, column_mm],
                "SliceThickness": gap_mm,
            }
        )
    return made


def write_series(
    folder: Path,
    slices: list[dict[str, Any]],
    *,
    names: list[str] | None = None,
    transfer_syntax: str = ExplicitVRLittleEndian,
    **overrides: Any,
) -> Path:
    """A file for each slice, in the order of the list. names: of the files without suffix, numbered where none are given."""
    for index, attributes in enumerate(slices):
        name = names[index] if names else f"IM{index:04d}"
        make_dicom(
            folder / f"{name}.dcm",
            **_attributes(folder, index) | attributes | overrides,
            transfer_syntax=transfer_syntax,
        )
    return folder


def write_enhanced(path: Path, slices: list[dict[str, Any]], **overrides: Any) -> Path:
    """All slices as frames of one Enhanced CT file: place and values by frame, orientation and spacing shared."""
    shared, frames = Dataset(), []
    shared.PlaneOrientationSequence = [_item(slices[0], "ImageOrientationPatient")]
    shared.PixelMeasuresSequence = [_item(slices[0], "PixelSpacing", "SliceThickness")]
    for attributes in slices:
        frame, values = Dataset(), Dataset()
        frame.PlanePositionSequence = [_item(attributes, "ImagePositionPatient")]
        values.RescaleSlope, values.RescaleIntercept = 1, INTERCEPT
        frame.PixelValueTransformationSequence = [values]
        frames.append(frame)
    stack = np.stack([attributes["pixels"] for attributes in slices])
    general = _attributes(path.parent, 0) | {"SOPClassUID": ENHANCED_CT, "RescaleSlope": None, "RescaleIntercept": None}
    groups = {
        "NumberOfFrames": len(slices),
        "Rows": stack.shape[1],
        "Columns": stack.shape[2],
        "SharedFunctionalGroupsSequence": [shared],
        "PerFrameFunctionalGroupsSequence": frames,
    }
    return make_dicom(path, pixels=stack, **general | groups | overrides)


def _attributes(folder: Path, index: int) -> dict[str, Any]:
    return {
        "SOPClassUID": CT_IMAGE,
        "Modality": "CT",
        "SeriesInstanceUID": make_uid(f"{folder}/series"),
        "FrameOfReferenceUID": make_uid(f"{folder}/frame"),
        "SOPInstanceUID": make_uid(f"{folder}/{index}"),
        "InstanceNumber": 7,
        "RescaleSlope": 1,
        "RescaleIntercept": INTERCEPT,
        "ImagerPixelSpacing": None,
    }


def _item(attributes: dict[str, Any], *keywords: str) -> Dataset:
    item = Dataset()
    for keyword in keywords:
        setattr(item, keyword, attributes[keyword])
    return item
