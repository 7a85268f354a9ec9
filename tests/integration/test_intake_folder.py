"""A folder of DICOM files through intake: nothing is lost, nothing leaks, and the same input gives the same bytes."""

import csv
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from factories import make_dicom, make_pixels, make_uid

from vet_extensions.errors import UserError
from vet_extensions.intake import run as intake_run
from vet_extensions.intake.options import IntakeOptions, IntakeSummary
from vet_extensions.intake.run import run_intake
from vet_extensions.manifest import Manifest
from vet_extensions.manifest.validate import summarise
from vet_extensions.schema import IntakeFolder
from vet_extensions.shards import ShardReader

OPTIONS = IntakeOptions(salt="a salt for tests", longest_side_px=32)


def make_archive(root: Path, *, n_studies: int = 6) -> Path:
    """Studies of two views, two studies to every third patient; plus one of each kind of stray."""
    for study in range(n_studies):
        for number, view in enumerate(("LL", "VD")):
            make_dicom(
                root / f"folder {study}" / f"image {number}.dcm",
                pixels=make_pixels(48, 40, seed=10 * study + number),
                PatientID=f"P{study - (study % 3 == 2)}",
                StudyInstanceUID=make_uid(f"study {study}"),
                SOPInstanceUID=make_uid(f"image {study} {number}"),
                ViewPosition=view,
            )
    (root / "readme.txt").write_text("not an image")
    (root / "link.dcm").symlink_to(root / "folder 0" / "image 0.dcm")
    make_dicom(root / "no window.dcm", WindowWidth=0)
    return root


def run(source: Path, out: Path, *, options: IntakeOptions = OPTIONS, n_workers: int = 0, **more) -> IntakeSummary:
    return run_intake(source, out, options=options, n_workers=n_workers, **more)


def rejections(out: Path) -> dict[str, str]:
    """Relative path -> code."""
    folder = IntakeFolder(out)
    with (folder.private / "sources.csv").open(newline="", errors="surrogateescape") as file:
        paths = {row["file_id"]: row["path"] for row in csv.DictReader(file)}
    with folder.rejected.open(newline="") as file:
        return {paths[row["file_id"]]: row["code"] for row in csv.DictReader(file)}


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_every_file_is_a_record_or_a_rejection(tmp_path: Path) -> None:
    summary = run(make_archive(tmp_path / "in"), tmp_path / "out")
    assert (summary.n_files, summary.n_accepted, summary.n_rejected) == (15, 12, 3)
    assert rejections(tmp_path / "out") == {
        "link.dcm": "NOT_A_REGULAR_FILE",
        "no window.dcm": "INVALID_GREYSCALE_TRANSFORM",
        "readme.txt": "NOT_DICOM",
    }


def test_what_intake_wrote_is_sound_and_readable(tmp_path: Path) -> None:
    run(make_archive(tmp_path / "in"), tmp_path / "out")
    assert summarise(tmp_path / "out").problems == ()
    manifest, reader = Manifest.open(tmp_path / "out"), ShardReader(tmp_path / "out")
    assert (manifest.n_images, manifest.n_studies, len(reader)) == (12, 6, 12)
    for row, (rows, columns) in enumerate(zip(manifest.column("stored_rows"), manifest.column("stored_columns"))):
        assert reader.read(row).shape == (rows, columns) == (32, 27)


def test_spacing_follows_the_reduction(tmp_path: Path) -> None:
    run(make_archive(tmp_path / "in"), tmp_path / "out")
    manifest = Manifest.open(tmp_path / "out")
    np.testing.assert_allclose(manifest.column("spacing_row_mm"), 0.14 * 48 / 32, rtol=1e-6)
    np.testing.assert_allclose(manifest.column("spacing_column_mm"), 0.14 * 40 / 27, rtol=1e-6)


