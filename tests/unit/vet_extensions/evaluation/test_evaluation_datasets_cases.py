"""Tuberculosis radiographs, SARS-CoV-2 CT slices and the figshare brain tumours, from folders as they are downloaded."""

from pathlib import Path

import numpy as np
import pytest

from tests.source_files import write_images
from vet_extensions.errors import UserError
from vet_extensions.evaluation.checks import check_cohort
from vet_extensions.evaluation.cohort import MULTICLASS, LabelledImages
from vet_extensions.evaluation.datasets import open_data
from vet_extensions.evaluation.suite_config import KnnConfig, SuiteConfig


def class_of(images: LabelledImages) -> dict[str, str]:
    words = np.array(images.label_names)[images.cohort.labels.argmax(axis=1)]
    return dict(zip(images.id_of("image").tolist(), words.tolist(), strict=True))


def patients_of(images: LabelledImages, split: str) -> set[str]:
    return set(images.id_of("patient")[images.cohort.split == split].tolist())


def test_tuberculosis_is_the_last_digit_of_the_name_and_every_split_has_both_classes(tmp_path: Path) -> None:
    names = [f"MCUCXR_{n:04d}_{n % 2}.png" for n in range(1, 21)]
    write_images(tmp_path / "MontgomerySet/CXR_png", names, dtype=np.uint16)
    write_images(tmp_path / "MontgomerySet/CXR_png", ["CHNCXR_0001_1.png"])  # copies hold both sets in one folder
    (tmp_path / "MontgomerySet/CXR_png/._MCUCXR_0001_1.png").write_bytes(b"AppleDouble")
    (tmp_path / "MontgomerySet/CXR_png/Thumbs.db").write_bytes(b"junk")
    images = open_data(f"montgomery_tb:root={tmp_path}")
    assert images.task == MULTICLASS
    assert len(images.reader) == 20
    assert class_of(images)["MontgomerySet/CXR_png/MCUCXR_0003_1.png"] == "tuberculosis"
    check_cohort(images, SuiteConfig(knn=KnnConfig(ks=(3,))))
    assert images.cohort.split.tolist().count("test") == 4
    assert images.policy["counts"] == "not as published: all: 20 of 138"
    assert open_data(f"shenzhen_tb:root={write_shenzhen(tmp_path / 'shenzhen')}").label_names == images.label_names


def write_shenzhen(root: Path) -> Path:
    write_images(root / "ChinaSet_AllFiles/CXR_png", [f"CHNCXR_{n:04d}_{n % 2}.png" for n in range(1, 11)])
    return root


@pytest.fixture
def slices(tmp_path: Path) -> Path:
    """Six patients a class, whose numbers begin anew; within a wrapping folder; ten slices of the first patient."""
    paths = []
    for word in ("Covid", "Healthy", "Others"):
        for patient in range(1, 7):
            paths += [f"wrap/{word}/Patient ({patient})/{k}.png" for k in range(1, 11 if patient == 1 else 3)]
    write_images(tmp_path, paths)
    return tmp_path


def test_ct_patients_are_told_apart_across_classes_and_split_whole(slices: Path) -> None:
    images = open_data(f"sars_cov2_ct:root={slices}")
    assert images.label_names == ("other", "covid")
    assert len(np.unique(images.cohort.patient_codes)) == 18
    assert not patients_of(images, "train") & patients_of(images, "test")
    assert np.array_equal(images.cohort.study_codes, images.cohort.patient_codes)
    assert open_data(f"sars_cov2_ct:root={slices}:classes=all").label_names == ("covid", "healthy", "others")
    assert images.id_of("image")[8:10].tolist() == [f"wrap/Covid/Patient (1)/{k}.png" for k in (9, 10)]


def test_the_ct_data_set_without_patients_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path, ["COVID/Covid (1).png", "non-COVID/Non-Covid (1).png"])
    with pytest.raises(UserError, match="namesakes without patients cannot be split safely"):
        open_data(f"sars_cov2_ct:root={tmp_path}")


@pytest.fixture
def tumours(tmp_path: Path) -> Path:
    """Thirty slices of fifteen patients, three patients a fold, in two folders; arrays transposed as MATLAB writes them."""
    h5py = pytest.importorskip("h5py")
    folds = []
    for number in range(1, 31):
        patient = (number - 1) // 2
        path = tmp_path / f"brainTumorDataPublic_{'1-766' if number < 16 else '767-1532'}" / f"{number}.mat"
        path.parent.mkdir(exist_ok=True)
        image = np.zeros((24, 32), np.int16)
        image[0, :] = 1000 + number  # the first row of the picture
        with h5py.File(path, "w") as file:
            file["cjdata/label"] = np.array([[patient % 3 + 1]], np.float64)
            file["cjdata/PID"] = np.array([[ord(letter)] for letter in f"{100000 + patient}"], np.uint16)
            file["cjdata/image"] = image.T
        folds.append(patient // 3 + 1)
    with h5py.File(tmp_path / "cvind.mat", "w") as file:
        file["cvind"] = np.array([folds], np.float64)
    return tmp_path


def test_brain_tumours_follow_the_published_folds(tumours: Path) -> None:
    images = open_data(f"brain_tumour:root={tumours}")
    assert patients_of(images, "test") == {"100012", "100013", "100014"}
    assert patients_of(images, "val") == {"100009", "100010", "100011"}
    assert patients_of(open_data(f"brain_tumour:root={tumours}:fold=1"), "val") == patients_of(images, "test")
    assert images.policy["fold"] == "5 of cvind.mat"
    classes = class_of(images)
    assert classes["brainTumorDataPublic_1-766/5.mat"] == "pituitary"
    check_cohort(images, SuiteConfig(knn=KnnConfig(ks=(3,))))


def test_slices_of_matlab_are_turned_back_and_scaled(tumours: Path) -> None:
    pixels = open_data(f"brain_tumour:root={tumours}").reader.read(0)
    assert pixels.shape == (24, 32)
    assert (pixels[0] == 65535).all()
    assert not pixels[1:].any()


def test_without_the_folds_a_split_is_cut_by_patient(tumours: Path) -> None:
    (tumours / "cvind.mat").unlink()
    images = open_data(f"brain_tumour:root={tumours}")
    assert images.policy["split"].startswith("none prescribed; cut by patient")
    assert not patients_of(images, "train") & patients_of(images, "test")


def test_a_class_with_too_few_patients_for_a_split_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "CXR_png", [f"MCUCXR_{n:04d}_0.png" for n in range(9)] + ["MCUCXR_0010_1.png"])
    with pytest.raises(UserError, match="no image in split test"):
        check_cohort(open_data(f"montgomery_tb:root={tmp_path}"), SuiteConfig(knn=KnnConfig(ks=(2,))))
