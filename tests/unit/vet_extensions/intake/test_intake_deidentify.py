"""Pseudonyms: unguessable without the salt, stable with it; the salt's keeping; and the list of what is read."""

import re
import stat
from pathlib import Path

import pytest

from vet_extensions.errors import UserError
from vet_extensions.intake.deidentify import PIXEL_KEYWORDS, Pseudonyms, load_or_make_salt


def test_the_same_salt_gives_the_same_pseudonym() -> None:
    assert Pseudonyms("one salt").patient("P1") == Pseudonyms("one salt").patient("P1")


def test_another_salt_gives_another_pseudonym() -> None:
    assert Pseudonyms("one salt").patient("P1") != Pseudonyms("two salt").patient("P1")


def test_kinds_do_not_share_pseudonyms() -> None:
    names = Pseudonyms("one salt")
    assert len({names.patient("1.2"), names.study("1.2"), names.image("1.2"), names.file("1.2")}) == 4


def test_pseudonyms_are_sixteen_hexadecimal_digits() -> None:
    name = Pseudonyms("one salt").study("1.2.3")
    assert len(name) == 16
    int(name, 16)


def test_a_path_that_is_no_valid_text_has_a_pseudonym() -> None:
    assert len(Pseudonyms("one salt").file(b"caf\xe9.dcm".decode(errors="surrogateescape"))) == 16


def test_the_salt_is_made_once_and_only_the_owner_can_read_it(tmp_path: Path) -> None:
    private = tmp_path / "private"
    salt = load_or_make_salt(private, given=None)
    assert load_or_make_salt(private, given=None) == salt
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert stat.S_IMODE((private / "salt").stat().st_mode) == 0o600


def test_two_folders_get_two_salts(tmp_path: Path) -> None:
    assert load_or_make_salt(tmp_path / "a", given=None) != load_or_make_salt(tmp_path / "b", given=None)


def test_another_salt_than_the_kept_one_is_refused_and_not_shown(tmp_path: Path) -> None:
    load_or_make_salt(tmp_path, given="first salt")
    with pytest.raises(UserError, match="another salt") as caught:
        load_or_make_salt(tmp_path, given="second salt")
    assert "first salt" not in str(caught.value)


@pytest.mark.parametrize(
    "keyword", ["PatientName", "PatientBirthDate", "ResponsiblePerson", "AccessionNumber", "StudyDate"]
)
def test_names_dates_and_numbers_are_not_on_the_list_of_what_is_read(keyword: str) -> None:
    assert keyword not in PIXEL_KEYWORDS


def test_the_manual_lists_exactly_what_is_read() -> None:
    manual = Path(__file__).parents[4] / "docs" / "privacy.md"
    table = manual.read_text(encoding="utf-8").split("## What is read")[1].split("\n\n")[1]
    assert sorted(re.findall(r"`(\w+)`", table)) == sorted(PIXEL_KEYWORDS)
