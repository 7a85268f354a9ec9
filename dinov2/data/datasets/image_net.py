"""ImageNet-1k in its folders, `ImageNet` in data set strings: images and classes are listed in metadata files, which
`dump_extra` or the command `python -m dinov2.data.datasets.prepare ImageNet` makes. Subsets of the classes or images are welcome.

Source: the official package for names, files and their columns; any part of the tree may be missing here.
"""

import csv
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dinov2.data.datasets.extended import ExtendedVisionDataset
from dinov2.data.datasets.metadata import Rows, kind_of, listed, prepare_command, save_rows, shortened, text_dtype
from dinov2.data.registry import DATASETS
from dinov2.utils.errors import UserError

logger = logging.getLogger("dinov2")

LABELS_FILE = "labels.txt"
_NO_CLASS = 0xFFFFFFFF
_FIELDS = ("actual_index", "class_index", "class_id", "class_name")
_PROGRESS_EVERY = 100


class _Split(Enum):
    """A part of ImageNet; the value is the name of its folder."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"

    @property
    def length(self) -> int:
        """How many images the whole split has."""
        return {"TRAIN": 1_281_167, "VAL": 50_000, "TEST": 100_000}[self.name]

    def get_dirname(self, class_id: str | None = None) -> str:
        """The folder of the split, or of one class in it, relative to the root."""
        return self.value if class_id is None else f"{self.value}/{class_id}"

    def get_image_relpath(self, actual_index: int, class_id: str | None = None) -> str:
        """The path of an image relative to the root. class_id: WordNet id such as n01440764, none for TEST."""
        if self is _Split.TRAIN:
            name = f"{class_id}_{actual_index}.JPEG"
        else:
            name = f"ILSVRC2012_{self.value}_{actual_index:08d}.JPEG"
        return f"{self.get_dirname(class_id or None)}/{name}"

    def parse_image_relpath(self, image_relpath: str) -> tuple[str, int]:
        """(class id, actual index) of an image's path relative to the root; the class id is "" for TEST.

        Raises `ValueError` for a path that `get_image_relpath` would not give back.
        """
        path = PurePosixPath(image_relpath)
        class_id = "" if self is _Split.TEST else path.parent.name
        digits = path.stem.rpartition("_")[2]
        if digits.isascii() and digits.isdecimal():
            actual_index = int(digits)
            if actual_index <= 0xFFFFFFFF and self.get_image_relpath(actual_index, class_id) == str(path):
                return class_id, actual_index
        expected = self.get_image_relpath(1, class_id or None)
        raise ValueError(f"The path of an image of {self.name} must be like '{expected}'.")


class ImageNet(ExtendedVisionDataset):
    """The images of one split that the metadata lists; the target is the class's line in `labels.txt`, None for TEST.

    root: holds `train/<wnid>/<wnid>_<n>.JPEG`, `val/<wnid>/ILSVRC2012_val_<n>.JPEG`, `test/ILSVRC2012_test_<n>.JPEG`, and
    `labels.txt` with a line `wnid,name` for each class. extra: holds `entries-<SPLIT>.npy`, `class-ids-<SPLIT>.npy` and
    `class-names-<SPLIT>.npy`, the official files or those that `dump_extra` makes. They are opened at their first use.
    """

    Split = _Split

    def __init__(
        self,
        *,
        split: "_Split | str",
        root: str | os.PathLike[str],
        extra: str | os.PathLike[str],
        transforms: Callable[[Any, Any], tuple[Any, Any]] | None = None,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
    ) -> None:
        """split: `ImageNet.Split.TRAIN`, `VAL` or `TEST`, or its name. Raises `UserError` for a missing folder."""
        super().__init__(root, transforms, transform, target_transform)
        self._split = _split_called(split)
        self._root = Path(root)
        self._folder = self._root / self._split.get_dirname()
        if not self._folder.is_dir():
            raise UserError(
                f"ImageNet: there is no folder '{self._folder}'. root= must be the folder that holds train/, val/ or test/ and "
                f"{LABELS_FILE}."
            )
        name = self._split.name
        command = prepare_command("ImageNet", root=root, extra=extra, split=name)
        self._entries = Rows(Path(extra) / f"entries-{name}.npy", fields=_FIELDS, command=command)
        self._class_ids = Rows(Path(extra) / f"class-ids-{name}.npy", command=command)
        self._class_names = Rows(Path(extra) / f"class-names-{name}.npy", command=command)
        self._size_was_noted = False

    @property
    def split(self) -> _Split:
        """Which part of ImageNet this is."""
        return self._split

    @property
    def classes(self) -> tuple[str, ...]:
        """The WordNet ids in the order of their targets, also of classes without images here; empty for TEST."""
        return () if self._split is _Split.TEST else tuple(self._class_ids.get().tolist())

    def find_class_id(self, class_index: int) -> str:
        """The WordNet id of a target."""
        return str(self._of_classes(self._class_ids)[class_index])

    def find_class_name(self, class_index: int) -> str:
        """The name of a target, as `labels.txt` gave it."""
        return str(self._of_classes(self._class_names)[class_index])

    def get_image_data(self, index: int) -> bytes:
        """The file's bytes. Raises `OSError` without the file's path."""
        entry = self._entries.get()[index]
        relpath = self._split.get_image_relpath(int(entry["actual_index"]), str(entry["class_id"]) or None)
        try:
            return (self._root / relpath).read_bytes()
        except OSError as error:
            raise OSError(error.errno, error.strerror) from None

    def get_target(self, index: int) -> int | None:
        """The class index, None for TEST."""
        return None if self._split is _Split.TEST else int(self._entries.get()["class_index"][index])

    def get_targets(self) -> np.ndarray | None:
        """All targets, [number of images] int64; None for TEST."""
        return None if self._split is _Split.TEST else self._entries.get()["class_index"].astype(np.int64)

    def get_class_id(self, index: int) -> str | None:
        """The WordNet id of an image's class, None for TEST."""
        return None if self._split is _Split.TEST else str(self._entries.get()["class_id"][index])

    def get_class_name(self, index: int) -> str | None:
        """The name of an image's class, None for TEST."""
        return None if self._split is _Split.TEST else str(self._entries.get()["class_name"][index])

    def __len__(self) -> int:
        count = len(self._entries.get())
        if count != self._split.length and not self._size_was_noted:
            self._size_was_noted = True
            logger.info(f"ImageNet {self._split.name}: {count:,d} images; the whole split has {self._split.length:,d}")
        return count

    def dump_extra(self) -> None:
        """Look through the split's folder and write its metadata files, those of an earlier run are replaced.

        Images come in the order of their folders and names. Files that are not named like an image of the split are counted
        and reported. Raises `UserError` without `labels.txt`, for a folder that it does not list, and without any image.
        """
        passed_over: Counter[str] = Counter()
        if self._split is _Split.TEST:
            labels: dict[str, str] = {}
            found = {"": _image_numbers(self._folder, self._split, None, passed_over)}
        else:
            labels = _read_labels(self._root / LABELS_FILE)
            found = _scan_classes(self._folder, self._split, labels, passed_over)
        if not any(map(len, found.values())):
            raise UserError(_no_images_message(self._folder, self._split, passed_over))
        self._write(found, labels)
        self._report(found, labels, passed_over)

    def _of_classes(self, rows: Rows) -> np.ndarray:
        if self._split is _Split.TEST:
            raise UserError("ImageNet TEST has no classes: its labels were never published. Use VAL to evaluate.")
        return rows.get()

    def _write(self, found: dict[str, np.ndarray], labels: dict[str, str]) -> None:
        """The entries come last, so that where they are, the other files are too."""
        for rows, texts in ((self._class_ids, list(labels)), (self._class_names, list(labels.values()))):
            rows.forget()
            if texts:
                dtype = text_dtype(texts)
                save_rows(rows.path, dtype=dtype, length=len(texts), parts=[np.array(texts, dtype=dtype)])
        columns = ("<u4", "<u4", text_dtype(labels), text_dtype(labels.values()))
        dtype = np.dtype(list(zip(_FIELDS, columns)))
        class_index = {class_id: index for index, class_id in enumerate(labels)}

        def parts() -> Iterator[np.ndarray]:
            for class_id, numbers in found.items():
                part = np.empty(len(numbers), dtype=dtype)
                part["actual_index"] = numbers
                part["class_index"] = class_index.get(class_id, _NO_CLASS)
                part["class_id"] = class_id
                part["class_name"] = labels.get(class_id, "")
                yield part

        self._entries.forget()
        self._size_was_noted = False
        save_rows(self._entries.path, dtype=dtype, length=sum(map(len, found.values())), parts=parts())

    def _report(self, found: dict[str, np.ndarray], labels: dict[str, str], passed_over: Counter[str]) -> None:
        name, count = self._split.name, sum(map(len, found.values()))
        n_classes = sum(len(numbers) > 0 for numbers in found.values())
        of_classes = f" of {n_classes:,d} classes ({LABELS_FILE} lists {len(labels):,d})" if labels else ""
        logger.info(f"ImageNet {name}: {count:,d} images{of_classes}; the whole split has {self._split.length:,d}")
        if passed_over:
            logger.warning(
                f"ImageNet {name}: passed over, not named like {_pattern(self._split)}: {listed(passed_over)}"
            )
        logger.info(f"ImageNet {name}: wrote {self._entries.path}")


