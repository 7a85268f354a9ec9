"""Label maps of radiographs and brain tumours, and volumes: MSD through dataset.json, AMOS22, BTCV in both layouts, nnU-Net."""

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.source_files import write_images
from vet_extensions.errors import UserError
from vet_extensions.evaluation.datasets.label_maps import open_segmentation, open_volumes
from vet_extensions.evaluation.segmentation.sets import SegmentationSet

SHAPE = (6, 5, 4)
"""X, Y, Z of the miniature volumes."""


def write_mask(path: Path, *, rows: slice, colour: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((16, 20), np.uint8)
    mask[rows] = 255
    assert cv2.imwrite(str(path), np.dstack([mask] * 3) if colour else mask)


def write_volume(path: Path, values: np.ndarray, *, affine: np.ndarray | None = None) -> None:
    nibabel = pytest.importorskip("nibabel")
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([0.8, 0.9, 2.5, 1.0]) if affine is None else affine
    nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), affine), path)


def write_pair(image: Path, label: Path, *, seed: int, n_classes: int = 2, channels: int = 1) -> None:
    generator = np.random.default_rng(seed)
    shape = SHAPE if channels == 1 else (*SHAPE, channels)
    write_volume(image, generator.integers(-200, 300, shape))
    write_volume(label, generator.integers(0, n_classes, SHAPE))


def test_montgomery_has_a_class_for_each_lung(tmp_path: Path) -> None:
    names = [f"MCUCXR_{n:04d}_{n % 2}.png" for n in range(1, 13)]
    root = tmp_path / "MontgomerySet"
    write_images(root / "CXR_png", names, dtype=np.uint16)
    (root / "CXR_png/._MCUCXR_0001_1.png").write_bytes(b"AppleDouble")
    for name in names:
        write_mask(root / "ManualMask/leftMask" / name, rows=slice(0, 4))
        write_mask(root / "ManualMask/rightMask" / name, rows=slice(8, 12))
    found = open_segmentation(f"montgomery_lungs:root={tmp_path}")
    assert found.class_names == ("background", "left_lung", "right_lung")
    assert len(found.split) == 12
    mask = found.checked_mask(0, shape=found.read(0).shape)
    assert np.unique(mask[0:4]).tolist() == [1]
    assert np.unique(mask[8:12]).tolist() == [2]
    assert np.unique(mask[4:8]).tolist() == [0]
    assert found.policy["counts"] == "not as published: all: 12 of 138"
    (root / "ManualMask/leftMask" / names[3]).unlink()
    with pytest.raises(UserError, match="1 of 24"):
        open_segmentation(f"montgomery_lungs:root={tmp_path}")


@pytest.mark.parametrize("folder", ["mask", "copy/masks"])
def test_shenzhen_takes_the_images_that_have_a_mask(tmp_path: Path, folder: str) -> None:
    names = [f"CHNCXR_{n:04d}_{n % 2}" for n in range(1, 15)]
    write_images(tmp_path / "ChinaSet_AllFiles/CXR_png", [f"{name}.png" for name in names])
    for name in names[:12]:
        write_mask(tmp_path / folder / f"{name}_mask.png", rows=slice(0, 8), colour=True)
    found = open_segmentation(f"shenzhen_lungs:root={tmp_path}")
    assert len(found.split) == 12
    assert found.class_names == ("background", "lung")
    assert np.unique(found.mask(5)[:8]).tolist() == [1]


