"""ChestX-ray14, CheXpert, MIMIC-CXR-JPG, MURA and VinDr-Mammo in place: labels, policies, views, published splits and numbers."""

import hashlib
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
from factories import make_dicom, make_pixels

from tests.source_files import write_csv, write_images
from vet_extensions.errors import UserError
from vet_extensions.evaluation.checks import check_cohort
from vet_extensions.evaluation.cohort import LabelledImages
from vet_extensions.evaluation.datasets import open_data
from vet_extensions.evaluation.suite_config import KnnConfig, SuiteConfig
from vet_extensions.intake.sources.labelling import CHEXPERT_FINDINGS

NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)


def split_of(images: LabelledImages) -> dict[str, str]:
    return dict(zip(images.id_of("image").tolist(), images.cohort.split.tolist(), strict=True))


def column(images: LabelledImages, name: str) -> dict[str, int]:
    values = images.cohort.labels[:, images.label_names.index(name)]
    return dict(zip(images.id_of("image").tolist(), values.tolist(), strict=True))


def disk_state(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def nih(tmp_path: Path) -> Path:
    """24 images of 12 patients in two of the release's folders; the bracketed header, an RGBA file, an AppleDouble file."""
    rows, lists = [], {"train_val_list.txt": [], "test_list.txt": []}
    for patient in range(1, 13):
        for follow_up in range(2):
            name = f"{patient:08d}_{follow_up:03d}.png"
            finding = ["No Finding", "Cardiomegaly|Emphysema", "Pleural_Thickening"][patient % 3]
            rows.append(
                f"{name},{finding},{follow_up},{patient},57,M,{'PA' if patient % 2 else 'AP'},2682,2749,0.143,0.14"
            )
            lists["test_list.txt" if patient > 9 else "train_val_list.txt"].append(name)
    images = [row.split(",")[0] for row in rows]
    write_images(tmp_path / "images_001/images", images[:10])
    write_images(tmp_path / "images_002/images", images[10:])
    rgba = np.dstack(
        [np.full((16, 20), 200, np.uint8), *np.zeros((2, 16, 20), np.uint8), np.full((16, 20), 7, np.uint8)]
    )
    rgba[:8] = 0
    assert cv2.imwrite(str(tmp_path / "images_001/images" / images[0]), rgba)
    (tmp_path / "images_001/images" / f"._{images[0]}").write_bytes(b"\0\5\x16\7 AppleDouble")
    (tmp_path / "Data_Entry_2017_v2020.csv").write_text("\n".join([NIH_HEADER, *rows]) + "\n")
    for name, listed in lists.items():
        (tmp_path / name).write_text("\n".join(listed) + "\n")
    return tmp_path


def test_nih_has_14_findings_or_15_labels_with_no_finding(nih: Path) -> None:
    plain, full = open_data(f"nih_cxr14:root={nih}"), open_data(f"nih_cxr14:root={nih}:labels=15")
    assert len(plain.label_names) == 14
    assert set(full.label_names) - set(plain.label_names) == {"no_finding"}
    assert column(plain, "emphysema")["images_001/images/00000001_000.png"] == 1
    assert column(full, "no_finding")["images_001/images/00000003_000.png"] == 1
    assert set(np.unique(plain.cohort.labels)) == {0, 1}
    assert plain.content_hash != full.content_hash


def test_sex_and_age_groups_are_facts_as_far_as_the_tables_tell_them(nih: Path, chexpert: Path) -> None:
    table = nih / "Data_Entry_2017_v2020.csv"
    text = table.read_text()
    for old, new in (
        ("_000.png,Cardiomegaly|Emphysema,0,1,57,M", "_000.png,Cardiomegaly|Emphysema,0,1,058Y,F"),
        (",3,57", ",3,411"),
    ):
        text = text.replace(old, new)
    table.write_text(text)
    images = open_data(f"nih_cxr14:root={nih}")
    assert images.facts["sex"][:2].tolist() == ["F", "M"]
    assert images.facts["age_group"][:5].tolist() == ["40-59", "40-59", "40-59", "40-59", ""]
    people = open_data(f"chexpert:root={chexpert}")
    test = people.cohort.split == "test"
    assert set(people.facts["sex"][test].tolist()) == {""}
    assert set(people.facts["age_group"][~test].tolist()) == {"40-59"}


def test_nih_tests_on_the_official_list_and_cuts_val_by_patient(nih: Path) -> None:
    images = open_data(f"nih_cxr14:root={nih}:val=0.3")
    patients = images.id_of("patient")
    of_split = {word: set(patients[images.cohort.split == word].tolist()) for word in ("train", "val", "test")}
    assert of_split["test"] == {"10", "11", "12"}
    assert of_split["val"]
    assert not of_split["val"] & of_split["train"]
    check_cohort(images, SuiteConfig(knn=KnnConfig(ks=(2,))))
    assert split_of(open_data(f"nih_cxr14:root={nih}:val=0.3")) == split_of(images)
    assert "val cut from train by patient, seed 0: 0.3" in images.policy["split"]


def test_an_incomplete_nih_warns_with_both_numbers(nih: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="vet_extensions"):
        images = open_data(f"nih_cxr14:root={nih}")
    assert "train: 18 of 86,524; test: 6 of 25,596" in caplog.text
    assert images.policy["counts"].startswith("not as published")


def test_colour_with_transparency_is_read_as_luminance_and_nothing_on_the_disk_changes(nih: Path) -> None:
    before = disk_state(nih)
    images = open_data(f"nih_cxr14:root={nih}")
    row = images.id_of("image").tolist().index("images_001/images/00000001_000.png")
    pixels = images.reader.read(row)
    assert pixels.dtype == np.uint16
    assert pixels.shape == (16, 20)
    assert pixels[0, 0] == 0
    assert pixels[15, 0] == pytest.approx(0.114 * 200 * 257, abs=129)  # of 8 bits; cv2 writes blue first
    assert disk_state(nih) == before


def test_missing_images_are_refused_or_left_out_when_asked(nih: Path) -> None:
    (nih / "images_002/images/00000006_000.png").unlink()
    with pytest.raises(UserError, match=r"1 of 24 images that its tables name are not below 'root'.*missing=skip"):
        open_data(f"nih_cxr14:root={nih}")
    assert len(open_data(f"nih_cxr14:root={nih}:missing=skip").reader) == 23


def chexpert_cells(**labels: object) -> list[object]:
    return [labels.get(name.replace(" ", "_"), "") for name in CHEXPERT_FINDINGS]


@pytest.fixture
def chexpert(tmp_path: Path) -> Path:
    """Small-release paths, a lateral, -1 and blank cells; valid, and the test table without columns for the view."""
    train = [
        (
            "train/patient00001/study1/view1_frontal.jpg",
            chexpert_cells(Edema=-1.0, Cardiomegaly=-1.0, Consolidation=0.0),
        ),
        ("train/patient00001/study1/view2_lateral.jpg", chexpert_cells(Edema=-1.0)),
        ("train/patient00002/study1/view1_frontal.jpg", chexpert_cells(No_Finding=1.0)),
        ("train/patient00003/study2/view1_frontal.jpg", chexpert_cells(Pleural_Effusion=1.0, Atelectasis=-1.0)),
    ]
    valid = [("valid/patient64541/study1/view1_frontal.jpg", [0.0] * 14)]
    test = [
        ("test/patient64741/study1/view1_frontal.jpg", [1.0] * 14),
        ("test/patient64741/study1/view2_lateral.jpg", [1.0] * 14),
    ]
    write_images(tmp_path, [path for path, _ in [*train, *valid, *test]])
    names = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_FINDINGS]
    for file, rows in (("train.csv", train), ("valid.csv", valid)):
        cells = [
            [f"CheXpert-v1.0-small/{path}", "Female", 50, "Frontal" if "frontal" in path else "Lateral", "", *labels]
            for path, labels in rows
        ]
        write_csv(tmp_path / file, names, cells)
    write_csv(tmp_path / "test_labels.csv", ["Path", *CHEXPERT_FINDINGS], [[path, *labels] for path, labels in test])
    return tmp_path


