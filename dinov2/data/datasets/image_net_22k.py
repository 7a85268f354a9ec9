"""ImageNet-22k in one tar file per class, `ImageNet22k` in data set strings: images are cut out of the mapped files at the byte
offsets that a metadata file lists, which `dump_extra` or `python -m dinov2.data.datasets.prepare ImageNet22k` makes.

Source: the official package for names, files and their columns; the offsets are found here by reading the tar files, so that the
official `blocks/<wnid>.log` files are not needed.
"""

import gzip
import logging
import mmap
import os
import tarfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinov2.data.datasets.extended import ExtendedVisionDataset
from dinov2.data.datasets.image_folder import IMAGE_EXTENSIONS
from dinov2.data.datasets.metadata import (
    Rows,
    kind_of,
    listed,
    offset_dtype,
    prepare_command,
    save_rows,
    text_dtype,
)
from dinov2.data.registry import DATASETS
from dinov2.utils.errors import UserError

logger = logging.getLogger("dinov2")

_BLOCK = 512
_GZIP_MAGIC = b"\x1f\x8b"
_FIELDS = ("class_index", "class_id", "start_offset", "end_offset", "filename")
_PROGRESS_EVERY = 500

KNOWN_BROKEN = frozenset({"n06470073_47249.JPEG"})
"""Members of the released tar files that no decoder opens; the official metadata leaves them out too."""


