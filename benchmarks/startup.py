"""What lies between a data set and a step, beside its images: batches put together, passes begun, workers started, pairs found.

    python benchmarks/startup.py [--images 5000000] [--folder DIR] [--repeats 5] [--smoke]

Prints a table for each, with what the project asks for. CPU seconds of one thread, median of the repeats. With PYTHONPATH set to
another checkout it measures that one. Results: benchmarks/results/startup.md.
"""

import argparse
import itertools
import multiprocessing
import pickle
import random
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from manifest import make_folder
from side_by_side import by_turns, machine_facts

from dinov2.data import MaskingGenerator, collate_data_and_cast
from dinov2.data.adapters import NumberedDataset, PositionSeededDataset
from dinov2.data.datasets.image_folder import ImageFolder
from dinov2.data.samplers import (
    EpochSampler,
    InfiniteSampler,
    PositionedIndex,
    SeededInfiniteSampler,
    ShardedInfiniteSampler,
)
from vet_extensions.data import MultiViewStudyDataset, StudySample

BATCH, GRID, N_LOCAL = 64, 16, 8
IMAGES_A_STUDY = 7.5
PATHS_BYTES = len("n01440764/n01440764_10026.JPEG")
COLLATE_TARGET, START_TARGET_S, PAIRS_TARGET = 5_000, 0.5, 100_000


class NoCrops:
    """Stands for an augmentation that costs nothing, to see what is left."""

    draws_by_position = True

    def __call__(self, sample: StudySample) -> dict[str, Any]:
        return {"views": sample.views, "position": sample.position}


def cpu_s(work: Callable[[], object], repeats: int) -> float:
    return by_turns({"": work}, repeats=repeats)[""].median("cpu")


