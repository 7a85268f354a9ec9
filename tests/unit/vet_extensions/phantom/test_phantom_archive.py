"""A phantom archive on disk: complete, deterministic, resumable, and never mixed with another one."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.pixels import apply_voi_lut

from vet_extensions.errors import UserError
from vet_extensions.phantom import archive as archive_module
from vet_extensions.phantom.archive import masks_of, write_archive
from vet_extensions.phantom.render import render_view
from vet_extensions.phantom.studies import LANDMARKS, sample_study
from vet_extensions.phantom.truth import read_truth
from vet_extensions.schema import FINDINGS, View

REQUEST: dict[str, Any] = {"n_studies": 9, "seed": 3, "size_px": 64, "views": (View.LATERAL_RIGHT, View.VD)}
SMALL: dict[str, Any] = {"n_studies": 1, "size_px": 32, "views": (View.DV,)}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("archive") / "out"
    write_archive(out, **REQUEST)
    return out


@pytest.fixture(scope="module")
def rows(archive: Path) -> list[dict[str, Any]]:
    return read_truth(archive).to_pylist()


def contents(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def landmark(row: dict[str, Any], name: str) -> dict[str, float]:
    return next(point for point in row["landmarks"] if point["name"] == name)


def test_truth_has_one_row_per_file_and_agrees_with_its_header(archive: Path, rows: list[dict[str, Any]]) -> None:
    files = {path.relative_to(archive).as_posix() for path in archive.rglob("*.dcm")}
    assert {row["path"] for row in rows} == files
    assert len(rows) == 18
    for row in rows:
        dataset = dcmread(archive / row["path"])
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            assert dataset[keyword].value == row[keyword]
        assert dataset.PatientID == row["patient_id"]
        assert dataset.file_meta.TransferSyntaxUID == row["transfer_syntax"]
        assert dataset.PhotometricInterpretation == row["photometric"]
        assert (dataset.Rows, dataset.Columns) == (row["size_px"], row["size_px"])
        assert dataset.pixel_array.max() < 2 ** row["bits_stored"]


def test_files_hold_the_rendered_views(archive: Path, rows: list[dict[str, Any]]) -> None:
    linear = [row for row in rows if row["voi_transform"] == "LINEAR" and row["modality_transform"] == "IDENTITY"]
    assert linear
    for row in linear:
        study = sample_study(REQUEST["seed"], row["study_number"], views=REQUEST["views"])
        image = render_view(study, study.exposures[row["image_index"]], row["size_px"]).image
        dataset = dcmread(archive / row["path"])
        span = row["stored_high"] - row["stored_low"]
        shown = (np.clip(dataset.pixel_array, row["stored_low"], row["stored_high"]) - row["stored_low"]) / span
        shown = 1 - shown if row["photometric"] == "MONOCHROME1" else shown
        assert np.abs(shown - image).max() <= 0.5 / span + 1e-6


def test_findings_and_labels_are_those_of_the_studies(archive: Path, rows: list[dict[str, Any]]) -> None:
    findings = {n: sample_study(REQUEST["seed"], n).findings for n in range(REQUEST["n_studies"])}
    assert all(row[name] == findings[row["study_number"]][name] for row in rows for name in FINDINGS)
    with (archive / "labels.csv").open(newline="", encoding="utf-8") as stream:
        labels = {label["StudyInstanceUID"]: label for label in csv.DictReader(stream)}
    assert len(labels) == REQUEST["n_studies"]
    assert all(int(labels[row["StudyInstanceUID"]][name]) == row[name] for row in rows for name in FINDINGS)


def test_present_findings_have_a_place_in_space_and_in_the_picture(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert {point["finding"] for point in row["finding_centroids"]} == {name for name in FINDINGS if row[name]}
        assert len(row["landmarks"]) == len(LANDMARKS)
        assert all(np.isfinite(list(point.values())[1:]).all() for point in row["landmarks"] + row["finding_centroids"])


def test_orientation_letters_point_where_the_landmarks_lie(archive: Path, rows: list[dict[str, Any]]) -> None:
    """Columns and rows grow towards the named end of the animal: caudal, ventral, left (feet, anterior, left in a biped)."""
    seen = set()
    for row in rows:
        letters = tuple(dcmread(archive / row["path"]).get("PatientOrientation", ()))
        first, last, sternum = landmark(row, "T2"), landmark(row, "T12"), landmark(row, "sternebra_4")
        left, right = landmark(row, "rib_9_left"), landmark(row, "rib_9_right")
        caudal = {axis: last[axis] > first[axis] for axis in ("column_px", "row_px")}
        if letters in {("CD", "V"), ("F", "A")}:
            assert row["view"] == View.LATERAL_RIGHT
            assert caudal["column_px"]
            assert sternum["row_px"] > first["row_px"]
        elif letters:
            assert letters in {("LE", "CD"), ("L", "F")}
            assert row["view"] == View.VD
            assert caudal["row_px"]
            assert left["column_px"] > right["column_px"]
        seen.add(letters)
    assert len(seen) >= 4


def test_spacing_on_the_detector_shows_the_animal_magnified(rows: list[dict[str, Any]]) -> None:
    for row in (row for row in rows if row["view"] == View.LATERAL_RIGHT):
        first, last = landmark(row, "T1"), landmark(row, "T13")
        in_body = np.hypot(last["x_mm"] - first["x_mm"], last["z_mm"] - first["z_mm"])
        in_image = np.hypot(last["column_px"] - first["column_px"], last["row_px"] - first["row_px"])
        assert 1.02 < in_image * row["pixel_spacing_mm"] / in_body < 1.25


def test_the_organ_masks_of_an_image_lie_under_its_landmarks(archive: Path, rows: list[dict[str, Any]]) -> None:
    row = rows[0]
    masks = masks_of(archive, row["SOPInstanceUID"])
    heart = landmark(row, "heart_centre")
    assert all(mask.shape == (64, 64) and mask.dtype == bool for mask in masks.values())
    assert masks["heart"][round(heart["row_px"]), round(heart["column_px"])]
    assert masks["heart"].sum() < masks["lung"].sum()


def test_masks_of_an_unknown_image_are_refused_without_repeating_its_identifier(archive: Path) -> None:
    with pytest.raises(UserError, match="SOPInstanceUID") as refusal:
        masks_of(archive, "1.2.3.4")
    assert "1.2.3.4" not in str(refusal.value)


@pytest.mark.slow
def test_two_workers_write_the_same_archive(archive: Path, tmp_path: Path) -> None:
    counts: list[int] = []
    write_archive(tmp_path / "out", **REQUEST, n_workers=2, on_progress=counts.append)
    assert contents(tmp_path / "out") == contents(archive)
    assert sorted(counts) == counts
    assert counts[-1] == REQUEST["n_studies"]


def test_an_interrupted_archive_goes_on_where_it_stopped(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def stop(n_done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_archive(out, **REQUEST, on_progress=stop)
    first = {path: path.stat().st_mtime_ns for path in out.rglob("*.dcm")}
    assert 0 < len(first) < 18
    summary = write_archive(out, **REQUEST)
    assert contents(out) == contents(archive)
    assert all(path.stat().st_mtime_ns == written for path, written in first.items())
    assert summary.n_images_kept == len(first)


@pytest.mark.parametrize("damage", ["deleted", "cut"])
def test_a_damaged_file_of_a_finished_archive_is_written_again(tmp_path: Path, damage: str) -> None:
    out = tmp_path / "out"
    write_archive(out, **SMALL)
    whole = contents(out)
    file = next(out.rglob("*.dcm"))
    if damage == "deleted":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-100])
    write_archive(out, **SMALL)
    assert contents(out) == whole


def test_a_finished_archive_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    write_archive(out, **SMALL)

    def refuse(*_: object) -> Iterator[dict]:
        raise AssertionError("nothing was to be written")

    monkeypatch.setattr(archive_module, "_write_study", refuse)
    summary = write_archive(out, **SMALL)
    assert summary.n_images_kept == summary.n_images == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed 0"),
        ({"size_px": 48}, "size_px 32"),
        ({"n_studies": 2}, "n_studies 1"),
        ({"plain": True}, "plain"),
    ],
)
def test_a_folder_with_another_archive_is_refused(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    write_archive(tmp_path, **SMALL)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=f"another archive: {named}"):
        write_archive(tmp_path, **SMALL | change)
    assert contents(tmp_path) == before


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(UserError, match="not empty"):
        write_archive(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("change", "named"),
    [({"n_studies": 0}, "0 studies"), ({"size_px": 16}, "16 px"), ({"seed": -1}, "-1"), ({"profile": "odd"}, "odd")],
)
def test_an_impossible_request_is_refused_before_anything_is_written(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(UserError, match=named):
        write_archive(tmp_path / "out", **SMALL | change)
    assert not (tmp_path / "out").exists()


def test_the_archive_says_what_it_is(archive: Path) -> None:
    stated = json.loads((archive / "archive.json").read_text(encoding="utf-8"))
    assert stated["request"]["seed"] == REQUEST["seed"]
    assert stated["counts"]["n_images"] == 18
    assert {path.name for path in archive.iterdir()} == {"archive.json", "dicom", "labels.csv", "truth.parquet"}


def test_a_plain_archive_is_displayed_by_its_one_window(tmp_path: Path) -> None:
    write_archive(tmp_path, **SMALL, plain=True)
    (row,) = read_truth(tmp_path).to_pylist()
    dataset = dcmread(tmp_path / row["path"])
    shown = apply_voi_lut(dataset.pixel_array, dataset)
    study = sample_study(0, 0, views=SMALL["views"])
    image = render_view(study, study.exposures[0], 32).image
    assert np.abs(shown / (2**dataset.BitsStored - 1) - image).max() < 1e-3