class ImageNet22k(ExtendedVisionDataset):
    """The images that the metadata lists; the target is the place of the tar's name among the sorted names of all.

    root: holds `<wnid>.tar` for each class, not compressed. extra: holds `entries.npy` and `class-ids.npy`, the official files or
    those that `dump_extra` makes. They and the tar files are opened at their first use. An image that is compressed with gzip
    inside its tar is decompressed.
    """

    def __init__(
        self,
        *,
        root: str | os.PathLike[str],
        extra: str | os.PathLike[str],
        transforms: Callable[[Any, Any], tuple[Any, Any]] | None = None,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        mmap_cache_size: int = 16,
    ) -> None:
        """mmap_cache_size: how many tar files each process keeps open. Raises `UserError` for a missing folder."""
        super().__init__(root, transforms, transform, target_transform)
        if not Path(root).is_dir():
            raise UserError(
                f"ImageNet22k: there is no folder '{root}'. root= must be the folder of the <wnid>.tar files."
            )
        self._command = prepare_command("ImageNet22k", root=root, extra=extra)
        self._tars = _MappedTars(Path(root), mmap_cache_size)
        self._entries = Rows(Path(extra) / "entries.npy", fields=_FIELDS, command=self._command)
        self._class_ids = Rows(Path(extra) / "class-ids.npy", command=self._command)

    @property
    def classes(self) -> tuple[str, ...]:
        """The WordNet ids in the order of their targets."""
        return tuple(self._class_ids.get().tolist())

    def get_class_ids(self) -> np.ndarray:
        """The WordNet ids in the order of their targets, as the metadata holds them."""
        return self._class_ids.get()

    def find_class_id(self, class_index: int) -> str:
        """The WordNet id of a target."""
        return str(self._class_ids.get()[class_index])

    def get_image_data(self, index: int) -> bytes:
        """The image's encoded bytes. Raises `OSError` without the tar's path, `UserError` when metadata and tar do not match."""
        entry = self._entries.get()[index]
        class_id = str(entry["class_id"])
        member = self._tars.read(class_id, int(entry["start_offset"]), int(entry["end_offset"]))
        try:
            size = tarfile.TarInfo.frombuf(member[:_BLOCK], tarfile.ENCODING, "surrogateescape").size
        except tarfile.HeaderError:
            size = None
        if size is None or _BLOCK + size > len(member):
            raise UserError(
                f"The metadata does not fit {class_id}.tar: no whole member where it says that image {index:,d} lies. "
                f"Was the tar exchanged or cut short? Make the metadata anew with: {self._command}"
            )
        data = member[_BLOCK : _BLOCK + size]
        return gzip.decompress(data) if data.startswith(_GZIP_MAGIC) else data

    def get_target(self, index: int) -> int:
        """The class index."""
        return int(self._entries.get()["class_index"][index])

    def get_targets(self) -> np.ndarray:
        """All targets, [number of images] int64."""
        return self._entries.get()["class_index"].astype(np.int64)

    def get_class_id(self, index: int) -> str:
        """The WordNet id of an image's class."""
        return str(self._entries.get()["class_id"][index])

    def __len__(self) -> int:
        return len(self._entries.get())

    def dump_extra(self) -> None:
        """Read the headers of all tar files and write the metadata, that of an earlier run is replaced.

        Members that are no image by their names, empty or `KNOWN_BROKEN` are counted and reported. Raises `UserError` without
        tar files, for one that is compressed or damaged, and without any image.
        """
        folder, passed_over = Path(self.root), Counter[str]()
        paths = []
        for path in sorted(folder.iterdir()):
            if path.suffix == ".tar" and path.is_file():
                paths.append(path)
            else:
                passed_over["folder" if path.is_dir() else kind_of(path.name)] += 1
        if not paths:
            raise UserError(
                f"ImageNet22k: no .tar in '{folder}'; found: {listed(passed_over)}. root= must be the folder of the <wnid>.tar "
                "files, one for each class. For images in folders use ImageFolder:root=FOLDER."
            )
        found = {}
        for position, path in enumerate(paths, start=1):
            found[path.stem] = _scan_tar(path, passed_over)
            if position % _PROGRESS_EVERY == 0:
                logger.info(f"ImageNet22k: {position:,d} of {len(paths):,d} tar files read")
        if not any(map(len, found.values())):
            raise UserError(
                f"ImageNet22k: the {len(paths):,d} .tar files in '{folder}' hold no image; found: {listed(passed_over)}. Images "
                f"are known by their suffix: {', '.join(IMAGE_EXTENSIONS)}."
            )
        self._write(found)
        self._report(found, passed_over)

    def _write(self, found: "dict[str, _Members]") -> None:
        """The entries come last, so that where they are, the class ids are too."""
        class_ids = np.array(list(found), dtype=text_dtype(found))
        self._class_ids.forget()
        save_rows(self._class_ids.path, dtype=class_ids.dtype, length=len(class_ids), parts=[class_ids])

        offset = offset_dtype(max(int(members.ends.max(initial=0)) for members in found.values()))
        filename = np.dtype(f"<U{max(members.names.itemsize for members in found.values())}")
        dtype = np.dtype(list(zip(_FIELDS, ("<u4", class_ids.dtype, offset, offset, filename))))

        def parts() -> Iterator[np.ndarray]:
            for class_index, (class_id, members) in enumerate(found.items()):
                part = np.empty(len(members), dtype=dtype)
                part["class_index"] = class_index
                part["class_id"] = class_id
                part["start_offset"] = members.starts
                part["end_offset"] = members.ends
                part["filename"] = np.char.decode(members.names, "utf-8", "surrogateescape")
                yield part

        self._entries.forget()
        save_rows(self._entries.path, dtype=dtype, length=sum(map(len, found.values())), parts=parts())

    def _report(self, found: "dict[str, _Members]", passed_over: Counter[str]) -> None:
        n_filled = sum(len(members) > 0 for members in found.values())
        count = sum(map(len, found.values()))
        logger.info(f"ImageNet22k: {count:,d} images of {n_filled:,d} classes, in {len(found):,d} tar files")
        if passed_over:
            logger.warning(f"ImageNet22k: passed over: {listed(passed_over)}")
        logger.info(f"ImageNet22k: wrote {self._entries.path}")


