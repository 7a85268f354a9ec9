"""Which raw values of an archive became which view: counted by the header pass, kept in OUT/private, shown by `vetdino check`.

Raw text may hold names of people and animals. The table itself is private; what is shown without being asked for is only
what consists of the words of a fixed vocabulary.
"""

import csv
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from vet_extensions.errors import UserError
from vet_extensions.intake.anatomy import ANATOMY_PHRASES, BODY_PART_CODES, SPECIES_CODES
from vet_extensions.intake.evidence import RawTexts
from vet_extensions.intake.journal import Journal
from vet_extensions.intake.view_words import VIEW_PHRASES
from vet_extensions.intake.views import LIMB_CODES, OBLIQUE_CODES, VIEW_CODES
from vet_extensions.intake.words import clean, pattern
from vet_extensions.schema import ImageRecord, View

FILE_NAME = "raw_views.csv"
TEXTS_NAME = "texts.journal"
"""In OUT/private: the table; and, while a run lasts, the texts that it is counted from."""

COLUMNS = ("attribute", "value", "view", "view_source", "body_part", "n_images")

DECIDED_BY = "(decided by)"
"""The attribute of the rows that count each image once; their value is the rule that decided the view."""
FURTHER = "(further values)"

MAX_VALUES = 20_000
"""Distinct values of an attribute that are counted apart; descriptions may differ in every study."""

MAX_LENGTH = 200
"""Characters of a value that are kept."""

_WORDS = """
    A ABOVE ADULT AND AP BEAM BED BIPED BIPEDAL CASSETTE CR DIGITAL DX E ERECT ET EXTENDED FACE FLEXED FRONTAL
    GENERICA GRID HORIZONTAL IMAGE LARGE LOWER MEDIUM MG N NEUTRAL NON NONE OBLIQUES OF ON OTHER PEDIATRIC PORTABLE
    PRONE QUADRUPED RADIOGRAPH RAY ROUTINE SCT SERIES SITTING SMALL SRT STANDARD STANDING STRESS STUDY SUPINE TABLE
    THE TO U UND UNKNOWN UPPER UPRIGHT VIEW VIEWS WALL WITH X XR XRAY Y SNM3 DCM LL RL F H P D V LE RT CD PR DI M
"""
_NEUTRAL = frozenset(_WORDS.split())
_CODES = OBLIQUE_CODES.union(VIEW_CODES, LIMB_CODES, BODY_PART_CODES, SPECIES_CODES)


class RawViews:
    """Counts of images by (attribute, raw value, view, rule, body part)."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, ...]] = Counter()
        self._known: defaultdict[str, set[str]] = defaultdict(set)

    def add(self, raw_texts: RawTexts, records: Iterable[ImageRecord]) -> None:
        """Count one file: what its header said, and the records that it became (none for a rejected file)."""
        for record in records:
            decision = (str(record.view), record.view_source, record.body_part)
            self._count((DECIDED_BY, record.view_source, *decision), 1)
            for attribute, value in raw_texts:
                writable = value[:MAX_LENGTH].encode("utf-8", errors="replace").decode("utf-8")
                self._count((attribute, writable, *decision), 1)

    def merge(self, other: "RawViews") -> None:
        """Add the counts of another part of the archive."""
        for row, n_images in sorted(other._counts.items()):
            self._count(row, n_images)

    def rows(self) -> list[tuple[tuple[str, ...], int]]:
        """(attribute, value, view, rule, body part) and the number of images; by attribute, the most frequent first."""
        return sorted(self._counts.items(), key=lambda item: (item[0][0], -item[1], item[0]))

    def write_csv(self, path: Path) -> None:
        """Write the table, readable by its owner only."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows((*row, str(n_images)) for row, n_images in self.rows())
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def read_csv(cls, path: Path) -> "RawViews":
        """The table that `write_csv` wrote. Errors: UserError where it is damaged."""
        table = cls()
        try:
            with path.open(encoding="utf-8", newline="") as file:
                lines = csv.reader(file, strict=True)
                if tuple(next(lines, ())) != COLUMNS:
                    raise ValueError("other columns")
                for *row, n_images in lines:
                    if len(row) != len(COLUMNS) - 1:
                        raise ValueError("a short row")
                    table._counts[tuple(row)] += int(n_images)
        except (ValueError, csv.Error):
            raise UserError(
                f"'{path.name}' is damaged or was written by another version. Delete it; intake writes it anew."
            ) from None
        return table

    def _count(self, row: tuple[str, ...], n_images: int) -> None:
        attribute, value, *decision = row
        known = self._known[attribute]
        if value not in known:
            if len(known) >= MAX_VALUES:
                value = FURTHER
            else:
                known.add(value)
        self._counts[attribute, value, *decision] += n_images


