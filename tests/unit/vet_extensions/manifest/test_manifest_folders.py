"""Stratified splits, copies of a part of a folder, and the page of statistics."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from study_factory import make_intake
from typer.testing import CliRunner

from vet_extensions.cli import app
from vet_extensions.commands.folders import choose_into, split_folder
from vet_extensions.errors import UserError
from vet_extensions.manifest import Manifest, write_manifest
from vet_extensions.manifest.build import build_table
from vet_extensions.manifest.split import split_patients, traits_of
from vet_extensions.manifest.statistics import statistics_page
from vet_extensions.manifest.validate import summarise
from vet_extensions.schema import ImageRecord, Split, View
from vet_extensions.shards import ShardReader

SHARES = {Split.TRAIN: 0.7, Split.VAL: 0.1, Split.TEST: 0.2}


def make_strata(n: int = 200) -> dict[str, list[str]]:
    """Patients with a common trait, one that ten have, and one that three have."""
    strata = {f"p{number:03}": ["species=canine" if number % 3 else "species=feline"] for number in range(n)}
    for number in range(0, n // 2, n // 20):
        strata[f"p{number:03}"].append("label.effusion=1")
    for number in (5, 17, 44):
        strata[f"p{number:03}"].append("label.fracture=1")
    return strata


def counts_of(strata: dict[str, list[str]], splits: dict[str, Split], trait: str) -> tuple[int, ...]:
    found = Counter(splits[patient] for patient, traits in strata.items() if trait in traits)
    return tuple(found[split] for split in Split)


@pytest.mark.parametrize("seed", range(5))
def test_rare_traits_are_in_every_split_and_counts_stay_exact(seed: int) -> None:
    strata = make_strata()
    splits = split_patients(strata, fractions=SHARES, seed=seed, strata=strata)
    assert counts_of(strata, splits, "label.fracture=1") == (1, 1, 1)
    assert counts_of(strata, splits, "label.effusion=1") == (7, 1, 2)
    found = Counter(splits.values())
    assert tuple(found[split] for split in Split) == (140, 20, 40)


def test_common_traits_keep_their_shares() -> None:
    strata = make_strata()
    splits = split_patients(strata, fractions=SHARES, seed=0, strata=strata)
    expected = [67 * share for share in SHARES.values()]
    np.testing.assert_allclose(counts_of(strata, splits, "species=feline"), expected, atol=1.5)


def test_the_order_of_patients_and_traits_does_not_matter_to_a_stratified_split() -> None:
    strata = make_strata()
    turned = {patient: strata[patient][::-1] for patient in reversed(strata)}
    forward = split_patients(strata, fractions=SHARES, seed=2, strata=strata)
    assert forward == split_patients(turned, fractions=SHARES, seed=2, strata=turned)
    assert forward != split_patients(strata, fractions=SHARES, seed=3, strata=strata)


def test_a_share_of_nothing_stays_empty_when_stratified() -> None:
    strata = make_strata(100)
    shares = {Split.TRAIN: 0.5, Split.VAL: 0.0, Split.TEST: 0.5}
    found = Counter(split_patients(strata, fractions=shares, seed=0, strata=strata).values())
    assert found == {Split.TRAIN: 50, Split.TEST: 50}


def make_labelled(root: Path) -> Manifest:
    shape = (40, 30, 40, 30)
    records = [
        replace(
            ImageRecord(f"i{n:02}{k}", f"s{n:02}", f"p{n:02}", view, "test", *shape),
            species="canine" if n % 2 else "",
            spacing_mm=(0.1 * (n + 1), 0.2),
            labels={"effusion": 1 if n < 3 else -1},
        )
        for n in range(12)
        for k, view in enumerate((View.LATERAL_LEFT, View.VD))
    ]
    root.mkdir(exist_ok=True)
    splits = {record.patient_id: Split.TRAIN for record in records}
    write_manifest(build_table(records, splits=splits, label_names=("effusion", "mass")), root / "manifest.parquet")
    return Manifest.open(root)


def test_traits_leave_out_what_is_not_stated_or_uncertain(tmp_path: Path) -> None:
    traits = traits_of(make_labelled(tmp_path), ["labels", "species", "view"])
    assert traits["p01"] == ["label.effusion=1", "species=canine", "view=LATERAL_LEFT", "view=VD"]
    assert traits["p04"] == ["view=LATERAL_LEFT", "view=VD"]


@pytest.mark.parametrize(("column", "said"), [("rows", "is a number"), ("label.msas", "no column 'label.msas'")])
def test_a_split_by_an_unfit_column_is_refused(tmp_path: Path, column: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        traits_of(make_labelled(tmp_path), [column])


def test_a_new_split_is_shown_first_and_written_on_demand(tmp_path: Path) -> None:
    before = make_labelled(tmp_path).content_hash
    (tmp_path / "intake.json").write_text(json.dumps({"run_key": "k", "splits": {}}))
    counts, is_written = split_folder(tmp_path, fractions=SHARES, seed=0, by=["label.effusion"], replace=False)
    assert (is_written, Manifest.open(tmp_path).content_hash) == (False, before)
    assert counts["label.effusion=1"] == {"train": 1, "val": 1, "test": 1}
    written, is_written = split_folder(tmp_path, fractions=SHARES, seed=0, by=["label.effusion"], replace=True)
    after = Manifest.open(tmp_path)
    assert (is_written, written) == (True, counts)
    assert after.content_hash != before
    assert Counter(after.column("split")) == {"train": 16, "val": 2, "test": 6}
    summary = json.loads((tmp_path / "intake.json").read_text())
    assert summary["splits"]["test"] == {"patients": 3, "studies": 3, "images": 6}
    assert summary["run_key"] == "k"
    assert split_folder(tmp_path, fractions=SHARES, seed=0, by=["label.effusion"], replace=True)[1] is False


def test_the_split_verb_needs_shares_that_sum_to_one(tmp_path: Path) -> None:
    make_labelled(tmp_path)
    answer = CliRunner().invoke(app, ["split", str(tmp_path), "--fractions", "0.7,0.7,0.2"])
    assert answer.exit_code == 2
    answer = CliRunner().invoke(app, ["split", str(tmp_path), "--stratify", "labels,species"])
    assert answer.exit_code == 0
    assert "Nothing was written" in answer.stdout


def test_a_chosen_part_is_a_sound_folder_with_the_same_pixels(tmp_path: Path) -> None:
    root = make_intake(tmp_path / "all", n_studies=5)
    part = choose_into(root, tmp_path / "part", where="view == 'VD'")
    assert (part.n_images, set(part.views)) == (5, {"VD"})
    assert summarise(tmp_path / "part").problems == ()
    old, new = ShardReader(root), ShardReader(tmp_path / "part")
    for row in range(5):
        np.testing.assert_array_equal(new.read(row), old.read(2 * row + 1))
    assert json.loads((tmp_path / "part" / "filter.json").read_text())["of"] == Manifest.open(root).content_hash


def test_a_choice_of_nothing_or_into_something_is_refused(tmp_path: Path) -> None:
    root = make_intake(tmp_path / "all", n_studies=2)
    with pytest.raises(UserError, match="No image"):
        choose_into(root, tmp_path / "part", where="view == 'DV'")
    assert not (tmp_path / "part").exists()
    with pytest.raises(UserError, match="not empty"):
        choose_into(root, root, where="view == 'VD'")


def test_the_page_counts_and_names_no_one(tmp_path: Path) -> None:
    page = statistics_page(make_labelled(tmp_path))
    assert "24 images of 12 studies of 12 patients" in page
    assert "LATERAL_LEFT" in page
    assert "<td>effusion</td><td>6</td><td>0</td><td>18</td><td>0</td>" in page
    assert "p01" not in page
    assert "<script" not in page
    assert "http" not in page


def test_the_page_of_an_empty_folder_can_be_written(tmp_path: Path) -> None:
    write_manifest(build_table([], splits={}), tmp_path / "manifest.parquet")
    assert "0 images of 0 studies of 0 patients" in statistics_page(Manifest.open(tmp_path))


def test_the_verbs_filter_and_stats_write_what_they_say(tmp_path: Path) -> None:
    root = make_intake(tmp_path / "all", n_studies=3)
    run = CliRunner().invoke
    assert run(app, ["filter", str(root), "view == 'VD'", "--into", str(tmp_path / "vd")]).exit_code == 0
    assert run(app, ["stats", str(tmp_path / "vd"), "--html", str(tmp_path / "page.html")]).exit_code == 0
    assert "3 images of 3 studies" in (tmp_path / "page.html").read_text()
    assert run(app, ["filter", str(root), "veiw == 'VD'", "--into", str(tmp_path / "x")]).exit_code == 2