def test_brain_tumour_masks_share_the_folds_of_the_classes(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    for number in range(1, 11):
        with h5py.File(tmp_path / f"{number}.mat", "w") as file:
            file["cjdata/label"] = np.array([[number % 3 + 1.0]])
            file["cjdata/PID"] = np.array([[ord(letter)] for letter in f"p{number}"], np.uint16)
            file["cjdata/image"] = np.full((20, 24), number, np.int16).T
            file["cjdata/tumorMask"] = np.eye(20, 24, dtype=np.uint8).T
    with h5py.File(tmp_path / "cvind.mat", "w") as file:
        file["cvind"] = np.array([[1, 2, 3, 4, 5] * 2], np.float64)
    found = open_segmentation(f"brain_tumour_masks:root={tmp_path}:fold=2")
    assert np.flatnonzero(found.split == "test").tolist() == [1, 6]
    assert np.array_equal(found.mask(0), np.eye(20, 24, dtype=np.int64))
    assert found.read(0).shape == (20, 24)


TASKS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "Task01_BrainTumour": (
        {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
        {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"},
    ),
    "Task02_Heart": ({"0": "MRI"}, {"0": "background", "1": "left atrium"}),
    "Task03_Liver": ({"0": "CT"}, {"0": "background", "1": "liver", "2": "cancer"}),
    "Task04_Hippocampus": ({"0": "MRI"}, {"0": "background", "1": "Anterior", "2": "Posterior"}),
    "Task05_Prostate": ({"0": "T2", "1": "ADC"}, {"0": "background", "1": "PZ", "2": "TZ"}),
    "Task06_Lung": ({"0": "CT"}, {"0": "background", "1": "cancer"}),
    "Task07_Pancreas": ({"0": "CT"}, {"0": "background", "1": "pancreas", "2": "cancer"}),
    "Task08_HepaticVessel": ({"0": "CT"}, {"0": "background", "1": "Vessel", "2": "Tumour"}),
    "Task09_Spleen": ({"0": "CT"}, {"0": "background", "1": "spleen"}),
    "Task10_Colon": ({"0": "CT"}, {"0": "background", "1": "colon cancer primaries"}),
}


def write_task(root: Path, task: str, *, n: int = 10) -> Path:
    """As it is unpacked on a Mac: relative paths that begin with ./, AppleDouble files, also in the list."""
    modality, labels = TASKS[task]
    folder = root / task
    training: list[dict[str, str]] = []
    for number in range(n):
        pair = {
            what: f"./{part}/case_{number:03d}.nii.gz" for what, part in (("image", "imagesTr"), ("label", "labelsTr"))
        }
        write_pair(
            folder / pair["image"], folder / pair["label"], seed=number, n_classes=len(labels), channels=len(modality)
        )
        training.append(pair)
    (folder / "imagesTr/._case_000.nii.gz").write_bytes(b"AppleDouble")
    training.append({"image": "./imagesTr/._case_000.nii.gz", "label": "./labelsTr/._case_000.nii.gz"})
    described: dict[str, Any] = {"name": task, "modality": modality, "labels": labels, "numTraining": n, "numTest": 1}
    (folder / "dataset.json").write_text(
        json.dumps({**described, "training": training, "test": ["./imagesTs/x.nii.gz"]})
    )
    return folder


@pytest.mark.parametrize("task", TASKS)
def test_every_task_of_the_decathlon_is_read_through_its_dataset_json(tmp_path: Path, task: str) -> None:
    folder = write_task(tmp_path, task, n=4)
    volumes = open_volumes(f"msd:root={folder}:test=0.25:val=0.25")
    assert volumes.class_names == tuple(TASKS[task][1].values())
    assert sorted(volumes.split.tolist()) == ["test", "train", "train", "val"]
    assert volumes.label_map(0).shape == volumes.grey(0).shape == (4, 5, 6)
    assert ("HU" in volumes.policy["window"]) == (TASKS[task][0] == {"0": "CT"})
    assert volumes.policy["counts"].startswith("not as published: all: 4 of ")
    assert volumes.policy.get("channel") == (TASKS[task][0]["0"] if len(TASKS[task][0]) > 1 else None)


def test_a_channel_of_a_4d_image_is_taken_by_number_or_name(tmp_path: Path) -> None:
    folder = write_task(tmp_path, "Task05_Prostate", n=4)
    shares = "val=0.25:test=0.25"
    by_name, by_number = (open_volumes(f"msd:root={folder}:{shares}:channel={word}") for word in ("adc", "1"))
    assert np.array_equal(by_name.grey(0), by_number.grey(0))
    assert not np.array_equal(by_name.grey(0), open_volumes(f"msd:root={folder}:{shares}").grey(0))
    with pytest.raises(UserError, match=r"channel=DWI is not known. The data set has 0 \(T2\), 1 \(ADC\)"):
        open_volumes(f"msd:root={folder}:channel=DWI")


def test_slices_keep_a_volume_in_one_split_with_its_spacing(tmp_path: Path) -> None:
    folder = write_task(tmp_path, "Task09_Spleen")
    found = open_segmentation(f"msd:root={folder}")
    assert isinstance(found, SegmentationSet)
    assert len(found.split) == 10 * SHAPE[2]
    assert found.spacing_mm[0].tolist() == pytest.approx([0.9, 0.8])
    volumes = open_volumes(f"msd:root={folder}")
    assert np.array_equal(found.read(5), volumes.grey(1)[1])
    assert np.array_equal(pickle.loads(pickle.dumps(found.mask))(6), volumes.label_map(1)[2])


def test_thinning_leaves_the_slices_of_test_volumes_whole(tmp_path: Path) -> None:
    folder = write_task(tmp_path, "Task09_Spleen")
    volumes, thinned = open_volumes(f"msd:root={folder}"), open_segmentation(f"msd:root={folder}:every=2")
    assert (volumes.split == "test").sum() == 2
    assert (thinned.split == "test").sum() == 2 * SHAPE[2]
    assert (thinned.split != "test").sum() == 8 * SHAPE[2] // 2
    assert thinned.policy["cases"] == "axial slices; of train and val one of every 2, of test all"


def test_a_window_in_hounsfield_units_decides_what_is_black_and_white(tmp_path: Path) -> None:
    folder = write_task(tmp_path, "Task09_Spleen", n=4)
    write_volume(folder / "imagesTr/case_000.nii.gz", np.full(SHAPE, 40))
    volumes = open_volumes(f"msd:root={folder}:val=0.25:test=0.25")
    assert np.unique(volumes.grey(0)).tolist() == [round(65535 / 2)]
    lung = open_volumes(f"msd:root={folder}:val=0.25:test=0.25:window=0,40")
    assert np.unique(lung.grey(0)).tolist() == [65535]
    assert lung.content_hash != volumes.content_hash
    with pytest.raises(UserError, match="two numbers LOW,HIGH"):
        open_volumes(f"msd:root={folder}:window=40,0")


def test_a_volume_lies_as_radiologists_see_it_however_the_file_stores_it(tmp_path: Path) -> None:
    """A bright voxel at the patient's right, front and top: in the last slice, first row, first column."""
    folder = write_task(tmp_path, "Task02_Heart", n=4)
    to_right = np.zeros(SHAPE)
    to_right[-1, -1, -1] = 900  # axes to the right, front and up
    write_volume(folder / "imagesTr/case_000.nii.gz", to_right)
    turned = np.flip(to_right, axis=(0, 1)).transpose(2, 0, 1)  # axes up, to the left, to the back
    affine = np.array([[0, -0.8, 0, 0], [0, 0, -0.9, 0], [2.5, 0, 0, 0], [0, 0, 0, 1.0]])
    write_volume(folder / "imagesTr/case_001.nii.gz", turned, affine=affine)
    write_volume(folder / "labelsTr/case_001.nii.gz", turned > 0, affine=affine)
    volumes = open_volumes(f"msd:root={folder}:val=0.25:test=0.25")
    for volume in (0, 1):
        grey = volumes.grey(volume)
        assert np.argwhere(grey).tolist() == [[SHAPE[2] - 1, 0, 0]]
        assert volumes.geometry(volume)[1] == pytest.approx((2.5, 0.9, 0.8))
    assert np.argwhere(volumes.label_map(1)).tolist() == [[SHAPE[2] - 1, 0, 0]]


def test_damaged_missing_and_ill_fitting_volumes_are_told(tmp_path: Path) -> None:
    folder = write_task(tmp_path, "Task03_Liver", n=5)
    write_volume(folder / "labelsTr/case_001.nii.gz", np.zeros((3, 5, 4)))
    with pytest.raises(UserError, match="label map of volume 1 has"):
        open_segmentation(f"msd:root={folder}")
    (folder / "imagesTr/case_000.nii.gz").write_bytes(b"no gzip at all")
    with pytest.raises(UserError, match=r"case_000.nii.gz is no readable NIfTI file"):
        open_segmentation(f"msd:root={folder}")
    (folder / "imagesTr/case_000.nii.gz").unlink()
    with pytest.raises(UserError, match="1 of 5"):
        open_volumes(f"msd:root={folder}")
    with pytest.raises(UserError, match=r"'dataset.json' is not in the folder"):
        open_volumes(f"msd:root={tmp_path}")


def write_amos(root: Path, *, parts: dict[str, list[int]]) -> Path:
    for part, numbers in parts.items():
        for number in numbers:
            name = f"amos_{number:04d}.nii.gz"
            write_pair(root / f"images{part}" / name, root / f"labels{part}" / name, seed=number, n_classes=16)
    return root


def test_amos_tells_ct_from_mri_by_number_and_tests_on_the_published_validation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_amos(tmp_path, parts={"Tr": [*range(1, 9), 507, 508, 510], "Va": [9, 10, 600]})
    with caplog.at_level(logging.WARNING, logger="vet_extensions"):
        found = open_volumes(f"amos22:root={root}:val=0.25")
    assert dict(zip(*np.unique(found.split, return_counts=True), strict=True)) == {"train": 6, "val": 2, "test": 2}
    assert "train: 8 of 200; test: 2 of 100" in caplog.text
    assert len(found.class_names) == 16
    mri = open_volumes(f"amos22:root={root}:modality=mri:val=0.34")
    assert mri.patients[mri.split == "test"].tolist() == ["amos_0600"]
    assert "percentile" in mri.policy["window"]
    write_amos(root, parts={"Ts": [20]})
    full = open_volumes(f"amos22:root={root}")
    assert (full.split == "val").sum() == 2
    assert full.patients[full.split == "test"].tolist() == ["amos_0020"]


def test_btcv_is_read_in_both_layouts_and_with_both_lists(tmp_path: Path) -> None:
    raw, flat = tmp_path / "raw", tmp_path / "flat"
    numbers = ["0001", "0002", "0005", "0006", "0007", "0009", "0021", "0040"]
    for number in numbers:
        write_pair(
            raw / f"RawData/Training/img/img{number}.nii.gz",
            raw / f"RawData/Training/label/label{number}.nii.gz",
            seed=int(number),
            n_classes=14,
        )
        write_pair(
            flat / f"imagesTr/img{number}.nii.gz",
            flat / f"labelsTr/label{number}.nii.gz",
            seed=int(number),
            n_classes=14,
        )
    listed = {
        part: [{"image": f"imagesTr/img{n}.nii.gz", "label": f"labelsTr/label{n}.nii.gz"} for n in those]
        for part, those in (("training", numbers[:6]), ("validation", numbers[6:]))
    }
    (flat / "dataset_0.json").write_text(json.dumps(listed))
    cut = open_volumes(f"btcv:root={raw}")
    assert len(cut) == 8
    assert cut.policy["split"].startswith("none prescribed")
    transunet = open_volumes(f"btcv:root={raw}:split=transunet:val=0.2")
    assert set(transunet.patients[transunet.split == "test"].tolist()) == {"0001", "0002"}
    of_list = open_volumes(f"btcv:root={flat}:val=0.2")
    assert set(of_list.patients[of_list.split == "test"].tolist()) == {"0021", "0040"}
    assert np.array_equal(of_list.grey(0), cut.grey(0))


@pytest.mark.parametrize("version", [1, 2])
def test_an_nnunet_folder_has_a_file_for_each_channel(tmp_path: Path, version: int) -> None:
    root = tmp_path / "Dataset042_Dogs"
    for number in range(6):
        for channel in range(2):
            write_pair(
                root / f"imagesTr/dog_{number:03d}_{channel:04d}.nii.gz",
                root / f"labelsTr/dog_{number:03d}.nii.gz",
                seed=10 * number + channel,
            )
    one = {"modality": {"0": "CT", "1": "PET"}, "labels": {"0": "background", "1": "liver"}}
    two = {"channel_names": {"0": "CT", "1": "PET"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps({**(one if version == 1 else two), "numTraining": 6}))
    found = open_volumes(f"nnunet:root={root}:channel=PET")
    assert found.class_names == ("background", "liver")
    assert found.images[0].name == "dog_000_0001.nii.gz"
    assert found.policy["counts"] == "as published"
    assert found.slices().name == "Dataset042_Dogs"
    for number in (7, 8):
        write_pair(
            root / f"imagesTs/dog_{number:03d}_0001.nii.gz", root / f"labelsTs/dog_{number:03d}.nii.gz", seed=number
        )
    tested = open_volumes(f"nnunet:root={root}:channel=PET:val=0.2")
    assert tested.patients[tested.split == "test"].tolist() == ["dog_007", "dog_008"]


def test_regions_of_nnunet_and_other_file_kinds_are_refused(tmp_path: Path) -> None:
    described: dict[str, Any] = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": [1, 2]}}
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="regions of several"):
        open_volumes(f"nnunet:root={tmp_path}")
    (tmp_path / "dataset.json").write_text(json.dumps({**described, "file_ending": ".png"}))
    with pytest.raises(UserError, match=r"only .nii.gz and .nii are read"):
        open_volumes(f"nnunet:root={tmp_path}")


def test_an_unknown_name_lists_images_and_volumes(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        open_segmentation(f"amos2:root={tmp_path}")
    assert "Did you mean 'amos22'" in str(caught.value)
    assert "montgomery_lungs" in str(caught.value)