class TextJournal:
    """The distinct texts of the headers that an unfinished run has read, numbered; its header journal holds the numbers.

    The texts may hold names, so they lie in OUT/private and the numbers elsewhere. A context manager.
    """

    def __init__(self, path: Path, *, head: str) -> None:
        """head: as for the header journal; with another one than before, both begin anew."""
        self._journal = Journal(path, head=head)
        self._before: list[RawTexts] = []
        self._numbers: dict[RawTexts, int] = {}

        def take(entry: list[list[str]], _: bool) -> bool:
            self._before.append(tuple((attribute, value) for attribute, value in entry))
            return True

        self._journal.replay(take)
        self._next = len(self._before)

    def get(self, number: int) -> RawTexts | None:
        """The texts with this number in the interrupted run; None if they were lost."""
        return self._before[number] if 0 <= number < len(self._before) else None

    def number_of(self, texts: RawTexts) -> int:
        """The number of these texts, written down now if they are new."""
        texts = tuple((attribute, value[:MAX_LENGTH]) for attribute, value in texts)
        number = self._numbers.get(texts)
        if number is None:
            if len(self._numbers) >= MAX_VALUES:
                self._numbers.clear()  # a text may then get a second number, which does no harm
            self._journal.append(texts)
            number = self._numbers[texts] = self._next
            self._next += 1
        return number

    def sync(self) -> None:
        """Bring all texts to the disk; to be called before the header journal's `sync`."""
        self._journal.sync()

    def forget(self) -> None:
        """Free what only taking over needs."""
        self._before = []

    def __enter__(self) -> "TextJournal":
        return self

    def __exit__(self, *_: object) -> None:
        self._journal.close()


def describe(table: RawViews, *, show_all: bool = False, n_rows: int = 20) -> Iterator[str]:
    """Lines for people: which values became which view, and what stayed UNKNOWN.

    show_all: also values that may hold names. n_rows: of each attribute, the most frequent.
    """
    by_attribute: defaultdict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    for (attribute, value, view, _, _), n_images in table.rows():
        is_shown = show_all or attribute == DECIDED_BY or value == FURTHER or is_plain(value)
        by_attribute[attribute][value if is_shown else "(other text)", view] += n_images
    images = by_attribute[DECIDED_BY]
    n_unknown = sum(n for (_, view), n in images.items() if view == View.UNKNOWN)
    yield f"Views: {sum(images.values()):,} images, of which {n_unknown:,} stayed UNKNOWN."
    for attribute, counts in sorted(by_attribute.items()):
        yield f"  {attribute}"
        ordered = sorted(counts.items(), key=lambda item: (item[0][1] != View.UNKNOWN, -item[1], item[0]))
        for (value, view), n_images in ordered[:n_rows]:
            yield f"    {_one_line(value):<40} {view:<14} {n_images:>12,}"
        if len(ordered) > n_rows:
            yield f"    ... and {len(ordered) - n_rows:,} more"
    if not show_all:
        yield f"Text that may hold names is shown as (other text); --raw shows it, and private/{FILE_NAME} holds it all."


def is_plain(value: str) -> bool:
    """Whether a raw value consists of known radiographic words, known codes and short numbers, so that it names nobody."""
    if any(letter.isalnum() and not letter.isascii() for letter in unicodedata.normalize("NFKD", value)):
        return False  # another script, of which cleaning leaves nothing
    left = pattern(f"{VIEW_PHRASES}|{ANATOMY_PHRASES}").sub(" ", clean(value)).split()
    return all(word in _NEUTRAL or word in _CODES or (word.isdigit() and len(word) <= 2) for word in left)


def _one_line(value: str) -> str:
    shown = "".join(c if c.isprintable() else "?" for c in value)
    return shown if len(shown) <= 40 else shown[:37] + "..."
