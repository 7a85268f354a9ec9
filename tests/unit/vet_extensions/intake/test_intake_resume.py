"""A run that was stopped: what is taken over, what is read again, and that the bytes are those of an undisturbed run."""

import errno
import io
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
from factories import make_dicom, make_pixels, make_uid

from vet_extensions.errors import UserError
from vet_extensions.intake import passes
from vet_extensions.intake.folder import OutputFolder
from vet_extensions.intake.options import IntakeOptions, IntakeSummary
from vet_extensions.intake.parts import Part, merge_parts
from vet_extensions.intake.run import run_intake
from vet_extensions.progress import Progress
from vet_extensions.shards import ShardWriter

ROOT = Path(__file__).parents[4]
OPTIONS = IntakeOptions(salt="a salt for tests", longest_side_px=32)
N_IMAGES = 12


def make_archive(root: Path) -> Path:
    """Twelve images of six studies of three patients, the first file twice, and a text."""
    for number in range(N_IMAGES):
        make_dicom(
            root / f"{number:02d}.dcm",
            pixels=make_pixels(40, 36, seed=number),
            StudyInstanceUID=make_uid(f"study {number // 2}"),
            PatientID=f"P{number // 4}",
        )
    (root / "copy.dcm").write_bytes((root / "00.dcm").read_bytes())
    (root / "notes.txt").write_text("not an image")
    return root


def run(source: Path, out: Path, **more) -> IntakeSummary:
    return run_intake(source, out, **{"options": OPTIONS, "n_workers": 0, **more})


def stop_at(n_done: int) -> Callable[[int, int], None]:
    def stop(done: int, total: int) -> None:
        if done >= n_done:
            raise KeyboardInterrupt

    return stop


