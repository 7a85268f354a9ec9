"""Slices put together to volumes: 3-D scores equal monai's, spacing counts, masks lie on the image, a run has both levels."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from segmentation_factory import make_backbone, make_set

from tests.series_factory import SPACING as PHANTOM_SPACING
from tests.series_factory import asymmetric_phantom, slices_of, write_series
from vet_extensions.errors import UserError
from vet_extensions.evaluation.datasets.label_maps import open_segmentation
from vet_extensions.evaluation.datasets.volume_files import read_volume
from vet_extensions.evaluation.results import Result
from vet_extensions.evaluation.segmentation.judging import judge, scored_units
from vet_extensions.evaluation.segmentation.run import PATCH_GRID_TRUTH, run_segmentation
from vet_extensions.evaluation.segmentation.saving import mask_writer, write_label_map
from vet_extensions.evaluation.segmentation.scores import CaseScores
from vet_extensions.evaluation.segmentation.sets import SegmentationSet, SlicedVolumes
from vet_extensions.evaluation.segmentation.training import SegmentationConfig, fit

SPACING = (3.0, 0.7, 1.1)
TOLERANCE_MM = 2.0
QUICK = SegmentationConfig(learning_rates=(0.03,), epochs=1, batch_size=8, image_size_px=16)
CLASSES = {"0": "background", "1": "liver", "2": "cancer"}


def blob(generator: np.random.Generator, like: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """A ragged mask [Z, H, W] inside its volume; with `like`, one that resembles it."""
    frame = np.zeros((12, 40, 32))
    frame[2:-2, 5:-5, 5:-5] = 1
    noise = gaussian_filter(generator.standard_normal(frame.shape), (1, 3, 3)) * frame
    if like is None:
        return noise > 0.02
    return (gaussian_filter(like.astype(float), 1) + 3 * noise) * frame > 0.5


def sliced(truths: NDArray[np.int64], *, spacing_mm: tuple[float, ...] = SPACING) -> SegmentationSet:
    """Volumes [V, Z, H, W] of one split each: the first trains, the second validates, the others test."""
    n, depth = truths.shape[:2]
    number = np.repeat(np.arange(n), depth)
    flat = truths.reshape(-1, *truths.shape[2:])
    return SegmentationSet(
        name="blobs",
        class_names=("background", "blob"),
        split=np.array(["train", "val", *["test"] * (n - 2)])[number],
        patient_codes=number,
        read=lambda row: flat[row].astype(np.uint8),
        mask=lambda row: flat[row],
        spacing_mm=np.tile(spacing_mm[1:], (len(flat), 1)),
        content_hash="abc",
        volumes=SlicedVolumes(number, np.tile(spacing_mm, (n, 1)), ()),
    )


def pairs(n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Truths and predictions [V, Z, H, W]."""
    generator = np.random.default_rng(0)
    truths = [blob(generator) for _ in range(n)]
    found = [blob(generator, truth) for truth in truths]
    return np.stack(truths).astype(np.int64), np.stack(found).astype(np.int64)


def judged(found: NDArray[np.int64], data: SegmentationSet) -> dict[str, CaseScores]:
    return judge(lambda row: found.reshape(-1, *found.shape[2:])[row], data, tolerance_mm=TOLERANCE_MM)


def test_stacked_slices_have_the_dice_hd95_and_surface_dice_of_monai_in_3d() -> None:
    pytest.importorskip("monai")
    import torch
    from monai.metrics import DiceMetric, compute_hausdorff_distance, compute_surface_dice

    truths, found = pairs(6)
    scores = judged(found, sliced(truths))["volume"]
    assert scores.case_dice.shape == (4, 1)
    for place, number in enumerate(range(2, 6)):
        one, other = (torch.from_numpy(volumes[number])[None, None].bool() for volumes in (found, truths))
        theirs = float(torch.as_tensor(DiceMetric(include_background=True)(one.float(), other.float())))
        assert scores.case_dice[place, 0] == pytest.approx(theirs, abs=1e-6)
        theirs = compute_hausdorff_distance(one, other, include_background=True, percentile=95, spacing=SPACING).item()
        assert scores.hd95_mm[place, 0] == pytest.approx(theirs, abs=1e-3)
        arguments = {"class_thresholds": [TOLERANCE_MM], "include_background": True, "spacing": SPACING}
        theirs = compute_surface_dice(one, other, **arguments).item()
        assert scores.surface_dice[place, 0] == pytest.approx(theirs, abs=1e-6)