def show(title: str, rows: Sequence[tuple[str, str, str]]) -> None:
    """rows: what, the figure, what is asked for ("" for nothing)."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    print(f"\n### {title}\n", "| what | measured | asked for |", "|---|---|---|", *lines, sep="\n", flush=True)


def crops(channels: int, dtype: torch.dtype, n_samples: int) -> list[tuple[dict[str, Any], tuple[()]]]:
    """Samples of two global crops of 224 pixels and eight local ones of 98."""

    def crop(side: int) -> torch.Tensor:
        return torch.randint(0, 256, (channels, side, side), dtype=torch.uint8).to(dtype)

    return [
        ({"global_crops": [crop(224) for _ in range(2)], "local_crops": [crop(98) for _ in range(N_LOCAL)]}, ())
        for _ in range(n_samples)
    ]


def measure_collate(repeats: int) -> Iterator[tuple[str, str, str]]:
    """Images a second of `collate_data_and_cast`; the masks of a batch are drawn anew each time."""
    generator = MaskingGenerator((GRID, GRID), max_num_patches=0.5 * GRID * GRID)

    def images_a_second(samples: list[Any], dtype: torch.dtype, masks: MaskingGenerator | None) -> float:
        def work() -> None:
            collate_data_and_cast(samples, (0.1, 0.5), 0.5, dtype, GRID * GRID, masks)

        return len(samples) / cpu_s(work, 4 * repeats)

    random.seed(0)
    grey = crops(1, torch.uint8, BATCH)
    yield "grey bytes, with masks", f"{images_a_second(grey, torch.half, generator):,.0f} /s", f"{COLLATE_TARGET:,} /s"
    yield "grey bytes, without masks", f"{images_a_second(grey, torch.half, None):,.0f} /s", ""
    colour = crops(3, torch.float32, BATCH)
    yield "official floats to half, with masks", f"{images_a_second(colour, torch.half, generator):,.0f} /s", ""
    masks_s = cpu_s(lambda: [generator(80) for _ in range(BATCH)], 4 * repeats)
    yield "one mask of 80 patches", f"{1e6 * masks_s / BATCH:,.0f} us", ""


def measure_samplers(n_images: int, repeats: int) -> Iterator[tuple[str, str, str]]:
    """Seconds from making a sampler's iterator to its first index, and a pass's further indices."""
    alone: dict[str, Any] = {"sample_count": n_images, "shuffle": True, "start": 0, "step": 1}
    samplers = {
        "SeededInfiniteSampler": SeededInfiniteSampler(**alone),
        "ShardedInfiniteSampler": ShardedInfiniteSampler(**alone),
        "ShardedInfiniteSampler, new slice": ShardedInfiniteSampler(**alone, use_new_shuffle_tensor_slice=True),
        "InfiniteSampler": InfiniteSampler(**alone),
        "EpochSampler": EpochSampler(size=n_images, **alone),
    }
    starts = by_turns({name: lambda s=s: next(iter(s)) for name, s in samplers.items()}, repeats=repeats)
    for name, sampler in samplers.items():
        indices = iter(sampler)
        next(indices)
        n = min(n_images, 200_000) // (2 * repeats)
        each_s = cpu_s(lambda i=indices, n=n: deque(itertools.islice(i, n), maxlen=0), repeats - 1) / n
        start_s = starts[name].median("cpu")
        yield f"{name}: first index", f"{start_s:.2f} s", f"{START_TARGET_S} s"
        yield f"{name}: each further one", f"{1e6 * each_s:.2f} us", ""


def receive(pickled: bytes) -> float:
    """CPU seconds that a worker takes to make its data set of what it was sent; its imports are done."""
    start = time.process_time()
    len(pickle.loads(pickled))
    return time.process_time() - start


def measure_workers(root: Path, n_images: int) -> Iterator[tuple[str, str, str]]:
    """What a spawned worker is sent of a data set, and how long sending and receiving take. A forked one is sent nothing."""
    folder: Any = object.__new__(cast(type, ImageFolder))  # its arrays as they are, without as many files
    folder._paths = np.full(n_images, b"x" * PATHS_BYTES)
    folder._targets = np.zeros(n_images, dtype=np.int64)
    sets = {
        f"VetStudies, {n_images:,} images": wrapped(root),
        f"ImageFolder, {n_images:,} images": folder,
    }
    with multiprocessing.get_context("spawn").Pool(1) as worker:
        worker.apply(receive, (pickle.dumps(wrapped(root)),))  # imports
        for name, dataset in sets.items():
            pickled = bytes(ForkingPickler.dumps(dataset))
            send_s, receive_s = cpu_s(lambda d=dataset: ForkingPickler.dumps(d), 3), worker.apply(receive, (pickled,))
            yield f"{name}: sent", f"{len(pickled):,} bytes", "0 bytes an image" if "Vet" in name else ""
            yield f"{name}: sending, receiving", f"{send_s:.3f} s, {receive_s:.3f} s", ""


def wrapped(root: Path) -> PositionSeededDataset:
    """The data set as the train loop wraps it."""
    studies = MultiViewStudyDataset(root=str(root), split="all", pairing="different_view", transform=NoCrops())
    return PositionSeededDataset(NumberedDataset(studies), seed=0)


def measure_pairs(root: Path, repeats: int) -> Iterator[tuple[str, str, str]]:
    """Random pairs a second in the way that the train loop takes, with reading and cropping left out."""
    dataset = wrapped(root)
    dataset._dataset._dataset._reader.read = lambda row: None  # there are no pixels
    rng = np.random.default_rng(0)
    for n in (8, 32, 64):
        batches = [
            [PositionedIndex(int(study), first + i) for i, study in enumerate(rng.integers(0, len(dataset), n))]
            for first in range(0, 100 * n, n)
        ]
        at_once = getattr(dataset, "__getitems__", None) or (lambda batch: [dataset[index] for index in batch])
        per_second = 100 * n / cpu_s(lambda a=at_once, b=batches: [a(batch) for batch in b], repeats)
        yield f"batches of {n}", f"{per_second:,.0f} /s", f"{PAIRS_TARGET:,} /s" if n >= 32 else ""
    single = 100 * n / cpu_s(lambda b=batches: [dataset[index] for batch in b for index in batch], repeats)
    yield "one by one", f"{single:,.0f} /s", ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, help="keep the synthetic intake folder here, or use the one that is here"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="see in seconds whether everything runs; the figures mean nothing"
    )
    args = parser.parse_args()
    n_images, repeats = (3_000, 2) if args.smoke else (args.images, args.repeats)
    torch.set_num_threads(1)
    print(machine_facts())
    show(f"Collate and masks, {BATCH} images a batch", list(measure_collate(repeats)))
    show(f"Beginning of a pass, {n_images:,} images", list(measure_samplers(n_images, repeats)))
    with tempfile.TemporaryDirectory() as temporary:
        root = args.folder or Path(temporary) / "intake"
        if not (root / "manifest.parquet").is_file():
            root.mkdir(parents=True, exist_ok=True)
            make_folder(root, n_images=n_images, n_studies=int(n_images / IMAGES_A_STUDY))
        show("Data sets sent to a spawned worker", list(measure_workers(root, n_images)))
        show("Pairs of views found in training", list(measure_pairs(root, repeats)))


if __name__ == "__main__":
    main()
