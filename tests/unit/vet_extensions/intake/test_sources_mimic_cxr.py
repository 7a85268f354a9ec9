"""MIMIC-CXR-JPG: a copy in small, with its traps, read as intake needs it."""

import logging
from pathlib import Path

import pytest

from tests.source_files import facts_of, items_of, problems_of, write_csv, write_images
from vet_extensions.errors import UserError
from vet_extensions.intake.sources.mimic_cxr import MimicCxr
from vet_extensions.schema import Split, View

METADATA = [
    "dicom_id",
    "subject_id",
    "study_id",
    "PerformedProcedureStepDescription",
    "ViewPosition",
    "Rows",
    "Columns",
    "StudyDate",
    "StudyTime",
    "ProcedureCodeSequence_CodeMeaning",
    "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
]
FINDINGS = [
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
]
IMAGES = {
    "aa-1": ("10000032", "50414267", "PA", "postero-anterior", "train"),
    "aa-2": ("10000032", "50414267", "LATERAL", "lateral", "train"),
    "bb-1": ("10000032", "53189527", "", "antero-posterior", "train"),
    "cc-1": ("19999987", "58621812", "AP LLD", "", "validate"),
    "cc-2": ("19999987", "58621812", "LL", "lateral", "validate"),
    "dd-1": ("19999999", "59999999", "SWIMMERS", "", "test"),
    "dd-2": ("19999999", "59999999", "", "", ""),
}


def path_of(image: str) -> str:
    patient, study = IMAGES[image][:2]
    return f"files/p{patient[:2]}/p{patient}/s{study}/{image}.jpg"


def label_row(patient: str, study: str, **values: str) -> list[str]:
    return [patient, study, *(values.get(name.replace(" ", "_"), "") for name in FINDINGS)]


def make_copy(tmp_path: Path) -> Path:
    """Written out of order; the split table does not list one image, the label table not one study."""
    write_images(tmp_path, map(path_of, IMAGES))
    rows = [
        [
            image,
            patient,
            study,
            "CHEST (PA AND LAT)",
            position,
            3056,
            2544,
            21800506,
            "213014.531",
            "",
            meaning,
            "Erect",
        ]
        for image, (patient, study, position, meaning, _) in reversed(IMAGES.items())
    ]
    write_csv(tmp_path / "mimic-cxr-2.0.0-metadata.csv.gz", METADATA, rows)
    splits = [(image, facts[1], facts[0], facts[4]) for image, facts in IMAGES.items() if facts[4]]
    write_csv(tmp_path / "mimic-cxr-2.0.0-split.csv", ["dicom_id", "study_id", "subject_id", "split"], splits)
    labels = [
        label_row("10000032", "50414267", No_Finding="1.0"),
        label_row("10000032", "53189527", Edema="-1.0", Pleural_Effusion="1.0", Pneumonia="0.0"),
        label_row("19999987", "58621812"),
    ]
    for labeller in ("chexpert", "negbio"):
        write_csv(tmp_path / f"mimic-cxr-2.0.0-{labeller}.csv.gz", ["subject_id", "study_id", *FINDINGS], labels)
    return tmp_path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_copy(tmp_path)


def test_every_image_is_found_under_its_own_names(root: Path) -> None:
    items = items_of(MimicCxr(root))
    assert set(items) == {path_of(image) for image in IMAGES}
    for image, (patient, study, *_) in IMAGES.items():
        item = items[path_of(image)]
        assert item.problem is None
        assert item.facts is not None
        assert (item.facts.patient, item.facts.study, item.facts.image) == (patient, study, image)
        assert (item.facts.species, item.facts.body_part) == ("human", "CHEST")


def test_views_come_from_the_position_then_from_the_code(root: Path) -> None:
    views = facts_of(MimicCxr(root), "view")
    rules = facts_of(MimicCxr(root), "view_source")
    assert {image: views[path_of(image)] for image in IMAGES} == {
        "aa-1": View.PA,
        "aa-2": View.LATERAL,
        "bb-1": View.AP,
        "cc-1": View.AP,
        "cc-2": View.LATERAL_LEFT,
        "dd-1": View.UNKNOWN,
        "dd-2": View.UNKNOWN,
    }
    assert rules[path_of("aa-1")] == "ViewPosition (MIMIC-CXR)"
    assert rules[path_of("bb-1")] == "ViewCodeSequence_CodeMeaning (MIMIC-CXR)"
    assert rules[path_of("dd-2")] == "none"


def test_splits_are_the_official_ones(root: Path) -> None:
    splits = facts_of(MimicCxr(root), "split")
    found = {image: splits[path_of(image)] for image in ("aa-1", "cc-2", "dd-1", "dd-2")}
    assert found == {"aa-1": Split.TRAIN, "cc-2": Split.VAL, "dd-1": Split.TEST, "dd-2": None}


def test_the_labels_of_a_study_are_those_of_each_of_its_images(root: Path) -> None:
    labels = facts_of(MimicCxr(root), "labels")
    assert labels[path_of("aa-1")] == labels[path_of("aa-2")] == {"no_finding": 1}
    assert labels[path_of("bb-1")] == {"edema": -1, "pleural_effusion": 1, "pneumonia": 0}
    assert labels[path_of("cc-1")] == labels[path_of("dd-1")] == {}


def test_blank_cells_may_mean_absent_but_a_study_that_is_not_listed_has_no_labels(root: Path) -> None:
    source = MimicCxr(root, uncertain="to_positive", blank="absent")
    labels = facts_of(source, "labels")
    assert labels[path_of("bb-1")] == {**dict.fromkeys(source.label_names, 0), "edema": 1, "pleural_effusion": 1}
    assert labels[path_of("cc-1")] == dict.fromkeys(source.label_names, 0)
    assert labels[path_of("dd-1")] == {}
    assert source.label_policy == {"uncertain": "to_positive", "blank": "absent", "labeller": "chexpert"}


def test_the_radiologist_s_airspace_opacity_is_lung_opacity(root: Path) -> None:
    names = ["study_id", "Airspace Opacity", "Support Devices"]
    write_csv(root / "mimic-cxr-2.1.0-test-set-labeled.csv", names, [("59999999", "1.0", "0.0")])
    labels = facts_of(MimicCxr(root, labels="radiologist"), "labels")
    assert labels[path_of("dd-1")] == {"lung_opacity": 1, "support_devices": 0}
    assert labels[path_of("aa-1")] == {}


def test_missing_files_are_problems_and_others_are_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / path_of("aa-2")).rename(root / "files" / "stray.jpg")
    with caplog.at_level(logging.INFO, logger="vet_extensions"):
        assert problems_of(MimicCxr(root)) == {path_of("aa-2"): "FILE_MISSING"}
    assert "1 image files that no row names" in caplog.text


def test_open_gives_the_picture(root: Path) -> None:
    with MimicCxr(root).open(path_of("aa-1")) as file:
        assert file.read(3) == b"\xff\xd8\xff"


def test_an_unknown_labeller_is_named_with_the_nearest(root: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'chexpert'"):
        MimicCxr(root, labels="chexpertt")


def test_another_folder_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "train.csv").touch()
    (tmp_path / "patient Smith").mkdir()
    with pytest.raises(
        UserError, match=r"expected 'mimic-cxr-2\.0\.0-metadata\.csv'.* found train\.csv and 1 other"
    ) as error:
        MimicCxr(tmp_path)
    assert "Smith" not in str(error.value)
