"""What a source holds as columns: order, states, facts by another walk; and the splits that it prescribes."""

import logging
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pytest

from vet_extensions.errors import UserError
from vet_extensions.intake.deidentify import Pseudonyms
from vet_extensions.intake.inventory import take_inventory
from vet_extensions.intake.options import IntakeOptions
from vet_extensions.intake.parts import Part
from vet_extensions.intake.prescribed import split_all
from vet_extensions.intake.sources.base import ImageFacts, SourceItem
from vet_extensions.intake.sources.dicom_folder import DicomFolder
from vet_extensions.intake.sources.listing import ImageRows, TabledSource, same_for_all
from vet_extensions.manifest.split import split_patients
from vet_extensions.schema import Split, View

OPTIONS = IntakeOptions().as_json()


@dataclass
class Listed:
    """A source of given items."""

    given: list[SourceItem]
    name: str = "listed"
    label_names: tuple[str, ...] = ("mass", "effusion")

    @property
    def label_policy(self) -> dict[str, str]:
        return {}

    def items(self) -> Iterator[SourceItem]:
        return iter(self.given)

    def open(self, key: str) -> BinaryIO:
        return BytesIO(key.encode())


def item(key: str, **facts) -> SourceItem:
    return SourceItem(key, 7, "stamp", facts=ImageFacts("p", "s", key, **facts))


ITEMS = [item("a", labels={"effusion": -1}), item("b", split=Split.TEST), item("c", labels={"mass": 1, "effusion": 0})]


def states(source: Listed) -> np.ndarray:
    return take_inventory(source, part=None).files.keys(Pseudonyms("a salt")).states


def test_labels_and_splits_stand_beside_their_items() -> None:
    found = take_inventory(Listed(ITEMS), part=None)
    assert [file.relative for file in found.files] == ["a", "b", "c"]
    assert [found.labels_of(position) for position in range(3)] == [{"effusion": -1}, {}, {"mass": 1, "effusion": 0}]
    assert found.splits.tolist() == [-1, 2, -1]


def test_facts_come_back_by_position_and_another_source_is_noticed() -> None:
    source = Listed(ITEMS)
    found = take_inventory(source, part=None)
    assert [facts and facts.image for facts in found.facts([0, 2])] == ["a", "c"]
    source.given = [item("a"), item("bb"), item("c")]
    with pytest.raises(UserError, match="other items than before"):
        list(found.facts([1]))


def test_the_second_walk_over_a_table_neither_looks_at_the_disk_nor_logs_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Table(TabledSource):
        name, root = "a table", tmp_path

        @property
        def label_policy(self) -> dict[str, str]:
            return {}

        def rows(self) -> ImageRows:
            logging.getLogger("vet_extensions").info("rows were read")
            path = pa.array(["b.png", "gone.png", "a.png"])
            who = pa.array(["p", "p", "q"])
            return ImageRows(path, who, path, path, view=same_for_all((View.PA, "told"), 3))

    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"x")
    with caplog.at_level(logging.INFO, logger="vet_extensions"):
        found = take_inventory(Table(), part=None)
        assert [line.split(",")[0] for line in caplog.messages] == ["rows were read", "a table: 3 rows"]
        caplog.clear()
        with monkeypatch.context() as patch:
            patch.setattr(os, "stat", lambda *_, **__: pytest.fail("the disk was asked again"))
            assert [facts and facts.patient for facts in found.facts([0, 1])] == ["q", "p"]
        assert caplog.messages == []
        logging.getLogger("vet_extensions").info("what comes later is heard")
    assert caplog.messages == ["what comes later is heard"]


def test_the_parts_of_a_source_share_its_items() -> None:
    source = Listed([item(f"{number:03}") for number in range(40)])
    parts = [take_inventory(source, part=Part(number, 3)) for number in (1, 2, 3)]
    assert sorted(file.relative for part in parts for file in part.files) == [each.key for each in source.given]
    first = parts[0]
    assert [facts and facts.image for facts in first.facts(range(len(first.files)))] == [
        f.relative for f in first.files
    ]


def test_a_changed_fact_is_another_state_and_a_changed_label_is_not() -> None:
    before = states(Listed(ITEMS))
    assert (states(Listed([item("a", view=View.PA), *ITEMS[1:]])) == before).tolist() == [False, True, True]
    assert (states(Listed([replace(ITEMS[0], stamp="new"), *ITEMS[1:]])) == before).tolist() == [False, True, True]
    other = Listed([item("a"), *ITEMS[1:]])
    assert (states(other) == before).all()
    labels = [take_inventory(source, part=None).label_digest() for source in (other, Listed(ITEMS))]
    assert labels[0] != labels[1]


def test_prescribed_splits_hold_and_the_others_are_split_among_themselves() -> None:
    patients = [f"{number:02}" for number in range(20)]
    codes = np.array([0] * 5 + [2] * 5 + [-1] * 10, np.int8)
    splits, counts = split_all(pa.array(patients), codes, options=OPTIONS)
    assert {splits[patient] for patient in patients[:5]} == {Split.TRAIN}
    assert {splits[patient] for patient in patients[5:10]} == {Split.TEST}
    free = split_patients(patients[10:], fractions=IntakeOptions().fractions, seed=0)
    assert {patient: splits[patient] for patient in patients[10:]} == free
    assert counts == {"patients": 10, "patients_with_several": 0, "patients_without": 10}


def test_a_patient_of_two_splits_has_the_later_one_in_whatever_order() -> None:
    for codes in ([0, -1, 2], [2, 0, -1]):
        splits, counts = split_all(pa.array(["p"] * 3), np.array(codes, np.int8), options=OPTIONS)
        assert splits == {"p": Split.TEST}
        assert counts["patients_with_several"] == 1


def test_without_prescribed_splits_nothing_is_counted() -> None:
    patients = ["a", "b", "c"]
    splits, counts = split_all(pa.array(patients), np.full(3, -1, np.int8), options=OPTIONS)
    assert splits == split_patients(patients, fractions=IntakeOptions().fractions, seed=0)
    assert counts == {}
    assert split_all(pa.array([], pa.string()), np.zeros(0, np.int8), options=OPTIONS) == ({}, {})


def test_a_folder_with_an_archive_is_listed_by_item_and_its_parts_share_the_members(tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / f"{number}.dcm").write_bytes(b"x")
    (tmp_path / "link.zip").symlink_to(tmp_path / "0.dcm")
    source = DicomFolder(tmp_path)
    plain = take_inventory(source, part=None).files
    with zipfile.ZipFile(tmp_path / "a.ZIP", "w") as archive:
        for number in range(8):
            archive.writestr(f"{number}.dcm", "x")
    files = take_inventory(source, part=None).files
    assert [file.relative for file in files] == [item.key for item in source.items()]
    assert len(files) == 17
    before = {file.relative: file for file in plain}
    assert [file for file in files if file.relative in before] == list(plain)
    parts = [take_inventory(source, part=Part(number, 3)).files for number in (1, 2, 3)]
    assert sorted(file.relative for part in parts for file in part) == sorted(file.relative for file in files)