def stopped(source: Path, out: Path, *, n_done: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(source, out, on_progress=stop_at(n_done))


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize("n_done", range(1, N_IMAGES + 3))
def test_a_run_stopped_at_any_image_ends_with_the_same_bytes(tmp_path: Path, n_done: int) -> None:
    source = make_archive(tmp_path / "in")
    run(source, tmp_path / "whole")
    stopped(source, tmp_path / "out", n_done=n_done)
    run(source, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_what_was_finished_is_counted_and_the_progress_begins_there(tmp_path: Path) -> None:
    source = make_archive(tmp_path / "in")
    stopped(source, tmp_path / "out", n_done=8)
    seen: list[tuple[int, int]] = []
    taken: list[int] = []
    summary = run(
        source, tmp_path / "out", on_progress=lambda *state: seen.append(state), on_taken_over=lambda n: taken.append(n)
    )
    assert (summary.n_headers_taken_over, summary.n_images_taken_over) == (14, sum(taken) - 1)
    assert seen == [(done, 14) for done in range(sum(taken) + 1, 15)]
    assert 6 <= sum(taken) <= 8


def test_rate_and_time_left_do_not_count_what_an_earlier_run_did() -> None:
    shown, now = io.StringIO(), [0.0]
    with Progress("intake", unit="files", stream=shown, clock=lambda: now[0], every_s=1.0) as progress:
        progress(0, 100)
        progress.skip(80)
        now[0] = 10.0
        progress(90, 100)
        progress(100, 100)
    line, last = shown.getvalue().splitlines()
    assert line == "intake: 90/100 files, 1.0 files/s, 10 s left"
    assert last == "intake: 100 files (80 of them earlier) in 10 s (2.0 files/s)"


def test_a_changed_file_is_read_again_with_all_that_follows_it(tmp_path: Path) -> None:
    source = make_archive(tmp_path / "in")
    stopped(source, tmp_path / "out", n_done=10)
    make_dicom(
        source / "05.dcm",
        pixels=make_pixels(48, 36, seed=99),
        StudyInstanceUID=make_uid("study 2"),
        PatientID="P1",
    )
    summary = run(source, tmp_path / "out")
    run(source, tmp_path / "whole")
    assert summary.n_headers_taken_over == 13
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_files_that_came_and_went_in_between_are_noticed(tmp_path: Path) -> None:
    source = make_archive(tmp_path / "in")
    stopped(source, tmp_path / "out", n_done=12)
    (source / "03.dcm").unlink()
    make_dicom(source / "new.dcm", PatientID="P0", pixels=make_pixels(50, 40, seed=7))
    run(source, tmp_path / "out")
    run(source, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_nothing_of_a_longer_unfinished_shard_stays_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_archive(tmp_path / "in")
    for limit, out in ((2**20, "one"), (6000, "several")):
        monkeypatch.setattr(
            passes, "ShardWriter", lambda folder, limit=limit: ShardWriter(folder, max_shard_bytes=limit)
        )
        stopped(source, tmp_path / out, n_done=13)
    for number in range(2, 12):
        (source / f"{number:02d}.dcm").unlink()
    for limit, out in ((2**20, "one"), (6000, "several")):
        monkeypatch.setattr(
            passes, "ShardWriter", lambda folder, limit=limit: ShardWriter(folder, max_shard_bytes=limit)
        )
        run(source, tmp_path / out)
        run(source, tmp_path / f"{out} whole")
        assert contents(tmp_path / out) == contents(tmp_path / f"{out} whole")


def test_other_options_start_over(tmp_path: Path) -> None:
    source = make_archive(tmp_path / "in")
    stopped(source, tmp_path / "out", n_done=12)
    options = IntakeOptions(salt="a salt for tests", longest_side_px=24)
    summary = run(source, tmp_path / "out", options=options)
    run(source, tmp_path / "whole", options=options)
    assert summary.n_headers_taken_over == summary.n_images_taken_over == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_another_version_of_the_program_starts_over_and_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_archive(tmp_path / "in")
    run(source, tmp_path / "whole")
    stopped(source, tmp_path / "out", n_done=12)
    monkeypatch.setattr("vet_extensions.intake.run.version", lambda _: "99.0")
    summary = run(source, tmp_path / "out")
    assert summary.n_headers_taken_over == summary.n_images_taken_over == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_what_another_version_finished_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_archive(tmp_path / "in")
    run(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    monkeypatch.setattr("vet_extensions.intake.run.version", lambda _: "99.0")
    assert run(source, tmp_path / "out").was_already_done
    assert contents(tmp_path / "out") == before


def test_sources_that_no_installation_describes_take_over_what_they_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_installed(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("vet_extensions.intake.run.version", not_installed)
    source = make_archive(tmp_path / "in")
    stopped(source, tmp_path / "out", n_done=12)
    assert run(source, tmp_path / "out").n_headers_taken_over == 14


@pytest.mark.parametrize("part", [None, Part(1, 1)])
def test_paths_lie_in_the_private_folder_for_their_owner_alone_before_they_are_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: Part | None
) -> None:
    source, out = make_archive(tmp_path / "in"), tmp_path / "out"
    run(source, tmp_path / "whole", part=part)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, "publish", stop)
        with pytest.raises(KeyboardInterrupt):
            run(source, out, part=part)
    with_paths = [path for path in out.rglob("*") if path.is_file() and b"copy.dcm" in path.read_bytes()]
    assert [path.parent.name for path in with_paths] == ["private"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in (out / "private").iterdir()} == {0o600}
    run(source, out, part=part)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_table_that_a_part_left_is_not_published_by_a_run_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = make_archive(tmp_path / "in"), tmp_path / "out"
    run(source, tmp_path / "whole")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, "publish", stop)
        with pytest.raises(KeyboardInterrupt):
            run(source, out, part=Part(1, 1))
    run(source, out)
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["cut", "zeros", "gone"])
def test_images_that_a_power_failure_took_from_the_shard_are_read_again(tmp_path: Path, damage: str) -> None:
    source = make_archive(tmp_path / "in")
    run(source, tmp_path / "whole")
    stopped(source, tmp_path / "out", n_done=10)
    shard = tmp_path / "out" / ".unfinished" / "shards" / "shard-000000.tar"
    data = shard.read_bytes()
    if damage == "gone":
        shard.unlink()
    else:
        shard.write_bytes(data[:-700] + (bytes(700) if damage == "zeros" else b""))
    summary = run(source, tmp_path / "out")
    assert summary.n_images_taken_over < 9
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_run_stopped_at_any_renaming_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_archive(tmp_path / "in")
    run(source, tmp_path / "whole")
    rename, n_renamed = Path.replace, 0

    def stop(self: Path, target: Path) -> Path:
        nonlocal n_renamed
        n_renamed += 1
        if n_renamed == n_allowed:
            raise KeyboardInterrupt
        return rename(self, target)

    n_stopped = 0
    for n_allowed in range(1, 30):
        n_renamed, out = 0, tmp_path / f"out {n_allowed}"
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", stop)
            try:
                run(source, out)
                break
            except KeyboardInterrupt:
                n_stopped += 1
        assert not (out / "intake.json").exists()
        run(source, out)
        assert contents(out) == contents(tmp_path / "whole")
    assert n_stopped >= 6, "salt, index, manifest, and four names to publish"


def test_frames_of_one_file_go_on_one_by_one(tmp_path: Path) -> None:
    source = make_archive(tmp_path / "in")
    frames = np.stack([make_pixels(40, 36, seed=seed) for seed in range(50, 55)])
    make_dicom(
        source / "film.dcm", pixels=frames, NumberOfFrames=5, PatientID="P1", StudyInstanceUID=make_uid("study 2")
    )
    options = IntakeOptions(salt="a salt for tests", longest_side_px=32, multi_frame="each")
    whole = run(source, tmp_path / "whole", options=options)
    assert whole.n_accepted == N_IMAGES + 5
    for n_done in range(3, 18, 4):
        with pytest.raises(KeyboardInterrupt):
            run(source, tmp_path / "out", options=options, on_progress=stop_at(n_done))
    run(source, tmp_path / "out", options=options)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    for part in ("1/2", "2/2"):
        run(source, tmp_path / part[0], options=options, part=Part.parse(part))
    merged = merge_parts([tmp_path / "1", tmp_path / "2"], tmp_path / "merged")
    assert {**merged.as_json(), "run_key": ""} == {**whole.as_json(), "run_key": ""}
    assert (tmp_path / "merged" / "manifest.parquet").read_bytes() == (
        tmp_path / "whole" / "manifest.parquet"
    ).read_bytes()


def test_several_shards_go_on_in_the_right_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "ShardWriter", lambda folder: ShardWriter(folder, max_shard_bytes=6000))
    source = make_archive(tmp_path / "in")
    run(source, tmp_path / "whole")
    assert len(list((tmp_path / "whole" / "shards").glob("*.tar"))) >= 3
    for n_done in range(2, 11):
        stopped(source, tmp_path / "out", n_done=n_done)
    run(source, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_archive(tmp_path / "in")
    run(source, tmp_path / "whole")
    add, n_added = ShardWriter.add, 0

    def fail_late(self: ShardWriter, *what):
        nonlocal n_added
        n_added += 1
        if n_added == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return add(self, *what)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "add", fail_late)
        with pytest.raises(UserError, match=r"is full \(ENOSPC\).*Free space"):
            run(source, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name != "private"] == [".unfinished"]
    assert run(source, tmp_path / "out").n_images_taken_over >= 4
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1500, 9000, 14000])
def test_the_real_refusal_of_a_write_leaves_nothing_half_published(tmp_path: Path, limit: int) -> None:
    source = make_archive(tmp_path / "in")
    run(source, tmp_path / "whole")
    salt = tmp_path / "salt"
    salt.write_text("a salt for tests\n")
    code = "from vet_extensions.cli import main; main()"
    options = ["--salt-file", str(salt), "--longest-side", "32", "--workers", "0"]
    command = [sys.executable, "-c", code, "intake", str(source), str(tmp_path / "out"), *options]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 2, done.stderr
    assert "is full (EFBIG)" in done.stderr
    assert not (tmp_path / "out" / "intake.json").exists()
    run(source, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