def test_rows_are_sorted_and_patients_stay_in_one_split(tmp_path: Path) -> None:
    run(make_archive(tmp_path / "in", n_studies=30), tmp_path / "out", options=IntakeOptions(salt="a salt for tests"))
    manifest = Manifest.open(tmp_path / "out")
    keys = list(zip(manifest.column("patient_id"), manifest.column("study_id"), manifest.column("image_id")))
    assert keys == sorted(keys)
    pairs = set(zip(manifest.column("patient_id"), manifest.column("split")))
    assert len(pairs) == len({patient for patient, _ in pairs}) == 20
    assert {split for _, split in pairs} == {"train", "val", "test"}


def test_sixteen_bit_output_keeps_more_levels(tmp_path: Path) -> None:
    options = IntakeOptions(salt="a salt for tests", bits=16)
    run(make_archive(tmp_path / "in"), tmp_path / "out", options=options)
    pixels = ShardReader(tmp_path / "out").read(0)
    assert pixels.dtype == np.uint16
    assert len(np.unique(pixels)) > 256


def test_the_output_does_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    source = make_archive(tmp_path / "in")
    run(source, tmp_path / "alone")
    run(source, tmp_path / "crew", n_workers=2)
    assert contents(tmp_path / "alone") == contents(tmp_path / "crew")


def test_a_second_run_does_nothing_and_says_so(tmp_path: Path) -> None:
    source = make_archive(tmp_path / "in")
    first = run(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    again = run(source, tmp_path / "out")
    assert again.was_already_done
    assert again.n_accepted == first.n_accepted
    assert contents(tmp_path / "out") == before


def test_a_finished_folder_is_not_overwritten_by_another_run(tmp_path: Path) -> None:
    source = make_archive(tmp_path / "in")
    run(source, tmp_path / "out")
    with pytest.raises(UserError, match="Give a new folder"):
        run(source, tmp_path / "out", options=IntakeOptions(salt="a salt for tests", longest_side_px=64))
    make_dicom(source / "one more.dcm")
    with pytest.raises(UserError, match="Give a new folder"):
        run(source, tmp_path / "out")


def test_a_folder_with_other_things_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="holds something else"):
        run(make_archive(tmp_path / "in"), tmp_path / "out")
    assert contents(tmp_path / "out") == {"thesis.txt": b"precious"}


