"""Tables and class folders of one's own, and MedMNIST files."""

import pickle
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.source_files import write_csv, write_images
from vet_extensions.errors import UserError
from vet_extensions.evaluation.checks import check_cohort
from vet_extensions.evaluation.cohort import MULTICLASS, MULTILABEL
from vet_extensions.evaluation.datasets import open_data
from vet_extensions.evaluation.suite import run_suite
from vet_extensions.evaluation.suite_config import BootstrapConfig, KnnConfig, SuiteConfig

SMALL = SuiteConfig(knn=KnnConfig(ks=(2,)))
NAMES = ["path", "patient", "study", "split", "view", "label"]
ROWS = [
    (f"i{n}.png", f"p{n // 2}", "1", ["train", "train", "valid", "test"][n // 2 % 4], "VD", ["tb", "normal"][n % 2])
    for n in range(16)
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_images(tmp_path, [row[0] for row in ROWS])
    write_csv(tmp_path / "images.csv", NAMES, ROWS)
    return tmp_path


def test_a_table_gives_classes_patients_splits_and_views(root: Path) -> None:
    images = open_data(f"table:root={root}:file=images.csv")
    assert images.task == MULTICLASS
    assert images.label_names == ("normal", "tb")
    assert images.cohort.split.tolist()[:8] == ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    assert set(images.cohort.family.tolist()) == {"frontal"}
    assert len(np.unique(images.cohort.study_codes)) == 8  # "1" counts anew with each patient
    assert images.id_of("patient").tolist() == images.cohort.patient_codes.astype(str).tolist()
    check_cohort(images, SMALL)


def test_a_table_of_findings_keeps_uncertain_and_blank_cells_apart_from_absent(root: Path) -> None:
    cells = ["1", "0", "-1", ""]
    rows = [(*row[:5], cells[n % 4], cells[(n + 1) % 4]) for n, row in enumerate(ROWS)]
    write_csv(root / "findings.tsv", [*NAMES[:5], "Pleural Effusion", "nodule"], [])
    text = "\n".join("\t".join(map(str, row)) for row in [[*NAMES[:5], "Pleural Effusion", "nodule"], *rows])
    (root / "findings.tsv").write_text(text + "\n")
    images = open_data(f"table:root={root}:file=findings.tsv:labels=Pleural Effusion+nodule")
    assert images.task == MULTILABEL
    assert images.label_names == ("pleural_effusion", "nodule")
    assert images.cohort.labels[:4].tolist() == [[1, 0], [0, -1], [-1, -128], [-128, 1]]


def test_a_word_outside_the_vocabulary_is_refused(root: Path) -> None:
    with pytest.raises(UserError, match=r"holds 1 words that are no class: tb\. The classes are normal, covid"):
        open_data(f"table:root={root}:file=images.csv:classes=normal+covid")


def test_one_patient_in_two_splits_is_refused(root: Path) -> None:
    write_csv(root / "torn.csv", NAMES, [(row[0], "p1", *row[2:]) for row in ROWS])
    with pytest.raises(UserError, match="1 of 1 patients have images in more than one split"):
        check_cohort(open_data(f"table:root={root}:file=torn.csv"), SMALL)


def test_a_table_without_patients_says_that_the_split_may_leak(root: Path) -> None:
    write_csv(root / "bare.csv", ["path", "label"], [(row[0], row[5]) for row in ROWS])
    images = open_data(f"table:root={root}:file=bare.csv")
    assert images.policy["patients"].startswith("not known")
    assert set(images.cohort.split.tolist()) == {"train", "val", "test"}


def test_missing_files_tables_and_columns_are_named(root: Path) -> None:
    (root / "i3.png").unlink()
    with pytest.raises(UserError, match="1 of 16 images"):
        open_data(f"table:root={root}:file=images.csv")
    with pytest.raises(UserError, match="does not exist"):
        open_data(f"table:root={root}:file=absent.csv")
    with pytest.raises(UserError, match="no column 'diagnosis'"):
        open_data(f"table:root={root}:file=images.csv:label=diagnosis")
    with pytest.raises(UserError, match="needs the key 'file'"):
        open_data(f"table:root={root}")


def test_a_folder_that_does_not_exist_is_told_beside_what_may_be_given(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"'.*nowhere' does not exist.*`vetdino intake` wrote, or NAME:root=FOLDER.*chexpert"
    ):
        open_data(tmp_path / "nowhere")


def test_a_damaged_file_is_told_by_its_number_and_a_blank_one_is_black(root: Path) -> None:
    images = open_data(f"table:root={root}:file=images.csv")
    (root / "i0.png").write_bytes((root / "i0.png").read_bytes()[:60])
    with pytest.raises(UserError, match="Image 0 of the data set cannot be read"):
        images.reader.read(0)
    cv2.imwrite(str(root / "i1.png"), np.full((20, 20), 90, np.uint8))
    assert not images.reader.read(1).any()


def test_folders_are_classes_below_splits_if_there_are_any(tmp_path: Path) -> None:
    flat = [f"{word}/{n}.png" for word in ("Normal", "Tumour") for n in range(10)]
    write_images(tmp_path / "flat", [*flat, "Normal/._0.png"])
    images = open_data(f"class_folder:root={tmp_path / 'flat'}")
    assert images.label_names == ("normal", "tumour")
    assert len(images.reader) == 20
    check_cohort(images, SMALL)
    write_images(tmp_path / "split", [f"{split}/{path}" for split in ("Training", "Testing") for path in flat])
    images = open_data(f"class_folder:root={tmp_path / 'split'}:val=0")
    assert images.cohort.split.tolist().count("test") == 20
    assert images.policy["patients"].startswith("not known")


def test_folders_of_patients_keep_them_whole(tmp_path: Path) -> None:
    write_images(tmp_path, [f"{word}/p{n}/{k}.png" for word in ("a", "b") for n in range(6) for k in range(3)])
    images = open_data(f"class_folder:root={tmp_path}:layout=finding/patient")
    pairs = set(zip(images.cohort.patient_codes.tolist(), images.cohort.split.tolist(), strict=True))
    assert len(pairs) == len(np.unique(images.cohort.patient_codes))


def test_an_empty_class_folder_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path, [f"{word}/{n}.png" for word in ("a", "b") for n in range(4)])
    (tmp_path / "c").mkdir()
    with pytest.raises(UserError, match="class folder 'c' holds no picture"):
        open_data(f"class_folder:root={tmp_path}")


def write_npz(
    root: Path, name: str, *, shape: tuple[int, ...], labels: int = 1, top: int = 1, **changes: np.ndarray
) -> Path:
    generator = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 8), ("val", 4), ("test", 4)):
        arrays[f"{split}_images"] = generator.integers(0, 255, (n, *shape), np.uint8)
        arrays[f"{split}_labels"] = (np.arange(n * labels) % (top + 1)).reshape(n, labels).astype(np.uint8)
    np.savez_compressed(root / name, **{**arrays, **changes})
    return root