def test_a_volume_is_scored_otherwise_than_its_slices() -> None:
    """A ball found one slice too high: every slice but the outer ones is near, the volume is a slice's distance off."""
    z, y, x = np.ogrid[:12, :40, :32]
    ball = ((z - 5) ** 2 * 9 + (y - 20) ** 2 + (x - 16) ** 2 < 100).astype(np.int64)
    truths = np.stack([ball] * 3)
    scores = judged(np.roll(truths, 1, axis=1), sliced(truths))
    volume, slices = scores["volume"].averages(), scores["image"].averages()
    overlap = int((ball * np.roll(ball, 1, axis=0)).sum())
    assert volume["case_dice"][0, 0] == pytest.approx(overlap / int(ball.sum()))
    assert abs(volume["case_dice"][0, 0] - slices["case_dice"][0, 0]) > 0.05
    assert volume["pooled_dice"][0, 0] == pytest.approx(slices["pooled_dice"][0, 0])
    assert volume["hd95_mm"][0, 0] == SPACING[0]
    assert slices["hd95_mm"][0, 0] > 2 * SPACING[0]


def test_doubled_spacing_doubles_distances() -> None:
    truths, found = pairs(4)
    single, double = (
        judged(found, sliced(truths, spacing_mm=tuple(factor * side for side in SPACING)))["volume"].hd95_mm
        for factor in (1, 2)
    )
    assert double == pytest.approx(2 * single)


def test_a_class_missed_in_a_volume_is_its_diagonal_away_and_an_absent_one_is_not_counted() -> None:
    truths, _ = pairs(4)
    truths[3] = 0
    scores = judged(np.zeros_like(truths), sliced(truths))["volume"]
    assert scores.hd95_mm[0, 0] == pytest.approx(np.linalg.norm(np.array(truths.shape[1:]) * SPACING))
    assert scores.case_dice[0, 0] == 0
    assert np.isnan([scores.case_dice[1, 0], scores.hd95_mm[1, 0], scores.surface_dice[1, 0]]).all()


def test_images_have_one_level() -> None:
    assert list(scored_units(make_set())) == ["image"]


def affine_of(axes: str, spacing: tuple[float, ...], origin: tuple[float, ...]) -> NDArray[np.float64]:
    """The affine of a file whose axes run to the named sides of the patient."""
    nibabel = pytest.importorskip("nibabel")
    found = np.eye(4)
    for axis, (of_patient, sign) in enumerate(nibabel.orientations.axcodes2ornt(axes)):
        found[:3, axis] = 0
        found[int(of_patient), axis] = sign * spacing[axis]
    found[:3, 3] = origin
    return found


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR", "PIR", "ILA"])
def test_a_saved_mask_lies_on_the_image_in_every_voxel_order(tmp_path: Path, axes: str) -> None:
    nibabel = pytest.importorskip("nibabel")
    values = np.random.default_rng(0).integers(0, 5, (4, 5, 6)).astype(np.int16)
    affine = affine_of(axes, (0.8, 0.9, 2.5), (-20.0, 30.0, 7.0))
    affine[0, 1] += 0.05  # a little oblique, as scanners are
    image = nibabel.Nifti1Image(values, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header["descrip"] = b"Rex of Jane Doe"
    nibabel.save(image, tmp_path / "image.nii.gz")
    mask = tmp_path / "of" / "volume_0.nii.gz"
    write_label_map(mask, read_volume(tmp_path / "image.nii.gz").astype(np.int64), like=tmp_path / "image.nii.gz")
    image, saved = nibabel.load(tmp_path / "image.nii.gz"), nibabel.load(mask)
    assert np.array_equal(np.asarray(saved.dataobj), values)
    assert saved.get_data_dtype() == np.uint8
    assert nibabel.aff2axcodes(saved.affine) == nibabel.aff2axcodes(image.affine) == tuple(axes)
    for name in ("get_qform", "get_sform"):
        one, other = (getattr(volume, name)(coded=True) for volume in (saved, image))
        assert one[0] == pytest.approx(other[0])
        assert one[1] == other[1]
    assert saved.header.get_zooms() == pytest.approx(image.header.get_zooms())
    assert b"Rex" not in saved.header.binaryblock
    assert [path.name for path in mask.parent.iterdir()] == ["volume_0.nii.gz"]


def test_a_mask_of_an_image_without_transforms_has_none_either(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), None)
    image.header.set_zooms((0.8, 0.9, 2.5))
    nibabel.save(image, tmp_path / "image.nii")
    write_label_map(tmp_path / "mask.nii.gz", np.ones((6, 5, 4), np.int64), like=tmp_path / "image.nii")
    image, saved = nibabel.load(tmp_path / "image.nii"), nibabel.load(tmp_path / "mask.nii.gz")
    assert (int(saved.header["qform_code"]), int(saved.header["sform_code"])) == (0, 0)
    assert np.allclose(saved.affine, image.affine)


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_a_saved_mask_lies_on_a_dicom_series(tmp_path: Path, plane: str) -> None:
    nibabel = pytest.importorskip("nibabel")
    phantom = asymmetric_phantom()
    series = tmp_path / "series"
    write_series(series, slices_of(phantom, plane))
    marked = (read_volume(series) > np.median(phantom)).astype(np.int64)
    write_label_map(tmp_path / "mask.nii.gz", marked, like=series)
    saved = nibabel.as_closest_canonical(nibabel.load(tmp_path / "mask.nii.gz"))
    assert np.array_equal(np.asarray(saved.dataobj), phantom > np.median(phantom))
    assert np.allclose(saved.affine, np.diag([*PHANTOM_SPACING, 1]), atol=1e-4)


