"""Five million images: how fast a manifest opens, groups and gives pairs, and what a training's workers hold in memory.

Usage: python benchmarks/manifest.py [--images 5000000 --studies 668000] [--folder DIR]

Makes a synthetic intake folder without pixels (the same every time), then measures each thing in a process of its own and prints
the table of benchmarks/results/manifest.md. With PYTHONPATH set to another checkout it measures that one.
"""

import argparse
import gc
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

VIEWS = ("LATERAL_LEFT", "LATERAL_RIGHT", "VD", "DV", "UNKNOWN")
SPECIES = ("canine", "feline", "")
N_WORKERS = 2
N_LOOK_UPS = 1_000_000
N_SLOW_LOOK_UPS = 20_000
BATCH = 64


def make_folder(root: Path, *, n_images: int, n_studies: int, seed: int = 0) -> None:
    """A manifest with all columns and three labels, and a shard index of the same rows; there are no shards."""
    from vet_extensions.manifest.io import write_manifest

    rng = np.random.default_rng(seed)
    study_of = np.repeat(
        np.arange(n_studies), 1 + rng.multinomial(n_images - n_studies, np.full(n_studies, 1 / n_studies))
    )
    patient_of = rng.integers(0, max(1, n_studies // 2), n_studies)[study_of]
    keys = [rng.integers(0, 2**63, n, dtype=np.uint64) for n in (n_images, n_studies, max(1, n_studies // 2))]
    images, studies, patients = keys[0], keys[1][study_of], keys[2][patient_of]
    order = np.lexsort((images, studies, patients))
    images, studies, patients = images[order], studies[order], patients[order]

    def one_of(values: tuple[str, ...]) -> pa.Array:
        codes = pa.array(rng.integers(0, len(values), n_images, dtype=np.int32))
        return pa.DictionaryArray.from_arrays(codes, pa.array(values)).cast(pa.string())

    def numbers(low: int, high: int) -> np.ndarray:
        return rng.integers(low, high, n_images, dtype=np.int32)

    splits = np.array(["train", "val", "test"])[np.searchsorted([0.7, 0.8], (patients % 1000) / 1000, side="right")]
    columns = {
        "image_id": hexadecimal(images),
        "study_id": hexadecimal(studies),
        "patient_id": hexadecimal(patients),
        "split": pa.array(splits.astype(object), pa.string()),
        "view": one_of(VIEWS),
        "view_source": one_of(("ViewPosition", "ViewCodeSequence", "none")),
        "species": one_of(SPECIES),
        "body_part": one_of(("CHEST", "ABDOMEN", "PELVIS", "")),
        "laterality": one_of(("", "L", "R")),
        "rows": numbers(1000, 4000),
        "columns": numbers(1000, 4000),
        "stored_rows": numbers(300, 513),
        "stored_columns": numbers(300, 513),
        "spacing_row_mm": rng.random(n_images, dtype=np.float32),
        "spacing_column_mm": rng.random(n_images, dtype=np.float32),
        "photometric": one_of(("MONOCHROME1", "MONOCHROME2")),
        "bits_stored": numbers(10, 15),
        "transfer_syntax": one_of(("1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.70")),
        "source_id": hexadecimal(images ^ np.uint64(1)),
        "pixel_hash": hexadecimal(images ^ np.uint64(2)),
    }
    for name in ("effusion", "fracture", "mass"):
        columns[f"label.{name}"] = pa.array(
            rng.integers(-1, 2, n_images, dtype=np.int8), mask=rng.random(n_images) < 0.5
        )
    write_manifest(pa.table(columns), root / "manifest.parquet")
    sizes = columns["stored_rows"].astype(np.int64) * columns["stored_columns"] + 128
    ends = np.cumsum(sizes + 1024)
    index = {
        "image_id": columns["image_id"],
        "shard": (ends // 2**29).astype(np.int32),
        "offset": ends % 2**29,
        "size": sizes,
    }
    (root / "shards").mkdir()
    pq.write_table(pa.table(index), root / "shards" / "index.parquet")


def hexadecimal(keys: np.ndarray) -> pa.Array:
    """64-bit numbers [N] as N texts of 16 hexadecimal digits."""
    text = keys.astype(">u8").tobytes().hex().encode()
    offsets = np.arange(0, 16 * len(keys) + 1, 16, dtype=np.int32)
    return pa.StringArray.from_buffers(len(keys), pa.py_buffer(offsets), pa.py_buffer(text))


def pss_bytes() -> int:
    """What this process holds, shared pages divided among those that share them."""
    gc.collect()
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no Pss in /proc/self/smaps_rollup")


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure_open(root: Path) -> dict[str, float]:
    from vet_extensions.manifest import Manifest

    return {"open s": seconds(lambda: Manifest.open(root))}


def measure_group(root: Path) -> dict[str, float]:
    from vet_extensions.manifest import Manifest

    manifest = Manifest.open(root)
    return {"group s": seconds(lambda: (manifest.study_offsets, manifest.study_codes, manifest.patient_codes))}


def measure_dataset(root: Path) -> dict[str, float]:
    from vet_extensions.data import MultiViewStudyDataset

    return {"data set s": seconds(lambda: MultiViewStudyDataset(root=str(root), pairing="different_view"))}


def measure_pairs(root: Path) -> dict[str, float]:
    """Random (study, position) pairs: one by one, by batches as a worker draws them, and many at once."""
    from vet_extensions.data import MultiViewStudyDataset
    from vet_extensions.data.pairing import draw_pair
    from vet_extensions.data.study_dataset import sample_rng

    dataset = MultiViewStudyDataset(root=str(root), split="all", pairing="different_view")
    rng = np.random.default_rng(0)
    studies, positions = rng.integers(0, len(dataset), N_LOOK_UPS), np.arange(N_LOOK_UPS)

    def one_by_one() -> None:
        for study, position in zip(studies[:N_SLOW_LOOK_UPS].tolist(), range(N_SLOW_LOOK_UPS)):
            draw_pair(dataset._views_of(study), "different_view", sample_rng(0, position))

    found = {"pairs one by one /s": N_SLOW_LOOK_UPS / seconds(one_by_one)}
    if hasattr(dataset, "pair_rows"):

        def by_batches() -> None:
            for start in range(0, N_SLOW_LOOK_UPS, BATCH):
                part = slice(start, start + BATCH)
                dataset.pair_rows(studies[part], positions=positions[part])

        found[f"pairs in batches of {BATCH} /s"] = N_SLOW_LOOK_UPS / seconds(by_batches)
        found["pairs at once /s"] = N_LOOK_UPS / seconds(lambda: dataset.pair_rows(studies, positions=positions))
    return found


def measure_memory(root: Path) -> dict[str, float]:
    """Bytes an image that a training process and its workers hold together for one data set, by start method."""
    found = {}
    for method in ("fork", "spawn"):
        answer = subprocess.run(
            [sys.executable, __file__, "--folder", str(root), "--only", f"memory_{method}"],
            check=True,
            capture_output=True,
            text=True,
        )
        found.update(json.loads(answer.stdout.splitlines()[-1]))
    return found


def measure_workers(root: Path, *, method: str) -> dict[str, float]:
    from vet_extensions.data import MultiViewStudyDataset

    before = pss_bytes()
    dataset = MultiViewStudyDataset(root=str(root), split="all")
    n_images = int(dataset._offsets[-1])
    context = multiprocessing.get_context(method)
    barrier, queue = context.Barrier(N_WORKERS + 1), context.Queue()
    pickled = pickle.dumps(dataset)
    alone = pss_bytes() - before
    global _inherited
    _inherited = dataset
    carried = pickled if method == "spawn" else None
    workers = [context.Process(target=work, args=(carried, barrier, queue)) for _ in range(N_WORKERS)]
    for worker in workers:
        worker.start()
    barrier.wait()  # every worker has its imports
    idle = pss_bytes()
    barrier.wait()  # every worker has looked at every image
    touch(dataset)
    busy = pss_bytes()
    barrier.wait()  # everybody has measured
    grown = [queue.get() for _ in workers]
    for worker in workers:
        worker.join()
    total = alone + (busy - idle) + sum(grown)
    return {
        f"{method}: bytes an image, parent and 2 workers": total / n_images,
        f"{method}: pickled bytes": len(pickled),
    }


_inherited: Any = None


def work(carried: bytes | None, barrier: Any, queue: Any) -> None:
    import vet_extensions.data  # noqa: F401

    before = pss_bytes()
    barrier.wait()
    dataset = pickle.loads(carried) if carried is not None else _inherited
    touch(dataset)
    barrier.wait()
    after = pss_bytes()
    barrier.wait()
    queue.put(after - before)


def touch(dataset: Any) -> None:
    """Read what a pass over all images reads, but the pixels."""
    reader = dataset._reader
    columns = (dataset._rows, dataset._offsets, dataset._view_codes, reader._shard, reader._offset, reader._size)
    for column in columns:
        if column is not None:
            for start in range(0, len(column), 2**20):
                np.add.reduce(column[start : start + 2**20])


MEASURES: dict[str, Callable[[Path], dict[str, float]]] = {
    "open": measure_open,
    "group": measure_group,
    "dataset_first": lambda root: {f"first {k}": v for k, v in measure_dataset(root).items()},
    "dataset_again": lambda root: {f"later {k}": v for k, v in measure_dataset(root).items()},
    "pairs": measure_pairs,
    "memory": measure_memory,
    "memory_fork": lambda root: measure_workers(root, method="fork"),
    "memory_spawn": lambda root: measure_workers(root, method="spawn"),
}


def run(root: Path) -> None:
    size = (root / "manifest.parquet").stat().st_size / 2**20
    print(f"manifest.parquet: {size:.0f} MiB\n\n| what | measured |\n|---|---|", flush=True)
    for name in ("open", "group", "dataset_first", "dataset_again", "pairs", "memory"):
        command = [sys.executable, __file__, "--folder", str(root), "--only", name]
        answer = subprocess.run(command, check=True, capture_output=True, text=True)
        for what, value in json.loads(answer.stdout.splitlines()[-1]).items():
            print(f"| {what} | {value:,.3f} |" if value < 100 else f"| {what} | {value:,.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5_000_000)
    parser.add_argument("--studies", type=int, default=668_000)
    parser.add_argument("--folder", type=Path, help="keep the folder here, or use the one that is here")
    parser.add_argument("--only", choices=list(MEASURES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(MEASURES[args.only](args.folder)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = args.folder or Path(temporary) / "intake"
        if not (root / "manifest.parquet").is_file():
            root.mkdir(parents=True, exist_ok=True)
            print(f"made in {seconds(lambda: make_folder(root, n_images=args.images, n_studies=args.studies)):.0f} s")
        run(root)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
