"""The journal: what was appended comes back, and what was torn does not."""

from pathlib import Path

from vet_extensions.intake.journal import Journal


def write(path: Path, *entries: object, head: str = "a head") -> Path:
    with Journal(path, head=head) as journal:
        for entry in entries:
            journal.append(entry)
    return path


def read(path: Path, *, head: str = "a head") -> list[object]:
    seen: list[object] = []
    with Journal(path, head=head) as journal:
        journal.replay(lambda entry, _: seen.append(entry) is None)
    return seen


def test_entries_come_back_in_order(tmp_path: Path) -> None:
    entries = [[1, "två"], {"code": "X"}, None, "line\nbreak"]
    assert read(write(tmp_path / "journal", *entries)) == entries


def test_a_torn_entry_and_all_after_it_are_dropped(tmp_path: Path) -> None:
    path = write(tmp_path / "journal", 1, 2, 3)
    whole = path.read_bytes()
    for n_bytes in range(len(whole)):
        path.write_bytes(whole[:n_bytes])
        n_lines = whole[:n_bytes].count(b"\n")
        assert read(path) == [1, 2, 3][: max(0, n_lines - 1)]


def test_a_changed_byte_ends_the_journal_there(tmp_path: Path) -> None:
    path = write(tmp_path / "journal", "first", "second", "third")
    path.write_bytes(path.read_bytes().replace(b"second", b"sEcond"))
    assert read(path) == ["first"]


def test_what_is_appended_after_a_torn_entry_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "journal", 1, 2)
    path.write_bytes(path.read_bytes()[:-3])
    with Journal(path, head="a head") as journal:
        journal.replay(lambda *_: True)
        journal.append("new")
    assert read(path) == [1, "new"]


def test_an_entry_that_is_refused_is_cut_off_with_all_after_it(tmp_path: Path) -> None:
    path = write(tmp_path / "journal", 1, 2, 3)
    with Journal(path, head="a head") as journal:
        assert journal.replay(lambda entry, _: entry < 2) == 1
    assert read(path) == [1]


def test_another_head_empties_the_journal(tmp_path: Path) -> None:
    path = write(tmp_path / "journal", 1, 2)
    assert read(path, head="other options") == []
    assert read(path) == []


def test_an_entry_knows_whether_a_sync_followed_it(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal", head="a head") as journal:
        journal.append("early")
        journal.sync()
        journal.append("late")
    seen: dict[str, bool] = {}
    with Journal(tmp_path / "journal", head="a head") as journal:
        journal.replay(lambda entry, is_on_disk: seen.update({entry: is_on_disk}) is None)
    assert seen == {"early": True, "late": False}
