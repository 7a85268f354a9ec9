"""CPU time of one phantom image, one thread: `python benchmarks/phantom.py [--size 128 512] [--studies 20]`.

Prints milliseconds of process time per view (image only) at each size: median and 90th percentile, after a warm-up, and
the limits that the room promises (30 ms at 128 px, 250 ms at 512 px). Process time counts this process's work alone, so a busy
machine slows the answer by its caches and clock only.
"""

import argparse
import os
import time

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
LIMIT_MS = {128: 30.0, 512: 250.0}


def measure(size_px: int, n_studies: int) -> list[float]:
    """Milliseconds of CPU time for each view of studies 0..n-1."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--studies", type=int, default=20)
    arguments = parser.parse_args()
    for variable in _THREAD_VARIABLES:  # read when numpy is first imported, hence the imports inside functions
        os.environ[variable] = "1"
    import cv2
    import numpy as np

    cv2.setNumThreads(1)
    print("| px | median ms | p90 ms | limit ms |\n|---|---|---|---|")
    for size_px in arguments.size:
        times = measure(size_px, arguments.studies)
        limit = LIMIT_MS.get(size_px, "")
        print(f"| {size_px} | {np.median(times):.1f} | {np.percentile(times, 90):.1f} | {limit} |", flush=True)


if __name__ == "__main__":
    main()