@DATASETS.register("ImageNet")
def _from_text(
    *,
    split: str | None = None,
    root: str | None = None,
    extra: str | None = None,
    transform: Callable[[Any], Any] | None = None,
    target_transform: Callable[[Any], Any] | None = None,
) -> ImageNet:
    """`ImageNet:split=TRAIN:root=ROOT:extra=EXTRA`; without all three, a sentence on what they are."""
    if split is None or root is None or extra is None:
        given = {"split": split, "root": root, "extra": extra}
        command = prepare_command("ImageNet", root=root or "ROOT", extra=extra or "EXTRA")
        raise UserError(
            f"The data set ImageNet needs {' and '.join(key for key, value in given.items() if value is None)}: "
            f"ImageNet:split={split or 'TRAIN'}:root={root or 'ROOT'}:extra={extra or 'EXTRA'}. ROOT is the folder that holds "
            f"train/, val/ and {LABELS_FILE}; EXTRA the one for metadata, which is made once with: {command}. "
            "For images of your own no metadata is needed: ImageFolder:root=FOLDER."
        )
    return ImageNet(split=split, root=root, extra=extra, transform=transform, target_transform=target_transform)


def _split_called(split: "_Split | str") -> _Split:
    if isinstance(split, _Split):
        return split
    if split in _Split.__members__:
        return _Split[split]
    near = get_close_matches(str(split).upper(), _Split.__members__, n=1)
    guess = f" Did you mean '{near[0]}'?" if near else ""
    raise UserError(f"ImageNet has no split '{split}'.{guess} Allowed: {', '.join(_Split.__members__)}.")