def test_a_mask_that_cannot_be_written_whole_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        with path.open("wb") as stream:
            stream.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    keep = mask_writer(tmp_path, make_set(), decoder="linear", arm="timm:a/b")
    with pytest.raises(UserError, match=r"'image_3\.png' cannot be written \(No space left"):
        keep(3, np.zeros((4, 4), np.uint8))
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def write_volumes(root: Path, *, n: int = 10, spacing: float = 1.0) -> Path:
    """A miniature of a task of the Decathlon: a bright box (class 1) in noise, and no voxel of class 2 anywhere."""
    nibabel = pytest.importorskip("nibabel")
    folder = root / "Task03_Liver"
    affine = np.diag([0.8 * spacing, 0.9 * spacing, 2.5 * spacing, 1])
    generator = np.random.default_rng(0)
    listed = []
    for number in range(n):
        label = np.zeros((16, 16, 5), np.int16)
        at = generator.integers(2, 6, 2)
        label[at[0] : at[0] + 8, at[1] : at[1] + 8, 1:4] = 1
        image = label * 200 - 100 + generator.integers(-40, 40, label.shape)
        pair = {"image": f"./imagesTr/jane_{number}.nii.gz", "label": f"./labelsTr/jane_{number}.nii.gz"}
        for what, values in (("image", image), ("label", label)):
            (folder / pair[what]).parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), affine), folder / pair[what])
        listed.append(pair)
    described = {"name": "Liver", "modality": {"0": "CT"}, "labels": CLASSES, "numTraining": n, "training": listed}
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


@pytest.fixture
def _tiny_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("monai")
    monkeypatch.setattr("vet_extensions.evaluation.segmentation.run.open_backbone", lambda _: make_backbone())


Key = tuple[str, str, str, str, str]


def by_key(rows: list[Result]) -> dict[Key, Result]:
    return {(row.kind, row.arm, row.level, row.group, row.metric): row for row in rows}


@pytest.mark.usefixtures("_tiny_backbone")
def test_a_run_on_volumes_has_rows_of_slices_and_of_volumes(tmp_path: Path) -> None:
    data = open_segmentation(f"msd:root={write_volumes(tmp_path)}:every=2")
    found = by_key(run_segmentation(["x"], data, tmp_path / "out", QUICK))
    volume = found["score", "patches", "volume", "all", "hd95_mm"]
    slices = found["score", "patches", "image", "all", "hd95_mm"]
    assert (volume.n_images, volume.n_patients) == (2, 2)
    assert (slices.n_images, slices.n_patients) == (2 * 5, 2)
    assert {row.level for key, row in found.items() if key[1] == PATCH_GRID_TRUTH} == {"image", "volume"}
    assert volume.config["policy"]["cases"].endswith("of test all")
    assert "validation slices" in volume.config["selection"]
    difference = found["difference", "patches", "volume", "liver", "case_dice"]
    scores = [found["score", arm, "volume", "liver", "case_dice"].value for arm in ("patches", "random_init")]
    assert difference.value == pytest.approx(scores[0] - scores[1])
    assert difference.baseline == "random_init"


