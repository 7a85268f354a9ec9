"""A folder of ordinary image files as a data set, `ImageFolder` in data set strings: the quickest way to one's own images."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dinov2.data.datasets.extended import ExtendedVisionDataset
from dinov2.data.registry import DATASETS
from dinov2.utils.errors import UserError

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".ppm", ".pgm")


@DATASETS.register("ImageFolder")
class ImageFolder(ExtendedVisionDataset):
    """The images under `root`, or under its sub-folder `split`, sorted by path.

    If every image is exactly one folder deep (`root/<class>/<image>`), a folder is a class, `classes` holds the sorted folder
    names and the target is the index in it. In any other arrangement `classes` is empty and every target 0. Files and folders
    whose names begin with a dot are passed over. shortest_side: decode JPEG files at a part of their size, but with
    at least so many pixels on the shorter side; 0 in full.
    """

    def __init__(
        self,
        *,
        root: str | os.PathLike[str],
        split: str | None = None,
        shortest_side: int | str = 0,
        transforms: Callable[[Any, Any], tuple[Any, Any]] | None = None,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(root, transforms, transform, target_transform)
        if not str(shortest_side).isdecimal():
            raise UserError(
                f"ImageFolder: shortest_side is '{shortest_side}'. Give a number of pixels, or 0 to decode in full."
            )
        self.shortest_side_px = int(shortest_side)
        self._folder = Path(root) if split is None else Path(root) / split
        if not self._folder.is_dir():
            raise UserError(_missing_folder_message(Path(root), split))
        found = list(_relative_files(self._folder))
        images = sorted(parts for parts in found if _is_image(parts[-1]))
        if not images:
            raise UserError(_no_images_message(self._folder, found))

        is_class_tree = all(len(parts) == 2 for parts in images)
        self.classes: tuple[str, ...] = tuple(sorted({parts[0] for parts in images})) if is_class_tree else ()
        label_of = {name: label for label, name in enumerate(self.classes)}
        self._targets = np.array([label_of[parts[0]] if is_class_tree else 0 for parts in images], dtype=np.int64)
        # One array of bytes, not a list of paths: forked workers would copy a list, page by page, by counting references.
        self._paths = np.array([os.fsencode("/".join(parts)) for parts in images])

    def get_image_data(self, index: int) -> bytes:
        """The file's bytes. Raises `OSError` without the file's name, which may say whose image it is."""
        try:
            return (self._folder / os.fsdecode(self._paths[index])).read_bytes()
        except OSError as error:
            raise OSError(error.errno, error.strerror) from None

    def get_target(self, index: int) -> int:
        """The class index, 0 where there are no class folders."""
        return int(self._targets[index])

    def get_targets(self) -> np.ndarray:
        """All targets, [number of images] int64."""
        return self._targets

    def __len__(self) -> int:
        return len(self._paths)


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_EXTENSIONS)


def _relative_files(folder: Path) -> Iterator[tuple[str, ...]]:
    """The path of every file below `folder`, in parts; links to folders are followed, circles of them entered once."""
    seen: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        identity = Path(parent).stat()
        if (identity.st_dev, identity.st_ino) in seen:
            folders.clear()
            continue
        seen.add((identity.st_dev, identity.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(parent).relative_to(folder).parts
        yield from ((*inside, name) for name in files if not name.startswith("."))


def _missing_folder_message(root: Path, split: str | None) -> str:
    if split is None or not root.is_dir():
        return f"ImageFolder: there is no folder '{root}'. Give an existing one: ImageFolder:root=FOLDER."
    known = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    return (
        f"ImageFolder: '{root}' has no sub-folder '{split}'. It has: {', '.join(known[:10]) or 'none'}"
        f"{', ...' if len(known) > 10 else ''}. Give one of these as split=, or leave split away to take all of them."
    )


def _no_images_message(folder: Path, found: list[tuple[str, ...]]) -> str:
    kinds = Counter(Path(parts[-1]).suffix.lower() or "without extension" for parts in found)
    listing = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) or "no files at all"
    return (
        f"ImageFolder: no images in '{folder}'; found: {listing}. Read are {', '.join(IMAGE_EXTENSIONS)}, straight in the "
        "folder or in sub-folders. Convert other formats first, or point root= at the folder that holds the images."
    )
