"""An archive read in parts and merged: the same manifest, rejections and pixels as one run over everything."""

import json
import os
import stat
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from factories import make_dicom, make_pixels, make_uid

from vet_extensions.errors import UserError
from vet_extensions.intake.options import IntakeOptions, IntakeSummary
from vet_extensions.intake.parts import Part, merge_parts, salt_from_file
from vet_extensions.intake.run import run_intake
from vet_extensions.manifest import Manifest
from vet_extensions.manifest.validate import summarise
from vet_extensions.schema import IntakeFolder
from vet_extensions.shards import ShardReader
from vet_extensions.shards import join as shards_join

SALT = "a salt for tests"
OPTIONS = IntakeOptions(salt=SALT, longest_side_px=32)


def put(
    path: Path, *, seed: int, image: str | None = None, study: str = "", patient: str | None = "P0", **more
) -> None:
    uids = {"SOPInstanceUID": make_uid(image or path.stem), "StudyInstanceUID": make_uid(study or path.stem)}
    make_dicom(path, pixels=make_pixels(40, 36, seed=seed), PatientID=patient, **uids, **more)


def make_archive(root: Path) -> Path:
    """Every conflict that needs more than one file, several times, so that the files of some fall to different parts."""
    for n in range(6):
        put(root / f"plain {n}.dcm", seed=n, study=f"plain {n // 2}", patient=f"P{n // 4}")
        put(root / f"same a{n}.dcm", seed=20 + n, image=f"same {n}", study=f"same {n}", patient=f"S{n}")
        put(root / f"same b{n}.dcm", seed=20 + n, image=f"same {n}", study=f"same {n}", patient=f"S{n}")
        put(root / f"other a{n}.dcm", seed=40 + n, image=f"other {n}", study=f"other {n}")
        put(root / f"other b{n}.dcm", seed=50 + n, image=f"other {n}", study=f"other {n}")
        put(root / f"two a{n}.dcm", seed=60 + n, study=f"two {n}", patient="A")
        put(root / f"two b{n}.dcm", seed=70 + n, study=f"two {n}", patient="B", WindowWidth=0 if n % 2 else 4096)
        put(root / f"moved a{n}.dcm", seed=80 + n, image=f"moved {n}", study=f"moved {n}")
        put(root / f"moved b{n}.dcm", seed=80 + n, image=f"moved {n}", study=f"moved to {n}")
        put(root / f"named {n}.dcm", seed=90 + n, study=f"named {n}", patient=f"N{n}")
        put(root / f"unnamed {n}.dcm", seed=100 + n, study=f"named {n}", patient=None)
        put(root / f"nobody {n}.dcm", seed=110 + n, patient=None)
        put(root / f"twin {n}.dcm", seed=90 + n, patient=f"T{n}")
    put(root / "no window.dcm", seed=1, WindowWidth=0)
    (root / "notes.txt").write_text("not an image")
    return root


def run_part(source: Path, out: Path, part: str, **more) -> IntakeSummary:
    return run_intake(source, out, **{"options": OPTIONS, "part": Part.parse(part), "n_workers": 0, **more})


def read_in_parts(source: Path, folder: Path, n: int, options: IntakeOptions = OPTIONS) -> list[Path]:
    outs = [folder / f"part {number}" for number in range(1, n + 1)]
    for number, out in enumerate(outs, start=1):
        run_part(source, out, f"{number}/{n}", options=options)
    return outs


