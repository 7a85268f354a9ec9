"""Records as columns: small, and the same records when they come back, from the table and from a journal."""

import json
import random
import tracemalloc
from dataclasses import fields, replace

import numpy as np
import pyarrow as pa

from vet_extensions.intake.deidentify import Pseudonyms
from vet_extensions.intake.tables import (
    Candidate,
    RecordBuilder,
    RecordTable,
    Refused,
    Rejections,
    decide_by_headers,
    record_from_json,
    record_to_json,
)
from vet_extensions.schema import Crop, ImageRecord, Note, Rejection, RejectionCode, View

PSEUDONYMS = Pseudonyms("a salt for tests")

FULL = ImageRecord(
    image_id="0123456789abcdef",
    study_id="1123456789abcdef",
    patient_id="",
    view=View.OBLIQUE,
    view_source="ViewPosition",
    rows=2048,
    columns=2500,
    stored_rows=420,
    stored_columns=512,
    species="canine",
    body_part="THORAX",
    laterality="L",
    spacing_mm=(0.1, 1 / 3),
    photometric="MONOCHROME2",
    bits_stored=12,
    transfer_syntax="1.2.840.10008.1.2.4.70",
    source_id="2123456789abcdef",
    pixel_hash="3123456789abcdef",
    frame=7,
    crop=Crop(1, 2, 3, 4),
    notes=(Note.COLOUR_TO_GREY, Note.ONE_OF_FRAMES),
)
"""Every field but the labels, which come from a table at the end, differs from its default."""


def make_record(number: int, rng: random.Random) -> ImageRecord:
    """One of many: sizes of its own, words that it shares with others."""
    return replace(
        FULL,
        image_id=PSEUDONYMS.image(str(number)),
        study_id=PSEUDONYMS.study(str(number // 5)),
        patient_id=PSEUDONYMS.patient(str(number // 10)),
        source_id=PSEUDONYMS.file(str(number)),
        view=rng.choice(list(View)),
        rows=rng.randint(1500, 3000),
        columns=rng.randint(1500, 3000),
        spacing_mm=rng.choice([None, (0.1, 0.1), (0.14, 0.14)]),
        crop=None,
    )


def test_every_field_of_the_example_is_set() -> None:
    plain = ImageRecord("", "", "x", View.UNKNOWN, "", 0, 0, 0, 0)
    names = {field.name for field in fields(ImageRecord)} - {"labels"}
    assert {name for name in names if getattr(FULL, name) != getattr(plain, name)} == names


def test_records_come_back_from_a_journal_as_they_were() -> None:
    assert record_from_json(json.loads(json.dumps(record_to_json(FULL)))) == FULL


def test_records_come_back_from_the_table_as_they_were() -> None:
    rng = random.Random(0)
    candidates = [Candidate(number, make_record(number, rng)) for number in range(20_000)] + [Candidate(-1, FULL)]
    table = RecordTable.collect(candidates)
    assert list(table) == candidates
    assert table[20_000] == candidates[-1]


def test_a_record_takes_less_than_200_bytes() -> None:
    rng, builder, n = random.Random(0), RecordBuilder(), 9_000
    records = [make_record(number, rng) for number in range(n)]
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    for number in range(n):
        builder.append(Candidate(number, records[number]))
    table = builder.finish()
    in_python, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(table) == n
    assert (in_python + pa.total_allocated_bytes() - before) / n < 200


def test_a_study_that_names_no_patient_is_its_own_and_one_that_names_one_lends_it() -> None:
    rng = random.Random(0)
    named, unnamed, alone = (make_record(n, rng) for n in (0, 1, 10))
    unnamed, alone = replace(unnamed, patient_id=""), replace(alone, patient_id="")
    decided = decide_by_headers(
        RecordTable.collect(Candidate(n, r) for n, r in enumerate((named, unnamed, alone))), PSEUDONYMS
    )
    patients = {candidate.position: candidate.record.patient_id for candidate in decided.table}
    lone = PSEUDONYMS.patient_of_study(alone.study_id)
    assert patients == {0: named.patient_id, 1: named.patient_id, 2: lone}


def test_no_record_at_all_is_decided_too() -> None:
    decided = decide_by_headers(RecordTable.collect([]), PSEUDONYMS)
    assert (len(decided.table), decided.refused) == (0, [])


def test_the_table_is_sorted_as_the_manifest_is() -> None:
    rng = random.Random(0)
    numbers = np.random.default_rng(0).permutation(300).tolist()
    table = RecordTable.collect(Candidate(n, make_record(n, rng)) for n in numbers).in_order()
    keys = [(c.record.patient_id, c.record.study_id, c.record.image_id, c.position) for c in table]
    assert keys == sorted(keys)


def test_rejections_come_by_file_and_frame_and_are_counted_by_code() -> None:
    rejections = Rejections()
    one, other = Rejection(RejectionCode.NOT_DICOM, "a"), Rejection(RejectionCode.NOT_DICOM, "b")
    for refused in (Refused(5, 1, one), Refused(2, 0, other), Refused(5, 0, other)):
        rejections.add(refused)
    assert list(rejections.in_order()) == [Refused(2, 0, other), Refused(5, 0, other), Refused(5, 1, one)]
    assert (len(rejections), rejections.counts()) == (3, {"NOT_DICOM": 3})
