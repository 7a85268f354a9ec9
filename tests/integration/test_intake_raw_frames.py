"""Every frame, raw values and collimation together on one file, through the whole intake."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import make_dicom

from tests.unit.vet_extensions.intake.test_intake_policies import FOR_PROCESSING, make_field
from vet_extensions.intake.options import IntakeOptions
from vet_extensions.intake.run import run_intake
from vet_extensions.manifest import Manifest
from vet_extensions.shards import ShardReader

FIELDS: tuple[dict[str, int], ...] = (
    {"top": 40, "left": 30, "rows": 200, "columns": 150},
    {"top": 70, "left": 20, "rows": 180, "columns": 170},
    {"top": 0, "left": 60, "rows": 300, "columns": 120},
)
SHUTTER: dict[str, Any] = {
    "ShutterShape": "RECTANGULAR",
    "ShutterLeftVerticalEdge": 31,
    "ShutterRightVerticalEdge": 180,
    "ShutterUpperHorizontalEdge": 41,
    "ShutterLowerHorizontalEdge": 240,
}
RAW: dict[str, Any] = {
    "SOPClassUID": FOR_PROCESSING,
    "PresentationIntentType": "FOR PROCESSING",
    "PixelIntensityRelationship": "LIN",
    "PixelIntensityRelationshipSign": 1,
    "WindowCenter": None,
    "WindowWidth": None,
    "ImagerPixelSpacing": [0.2, 0.1],
}


def take_in(path: Path, **policies: str) -> list[tuple[dict[str, Any], np.ndarray]]:
    """(row of the manifest, stored pixels) of each image in a file's folder, in the order of the frames."""
    out = path.parent.parent / f"out of {path.parent.name} {len(policies)}"
    options = replace(IntakeOptions(salt="a salt for tests", longest_side_px=100), for_processing="log", **policies)
    run_intake(path.parent, out, options=options, n_workers=0)
    reader = ShardReader(out)
    images = [(row, reader.read(number)) for number, row in enumerate(Manifest.open(out).table.to_pylist())]
    return sorted(images, key=lambda image: image[0]["frame"])


def crop_of(row: dict[str, Any]) -> list[int]:
    return [row[f"crop_{name}"] for name in ("top", "left", "rows", "columns")]


@pytest.mark.parametrize("attributes", [{}, SHUTTER], ids=["visible border", "stated shutter"])
def test_raw_frames_inside_blades_become_what_each_frame_becomes_alone(tmp_path: Path, attributes: dict) -> None:
    # Little of the beam passes the blades; more noise there would grow under the logarithm, until no border is left to be seen.
    beams = [4095 - make_field(**field, noise=5) for field in FIELDS]
    frames = make_dicom(
        tmp_path / "frames" / "frames.dcm", pixels=np.stack(beams), NumberOfFrames=3, **RAW, **attributes
    )
    together = take_in(frames, multi_frame="each", collimation="crop")
    whole = take_in(frames, multi_frame="each")
    note = "cropped-by-attributes" if attributes else "cropped-by-border"
    assert [row["frame"] for row, _ in together] == [row["frame"] for row, _ in whole] == [0, 1, 2]
    assert [row["image_id"] for row, _ in together] == [row["image_id"] for row, _ in whole]
    assert {row["notes"] for row, _ in whole} == {"for-processing,one-of-frames"}
    for number, (row, pixels) in enumerate(together):
        single = make_dicom(tmp_path / f"single {number}" / "single.dcm", pixels=beams[number], **RAW, **attributes)
        ((alone, its_pixels),) = take_in(single, collimation="crop")
        assert row["notes"] == f"for-processing,one-of-frames,{note}"
        assert alone["notes"] == f"for-processing,{note}"
        same = ("stored_rows", "stored_columns", "spacing_row_mm", "spacing_column_mm", "pixel_hash", "rows", "columns")
        assert [row[name] for name in same] == [alone[name] for name in same]
        np.testing.assert_array_equal(pixels, its_pixels)
        assert crop_of(row) == crop_of(alone)
        np.testing.assert_allclose(
            crop_of(row), [40, 30, 200, 150] if attributes else list(FIELDS[number].values()), atol=2
        )
        assert row["spacing_row_mm"] == pytest.approx(0.2 * row["crop_rows"] / row["stored_rows"])
        assert row["spacing_column_mm"] == pytest.approx(0.1 * row["crop_columns"] / row["stored_columns"])
    assert len({row["pixel_hash"] for row, _ in (*together, *whole)}) == 6
