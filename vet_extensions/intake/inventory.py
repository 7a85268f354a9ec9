"""What a source holds: its items as columns, and their labels and prescribed splits beside them. `run` takes it first of all.

The items' facts are not kept: the header pass walks through the source once more for those that it needs, a table's rows without
looking at the disk again.
"""

import hashlib
import logging
import os
import threading
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from vet_extensions.errors import UserError
from vet_extensions.intake.files import FileList, SourceFile
from vet_extensions.intake.labels import NOT_STATED
from vet_extensions.intake.parts import Part
from vet_extensions.intake.sources.base import ImageFacts, Source, SourceItem
from vet_extensions.intake.sources.dicom_folder import DicomFolder
from vet_extensions.intake.sources.listing import TabledSource
from vet_extensions.schema import Split

NO_SPLIT = -1
_LOG = logging.getLogger("vet_extensions")
_CODES = {split: code for code, split in enumerate(Split)}


@dataclass(frozen=True)
class Inventory:
    """The items of a source, or of a part of it.

    files: their keys, sizes, stamps and problems; the n items have positions in it. has_facts: whether any has.
    labels: int8 [n, findings], the columns as `source.label_names`, -128 not stated. splits: int8 [n], the number of the split
    that the source prescribes, -1 where it prescribes none.
    """

    source: Source
    part: Part | None
    files: FileList
    has_facts: bool
    labels: np.ndarray
    splits: np.ndarray

    def facts(self, positions: Iterable[int]) -> Iterator[ImageFacts | None]:
        """The facts of the items at these ascending positions, by another walk through the source.

        Errors: UserError where the source gives other items than before.
        """
        if not self.has_facts:
            yield from (None for _ in positions)
            return
        items = enumerate(_chosen(_items_again(self.source), self.part))
        for position in positions:
            item = next((item for at, item in items if at == position), None)
            if item is None or item.key != self.files[position].relative:
                raise UserError(
                    "The source gave other items than before: a table was changed while it was read. Give the command again."
                )
            yield item.facts

    def labels_of(self, position: int) -> dict[str, int]:
        """finding -> value of an item; what is not stated is left out."""
        stated = zip(self.source.label_names, self.labels[position].tolist(), strict=True)
        return {name: value for name, value in stated if value != NOT_STATED}

    def label_digest(self) -> bytes:
        """Changes with any label or prescribed split."""
        digest = hashlib.sha256(repr(self.source.label_names).encode())
        digest.update(self.labels.tobytes())
        digest.update(self.splits.tobytes())
        return digest.digest()


def take_inventory(source: Source, *, part: Part | None) -> Inventory:
    """Walk through the source once. Errors: UserError where it is not what it should be."""
    if isinstance(source, DicomFolder):
        found = _files_of_folder(source, part)
        none = np.full(len(found), NO_SPLIT, np.int8)
        return Inventory(source, part, found, has_facts=False, labels=np.zeros((len(found), 0), np.int8), splits=none)
    names = {name: column for column, name in enumerate(source.label_names)}
    not_stated = np.full(len(names), NOT_STATED, np.int8).tobytes()
    labels, splits = bytearray(), array("b")
    has_facts, last = False, b""

    def files() -> Iterator[SourceFile]:
        nonlocal has_facts, last
        for item in _chosen(source.items(), part):
            key = os.fsencode(item.key)
            assert key > last, "the items of a source come sorted by their keys, each once"
            last, row, split = key, bytearray(not_stated), None
            if item.facts is not None:
                has_facts, split = True, item.facts.split
                for name, value in item.facts.labels.items():
                    row[names[name]] = value & 0xFF
            labels.extend(row)
            splits.append(NO_SPLIT if split is None else _CODES[split])
            yield SourceFile(item.key, item.size, _stamp(item), item.problem)

    found = FileList(files())
    shape = (len(found), len(names))
    return Inventory(
        source,
        part,
        found,
        has_facts,
        np.frombuffer(bytes(labels), np.int8).reshape(shape),
        np.frombuffer(splits.tobytes(), np.int8),
    )


def _files_of_folder(source: DicomFolder, part: Part | None) -> FileList:
    """As a walk through the items gives them, for millions of files: most folders hold no archive."""
    files, archives = source.list_files(chosen=None if part is None else part.holds)
    if part is None and not archives:
        return files
    items = source.with_members(files, archives)
    return FileList(
        SourceFile(item.key, item.size, _stamp(item), item.problem)
        for item in items
        if part is None or part.holds(os.fsencode(item.key))
    )


def _chosen(items: Iterator[SourceItem], part: Part | None) -> Iterator[SourceItem]:
    return items if part is None else (item for item in items if part.holds(os.fsencode(item.key)))


def _items_again(source: Source) -> Iterator[SourceItem]:
    if not isinstance(source, TabledSource):
        return source.items()
    with _unheard():
        return source.items_again()


@contextmanager
def _unheard() -> Iterator[None]:
    """What this thread logs inside it has logged before; warnings are heard again."""
    here = threading.get_ident()

    def is_new(record: logging.LogRecord) -> bool:
        return record.levelno > logging.INFO or record.thread != here

    _LOG.addFilter(is_new)
    try:
        yield
    finally:
        _LOG.removeFilter(is_new)


def _stamp(item: SourceItem) -> int:
    """64 bits that change with the item's stamp or with what its header record is made of; not with its labels."""
    text, facts = item.stamp, item.facts
    if facts is None and text.isdecimal() and len(text) < 20 and int(text) < 2**63:
        return int(text)  # a time of change, as in a list of plain files
    if facts is not None:
        who = (facts.patient, facts.study, facts.image, str(facts.view), facts.view_source)
        what = (facts.species, facts.body_part, facts.laterality, facts.spacing_mm)
        text = f"{text}\0{who}{what}"
    digest = hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8)
    return int.from_bytes(digest.digest(), signed=True)
