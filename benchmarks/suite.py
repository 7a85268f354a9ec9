"""The quick suite for the first time and again: `vetdino evaluate` with nothing kept, then on what it has kept.

    python benchmarks/suite.py [--networks vit_micro/8 ViT-S/14] [--studies N | --data STUDIES] [--repeats 3] [--smoke]
    python benchmarks/suite.py --run RUN --data STUDIES

Makes a plain phantom archive and its intake at each network's size, or takes the intake folder --data. The networks have random
weights; --run takes a trained one. Each stands beside the suite's controls. Every run is a new process, as a user's is. The
cached runs and a process that only imports what they import take turns, so that start-up can be told from the work. Ends with
an error where results.jsonl and leaderboard.html do not stay as they were, to the byte, or a cached run makes a file anew.
Results: benchmarks/results/suite.md.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from side_by_side import Timing, machine_facts

from vet_extensions.manifest import Manifest

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from run_factory import write_run  # pyright: ignore[reportMissingImports]

SUITE = Path(__file__).parents[1] / "configs" / "evaluation" / "quick.yaml"
WRITTEN = ("results.jsonl", "leaderboard.html")
SMALL_STUDIES, SMALL_PX = 60, 64
CACHED_RUNS = 3
COLUMNS = (
    "run, clock",
    "images",
    "first, s",
    "cached, s (spread)",
    "times as fast (asked for: 10)",
    "start-up alone, s",
    "of cached",
    "times as fast without start-up",
)

VETDINO = """
import sys
from vet_extensions.cli import main
main()
"""
NAMING = """
import sys
from pathlib import Path
from vet_extensions.cli import main
names = Path(sys.argv.pop(1))
try:
    main()
finally:
    names.write_text("\\n".join(name for name, module in sys.modules.items() if getattr(module, "__spec__", None)))
"""
"""As VETDINO, and writes the names of all modules that were imported into the file of the first argument."""
IMPORTING = """
import importlib, sys
from pathlib import Path
for name in Path(sys.argv[1]).read_text().split():
    importlib.import_module(name)
"""


class Network(NamedTuple):
    """A network and the archive that it is judged on."""

    arch: str
    patch_size: int
    size_px: int
    n_studies: int

    def write(self, folder: Path) -> Path:
        """A run folder of this network with random weights, others than those of the suite's control."""
        student = {"arch": self.arch, "patch_size": self.patch_size}
        write_run(folder, student=student, crops={"global_crops_size": self.size_px})
        return folder


NETWORKS = {"vit_micro/8": Network("vit_micro", 8, 64, 2800), "ViT-S/14": Network("vit_small", 14, 224, 260)}


class Processes:
    """New processes of this Python, one after the other, with `threads` threads each."""

    def __init__(self, threads: int) -> None:
        # Where Python may keep no bytecode, 0.2 s of every start are its own making: an installed package has it.
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        self._environment = {**kept, "OMP_NUM_THREADS": str(threads)}

    def run(self, program: str, *words: object, timing: Timing | None = None) -> None:
        """Run a program with words as its arguments; its seconds are added to `timing`. What it prints is shown if it fails."""
        command = [sys.executable, "-c", program, *map(str, words)]
        wall, cpu = time.perf_counter(), children_cpu_s()
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False)
        if timing is not None:
            timing.wall_s.append(time.perf_counter() - wall)
            timing.cpu_s.append(children_cpu_s() - cpu)
        if done.returncode:
            sys.exit(f"A process ended with status {done.returncode}:\n{done.stderr[-4000:]}")