def test_a_medmnist_file_is_read_with_its_splits_and_classes(tmp_path: Path) -> None:
    root = write_npz(tmp_path, "pneumoniamnist.npz", shape=(28, 28))
    images = open_data(f"medmnist:root={root}:name=pneumoniamnist")
    assert images.label_names == ("normal", "pneumonia")
    assert images.cohort.split.tolist() == ["train"] * 8 + ["val"] * 4 + ["test"] * 4
    assert "train: 8 of 4,708" in images.policy["counts"]
    with np.load(root / "pneumoniamnist.npz") as stored:
        assert np.array_equal(images.reader.read(12), stored["test_images"][0])
        assert np.array_equal(pickle.loads(pickle.dumps(images.reader)).read(3), stored["train_images"][3])
    check_cohort(images, SMALL)


def test_a_medmnist_file_of_findings_is_multi_label_and_colour_becomes_luminance(tmp_path: Path) -> None:
    chest = open_data(
        f"medmnist:root={write_npz(tmp_path, 'chestmnist.npz', shape=(28, 28), labels=14)}:name=chestmnist"
    )
    assert (chest.task, len(chest.label_names)) == (MULTILABEL, 14)
    root = write_npz(tmp_path, "pathmnist_64.npz", shape=(64, 64, 3), top=8)
    path = open_data(f"medmnist:root={root}:name=pathmnist:size=64")
    assert path.reader.read(0).shape == (64, 64)


def test_medmnist_labels_outside_the_vocabulary_and_other_names_are_refused(tmp_path: Path) -> None:
    root = write_npz(tmp_path, "breastmnist.npz", shape=(28, 28), top=2)
    with pytest.raises(UserError, match="from 0 to 1, got 1 from 0 to 2"):
        open_data(f"medmnist:root={root}:name=breastmnist")
    with pytest.raises(UserError, match="name=organmnist3d is not known"):
        open_data(f"medmnist:root={root}:name=organmnist3d")
    with pytest.raises(UserError, match=r"'octmnist_224.npz' is not in"):
        open_data(f"medmnist:root={root}:name=octmnist:size=224")


def test_the_suite_judges_a_data_set_by_its_string_and_writes_its_policy(tmp_path: Path) -> None:
    write_images(tmp_path / "data", [f"{word}/{n}.png" for word in ("a", "b") for n in range(10)])
    suite = replace(SMALL, levels=("image",), protocols=("knn",), controls=(), bootstrap=BootstrapConfig(n_resamples=5))
    rows = run_suite(["pixels"], f"class_folder:root={tmp_path / 'data'}", suite, tmp_path / "out")
    assert {row.metric for row in rows} >= {"accuracy", "macro_auroc"}
    assert all(row.config["data"]["name"] == "class folder" for row in rows)
    assert all("none prescribed" in row.config["data"]["split"] for row in rows)
    assert str(tmp_path) not in "".join(str(row.to_row()) for row in rows)
