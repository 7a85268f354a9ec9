"""A short, plain fuzz run of the reader: the same few hundred damaged files each time, both passes in production's workers.

The long, coverage-guided run is `benchmarks/fuzz_reader.py`; this one needs no atheris and holds what that one promises.
"""

import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from bad_inputs import bad_inputs, good_files

from tests.source_files import DISK
from vet_extensions.intake.deidentify import Pseudonyms
from vet_extensions.intake.header import HeaderReader
from vet_extensions.intake.image import ImageReader, StoredImage
from vet_extensions.intake.options import IntakeOptions
from vet_extensions.intake.pool import WorkerPool
from vet_extensions.schema import ImageRecord, Rejection

N_INPUTS = 600
MAX_CHANGES = 8
OPTIONS = IntakeOptions(longest_side_px=64, max_pixels=4_000_000)
NUMBERS = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def overwrite(data: bytearray, random_: random.Random) -> None:
    data[random_.randrange(len(data))] = random_.randrange(256)


def flip(data: bytearray, random_: random.Random) -> None:
    data[random_.randrange(len(data))] ^= 1 << random_.randrange(8)


def put_number(data: bytearray, random_: random.Random) -> None:
    """A number that tempts: a length, a count or a size may lie here."""
    form = random_.choice(("<H", ">H", "<I", ">I"))
    number = random_.choice(NUMBERS) & (2 ** (8 * struct.calcsize(form)) - 1)
    place = random_.randrange(len(data))
    data[place : place + struct.calcsize(form)] = struct.pack(form, number)


def cut(data: bytearray, random_: random.Random) -> None:
    del data[random_.randrange(1, len(data)) :]


def cut_out(data: bytearray, random_: random.Random) -> None:
    place = random_.randrange(len(data))
    del data[place : place + random_.randrange(1, 64)]


def repeat(data: bytearray, random_: random.Random) -> None:
    place = random_.randrange(len(data))
    data[place:place] = data[place : place + random_.randrange(1, 64)]


CHANGES: tuple[Callable[[bytearray, random.Random], None], ...] = (overwrite, flip, put_number, cut_out, repeat)


def damaged(seed: bytes, random_: random.Random) -> bytes:
    """One to eight changes, most of them where the header is: a change among many pixels finds nothing."""
    data = bytearray(seed)
    is_in_header = random_.random() < 0.7
    tail = data[1200:] if is_in_header else bytearray()
    body = data[:1200] if is_in_header else data
    for _ in range(random_.randrange(1, MAX_CHANGES + 1)):
        if len(body) > 200:
            random_.choice(CHANGES)(body, random_)
    whole = body + tail
    if random_.random() < 0.1:
        cut(whole, random_)
    return bytes(whole)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    seeds = tmp_path_factory.mktemp("seeds")
    streams = [kind for kind in bad_inputs() if kind.name.startswith(("JPEG", "RLE", "fragment", "8-bit", "look-up"))]
    for kind in (*good_files(), *streams):
        kind.write(seeds)
    contents = [path.read_bytes() for path in sorted(seeds.glob("*.dcm")) if path.stat().st_size < 40_000]
    random_ = random.Random(20_260_101)
    folder = tmp_path_factory.mktemp("inputs")
    paths = [folder / f"{number}.dcm" for number in range(N_INPUTS)]
    for path in paths:
        path.write_bytes(damaged(random_.choice(contents), random_))
    return paths


def no_loss(task: object) -> Rejection:
    raise AssertionError(f"the worker was lost at {task}")


def test_no_damaged_file_raises_hangs_or_costs_its_worker(inputs: list[Path]) -> None:
    with WorkerPool(2) as pool:
        tasks = [(str(path), str(path), None) for path in inputs]
        reader = HeaderReader(Pseudonyms("a salt for fuzzing"), OPTIONS, DISK)
        headers = list(pool.ordered_map(reader, tasks, chunk_size=32, on_death=no_loss, limit_s=20))
        passed = [records for records in headers if not isinstance(records, Rejection)]
        assert all(isinstance(record, ImageRecord) for records in passed for record in records)
        tasks = [(records[0].source_id, records[0].frame) for records in passed]
        images = list(pool.ordered_map(ImageReader(OPTIONS, DISK), tasks, chunk_size=8, on_death=no_loss, limit_s=20))
    assert {type(image) for image in images} == {Rejection, StoredImage}
    assert N_INPUTS // 10 < len(passed) < N_INPUTS, (
        "the damage should stop some files at the header, and let others through"
    )