@DATASETS.register("ImageNet22k")
def _from_text(
    *,
    root: str | None = None,
    extra: str | None = None,
    mmap_cache_size: str = "16",
    transform: Callable[[Any], Any] | None = None,
    target_transform: Callable[[Any], Any] | None = None,
) -> ImageNet22k:
    """`ImageNet22k:root=ROOT:extra=EXTRA`; without both, a sentence on what they are."""
    if root is None or extra is None:
        given = {"root": root, "extra": extra}
        command = prepare_command("ImageNet22k", root=root or "ROOT", extra=extra or "EXTRA")
        raise UserError(
            f"The data set ImageNet22k needs {' and '.join(key for key, value in given.items() if value is None)}: "
            f"ImageNet22k:root={root or 'ROOT'}:extra={extra or 'EXTRA'}. ROOT is the folder of the <wnid>.tar files; EXTRA the "
            f"one for metadata, which is made once with: {command}. "
            "For images of your own no metadata is needed: ImageFolder:root=FOLDER."
        )
    if not mmap_cache_size.isdecimal():
        raise UserError(f"ImageNet22k: mmap_cache_size={mmap_cache_size} is no whole number; leave it away for 16.")
    return ImageNet22k(
        root=root,
        extra=extra,
        transform=transform,
        target_transform=target_transform,
        mmap_cache_size=int(mmap_cache_size),
    )


class _MappedTars:
    """The tar files read last, mapped into memory; a process that receives a copy maps its own."""

    def __init__(self, folder: Path, capacity: int) -> None:
        if capacity < 1:
            raise UserError(f"ImageNet22k: mmap_cache_size={capacity}; it must be 1 or more, the official size is 16.")
        self._folder = folder
        self._capacity = capacity
        self._open: OrderedDict[str, mmap.mmap] = OrderedDict()

    def read(self, class_id: str, start: int, end: int) -> bytes:
        """A copy of the bytes from `start` to `end` of a class's tar; fewer where the file ends before."""
        mapped = self._open.get(class_id)
        if mapped is None:
            mapped = self._open[class_id] = self._map(class_id)
            if len(self._open) > self._capacity:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(class_id)
        return mapped[start:end]

    def _map(self, class_id: str) -> mmap.mmap:
        try:
            with (self._folder / f"{class_id}.tar").open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise OSError(error.errno, error.strerror, f"{class_id}.tar") from None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}


@dataclass(frozen=True)
class _Members:
    """The images of one tar: where the header block of each begins, where its padded data ends, its name in UTF-8."""

    starts: np.ndarray
    ends: np.ndarray
    names: np.ndarray

    def __len__(self) -> int:
        return len(self.names)


def _scan_tar(path: Path, passed_over: Counter[str]) -> _Members:
    """The images of a tar, in its order, from the headers alone."""
    starts, ends, names = [], [], []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                reason = _reason_to_pass(member)
                if reason is not None:
                    passed_over[reason] += 1
                    continue
                # Not `member.offset`: with long names that is the block of the name, which lies before the header.
                starts.append(member.offset_data - _BLOCK)
                ends.append(member.offset_data + -(-member.size // _BLOCK) * _BLOCK)
                names.append(member.name.encode("utf-8", "surrogateescape"))
            _check_end(path, tar.offset)
    except tarfile.TarError as error:
        raise UserError(
            f"ImageNet22k: '{path}' is no whole, uncompressed tar file ({error}). Decompress it (gunzip), or fetch it again."
        ) from error
    return _Members(np.array(starts, np.uint64), np.array(ends, np.uint64), np.array(names, dtype=np.bytes_))


def _reason_to_pass(member: tarfile.TarInfo) -> str | None:
    """Why a member is no image of the data set, in the words of a count; None for an image."""
    if not member.isreg():
        return "folder or link in a tar"
    if Path(member.name).name in KNOWN_BROKEN:
        return "image known to be broken"
    if not member.name.lower().endswith(IMAGE_EXTENSIONS):
        return f"{kind_of(member.name)} in a tar"
    return None if member.size > 0 else "empty file in a tar"


def _check_end(path: Path, offset: int) -> None:
    """`tarfile` takes a damaged header for the end of the archive; a true end is a block of zeros, or the end of the file."""
    with path.open("rb") as file:
        file.seek(offset)
        block = file.read(_BLOCK)
    if block.strip(b"\0"):
        raise tarfile.ReadError(f"damaged at byte {offset:,d}")
