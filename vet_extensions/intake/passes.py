"""Intake's two passes over the items of a source: headers in listing order, then pixels in manifest order. Called by `run`.

What each file gave is journaled as soon as it is known, and an interrupted run's journals are taken over before anything is
read: a file is read again only if its size or time of change is another one.
"""

import itertools
import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vet_extensions.intake.deidentify import Pseudonyms
from vet_extensions.intake.evidence import RawTexts
from vet_extensions.intake.files import FileKeys, FileList
from vet_extensions.intake.header import HeaderReader
from vet_extensions.intake.image import ImageReader, StoredImage
from vet_extensions.intake.inventory import Inventory
from vet_extensions.intake.journal import Journal
from vet_extensions.intake.options import IntakeOptions
from vet_extensions.intake.pool import HEADER_LIMIT_S, LIMIT_S, WorkerPool
from vet_extensions.intake.raw_values import RawViews, TextJournal
from vet_extensions.intake.tables import (
    Candidate,
    PixelJudge,
    RecordBuilder,
    RecordTable,
    Refused,
    Rejections,
    answer_from_json,
    answer_to_json,
    decide_by_headers,
    record_from_json,
    record_to_json,
)
from vet_extensions.schema import ImageRecord, Rejection
from vet_extensions.schema import RejectionCode as Code
from vet_extensions.shards.writer import Place, ShardWriter

logger = logging.getLogger("vet_extensions")

HeaderAnswer = tuple[ImageRecord, ...] | Rejection

HEADERS_A_CHUNK = 64
PIXEL_BYTES_A_CHUNK = 8 * 2**20
"""Finished images travel from worker to parent in chunks of about this many bytes."""


class Count:
    """How far a run has come, in images and refused files, and whom to tell."""

    def __init__(
        self,
        n_units: int,
        on_progress: Callable[[int, int], None] | None,
        on_taken_over: Callable[[int], None] | None,
    ) -> None:
        self.n_units = n_units
        self.n_done = 0
        self._on_progress = on_progress
        self._on_taken_over = on_taken_over
        self._is_taking_over = False

    def one(self) -> None:
        """One more is finished."""
        self.n_done += 1
        if self._on_progress is not None and not self._is_taking_over:
            self._on_progress(self.n_done, self.n_units)

    @contextmanager
    def taking_over(self) -> Iterator[None]:
        """What is counted inside was finished by an interrupted run; it is told of once, at the end."""
        n_before, self._is_taking_over = self.n_done, True
        yield
        self._is_taking_over = False
        if self.n_done > n_before and self._on_taken_over is not None:
            self._on_taken_over(self.n_done - n_before)


@dataclass(frozen=True)
class Archive:
    """What is read: the items of a source, their keys, the choices, and the workers that read."""

    inventory: Inventory
    keys: FileKeys
    options: IntakeOptions
    pseudonyms: Pseudonyms
    pool: WorkerPool

    @property
    def files(self) -> FileList:
        return self.inventory.files


