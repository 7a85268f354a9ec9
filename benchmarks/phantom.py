"""CPU time of the synthetic archive, one thread: `python benchmarks/phantom.py [--against CHECKOUT]`.

Two tables of milliseconds of process time per image. The first is a view as a picture, at each size, with the limits
that the room promises. The second is the whole way to disk at 128 px (draw the study, render, encode, write, truth) in
one process; with `--against`, the same studies are written in turn by this checkout and by another one, so that a busy
machine slows both alike and the ratio holds. Process time counts a process's own work, but a busy machine still slows
it by its caches and clock: compare ratios, not runs.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_ONE_THREAD: dict[str, str] = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
LIMIT_MS = {128: 30.0, 512: 250.0}
STUDIES_PER_ROUND = 32


def measure_views(size_px: int, n_studies: int) -> list[float]:
    """Milliseconds of CPU time for each view of studies 0..n-1, after a warm-up."""
    from vet_extensions.phantom.render import render_view
    from vet_extensions.phantom.studies import sample_study

    warm_up = sample_study(0, n_studies)
    render_view(warm_up, warm_up.exposures[0], size_px)
    times = []
    for number in range(n_studies):
        study = sample_study(0, number)
        for exposure in study.exposures:
            start = time.process_time()
            render_view(study, exposure, size_px)
            times.append(1e3 * (time.process_time() - start))
    return times


def serve_archives() -> None:
    """The child's part: write an archive for every seed read from stdin, and answer with milliseconds per image."""
    from vet_extensions.phantom.archive import write_archive

    for line in sys.stdin:
        with tempfile.TemporaryDirectory() as folder:
            start = time.process_time()
            summary = write_archive(Path(folder), n_studies=STUDIES_PER_ROUND, seed=int(line), size_px=128)
            sys.stdout.write(f"{1e3 * (time.process_time() - start) / summary.n_images}\n")
            sys.stdout.flush()


def measure_archives(checkouts: list[Path], n_rounds: int) -> list[list[float]]:
    """Milliseconds per image of each round, a list per checkout; they take turns, and the first round is a warm-up."""
    children = [
        subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            env={**os.environ, **_ONE_THREAD, "PYTHONPATH": str(checkout)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for checkout in checkouts
    ]
    times: list[list[float]] = [[] for _ in checkouts]
    for seed in range(n_rounds + 1):
        for child, own_times in zip(children, times):
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(f"{seed}\n")
            child.stdin.flush()
            own_times.append(float(child.stdout.readline()))
    for child in children:
        child.communicate()
    return [own_times[1:] for own_times in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs="*", default=[64, 128, 256, 512])
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=6, help=f"archives of {STUDIES_PER_ROUND} studies")
    parser.add_argument("--against", type=Path, help="root of another checkout, the one before a change")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.update(_ONE_THREAD)  # read when numpy is first imported, hence the imports inside functions
    import cv2
    import numpy as np

    cv2.setNumThreads(1)
    if arguments.serve:
        serve_archives()
        return
    print("| view, px | median ms | p90 ms | limit ms |\n|---|---|---|---|")
    for size_px in arguments.size:
        times = measure_views(size_px, arguments.studies)
        limit = LIMIT_MS.get(size_px, "")
        print(f"| {size_px} | {np.median(times):.1f} | {np.percentile(times, 90):.1f} | {limit} |", flush=True)
    here = Path(__file__).resolve().parents[1]
    checkouts = [here] if arguments.against is None else [arguments.against.resolve(), here]
    rounds = measure_archives(checkouts, arguments.rounds)
    print("\n| archive, 128 px | least ms | median ms |\n|---|---|---|")
    for name, own_times in zip(["before", "after"][-len(rounds) :], rounds):
        print(f"| {name} | {min(own_times):.1f} | {np.median(own_times):.1f} |")
    if len(rounds) == 2:
        ratios = np.divide(rounds[1], rounds[0])
        quarter, half, three_quarters = np.percentile(ratios, (25, 50, 75))
        print(f"\nAfter / before, by round: median {half:.2f} (quartiles {quarter:.2f} to {three_quarters:.2f}).")


if __name__ == "__main__":
    main()