@pytest.mark.usefixtures("_tiny_backbone")
def test_a_class_that_no_test_volume_holds_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_segmentation(f"msd:root={write_volumes(tmp_path)}")
    monkeypatch.setattr(
        "vet_extensions.evaluation.segmentation.run.predict", lambda _, pixels, __: np.ones(pixels.shape, np.int64)
    )
    found = by_key(run_segmentation(["x"], data, tmp_path / "out", QUICK, has_control=False))
    assert np.isnan(found["score", "patches", "volume", "cancer", "case_dice"].value)
    of_all = found["score", "patches", "volume", "all", "case_dice"]
    assert of_all.skipped_labels == ("cancer",)
    assert of_all.value == pytest.approx(2 * 192 / (192 + 5 * 16 * 16))


@pytest.mark.usefixtures("_tiny_backbone")
def test_spacing_of_the_files_decides_the_millimetres_of_a_run(tmp_path: Path) -> None:
    found = []
    for spacing in (1.0, 2.0):
        data = open_segmentation(f"msd:root={write_volumes(tmp_path / str(spacing), spacing=spacing)}")
        rows = run_segmentation(["x"], data, tmp_path / "out" / str(spacing), QUICK, has_control=False)
        found.append(by_key(rows)["score", "patches", "volume", "liver", "hd95_mm"].value)
    assert found[0] > 0
    assert found[1] == pytest.approx(2 * found[0])


@pytest.mark.usefixtures("_tiny_backbone")
def test_saved_masks_of_a_run_name_no_patient_and_are_what_was_scored(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    folder = write_volumes(tmp_path)
    data = open_segmentation(f"msd:root={folder}:every=2")
    rows = by_key(run_segmentation(["x"], data, tmp_path / "out", QUICK, has_control=False, has_masks=True))
    masks = tmp_path / "out" / "masks"
    with (masks / "cases.csv").open(newline="") as stream:
        listed = list(csv.DictReader(stream))
    assert len(listed) == 10
    assert list(listed[0]) == ["volume", "split"]
    tested = [case["volume"] for case in listed if case["split"] == "test"]
    saved = sorted((masks / "linear" / "patches").iterdir())
    assert [path.name for path in saved] == sorted(f"volume_{number}.nii.gz" for number in tested)
    dices = []
    for number, path in zip(sorted(tested), saved, strict=True):
        one, truth = nibabel.load(path), nibabel.load(folder / f"labelsTr/jane_{number}.nii.gz")
        assert np.allclose(one.affine, truth.affine)
        a, b = (np.asarray(volume.dataobj) == 1 for volume in (one, truth))
        dices.append(2 * (a & b).sum() / (a.sum() + b.sum()))
    assert rows["score", "patches", "volume", "liver", "case_dice"].value == pytest.approx(np.mean(dices))
    assert not [path for path in (tmp_path / "out").rglob("*") if "jane" in path.name]


@pytest.mark.usefixtures("_tiny_backbone")
def test_saved_masks_of_images_are_pngs(tmp_path: Path) -> None:
    run_segmentation(["x"], make_set(), tmp_path, replace(QUICK, image_size_px=32), has_control=False, has_masks=True)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in (tmp_path / "masks").rglob("*.png"))
    assert files == ["masks/linear/patches/image_4.png", "masks/linear/patches/image_9.png"]
    mask = cv2.imread(str(tmp_path / files[0]), cv2.IMREAD_UNCHANGED)
    assert mask is not None
    assert mask.shape == (32, 32)
    assert mask.max() <= 1


@pytest.mark.usefixtures("_tiny_backbone")
def test_scoring_reads_a_volume_once(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    data = open_segmentation(f"msd:root={write_volumes(tmp_path)}")
    opened: list[str] = []
    load = nibabel.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nibabel, "load", lambda path: (opened.append(str(path)), load(path))[1])
        judge(lambda row: (data.read(row) > 0).astype(np.int64), data, tolerance_mm=1.0)
    assert len(opened) == len(set(opened)) == 2 * 2  # of two test volumes the image and the label map


@pytest.mark.usefixtures("_tiny_backbone")
def test_training_on_kept_features_reads_the_image_of_a_volume_once(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    data = open_segmentation(f"msd:root={write_volumes(tmp_path)}")
    opened: list[str] = []
    load = nibabel.load
    config = replace(QUICK, epochs=3, epochs_per_look=1, learning_rates=(0.01, 0.03))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nibabel, "load", lambda path: (opened.append(str(path)), load(path))[1])
        fit(make_backbone(), data, config, decoder="linear", folder=tmp_path / "fits")
    images = [path for path in opened if "imagesTr" in path]
    assert len(images) == len(set(images)) == 8  # train and val