def _pattern(split: _Split) -> str:
    return {
        "TRAIN": "train/<wnid>/<wnid>_<n>.JPEG",
        "VAL": "val/<wnid>/ILSVRC2012_val_<8 digits>.JPEG",
        "TEST": "test/ILSVRC2012_test_<8 digits>.JPEG",
    }[split.name]


def _read_labels(path: Path) -> dict[str, str]:
    """WordNet id -> name, in the order of the classes."""
    how = "It has a line 'wnid,name' for each class, in the order of the class indices; docs/datasets.md shows how to make it."
    if not path.is_file():
        raise UserError(f"ImageNet: there is no '{path}'. {how}")
    labels: dict[str, str] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        for row in csv.reader(file):
            if not row:
                continue
            class_id, name = row[0].strip(), ",".join(row[1:]).strip()
            if not class_id or not name or class_id in labels:
                problem = f"lists '{class_id}' a second time" if class_id in labels else "has no wnid and name"
                raise UserError(f"ImageNet: an entry of '{path}', {len(labels) + 1} by count, {problem}. {how}")
            labels[class_id] = name
    if not labels:
        raise UserError(f"ImageNet: '{path}' is empty. {how}")
    return labels


def _scan_classes(
    folder: Path, split: _Split, labels: dict[str, str], passed_over: Counter[str]
) -> dict[str, np.ndarray]:
    """Class id -> the numbers of its images, in the order of their names."""
    class_ids = []
    with os.scandir(folder) as children:
        for child in children:
            if child.is_dir() and not child.name.startswith("."):
                class_ids.append(child.name)
            else:
                passed_over["hidden folder" if child.is_dir() else kind_of(child.name)] += 1
    class_ids.sort()
    unknown = [class_id for class_id in class_ids if class_id not in labels]
    if unknown:
        raise UserError(
            f"ImageNet: {len(unknown):,d} of the {len(class_ids):,d} folders in '{folder}' are not in {LABELS_FILE}: "
            f"{shortened(unknown)}. Add a line 'wnid,name' for each, or move the folders away."
        )
    found = {}
    for position, class_id in enumerate(class_ids, start=1):
        found[class_id] = _image_numbers(folder / class_id, split, class_id, passed_over)
        if position % _PROGRESS_EVERY == 0:
            logger.info(f"ImageNet {split.name}: {position:,d} of {len(class_ids):,d} folders read")
    return found


def _image_numbers(folder: Path, split: _Split, class_id: str | None, passed_over: Counter[str]) -> np.ndarray:
    """The numbers of the images in a folder, in the order of their names."""
    prefix = split.get_dirname(class_id)
    with os.scandir(folder) as children:
        names = sorted((child.name, child.is_file()) for child in children)
    numbers = []
    for name, is_file in names:
        try:
            if not is_file:
                raise ValueError("no file")
            numbers.append(split.parse_image_relpath(f"{prefix}/{name}")[1])
        except ValueError:
            passed_over[kind_of(name) if is_file else "folder"] += 1
    return np.array(numbers, dtype=np.uint32)


def _no_images_message(folder: Path, split: _Split, passed_over: Counter[str]) -> str:
    sort = "" if split is _Split.TEST else " docs/datasets.md shows how to sort loose images into folders of classes."
    return (
        f"ImageNet: no image of {split.name} in '{folder}'; found: {listed(passed_over)}. Images must be named like "
        f"{_pattern(split)}.{sort} For images with other names use ImageFolder:root=FOLDER, which needs no metadata."
    )
