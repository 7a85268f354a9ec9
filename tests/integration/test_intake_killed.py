"""An intake that is killed, again and again, goes on where it stood: same bytes, and no finished file is opened again.

That a file is opened at all is heard from the kernel (inotify), not from the program: the count holds for all its processes.
"""

import ctypes
import os
import random
import re
import signal
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from factories import make_dicom, make_pixels, make_uid

ROOT = Path(__file__).parents[2]
IN_OPEN, IN_ISDIR = 0x20, 0x40000000
EVENT = struct.Struct("iIII")

PROGRAM = """
import logging, sys
from pathlib import Path
from vet_extensions.intake.run import run_intake
from vet_extensions.intake.options import IntakeOptions
if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    options = IntakeOptions(salt="a salt for tests", longest_side_px=64)
    tell = lambda done, total: print(done, flush=True)
    run_intake(Path(sys.argv[1]), Path(sys.argv[2]), options=options, n_workers=1, on_progress=tell)
"""


class OpensHeard:
    """Counts, from the kernel, how often each file of one folder was opened since the last call."""

    def __init__(self, folder: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK)
        assert self._descriptor >= 0, os.strerror(ctypes.get_errno())
        assert libc.inotify_add_watch(self._descriptor, os.fsencode(folder), IN_OPEN) >= 0

    def since_last(self) -> Counter[str]:
        opened: Counter[str] = Counter()
        while True:
            try:
                data = os.read(self._descriptor, 2**20)
            except BlockingIOError:
                return opened
            while data:
                _, mask, _, length = EVENT.unpack_from(data)
                name = data[EVENT.size : EVENT.size + length].rstrip(b"\0")
                data = data[EVENT.size + length :]
                assert name or mask & IN_ISDIR
                if not mask & IN_ISDIR:
                    opened[name.decode()] += 1


def make_flat_archive(root: Path, *, n_images: int) -> Path:
    """One folder of images of a few studies; one is a duplicate, one cannot be decoded, one is no DICOM file."""
    for number in range(n_images):
        study = number // 3
        make_dicom(
            root / f"{number:04d}.dcm",
            pixels=make_pixels(70, 64, seed=number),
            PatientID=f"P{study // 2}",
            StudyInstanceUID=make_uid(f"study {study}"),
        )
    (root / "copy.dcm").write_bytes((root / "0004.dcm").read_bytes())
    make_dicom(root / "no window.dcm", WindowWidth=0)
    (root / "notes.txt").write_text("not an image")
    return root


def start(source: Path, out: Path, folder: Path) -> subprocess.Popen[str]:
    (folder / "program.py").write_text(PROGRAM)
    return subprocess.Popen(
        [sys.executable, str(folder / "program.py"), str(source), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def kill_after(process: subprocess.Popen[str], *, n_files: int) -> None:
    """SIGKILL once this start has finished `n_files`; returns when its workers are gone too."""
    assert process.stdout is not None
    for _ in range(n_files):
        if not process.stdout.readline():
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()  # ends when the last worker that inherited the pipes is gone


def taken_over(log: str) -> tuple[int, int]:
    """Headers and images that the log says were taken over."""
    found = [re.search(rf"intake: (\d+) {what} taken over", log) for what in ("headers", "images")]
    headers, images = (0 if match is None else int(match[1]) for match in found)
    return headers, images


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_an_intake_killed_again_and_again_opens_no_finished_file_twice_and_ends_with_the_same_bytes(
    tmp_path: Path,
) -> None:
    source = make_flat_archive(tmp_path / "in", n_images=90)
    whole = start(source, tmp_path / "whole", tmp_path)
    whole.communicate()
    assert whole.returncode == 0
    rng, heard = random.Random(0), OpensHeard(source)
    for _ in range(4):
        kill_after(start(source, tmp_path / "out", tmp_path), n_files=rng.randint(1, 20))
    assert not (tmp_path / "out" / "intake.json").exists(), "the kills were to hit before the end"
    heard.since_last()
    last = start(source, tmp_path / "out", tmp_path)
    _, log = last.communicate()
    assert last.returncode == 0, log
    n_headers, n_images = taken_over(log)
    assert n_headers == 93, "the header pass was over before the first kill"
    assert n_images >= 4
    opened = heard.since_last()
    assert opened.total() == 92 - n_images, (
        "92 headers passed: each of these files but the finished ones is opened once"
    )
    assert set(opened.values()) <= {1}
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_an_intake_killed_in_its_header_pass_reads_only_the_other_headers(tmp_path: Path) -> None:
    source = make_flat_archive(tmp_path / "in", n_images=90)
    for number in range(100):
        (source / f"000 {number}.txt").write_text("no image: refused, and counted, before any header passes")
    heard = OpensHeard(source)
    kill_after(start(source, tmp_path / "out", tmp_path), n_files=70)
    heard.since_last()
    last = start(source, tmp_path / "out", tmp_path)
    _, log = last.communicate()
    assert last.returncode == 0, log
    n_headers, n_images = taken_over(log)
    assert n_headers >= 70
    assert heard.since_last().total() == (193 - n_headers) + (92 - n_images)