FIRST = "train/patient00001/study1/view1_frontal.jpg"


def test_chexpert_takes_five_labels_of_frontals_and_the_official_splits(chexpert: Path) -> None:
    images = open_data(f"chexpert:root={chexpert}")
    assert images.label_names == ("atelectasis", "cardiomegaly", "consolidation", "edema", "pleural_effusion")
    assert sorted(images.cohort.split.tolist()) == ["test", "train", "train", "train", "val"]
    assert set(images.cohort.family.tolist()) == {"frontal"}
    assert "train: 3 of 191,027" in images.policy["counts"]
    every = open_data(f"chexpert:root={chexpert}:views=all:labels=all")
    assert len(every.label_names) == 14
    assert sorted(every.cohort.family.tolist()).count("lateral") == 2


@pytest.mark.parametrize(
    ("policy", "edema", "cardiomegaly"), [("zeros", 0, 0), ("ones", 1, 1), ("ignore", -1, -1), ("mixed", 1, 0)]
)
def test_an_uncertain_label_of_training_follows_the_policy(
    chexpert: Path, policy: str, edema: int, cardiomegaly: int
) -> None:
    images = open_data(f"chexpert:root={chexpert}:uncertain={policy}")
    assert (column(images, "edema")[FIRST], column(images, "cardiomegaly")[FIRST]) == (edema, cardiomegaly)
    assert images.policy["uncertain"].startswith(policy)