@pytest.mark.parametrize("equal_pixels", ["keep", "reject"])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_merged_parts_are_what_one_run_over_everything_writes(tmp_path: Path, n: int, equal_pixels: str) -> None:
    source = make_archive(tmp_path / "in")
    options = IntakeOptions(salt=SALT, longest_side_px=32, equal_pixels=equal_pixels)
    whole = run_intake(source, tmp_path / "whole", options=options, n_workers=0)
    merged = merge_parts(read_in_parts(source, tmp_path, n, options)[::-1], tmp_path / "merged")
    for name in ("manifest.parquet", "rejected.csv", "private/sources.csv", "private/salt", "private/raw_views.csv"):
        assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert {**merged.as_json(), "run_key": ""} == {**whole.as_json(), "run_key": ""}
    ours, theirs = ShardReader(tmp_path / "merged"), ShardReader(tmp_path / "whole")
    assert len(ours) == len(theirs) == whole.n_accepted
    for row in range(len(ours)):
        np.testing.assert_array_equal(ours.read(row), theirs.read(row))
    problems = summarise(tmp_path / "merged").problems
    assert all("equal pixels" in problem for problem in problems)


def test_the_archive_of_these_tests_holds_every_conflict(tmp_path: Path) -> None:
    options = IntakeOptions(salt=SALT, longest_side_px=32, equal_pixels="reject")
    summary = run_intake(make_archive(tmp_path / "in"), tmp_path / "out", options=options, n_workers=0)
    assert summary.rejected == {
        "CONFLICTING_DUPLICATE": 24,
        "CONFLICTING_PATIENT": 12,
        "DUPLICATE": 12,
        "INVALID_GREYSCALE_TRANSFORM": 1,
        "NOT_DICOM": 1,
    }


def test_equal_pictures_under_two_uids_are_kept_and_counted_by_default(tmp_path: Path) -> None:
    summary = run_intake(make_archive(tmp_path / "in"), tmp_path / "out", options=OPTIONS, n_workers=0)
    assert summary.equal_pixels == {"pictures": 6, "images": 12}
    assert json.loads((tmp_path / "out" / "intake.json").read_text())["equal_pixels"] == summary.equal_pixels


def test_what_a_merge_refused_is_in_no_shard(tmp_path: Path) -> None:
    outs = read_in_parts(make_archive(tmp_path / "in"), tmp_path, 5)
    merge_parts(outs, tmp_path / "merged")
    members = set()
    for shard in (tmp_path / "merged" / "shards").glob("*.tar"):
        with tarfile.open(shard) as tar:
            members |= {name.removesuffix(".npy") for name in tar.getnames()}
    assert members == set(Manifest.open(tmp_path / "merged").column("image_id"))


def test_shards_are_linked_where_nothing_was_refused_and_copied_where_links_are_not_possible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(8):
        put(tmp_path / "in" / f"{n}.dcm", seed=n)
    outs = read_in_parts(tmp_path / "in", tmp_path, 2)
    merge_parts(outs, tmp_path / "linked")
    assert {path.stat().st_nlink for path in (tmp_path / "linked" / "shards").glob("*.tar")} == {2}

    def refuse(*_: object) -> None:
        raise OSError("another file system")

    monkeypatch.setattr(shards_join.Path, "hardlink_to", refuse)
    merge_parts(outs, tmp_path / "copied")
    for path in (tmp_path / "linked" / "shards").iterdir():
        assert (tmp_path / "copied" / "shards" / path.name).read_bytes() == path.read_bytes()


def test_labels_of_a_merge_are_those_of_one_run(tmp_path: Path) -> None:
    source = make_archive(tmp_path / "in")
    rows = [f"{make_uid(f'same {n}')},{n % 2}" for n in range(6)] + [f"{make_uid('nowhere')},1"]
    (tmp_path / "labels.csv").write_text("\n".join(["StudyInstanceUID,mass", *rows]))
    options = IntakeOptions(salt=SALT, longest_side_px=32, labels=tmp_path / "labels.csv")
    whole = run_intake(source, tmp_path / "whole", options=options, n_workers=0)
    merged = merge_parts(read_in_parts(source, tmp_path, 3, options), tmp_path / "merged")
    assert merged.labels == whole.labels
    assert (tmp_path / "merged" / "manifest.parquet").read_bytes() == (
        tmp_path / "whole" / "manifest.parquet"
    ).read_bytes()


