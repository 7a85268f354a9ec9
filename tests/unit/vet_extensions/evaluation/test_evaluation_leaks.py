"""What a model was pre-trained on, against what it is judged on: a leak stops, or is printed; unknown is called unknown."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from omegaconf import OmegaConf

from vet_extensions.errors import UserError
from vet_extensions.evaluation.leaks import check_pretraining, check_runs, leaks_by_arm
from vet_extensions.manifest import write_manifest
from vet_extensions.schema import IntakeFolder


def folder(root: Path, *, first: int = 0, salt: str = "a", n: int = 10) -> Path:
    """An intake folder of n patients with one image each: seven train, one val, two test."""
    numbers = [f"{i:03d}" for i in range(first, first + n)]
    columns = {key: [f"{key}{number}" for number in numbers] for key in ("patient_id", "study_id", "image_id")}
    columns |= {"pixel_hash": [f"px{number}" for number in numbers], "view": ["VD"] * n}
    columns["split"] = (["train"] * 7 + ["val"] + ["test"] * n)[:n]
    root.mkdir(parents=True)
    write_manifest(pa.table(columns), IntakeFolder(root).manifest)
    IntakeFolder(root).summary.write_text(json.dumps({"salt_fingerprint": salt}))
    return root


def run(place: Path, dataset: str) -> Path:
    """A run folder that was trained on a data set string."""
    checkpoint = place / "eval" / "training_9" / "teacher_checkpoint.pth"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    OmegaConf.save(OmegaConf.create({"train": {"dataset_path": dataset}}), place / "config.yaml")
    return place


def test_training_on_the_train_split_of_the_judged_folder_is_clean(tmp_path: Path) -> None:
    data = folder(tmp_path / "data")
    check = check_pretraining(run(tmp_path / "run", f"VetStudies:root={data}"), data)
    assert not check.is_leak
    assert check.sentence.startswith("none found")


@pytest.mark.parametrize("options", [":split=all", ":split=test:seed=1"])
def test_training_on_the_test_split_is_a_leak_with_counts(tmp_path: Path, options: str) -> None:
    data = folder(tmp_path / "data")
    check = check_pretraining(run(tmp_path / "run", f"VetStudies:root={data}{options}"), data)
    assert check.is_leak
    assert "of 2 test images in pre-training: same patient 2" in check.sentence
    assert "same pixels 2" in check.sentence


def test_what_an_expression_left_out_of_training_does_not_leak(tmp_path: Path) -> None:
    data = folder(tmp_path / "data")
    where = "where=patient_id < 'patient_id005'"
    assert not check_pretraining(run(tmp_path / "run", f"VetStudies:root={data}:split=all:{where}"), data).is_leak


def test_another_folder_that_shares_patients_with_the_test_split_leaks(tmp_path: Path) -> None:
    data, other = folder(tmp_path / "data"), folder(tmp_path / "other", first=9)
    check = check_pretraining(run(tmp_path / "run", f"VetStudies:root={other}"), data)
    assert check.is_leak
    assert "same patient 1" in check.sentence


@pytest.mark.parametrize("dataset", ["ImageFolder:root=somewhere", "VetStudies:root=not/here", ""])
def test_what_cannot_be_compared_is_called_unknown(tmp_path: Path, dataset: str) -> None:
    data = folder(tmp_path / "data")
    check = check_pretraining(run(tmp_path / "run", dataset), data)
    assert check.sentence.startswith("unknown")
    assert not check.is_leak


def test_folders_of_different_salts_are_unknown_and_not_clean(tmp_path: Path) -> None:
    data, other = folder(tmp_path / "data"), folder(tmp_path / "other", first=50, salt="b")
    assert "different salts" in check_pretraining(run(tmp_path / "run", f"VetStudies:root={other}"), data).sentence


def test_a_leak_stops_unless_it_is_allowed(tmp_path: Path) -> None:
    data = folder(tmp_path / "data")
    leaking = run(tmp_path / "run", f"VetStudies:root={data}:split=all")
    with pytest.raises(UserError, match="--allow-leak"):
        check_runs([leaking], data)
    (check,) = check_runs([leaking], data, allow_leak=True)
    assert leaks_by_arm(["vet_dino"], [check])["vet_dino"].startswith("LEAK")


def test_no_sentence_names_a_folder(tmp_path: Path) -> None:
    data = folder(tmp_path / "data")
    for number, dataset in enumerate((f"VetStudies:root={data}:split=all", "VetStudies:root=not/here")):
        sentence = check_pretraining(run(tmp_path / str(number), dataset), data).sentence
        assert str(tmp_path) not in sentence
        assert "not/here" not in sentence
