"""Folders of images and masks: what is read, and what is refused with a sentence."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from vet_extensions.errors import UserError
from vet_extensions.evaluation.segmentation.sets import IGNORED, open_mask_folder
from vet_extensions.phantom.organs import CLASSES, write_organ_folder

LINES = ["a,p1,train,0.5,0.5", "b,p2,val,0.5,0.25", "c,p3,test,,"]


def make_folder(root: Path, *, lines: list[str] = LINES, top_class: int = 1) -> Path:
    (root / "classes.json").write_text(json.dumps({"classes": ["background", "lung"]}))
    (root / "cases.csv").write_text("\n".join(["case,patient,split,row_spacing_mm,column_spacing_mm", *lines]) + "\n")
    for kind, value in (("images", 200), ("masks", top_class)):
        (root / kind).mkdir()
        for line in lines:
            pixels = np.zeros((6, 4), np.uint8)
            pixels[2:] = value
            cv2.imwrite(str(root / kind / f"{line.split(',')[0]}.png"), pixels)
    return root


def test_a_folder_becomes_a_set_with_its_splits_patients_and_spacings(tmp_path: Path) -> None:
    found = open_mask_folder(make_folder(tmp_path))
    assert found.class_names == ("background", "lung")
    assert found.split.tolist() == ["train", "val", "test"]
    assert len(set(found.patient_codes.tolist())) == 3
    assert found.spacing_mm[1].tolist() == [0.5, 0.25]
    assert np.isnan(found.spacing_mm[2]).all()
    assert found.read(0).max() == 200
    assert found.checked_mask(0, shape=(6, 4)).sum() == 16


def test_the_hash_changes_with_a_mask(tmp_path: Path) -> None:
    before = open_mask_folder(make_folder(tmp_path)).content_hash
    cv2.imwrite(str(tmp_path / "masks" / "b.png"), np.zeros((6, 4), np.uint8))
    assert open_mask_folder(tmp_path).content_hash != before


def test_one_patient_in_two_splits_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path, lines=["a,p1,train,,", "b,p2,val,,", "c,p1,test,,"])
    with pytest.raises(UserError, match="1 of 2 patients have cases in more than one split"):
        open_mask_folder(tmp_path)


def test_missing_masks_are_named_by_line_all_at_once(tmp_path: Path) -> None:
    make_folder(tmp_path)
    for name in ("a", "c"):
        (tmp_path / "masks" / f"{name}.png").unlink()
    with pytest.raises(UserError, match=r"2 of 3 cases .* masks/ \(lines 2, 4\)"):
        open_mask_folder(tmp_path)


def test_a_value_that_is_no_class_is_refused(tmp_path: Path) -> None:
    found = open_mask_folder(make_folder(tmp_path, top_class=2))
    with pytest.raises(UserError, match="holds 2, which is no class"):
        found.checked_mask(0, shape=(6, 4))


def test_pixels_that_nobody_labelled_are_allowed(tmp_path: Path) -> None:
    found = open_mask_folder(make_folder(tmp_path, top_class=IGNORED))
    assert found.checked_mask(0, shape=(6, 4)).max() == IGNORED


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["a,p1,train,,", "b,p2,val,,"], "No case is in split test"),
        (["a,p1,train,,", "b,p2,val,,", "c,p3,holdout,,"], "Unknown split 'holdout'"),
        (["a,p1,train,,", "b,p2,val,,", "c,p3,test,-1,1"], "row_spacing_mm is '-1'"),
        (["a,p1,train,,", "a,p1,train,,", "c,p3,test,,"], "names a case twice"),
        (["a,p1,train,,", "b,,val,,", "c,p3,test,,"], "line 3: case, patient or split is empty"),
    ],
)
def test_what_is_wrong_with_the_cases_is_said(tmp_path: Path, lines: list[str], sentence: str) -> None:
    make_folder(tmp_path, lines=lines)
    with pytest.raises(UserError, match=sentence):
        open_mask_folder(tmp_path)


def test_a_folder_without_cases_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vetdino organs"):
        open_mask_folder(tmp_path)


def test_the_phantoms_organs_are_such_a_folder(tmp_path: Path) -> None:
    assert write_organ_folder(tmp_path / "organs", n_studies=5, size_px=32) == 10
    found = open_mask_folder(tmp_path / "organs")
    assert found.class_names == CLASSES
    masks = [found.checked_mask(row, shape=found.read(row).shape) for row in range(10)]
    assert set(np.unique(np.stack(masks))) == set(range(len(CLASSES)))
    assert np.isfinite(found.spacing_mm).all()