def test_parts_without_a_single_file_or_image_merge_too(tmp_path: Path) -> None:
    put(tmp_path / "in" / "only.dcm", seed=1)
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    whole = run_intake(tmp_path / "in", tmp_path / "whole", options=OPTIONS, n_workers=0)
    merged = merge_parts(read_in_parts(tmp_path / "in", tmp_path, 6), tmp_path / "merged")
    assert {**merged.as_json(), "run_key": ""} == {**whole.as_json(), "run_key": ""}
    for name in ("manifest.parquet", "rejected.csv"):
        assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_an_archive_without_any_image_merges_to_an_empty_manifest(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    merged = merge_parts(read_in_parts(tmp_path / "in", tmp_path, 2), tmp_path / "merged")
    assert (merged.n_files, merged.n_accepted, merged.rejected) == (1, 0, {"NOT_DICOM": 1})


def test_every_file_falls_to_one_part_whatever_else_is_there() -> None:
    parts = [Part(number, 7) for number in range(1, 8)]
    counts = [sum(part.holds(b"folder/%d.dcm" % n) for n in range(700)) for part in parts]
    assert sum(counts) == 700
    assert min(counts) > 60


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/2", "1/2/3", ""])
def test_a_part_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no part"):
        Part.parse(text)


def test_a_part_without_a_common_salt_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = make_archive(tmp_path / "in")
    with pytest.raises(UserError, match="--salt-file"):
        run_part(source, tmp_path / "out", "1/2", options=IntakeOptions())
    assert not (tmp_path / "out").exists()


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    source = make_archive(tmp_path / "in")
    one, two = read_in_parts(source, tmp_path, 2)
    run_part(source, tmp_path / "third", "3/3")
    run_part(source, tmp_path / "salty", "2/2", options=IntakeOptions(salt="another salt", longest_side_px=32))
    run_part(source, tmp_path / "large", "2/2", options=IntakeOptions(salt=SALT, longest_side_px=48))
    run_intake(source, tmp_path / "whole", options=OPTIONS, n_workers=0)
    for folders, sentence in (
        ([one], "not all parts"),
        ([], "not all parts"),
        ([one, tmp_path / "third"], "not all parts"),
        ([one, two, two], "both hold part 2/2"),
        ([one, tmp_path / "salty"], "different salts"),
        ([one, tmp_path / "large"], "different options"),
        ([one, tmp_path / "whole"], "a whole one"),
        ([one, tmp_path / "nowhere"], "no finished intake"),
    ):
        with pytest.raises(UserError, match=sentence):
            merge_parts(folders, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_merge_is_not_repeated_and_not_mixed_with_another(tmp_path: Path) -> None:
    source = make_archive(tmp_path / "in")
    outs = read_in_parts(source, tmp_path, 2)
    merge_parts(outs, tmp_path / "merged")
    assert merge_parts(outs, tmp_path / "merged").was_already_done
    others = read_in_parts(source, tmp_path / "others", 3)
    with pytest.raises(UserError, match="already holds another intake"):
        merge_parts(others, tmp_path / "merged")


def test_the_salt_file_is_made_once_by_many_and_readable_by_one_user(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "salt"
    with ThreadPoolExecutor(8) as pool:
        salts = set(pool.map(lambda _: salt_from_file(path), range(32)))
    assert len(salts) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["salt"]  # noqa: PTH208


def test_a_salt_that_is_too_short_is_refused(tmp_path: Path) -> None:
    (tmp_path / "salt").write_text("abc\n")
    with pytest.raises(UserError, match="3 characters"):
        salt_from_file(tmp_path / "salt")


def test_what_a_part_keeps_for_the_merge_stays_private(tmp_path: Path) -> None:
    (out, *_) = read_in_parts(make_archive(tmp_path / "in"), tmp_path, 2)
    kept = IntakeFolder(out).private / "candidates.parquet"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert not (tmp_path / "part 1" / "candidates.parquet").exists()
