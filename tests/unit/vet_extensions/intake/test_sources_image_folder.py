"""A folder of images without a table: what its folders' names say, by a layout."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vet_extensions.errors import UserError
from vet_extensions.intake.options import IntakeOptions
from vet_extensions.intake.run import run_intake
from vet_extensions.intake.sources.base import ImageFacts, Source
from vet_extensions.intake.sources.image_folder import ImageFolder
from vet_extensions.intake.sources.registry import make_source
from vet_extensions.manifest import Manifest
from vet_extensions.schema import IntakeFolder, Split, View


def a_folder(root: Path, *paths: str) -> Path:
    rng = np.random.default_rng(0)
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 32), dtype=np.uint8)).save(root / path)
    return root


def facts_of(source: Source) -> dict[str, ImageFacts]:
    return {item.key: item.facts for item in source.items() if item.facts is not None}


def test_the_levels_of_folders_say_patient_study_and_view(tmp_path: Path) -> None:
    root = a_folder(tmp_path, "rex/1/VD/a.png", "rex/2/left lateral/b.jpg", "bello/1/DV/deeper/c.tif")
    facts = facts_of(ImageFolder(root, layout="patient/study/view"))
    rex, second, bello = facts["rex/1/VD/a.png"], facts["rex/2/left lateral/b.jpg"], facts["bello/1/DV/deeper/c.tif"]
    assert rex.patient == second.patient == "rex"
    assert len({rex.study, second.study, bello.study}) == 3  # study 1 of another patient is another one
    assert [rex.view, second.view, bello.view] == [View.VD, View.LATERAL_LEFT, View.DV]


def test_folders_may_be_splits_and_classes(tmp_path: Path) -> None:
    root = a_folder(tmp_path, "train/Pleural Effusion/a.png", "test/normal/b.png")
    source = make_source("images", str(root), layout="split/finding")
    assert source.label_names == ("normal", "pleural_effusion")
    facts = facts_of(source)
    effusion, normal = facts["train/Pleural Effusion/a.png"], facts["test/normal/b.png"]
    assert effusion.labels == {"normal": 0, "pleural_effusion": 1}
    assert normal.labels == {"normal": 1, "pleural_effusion": 0}
    assert [effusion.split, normal.split] == [Split.TRAIN, Split.TEST]


def test_without_a_layout_each_image_stands_alone(tmp_path: Path) -> None:
    root = a_folder(tmp_path, "a.png", "some/b.png")
    facts = facts_of(ImageFolder(root)).values()
    assert len({one.patient for one in facts}) == 2
    assert all(one.view is View.UNKNOWN and not one.labels for one in facts)


@pytest.mark.parametrize(
    ("layout", "sentence"),
    [("patients/study", "Did you mean"), ("study/study", "Each role may stand once"), ("patient/study", "less deep")],
)
def test_a_layout_that_does_not_fit_is_refused(tmp_path: Path, layout: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        ImageFolder(a_folder(tmp_path, "rex/a.png", "rex/1/b.png"), layout=layout)


def test_the_whole_intake_takes_it_in_and_no_folder_name_gets_out(tmp_path: Path) -> None:
    source = a_folder(
        tmp_path / "in", *(f"Rex Marlowe/{study}/{n}.png" for study in "12" for n in "ab"), "Bello/1/a.png"
    )
    out = tmp_path / "out"
    summary = run_intake(
        ImageFolder(source, layout="patient/study"), out, options=IntakeOptions(salt="a salt for tests")
    )
    assert (summary.n_accepted, summary.n_studies, summary.n_patients) == (5, 3, 2)
    folder = IntakeFolder(out)
    assert len(Manifest.open(out)) == 5
    for path in out.rglob("*"):
        if path.is_file() and folder.private not in path.parents:
            assert b"Marlowe" not in path.read_bytes()
