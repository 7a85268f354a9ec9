"""Small image files and tables on the disk, for the tests of intake's sources."""

import csv
import gzip
import io
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pydicom import Dataset

from vet_extensions.intake.dicom import largest_file, open_dicom
from vet_extensions.intake.opening import opened
from vet_extensions.intake.sources.base import Source, SourceItem
from vet_extensions.intake.sources.dicom_folder import DicomFolder

DISK = DicomFolder(Path("/"))
"""Every file under its absolute path, for tests of the readers."""


@contextmanager
def opened_dicom(path: str | Path, *, max_pixels: int = 10**6) -> Iterator[Dataset]:
    """One file as the pixel pass opens it."""
    with (
        opened(DISK, str(path), max_bytes=largest_file(max_pixels)) as file,
        open_dicom(file, with_pixels=True, max_pixels=max_pixels) as dataset,
    ):
        yield dataset


def write_images(root: Path, paths: Iterable[str], *, dtype: type = np.uint8) -> None:
    """A small noisy picture, each another, at every path below `root`; the suffix says which format."""
    for number, path in enumerate(paths):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, np.iinfo(dtype).max, (16, 20)).astype(dtype)
        assert cv2.imwrite(str(file), noise)


def write_csv(path: Path, names: Sequence[str], rows: Iterable[Sequence[Any]], *, newline: str = "\n") -> None:
    """A CSV file, every cell that needs it in quotes. A name ending in .gz is compressed."""
    text = io.StringIO()
    csv.writer(text, lineterminator=newline).writerows([names, *rows])
    data = text.getvalue().encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def items_of(source: Source) -> dict[str, SourceItem]:
    """key -> item, after the source went through a pickle as it does on its way to the workers; the order is checked."""
    items = list(pickle.loads(pickle.dumps(source)).items())
    keys = [item.key.encode() for item in items]
    assert keys == sorted(set(keys))
    return {item.key: item for item in items}


def facts_of(source: Source, name: str) -> dict[str, Any]:
    """key -> one of the facts, by its name."""
    return {key: getattr(item.facts, name) for key, item in items_of(source).items()}


def problems_of(source: Source) -> Mapping[str, str]:
    """key -> code of the problem, of those that have one."""
    return {key: str(item.problem.code) for key, item in items_of(source).items() if item.problem is not None}