def test_blank_cells_count_as_absent_or_are_ignored_also_where_all_five_are_blank(chexpert: Path) -> None:
    blank = "train/patient00002/study1/view1_frontal.jpg"
    assert column(open_data(f"chexpert:root={chexpert}"), "edema")[blank] == 0
    ignoring = open_data(f"chexpert:root={chexpert}:blank=ignore:labels=all")
    assert column(ignoring, "edema")[blank] == -128
    assert ignoring.policy["blank"] == "ignore"


@pytest.fixture
def mimic(tmp_path: Path) -> Path:
    """Four studies, one of which the labels do not list; a lateral; -1 in training and in test."""
    images = [("d1", "10000032", "50414267", "PA", "train"), ("d2", "10000032", "50414267", "LATERAL", "train")]
    images += [("d3", "10000764", "57375967", "AP", "validate"), ("d4", "11000001", "50000001", "AP", "test")]
    images += [("d5", "12000001", "50000002", "AP", "train")]
    write_images(tmp_path, [f"files/p{p[:2]}/p{p}/s{s}/{d}.jpg" for d, p, s, _, _ in images])
    write_csv(
        tmp_path / "mimic-cxr-2.0.0-metadata.csv.gz",
        ["dicom_id", "subject_id", "study_id", "ViewPosition"],
        [row[:4] for row in images],
    )
    write_csv(
        tmp_path / "mimic-cxr-2.0.0-split.csv.gz",
        ["dicom_id", "study_id", "subject_id", "split"],
        [(d, s, p, split) for d, p, s, _, split in images],
    )
    rows = [("10000032", "50414267"), ("10000764", "57375967"), ("11000001", "50000001")]
    write_csv(
        tmp_path / "mimic-cxr-2.0.0-chexpert.csv.gz",
        ["subject_id", "study_id", *CHEXPERT_FINDINGS],
        [[*row, *chexpert_cells(Edema=-1.0, Cardiomegaly=1.0)] for row in rows],
    )
    return tmp_path


def test_mimic_follows_its_split_and_leaves_out_studies_without_labels(mimic: Path) -> None:
    images = open_data(f"mimic_cxr:root={mimic}:views=all")
    assert images.cohort.split.tolist() == ["train", "train", "val", "test"]
    assert images.cohort.study_codes[0] == images.cohort.study_codes[1]
    assert open_data(f"mimic_cxr:root={mimic}").cohort.split.tolist() == ["train", "val", "test"]


def test_an_uncertain_label_outside_training_stays_uncertain(mimic: Path) -> None:
    images = open_data(f"mimic_cxr:root={mimic}:views=all:uncertain=ones")
    assert images.cohort.labels[:, images.label_names.index("edema")].tolist() == [1, 1, -1, -1]


