"""Pages as a browser shows them: a headless Chromium opens the file, without network, and takes a picture of it."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.ablation_factory import cells, two_axes_plan
from vet_extensions.ablation.page import write_tables
from vet_extensions.ablation.table import ablation_table
from vet_extensions.analysis.curves import RunCurves
from vet_extensions.analysis.report import CropPanel, PicturePanel, ReportInputs, write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)"),
]

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
)


def photograph(page: Path, folder: Path) -> tuple[np.ndarray, str]:
    """Open a local page; returns the picture, uint8 [rows, columns, 3], and the lines that reached the browser's console."""
    shot = folder / "page.png"
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        *FLAGS,
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1200,1600",
        f"--screenshot={shot}",
    ]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=False)
    assert shot.is_file(), f"no screenshot was taken:\n{done.stderr[-2000:]}"
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB"))
    return pixels, "\n".join(line for line in done.stderr.splitlines() if ":CONSOLE" in line)


def tiny_report(path: Path) -> Path:
    rng = np.random.default_rng(0)

    def grey() -> np.ndarray:
        return rng.integers(0, 256, (48, 64), dtype=np.uint8)

    steps = np.arange(0, 100, 10, dtype=np.float64)
    metrics = {"iteration": steps, "total_loss": 5 - steps / 50, "teacher_entropy": 4 - steps / 60}
    result = {"seed": 0, "level": "image", "group": "gross", "protocol": "knn", "metric": "macro_auroc"}
    inputs = ReportInputs(
        title="A small report",
        intake_summary={"files": 8, "rejected": {"NOT_DICOM": 1}},
        sample_studies=[(("LATERAL_LEFT", "VD"), (grey(), grey()))],
        crop_panels=[
            CropPanel(arm="vet_dino", routing_rows=["student global 0 (A) <- teacher 1 (A)"], crops=[("A", grey())])
        ],
        curves=[RunCurves(arm="vet_dino", seed=0, metrics=metrics, knn=((50, 0.6), (100, 0.62)), n_prototypes=128)],
        results=[
            {**result, "arm": "vet_dino", "value": 0.62, "low": 0.57, "high": 0.67},
            {**result, "arm": "random_init", "value": 0.55, "low": 0.50, "high": 0.60},
        ],
        attention=[PicturePanel(arm="vet_dino", caption="last block", pictures=[("head 0", grey())])],
        environment={"cores": 2},
        notes=["Made by a test."],
    )
    return write_report(inputs, path)


def small_ablation(path: Path) -> Path:
    plan = two_axes_plan(seeds=(0, 1, 2))
    scores = (0.60, 0.63, 0.61)
    table = ablation_table(plan, cells(plan, lambda arms, seed: scores[seed] + 0.01 * seed * (arms["ibot"] == "off")))
    return write_tables(table, path.parent)


@pytest.mark.parametrize("make", [tiny_report, small_ablation])
def test_a_page_opens_offline_with_content_and_without_a_console_message(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    pixels, console = photograph(make(tmp_path / "report.html"), tmp_path)
    assert pixels.shape[:2] == (1600, 1200)
    # A blank page has one colour; text and pictures reach over several bands of the page.
    bands = pixels.reshape(8, 200, 1200, 3).std(axis=(1, 2)).max(axis=-1)
    assert (bands > 5).sum() >= 3, f"the page looks blank; contrast per band: {bands.round(1)}"
    assert not console, console


def test_the_photograph_shows_blank_pages_and_console_messages(tmp_path: Path) -> None:
    page = tmp_path / "blank.html"
    page.write_text(
        "<!doctype html><title>x</title><script>console.error('something broke')</script>", encoding="utf-8"
    )
    pixels, console = photograph(page, tmp_path)
    assert pixels.std() < 1
    assert "something broke" in console
