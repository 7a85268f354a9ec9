"""A folder of DICOM files as a source, to any depth and into zip and tar archives. `run` uses it for what is no known data set.

A member of an archive has the key `archive.zip!/inner/path`, and `archive.zip!/` stands for the archive as a whole where it
cannot be read (to its end). Keys may hold names of people: they stay in intake and in OUT/private.
"""

import heapq
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from vet_extensions.intake.files import FileList, list_files, open_regular
from vet_extensions.intake.sources.archives import (
    ARCHIVE_SUFFIXES,
    ArchiveLimits,
    is_archive,
    list_members,
    open_member,
)
from vet_extensions.intake.sources.base import SourceItem
from vet_extensions.schema import Rejection, RejectionCode

MEMBER_MARK = "!/"


@dataclass
class DicomFolder:
    """Every file below `root`, and every file in the archives below it. DICOM headers speak for themselves: no item has facts."""

    root: Path
    limits: ArchiveLimits = field(default_factory=ArchiveLimits)
    name: str = field(default="DICOM", init=False)
    label_names: tuple[str, ...] = field(default=(), init=False)

    @property
    def label_policy(self) -> dict[str, str]:
        return {}

    def items(self) -> Iterator[SourceItem]:
        """Every file and member, sorted by key. Links, pipes and what archives should not hold are items with a problem.

        Errors: UserError if `root` is no readable folder.
        """
        files, archives = self.list_files()
        return self.with_members(files, archives)

    def list_files(self, *, chosen: Callable[[bytes], bool] | None = None) -> tuple[FileList, list[str]]:
        """The files, archives among them, and the archives' names. Where there are none the files are the items.

        chosen: by its key, whether an item is wanted; other files, unless archives, are not even asked for their size.
        """
        if chosen is None:
            files = list_files(self.root)
        else:
            files = list_files(self.root, chosen=lambda path: chosen(path) or is_archive(os.fsdecode(path)))
        return files, [file.relative for file in files.ending_with(ARCHIVE_SUFFIXES) if file.problem is None]

    def with_members(self, files: FileList, archives: Sequence[str]) -> Iterator[SourceItem]:
        """The items: `files` without the archives, and these archives' members."""
        taken = set(archives)
        plain = (
            SourceItem(file.relative, file.size, str(file.stamp), file.problem)
            for file in files
            if file.relative not in taken
        )
        # By the prefix of their members: "a.zip .dcm" comes between "a.zip" and "a.zip!/".
        in_order = sorted(archives, key=lambda name: os.fsencode(name + MEMBER_MARK))
        members = (item for name in in_order for item in self._members(name))
        return heapq.merge(plain, members, key=lambda item: os.fsencode(item.key)) if archives else plain

    def open(self, key: str) -> BinaryIO:
        """The bytes of a file or a member. Errors: OSError; NotRegularError for what is no regular file."""
        name, inner = self._parts(key)
        if inner is None:
            return open_regular(self.root / name)
        return open_member(self.root / name, inner, limits=self.limits)

    def _members(self, name: str) -> Iterator[SourceItem]:
        if (self.root / f"{name}!").exists():
            problem = Rejection(
                RejectionCode.DUPLICATE_MEMBER, "a folder beside the archive is called like it with '!' added"
            )
            # Not `name!/`, which would be sorted before that folder's files but is the name of none of them.
            yield SourceItem(name + MEMBER_MARK, problem=problem)
            return
        for member in list_members(self.root / name, limits=self.limits):
            yield SourceItem(f"{name}{MEMBER_MARK}{member.name}", member.size, member.stamp, member.problem)

    def _parts(self, key: str) -> tuple[str, str | None]:
        """(path of the archive, name of its member), or (path of a file, None)."""
        for found in _MARKED_SUFFIX.finditer(key):
            end = found.end() - len(MEMBER_MARK)
            if (self.root / key[:end]).is_file() and not (self.root / f"{key[:end]}!").exists():
                return key[:end], key[found.end() :]
        return key, None


_MARKED_SUFFIX = re.compile("(?:" + "|".join(re.escape(suffix) for suffix in ARCHIVE_SUFFIXES) + ")!/", re.IGNORECASE)