def test_radiologists_may_be_the_truth_of_mimics_test_split_alone(mimic: Path) -> None:
    names = [
        "study_id",
        "Airspace Opacity",
        *(name for name in CHEXPERT_FINDINGS if name not in ("Lung Opacity", "Pneumonia")),
    ]
    cells = {"study_id": "50000001", "Edema": 1.0, "Airspace Opacity": 1.0}
    write_csv(mimic / "mimic-cxr-2.1.0-test-set-labeled.csv", names, [[cells.get(name, 0.0) for name in names]])
    images = open_data(f"mimic_cxr:root={mimic}:views=all:labels=all:test_labels=radiologist")
    assert images.cohort.split.tolist() == ["train", "train", "val", "test"]
    edema, opacity = (images.cohort.labels[:, images.label_names.index(name)] for name in ("edema", "lung_opacity"))
    assert edema.tolist() == [0, 0, -1, 1]
    assert opacity.tolist() == [0, 0, 0, 1]
    assert "pneumonia" not in images.label_names


def test_mura_tests_on_the_published_valid(tmp_path: Path) -> None:
    paths = [
        f"train/XR_WRIST/patient{n:05d}/study1_{'positive' if n % 2 else 'negative'}/image{i}.png"
        for n in range(1, 9)
        for i in (1, 2)
    ]
    valid = [f"valid/XR_HAND/patient111{n}5/study1_{'positive' if n % 2 else 'negative'}/image1.png" for n in range(2)]
    write_images(tmp_path, [*paths, *valid])
    (tmp_path / "train_image_paths.csv").write_text("".join(f"MURA-v1.1/{path}\n" for path in paths))
    (tmp_path / "valid_image_paths.csv").write_text("".join(f"MURA-v1.1/{path}\n" for path in valid))
    images = open_data(f"mura:root={tmp_path}:val=0.25")
    assert {path: split for path, split in split_of(images).items() if split == "test"} == dict.fromkeys(valid, "test")
    assert (images.cohort.split == "val").sum() == 4
    assert set(images.facts["body_part"].tolist()) == {"WRIST", "HAND"}


@pytest.fixture
def mammo(tmp_path: Path) -> Path:
    """Three exams of two DICOM files; BI-RADS 3 and an image without marked findings."""
    names = ["study_id", "series_id", "image_id", "laterality", "view_position", "height", "width"]
    names += ["breast_birads", "breast_density", "split"]
    rows = []
    for exam, (birads, split) in enumerate([("2", "training"), ("5", "training"), ("3", "test")]):
        for view in ("CC", "MLO"):
            image = f"i{exam}{view}"
            make_dicom(tmp_path / f"images/s{exam}/{image}.dicom", Modality="MG", pixels=make_pixels(seed=len(rows)))
            density = "DENSITY C" if exam else "DENSITY B"
            rows.append((f"s{exam}", "r", image, "L", view, 64, 64, f"BI-RADS {birads}", density, split))
    write_csv(tmp_path / "breast-level_annotations.csv", names, rows)
    write_csv(tmp_path / "finding_annotations.csv", ["image_id", "finding_categories"], [("i1CC", "['Mass']")])
    return tmp_path


def test_vindr_mammo_reads_dicom_and_never_counts_birads_3(mammo: Path) -> None:
    images = open_data(f"vindr_mammo:root={mammo}:val=0")
    assert images.label_names == ("suspicious_birads",)
    assert images.cohort.labels[:, 0].tolist() == [0, 0, 1, 1, -1, -1]
    assert images.cohort.split.tolist() == ["train"] * 4 + ["test"] * 2
    assert set(images.facts["view"].tolist()) == {"CC", "MLO"}
    assert images.reader.read(0).ndim == 2
    assert open_data(f"vindr_mammo:root={mammo}:val=0:labels=density").label_names == ("dense_breast",)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("chexprt:root={}", "Unknown data set 'chexprt'. Did you mean 'chexpert'"),
        ("chexpert:root={}:lables=all", "no key 'lables'. Did you mean 'labels'"),
        ("chexpert:root={}:uncertain=zeroes", "uncertain=zeroes is not known. Did you mean 'zeros'"),
        ("chexpert:root={}/absent", "chexpert:root=FOLDER"),
        ("mura:root={0}:root={0}", "give the key 'root' once"),
    ],
)
def test_mistakes_in_a_data_set_string_name_what_is_allowed(chexpert: Path, text: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        open_data(text.format(chexpert))
    assert sentence in str(caught.value)
