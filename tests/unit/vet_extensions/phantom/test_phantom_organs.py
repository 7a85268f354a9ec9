"""Label maps of organs: they agree with the picture, with the masks, and with themselves."""

from pathlib import Path

import numpy as np
import pytest

from vet_extensions.errors import UserError
from vet_extensions.phantom.organs import CLASSES, ORGANS, organ_map, write_organ_folder
from vet_extensions.phantom.render import organ_masks, render_view
from vet_extensions.phantom.studies import sample_study

SIZE = 96


@pytest.mark.parametrize("index", [0, 1])
def test_the_last_organ_of_the_order_has_the_pixels_that_several_share(index: int) -> None:
    study = sample_study(0, 2)
    exposure = study.exposures[index]
    labels, masks = organ_map(study, exposure, SIZE), organ_masks(study, exposure, SIZE)
    is_seen = render_view(study, exposure, SIZE).image > 0.02
    for place, organ in enumerate(ORGANS):
        covered = np.any([masks[later] for later in ORGANS[place + 1 :]], axis=0) if ORGANS[place + 1 :] else False
        np.testing.assert_array_equal((labels == place + 1)[is_seen], (masks[organ] & ~covered)[is_seen])


def test_what_the_collimator_covers_is_background() -> None:
    study = sample_study(0, 2)
    for exposure in study.exposures:
        image, labels = render_view(study, exposure, SIZE).image, organ_map(study, exposure, SIZE)
        rows, columns = (np.flatnonzero(image.any(axis=axis)) for axis in (1, 0))
        outside = np.ones_like(labels, bool)
        outside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = False
        assert outside.any()
        assert not labels[outside].any()


def test_the_heart_is_brighter_than_the_lung_around_it() -> None:
    study = sample_study(0, 2)
    image, labels = render_view(study, study.exposures[0], SIZE).image, organ_map(study, study.exposures[0], SIZE)
    assert image[labels == CLASSES.index("heart")].mean() > image[labels == CLASSES.index("lung")].mean() + 0.1


def test_the_same_call_again_writes_the_same_files(tmp_path: Path) -> None:
    write_organ_folder(tmp_path / "a", n_studies=5, size_px=32)
    before = {path.relative_to(tmp_path): path.read_bytes() for path in (tmp_path / "a").rglob("*.*")}
    write_organ_folder(tmp_path / "a", n_studies=5, size_px=32)
    assert {path.relative_to(tmp_path): path.read_bytes() for path in (tmp_path / "a").rglob("*.*")} == before


def test_studies_of_one_patient_share_a_split(tmp_path: Path) -> None:
    write_organ_folder(tmp_path / "a", n_studies=12, size_px=32)
    lines = [line.split(",") for line in (tmp_path / "a" / "cases.csv").read_text().splitlines()[1:]]
    split_of: dict[str, set[str]] = {}
    for _, patient, split, *_ in lines:
        split_of.setdefault(patient, set()).add(split)
    assert len(split_of) == 11  # ten patients have eleven studies, the twelfth study is of the eleventh patient
    assert all(len(splits) == 1 for splits in split_of.values())


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not touch")
    with pytest.raises(UserError, match="not empty"):
        write_organ_folder(tmp_path, n_studies=5)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