def test_a_folder_without_dicom_is_an_error_that_leaves_no_trace(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("nothing here")
    with pytest.raises(UserError, match="No DICOM file was found"):
        run(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_source_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        run(tmp_path / "nowhere", tmp_path / "out")


def test_an_output_inside_the_source_is_an_error(tmp_path: Path) -> None:
    source = make_archive(tmp_path / "in")
    with pytest.raises(UserError, match="lies in the source folder"):
        run(source, source / "out")


def test_a_run_that_failed_midway_goes_on_with_the_same_result(tmp_path: Path) -> None:
    source = make_archive(tmp_path / "in")
    run(source, tmp_path / "whole")

    def stop(done: int, total: int) -> None:
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out", on_progress=stop)
    assert not IntakeFolder(tmp_path / "out").manifest.exists()
    run(source, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_run_stopped_while_publishing_goes_on_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_archive(tmp_path / "in")
    run(source, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(intake_run.json, "dump", _raise_interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(source, tmp_path / "out")
    assert IntakeFolder(tmp_path / "out").manifest.exists()
    run(source, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def _raise_interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_result_and_leaves_no_workers(tmp_path: Path) -> None:
    source = make_archive(tmp_path / "in", n_studies=40)
    run(source, tmp_path / "whole")
    program = (
        "import sys\nfrom pathlib import Path\nfrom vet_extensions.intake.run import run_intake\n"
        "from vet_extensions.intake.options import IntakeOptions\n"
        "if __name__ == '__main__':\n"
        "    options = IntakeOptions(salt='a salt for tests', longest_side_px=32)\n"
        "    tell = lambda done, total: print(done, flush=True)\n"
        "    run_intake(Path(sys.argv[1]), Path(sys.argv[2]), options=options, n_workers=1, on_progress=tell)\n"
    )
    (tmp_path / "program.py").write_text(program)
    root = str(Path(intake_run.__file__).parents[2])
    victim = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), str(source), str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
        start_new_session=True,
    )
    assert victim.stdout is not None
    for line in victim.stdout:
        if int(line) >= 10:
            break
    victim.send_signal(signal.SIGKILL)
    victim.stdout.read()  # ends when the last worker that inherited the pipe is gone
    victim.stdout.close()
    victim.wait()
    run(source, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    source = make_archive(tmp_path / "in")

    def intrude(done: int, total: int) -> None:
        if done == 5:
            with pytest.raises(UserError, match="Another intake is writing"):
                run(source, tmp_path / "out")

    summary = run(source, tmp_path / "out", on_progress=intrude)
    assert summary.n_accepted == 12


def test_equal_files_under_one_uid_count_once(tmp_path: Path) -> None:
    source = make_archive(tmp_path / "in")
    (source / "copy.dcm").write_bytes((source / "folder 0" / "image 0.dcm").read_bytes())
    summary = run(source, tmp_path / "out")
    assert (summary.n_accepted, summary.rejected["DUPLICATE"]) == (12, 1)


def test_different_pixels_under_one_uid_are_all_refused(tmp_path: Path) -> None:
    source = make_archive(tmp_path / "in")
    uids = {"SOPInstanceUID": make_uid("image 0 0"), "StudyInstanceUID": make_uid("study 0"), "PatientID": "P0"}
    make_dicom(source / "impostor.dcm", pixels=make_pixels(seed=99), **uids)
    summary = run(source, tmp_path / "out")
    assert (summary.n_accepted, summary.rejected["CONFLICTING_DUPLICATE"]) == (11, 2)


def test_one_uid_in_two_studies_is_refused(tmp_path: Path) -> None:
    source = make_archive(tmp_path / "in")
    make_dicom(source / "impostor.dcm", SOPInstanceUID=make_uid("image 0 0"), PatientID="P0")
    summary = run(source, tmp_path / "out")
    assert (summary.n_accepted, summary.rejected["CONFLICTING_DUPLICATE"]) == (11, 2)


def test_a_study_of_two_patients_is_refused_whole(tmp_path: Path) -> None:
    source = make_archive(tmp_path / "in")
    make_dicom(source / "stray.dcm", StudyInstanceUID=make_uid("study 0"), PatientID="P77")
    summary = run(source, tmp_path / "out")
    assert (summary.n_accepted, summary.rejected["CONFLICTING_PATIENT"]) == (10, 3)


def test_a_file_without_patient_joins_the_patient_of_its_study(tmp_path: Path) -> None:
    source = make_archive(tmp_path / "in")
    make_dicom(source / "third.dcm", StudyInstanceUID=make_uid("study 0"), PatientID=None)
    make_dicom(source / "lone.dcm", PatientID=None)
    summary = run(source, tmp_path / "out")
    assert (summary.n_accepted, summary.n_patients) == (14, 5)


def test_labels_reach_the_manifest_and_what_did_not_meet_is_counted(tmp_path: Path) -> None:
    source = make_archive(tmp_path / "in")
    rows = [f"{make_uid(f'study {study}')},{study % 2},{'' if study else -1}" for study in range(5)]
    (tmp_path / "labels.csv").write_text("\n".join(["StudyInstanceUID,mass,effusion", *rows, "1.2.3,1,0"]))
    options = IntakeOptions(salt="a salt for tests", labels=tmp_path / "labels.csv")
    summary = run(source, tmp_path / "out", options=options)
    assert summary.labels is not None
    assert (summary.labels.n_rows_unmatched, summary.labels.n_images_without_row) == (1, 2)
    labels = Manifest.open(tmp_path / "out").labels()  # mass, effusion
    assert sorted(labels[:, 0].tolist()) == [-128] * 2 + [0] * 6 + [1] * 4
    assert sorted(labels[:, 1].tolist()) == [-128] * 10 + [-1] * 2


def test_a_bad_label_table_stops_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("who,mass\n1,1\n")
    options = IntakeOptions(salt="a salt for tests", labels=tmp_path / "labels.csv")
    with pytest.raises(UserError, match="has no key"):
        run(make_archive(tmp_path / "in"), tmp_path / "out", options=options)


def test_progress_ends_at_the_number_of_files(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    run(make_archive(tmp_path / "in"), tmp_path / "out", on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 15) for done in range(1, 16)]


def test_intake_json_counts_add_up_and_hold_no_secret(tmp_path: Path) -> None:
    run(make_archive(tmp_path / "in"), tmp_path / "out")
    text = IntakeFolder(tmp_path / "out").summary.read_text()
    values = json.loads(text)
    assert values["n_files"] == values["n_accepted"] + values["n_rejected"]
    assert values["n_rejected"] == sum(values["rejected"].values())
    assert "a salt for tests" not in text


def test_awkward_file_names_come_through(tmp_path: Path) -> None:
    source = make_archive(tmp_path / "in")
    names = [b"caf\xe9.dcm", "Пёс.dcm".encode(), b"line\nbreak.dcm", b'quo"te,.dcm']
    for number, name in enumerate(names):
        path = source / os.fsdecode(name)
        make_dicom(tmp_path / f"plain {number}.dcm").rename(path)
    run(source, tmp_path / "out")
    with (tmp_path / "out" / "private" / "sources.csv").open(newline="", errors="surrogateescape") as file:
        paths = {os.fsencode(row["path"]) for row in csv.DictReader(file)}
    assert paths >= set(names)


def test_no_identity_reaches_anything_but_the_private_folder(tmp_path: Path) -> None:
    secrets = ["SMITH", "REX", "1987", "ELMSTREET", "ACC-4711", "PID-0815"]
    source = tmp_path / "in"
    for number in range(4):
        make_dicom(
            source / f"SMITH {number}.dcm",
            PatientName="REX^SMITH",
            PatientID=f"PID-0815-{number}",
            PatientBirthDate="19871231",
            PatientAddress="ELMSTREET 1",
            ResponsiblePerson="SMITH^JOHN",
            AccessionNumber="ACC-4711",
            StudyDescription="REX SMITH VD",
            SeriesDescription="VD of REX",
            PatientSpeciesDescription="Dog of SMITH",
            BodyPartExamined="CHEST SMITH" if number else "SMITH",
            ViewPosition="SMITH",
            WindowWidth=0 if number == 1 else 4096,
        )
    out = tmp_path / "out"
    run(source, out)
    uids = [make_uid(f"SMITH {number}/{level}") for number in range(4) for level in ("instance", "study", "series")]
    for name, data in contents(out).items():
        if not name.startswith("private/"):
            found = [secret for secret in (*secrets, *uids) if secret.encode() in data or secret in name]
            assert not found, f"{name} holds {found}"
    assert stat.S_IMODE((out / "private").stat().st_mode) == 0o700
    assert stat.S_IMODE((out / "private" / "sources.csv").stat().st_mode) == 0o600


def test_fifos_and_link_loops_do_not_stop_the_run(tmp_path: Path) -> None:
    source = make_archive(tmp_path / "in")
    os.mkfifo(source / "pipe")
    (source / "loop").symlink_to(source, target_is_directory=True)
    assert run(source, tmp_path / "out").rejected["NOT_A_REGULAR_FILE"] == 3


def test_images_that_may_show_a_name_are_counted_or_refused_by_policy(tmp_path: Path) -> None:
    source = make_archive(tmp_path / "in")
    make_dicom(source / "named.dcm", BurnedInAnnotation="YES")
    assert run(source, tmp_path / "flagged").notes == {"burned-in-text": 1}
    assert "burned-in-text" in Manifest.open(tmp_path / "flagged").column("notes").tolist()
    strict = run(source, tmp_path / "strict", options=IntakeOptions(salt="a salt for tests", burned_in="reject"))
    assert strict.rejected["BURNED_IN_TEXT"] == 1
    assert strict.notes == {}