class Passes:
    """The state of one run: which files have been dealt with, and how.

    rejected: what was refused so far. raw_views: what the headers said of the views. n_headers_taken_over,
    n_images_taken_over: headers and pixels that were not read again.
    """

    def __init__(self, archive: Archive, count: Count) -> None:
        self._archive = archive
        self._count = count
        self.rejected = Rejections()
        self.raw_views = RawViews()
        self.n_headers_taken_over = 0
        self.n_images_taken_over = 0

    def read_headers(self, journal: Journal, texts: TextJournal) -> RecordTable:
        """The header pass: every image whose header passed, in no particular order.

        texts: where the raw values go that the views were decided by; the journal holds their numbers.
        """
        keys = self._archive.keys
        found = RecordBuilder()
        is_known = np.zeros(len(self._archive.files), bool)
        position_of = keys.finder()

        def take(entry: Any, _: bool) -> bool:
            state, answer, number = entry
            raw_texts = texts.get(number)
            if raw_texts is None:
                return False
            position = position_of(state)
            if position >= 0 and not is_known[position]:
                is_known[position] = True
                self._settle_header(position, _header_from_json(answer), raw_texts, found)
            return True

        with self._count.taking_over():
            journal.replay(take)
        self.n_headers_taken_over = int(is_known.sum())
        if self.n_headers_taken_over:
            logger.info("intake: %d headers taken over from an interrupted run", self.n_headers_taken_over)
        texts.forget()
        todo = np.flatnonzero(~is_known)
        with closing(self._headers(todo)) as answers:
            for position, (answer, raw_texts) in answers:
                number = texts.number_of(raw_texts)
                journal.append([int(keys.states[position]), _header_to_json(answer), number])
                self._settle_header(position, answer, raw_texts, found)
                if journal.is_sync_due():
                    texts.sync()
                    journal.sync()
        return found.finish()

    def read_pixels(self, candidates: RecordTable, journal: Journal, shards: Path, *, judge: PixelJudge) -> RecordTable:
        """The pixel pass: the images that are kept, in manifest order, as they lie in `shards`."""
        decided = decide_by_headers(candidates, self._archive.pseudonyms)
        for refused in decided.refused:
            self._refuse(refused)
        accepted = RecordBuilder()
        with ShardWriter(shards) as writer:
            with self._count.taking_over():
                todo = self._take_over_images(decided.table, journal, writer, judge, accepted)
            with closing(self._images(todo)) as images:
                for group in todo.by_image():
                    some = list(itertools.islice(images, len(group)))
                    answers = [
                        _completed(candidate.record, image) for candidate, image in zip(group, some, strict=True)
                    ]
                    kept, refused = judge.choose(group, answers)
                    place = None
                    if kept is not None:
                        image = some[kept]
                        assert isinstance(image, StoredImage), "a file that was refused cannot be kept"
                        place = writer.add(group[kept].record.image_id, image.pixels)
                    journal.append([self._states(group), [answer_to_json(answer) for answer in answers], place])
                    self._settle_images(group, answers, kept, refused, accepted)
                    if journal.is_sync_due():
                        writer.sync()
                        journal.sync()
        return accepted.finish()

    def pixel_answers(self, candidates: RecordTable, journal: Journal) -> Iterator[ImageRecord | Rejection | None]:
        """What the pixels of each candidate said; None where the headers had decided before they were read."""
        answers: dict[tuple[int, int], Any] = {}

        def take(entry: Any, _: bool) -> bool:
            answers.update(((state, frame), answer) for (state, frame), answer in zip(entry[0], entry[1], strict=True))
            return True

        journal.replay(take)
        for candidate in candidates:
            ((state, frame),) = self._states([candidate])
            found = answers.get((state, frame))
            yield None if found is None else answer_from_json(found)

    def _headers(self, todo: np.ndarray) -> Generator[tuple[int, tuple[HeaderAnswer, RawTexts]]]:
        """(position, (answer, raw values)) for each file, in order; what is not worth opening is not sent to a worker."""
        files, keys, inventory = self._archive.files, self._archive.keys, self._archive.inventory
        sound = [position for position in todo.tolist() if files[position].problem is None]
        answers = self._archive.pool.ordered_map(
            HeaderReader(self._archive.pseudonyms, self._archive.options, inventory.source).with_raw_values,
            ((files[p].relative, keys.file_id(p), facts) for p, facts in zip(sound, inventory.facts(sound))),
            chunk_size=HEADERS_A_CHUNK,
            on_death=_without_texts(Code.WORKER_DIED, "the process that read the header died"),
            on_timeout=_without_texts(Code.TIMED_OUT, f"the header took more than {HEADER_LIMIT_S:.0f} s"),
            on_out_of_memory=_without_texts(Code.OUT_OF_MEMORY, "the header took too much memory"),
            limit_s=HEADER_LIMIT_S,
        )
        with closing(answers):
            for position in todo.tolist():
                problem = files[position].problem
                yield position, next(answers) if problem is None else (problem, ())

    def _images(self, candidates: RecordTable) -> Generator[StoredImage | Rejection]:
        files, options = self._archive.files, self._archive.options
        largest = options.longest_side_px**2 * options.bits // 8
        return self._archive.pool.ordered_map(
            ImageReader(options, self._archive.inventory.source),
            ((files[c.position].relative, c.record.frame) for c in candidates),
            chunk_size=max(1, min(32, PIXEL_BYTES_A_CHUNK // largest)),
            on_death=lambda _: Rejection(Code.WORKER_DIED, "the process that decoded the file died"),
            on_timeout=lambda _: Rejection(Code.TIMED_OUT, f"decoding took more than {LIMIT_S:.0f} s"),
            on_out_of_memory=lambda _: Rejection(Code.OUT_OF_MEMORY, "decoding took too much memory"),
        )

    def _take_over_images(
        self, table: RecordTable, journal: Journal, writer: ShardWriter, judge: PixelJudge, accepted: RecordBuilder
    ) -> RecordTable:
        """Follow the journal as long as it speaks of the images of `table`, in their order; the rest is returned."""
        groups = table.by_image()
        n_taken = 0

        def take(entry: Any, is_on_disk: bool) -> bool:
            nonlocal n_taken
            states, answers, place = entry
            group = next(groups, [])
            if not group or states != self._states(group):
                return False
            if place is not None:
                image_id = group[0].record.image_id
                if not writer.take_over(image_id, Place(*place), verify=not is_on_disk):
                    return False
            found = [answer_from_json(answer) for answer in answers]
            kept, refused = judge.choose(group, found)
            assert (kept is None) == (place is None), "the same answers must lead to the same choice"
            self._settle_images(group, found, kept, refused, accepted)
            n_taken += len(group)
            return True

        journal.replay(take)
        self.n_images_taken_over = n_taken
        if n_taken:
            logger.info("intake: %d images taken over from an interrupted run", n_taken)
        return RecordTable(table.table.slice(n_taken))

    def _settle_header(self, position: int, answer: HeaderAnswer, raw_texts: RawTexts, found: RecordBuilder) -> None:
        if isinstance(answer, Rejection):
            self._refuse(Refused(position, 0, answer))
            return
        self.raw_views.add(raw_texts, answer)
        self._count.n_units += len(answer) - 1
        for record in answer:
            found.append(Candidate(position, record))

    def _settle_images(
        self,
        group: list[Candidate],
        answers: list[ImageRecord | Rejection],
        kept: int | None,
        refused: list[Refused],
        accepted: RecordBuilder,
    ) -> None:
        for one in refused:
            self._refuse(one)
        if kept is not None:
            record = answers[kept]
            assert isinstance(record, ImageRecord), "a file that was refused cannot be kept"
            # A journal may be older than the file that named the patient of this study.
            record = replace(record, patient_id=group[kept].record.patient_id)
            accepted.append(Candidate(group[kept].position, record))
            self._count.one()

    def _refuse(self, refused: Refused) -> None:
        self.rejected.add(refused)
        self._count.one()

    def _states(self, group: Iterable[Candidate]) -> list[list[int]]:
        """What a journal knows the files of a group by."""
        return [[int(self._archive.keys.states[c.position]), c.record.frame] for c in group]


def _without_texts(code: Code, reason: str) -> Callable[[Any], tuple[HeaderAnswer, RawTexts]]:
    return lambda _: (Rejection(code, reason), ())


def _header_to_json(answer: HeaderAnswer) -> Any:
    return [record_to_json(record) for record in answer] if isinstance(answer, tuple) else answer_to_json(answer)


def _header_from_json(value: Any) -> HeaderAnswer:
    if isinstance(value, list):
        return tuple(record_from_json(record) for record in value)
    answer = answer_from_json(value)
    assert isinstance(answer, Rejection), "what is no list of records is a rejection"
    return answer


def _completed(record: ImageRecord, image: StoredImage | Rejection) -> ImageRecord | Rejection:
    return image if isinstance(image, Rejection) else image.complete(record)