def children_cpu_s() -> float:
    """CPU seconds of all processes that were started and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def make_archive(processes: Processes, folder: Path, *, n_studies: int, size_px: int) -> Path:
    """An intake folder of a new phantom archive."""
    dicom, studies = folder / "dicom", folder / "studies"
    processes.run(VETDINO, "phantom", dicom, "--studies", n_studies, "--size", size_px, "--plain")
    processes.run(VETDINO, "intake", dicom, studies, "--labels", dicom / "labels.csv")
    return studies


def evaluate_words(run: Path, data: Path) -> tuple[object, ...]:
    """The command line of an evaluation, but for its folder."""
    return ("evaluate", run, "--data", data, "--suite", SUITE, "--out")


def rehearse(processes: Processes, folder: Path) -> Path:
    """The whole way once on a small archive, so that all bytecode is there; returns a file of the modules of a cached run."""
    data = make_archive(processes, folder, n_studies=SMALL_STUDIES, size_px=SMALL_PX)
    run = NETWORKS["vit_micro/8"]._replace(size_px=SMALL_PX).write(folder / "run")
    words = (*evaluate_words(run, data), folder / "out")
    processes.run(VETDINO, *words)
    processes.run(NAMING, folder / "modules.txt", *words)
    return folder / "modules.txt"


def state_of(out: Path) -> dict[str, bytes]:
    """The names of all files of an evaluation, with the bytes of those that a user reads."""
    files = [path for path in out.rglob("*") if path.is_file()]
    return {str(path.relative_to(out)): path.read_bytes() if path.name in WRITTEN else b"" for path in files}


def measure(
    processes: Processes, words: tuple[object, ...], folder: Path, *, modules: Path, repeats: int
) -> dict[str, Timing]:
    """By turns: once into a new folder, then cached and only imported, three times each."""
    timings = {"first": Timing(), "cached": Timing(), "start-up": Timing()}
    for turn in range(repeats):
        out = folder / str(turn)
        processes.run(VETDINO, *words, out, timing=timings["first"])
        before = state_of(out)
        if missing := [name for name in WRITTEN if name not in before]:
            sys.exit(f"The evaluation wrote no {' and no '.join(missing)}.")
        for _ in range(CACHED_RUNS):
            processes.run(VETDINO, *words, out, timing=timings["cached"])
            processes.run(IMPORTING, modules, timing=timings["start-up"])
        after = state_of(out)
        if differing := sorted(name for name in before | after if before.get(name) != after.get(name)):
            names = ", ".join(differing)
            sys.exit(f"The cached runs left other files than the first: {names}. Was a source edited meanwhile?")
    return timings


def rows_of(name: str, n_images: int, timings: Mapping[str, Timing]) -> list[str]:
    """Rows of the table, one a clock."""
    rows = []
    for clock in ("wall", "cpu"):
        first, cached, start = (timings[way].median(clock) for way in ("first", "cached", "start-up"))
        cells = (
            f"{name}, {clock}",
            f"{n_images:,}",
            f"{first:.1f}",
            f"{cached:.2f} ({timings['cached'].spread(clock):.0%})",
            f"{first / cached:.1f}",
            f"{start:.2f}",
            f"{start / cached:.0%}",
            f"{(first - start) / (cached - start):.0f}" if cached > start else "",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def main() -> None:
    """Measure each network and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--run", type=Path, help="a trained run, in the place of the networks; needs --data")
    archive = parser.add_mutually_exclusive_group()
    archive.add_argument("--studies", type=int, help="of the archive; else 2,800 for vit_micro/8 and 260 for ViT-S/14")
    archive.add_argument("--data", type=Path, help="an intake folder, in the place of a phantom archive")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="one small network; the figures mean nothing")
    args = parser.parse_args()
    if args.smoke:
        args.networks, args.studies, args.repeats = ["vit_micro/8"], SMALL_STUDIES, 1
    if args.run is not None and args.data is None:
        parser.error("--run needs --data, the images that it is judged on")
    torch.set_num_threads(args.threads)
    processes = Processes(args.threads)
    print(machine_facts())
    print(f"\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        modules = rehearse(processes, folder / "rehearsal")
        for place, name in enumerate(["trained run"] if args.run else args.networks):
            own = folder / str(place)
            if args.run:
                run, data = args.run, args.data
            else:
                network = NETWORKS[name]
                n_studies = args.studies or network.n_studies
                run = network.write(own / "run")
                data = args.data or make_archive(processes, own, n_studies=n_studies, size_px=network.size_px)
            words = evaluate_words(run, data)
            timings = measure(processes, words, own / "out", modules=modules, repeats=args.repeats)
            print(*rows_of(name, Manifest.open(data).n_images, timings), sep="\n", flush=True)


if __name__ == "__main__":
    main()
