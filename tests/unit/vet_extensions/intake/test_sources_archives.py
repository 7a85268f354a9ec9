"""Members of archives: what is listed, what is refused and under which code, and that bytes come back whole."""

import gzip
import io
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from vet_extensions.intake.sources.archives import ArchiveLimits, list_members, open_member
from vet_extensions.schema import RejectionCode as Code

LIMITS = ArchiveLimits()


def make_zip(path: Path, members: dict[str, bytes], *, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.name.lower().endswith("gz") else "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def add_special(archive: tarfile.TarFile, name: str, kind: bytes, target: str = "") -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    archive.addfile(info)


def codes(path: Path, limits: ArchiveLimits = LIMITS) -> dict[str, Code | None]:
    return {m.name: m.problem and m.problem.code for m in list_members(path, limits=limits)}


MEMBERS = {"b/2.dcm": b"second" * 100, "a/1.dcm": b"first" * 100, "c.dcm": b""}


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "X.TGZ"])
def test_members_are_listed_by_name_and_come_back_whole_and_seekable(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("zip"):
        make_zip(path, MEMBERS)
    else:
        make_tar(path, MEMBERS)
    assert [(m.name, m.size, m.problem) for m in list_members(path, limits=LIMITS)] == [
        (member, len(MEMBERS[member]), None) for member in sorted(MEMBERS)
    ]
    for member, content in MEMBERS.items():
        with open_member(path, member, limits=LIMITS) as file:
            assert file.read() == content
            file.seek(3)
            assert file.read(2) == content[3:5]
            assert file.seek(0, io.SEEK_END) == len(content)


@pytest.mark.parametrize("name", ["x.zip", "x.tar"])
def test_absolute_climbing_and_unprintable_names_are_refused(tmp_path: Path, name: str) -> None:
    bad = ["/etc/passwd", "../up.dcm", "a/../../up.dcm", "C:\\x.dcm", "a\\..\\..\\x.dcm", "line\nbreak.dcm"]
    make = make_zip if name.endswith("zip") else make_tar
    path = make(tmp_path / name, dict.fromkeys([*bad, "good.dcm"], b"x"))
    assert codes(path) == {"good.dcm": None} | dict.fromkeys(bad, Code.UNSAFE_MEMBER_NAME)
    for member in bad:
        with pytest.raises(OSError, match="archive"):
            open_member(path, member, limits=LIMITS)


@pytest.mark.parametrize("name", ["x.zip", "x.tar"])
def test_an_archive_in_an_archive_is_one_item_with_a_problem(tmp_path: Path, name: str) -> None:
    make = make_zip if name.endswith("zip") else make_tar
    path = make(tmp_path / name, {"in.zip": b"PK", "in.tar.gz": b"", "in.7z": b""})
    assert set(codes(path).values()) == {Code.NESTED_ARCHIVE}
    assert len(codes(path)) == 3


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_of_one_name_are_one_item_with_a_problem(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive, tarfile.open(tmp_path / "x.tar", "w") as tar:
        for content in (b"one", b"two", b"three"):
            archive.writestr("same.dcm", content)
            info = tarfile.TarInfo("same.dcm")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    for name in ("x.zip", "x.tar"):
        assert codes(tmp_path / name) == {"same.dcm": Code.DUPLICATE_MEMBER}


def test_links_pipes_and_devices_in_a_tar_are_no_regular_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        add_special(archive, "folder", tarfile.DIRTYPE)
        add_special(archive, "soft.dcm", tarfile.SYMTYPE, "/etc/passwd")
        add_special(archive, "hard.dcm", tarfile.LNKTYPE, "soft.dcm")
        add_special(archive, "pipe.dcm", tarfile.FIFOTYPE)
        add_special(archive, "device.dcm", tarfile.CHRTYPE)
    found = codes(tmp_path / "x.tar")
    assert found == dict.fromkeys(["device.dcm", "hard.dcm", "pipe.dcm", "soft.dcm"], Code.NOT_A_REGULAR_FILE)


def test_a_link_in_a_zip_is_no_regular_file(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("link.dcm")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    assert codes(tmp_path / "x.zip") == {"link.dcm": Code.NOT_A_REGULAR_FILE}


def test_an_encrypted_member_is_named_so(tmp_path: Path) -> None:
    data = bytearray(make_zip(tmp_path / "x.zip", {"a.dcm": b"x"}).read_bytes())
    directory = data.index(b"PK\1\2")
    data[6] |= 1
    data[directory + 8] |= 1
    (tmp_path / "x.zip").write_bytes(data)
    assert codes(tmp_path / "x.zip") == {"a.dcm": Code.ENCRYPTED_MEMBER}


def test_a_member_that_would_unpack_to_far_more_than_it_has_is_never_inflated(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip", {"bomb.dcm": bytes(4 * 2**20), "small.dcm": bytes(1000)})
    assert codes(path) == {"bomb.dcm": Code.ARCHIVE_LIMIT, "small.dcm": None}
    with pytest.raises(OSError, match="ARCHIVE_LIMIT"):
        open_member(path, "bomb.dcm", limits=LIMITS)


def test_a_member_inflates_to_no_more_than_the_table_of_contents_says(tmp_path: Path) -> None:
    data = bytearray(make_zip(tmp_path / "x.zip", {"liar.dcm": bytes(4 * 2**20)}).read_bytes())
    struct.pack_into("<I", data, data.index(b"PK\1\2") + 24, 1000)
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(OSError, match="cannot be read"):
        open_member(tmp_path / "x.zip", "liar.dcm", limits=LIMITS)


def test_overlapping_members_refuse_the_whole_archive(tmp_path: Path) -> None:
    path = make_zip(
        tmp_path / "x.zip", {f"{i}.dcm": bytes(range(256)) * 10 for i in range(3)}, method=zipfile.ZIP_STORED
    )
    data = bytearray(path.read_bytes())
    size, at = len(data), -1
    while (at := data.find(b"PK\1\2", at + 1)) >= 0:
        struct.pack_into("<I", data, at + 20, size)
    path.write_bytes(data)
    assert codes(path) == {"": Code.ARCHIVE_LIMIT}


@pytest.mark.parametrize("limits", [ArchiveLimits(n_members=2), ArchiveLimits(total_bytes=1000)])
@pytest.mark.parametrize("name", ["x.zip", "x.tar"])
def test_an_archive_beyond_a_limit_is_refused_whole(tmp_path: Path, name: str, limits: ArchiveLimits) -> None:
    make = make_zip if name.endswith("zip") else make_tar
    path = make(tmp_path / name, {f"{i}.dcm": b"x" * 9000 for i in range(3)})
    assert codes(path, limits) == {"": Code.ARCHIVE_LIMIT}


@pytest.mark.parametrize("name", ["x.zip", "x.tar"])
def test_a_member_beyond_the_limit_of_one_costs_itself_only(tmp_path: Path, name: str) -> None:
    make = make_zip if name.endswith("zip") else make_tar
    path = make(tmp_path / name, {"large.dcm": b"x" * 101, "small.dcm": b"x" * 100})
    assert codes(path, ArchiveLimits(member_bytes=100)) == {"large.dcm": Code.TOO_LARGE, "small.dcm": None}


def test_a_compressed_tar_beyond_its_limit_tells_how_to_cure_it(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "x.tar.gz", {"a.dcm": bytes(range(256)) * 400})
    (whole,) = list_members(path, limits=ArchiveLimits(compressed_tar_bytes=50_000))
    assert whole.problem is not None
    assert whole.problem.code == Code.ARCHIVE_LIMIT
    assert "unpack it" in whole.problem.detail


def test_a_compressed_tar_that_is_a_bomb_is_refused_before_it_is_inflated_whole(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.dcm")
    info.size = 2**40
    (tmp_path / "x.tgz").write_bytes(gzip.compress(info.tobuf() + bytes(10_000)))
    assert codes(tmp_path / "x.tgz") == {"": Code.ARCHIVE_LIMIT}


def test_a_tar_with_a_giant_extended_header_is_refused_without_reading_it(tmp_path: Path) -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 2**32
    (tmp_path / "x.tar").write_bytes(info.tobuf() + bytes(10_240))
    assert codes(tmp_path / "x.tar") == {"": Code.ARCHIVE_LIMIT}


def test_a_damaged_tar_keeps_what_came_before_the_damage(tmp_path: Path) -> None:
    data = bytearray(make_tar(tmp_path / "x.tar", {"a.dcm": b"a" * 512, "b.dcm": b"b" * 512}).read_bytes())
    data[1024:1536] = b"\xff" * 512
    (tmp_path / "x.tar").write_bytes(data)
    assert codes(tmp_path / "x.tar") == {"": Code.UNREADABLE, "a.dcm": None}
    with open_member(tmp_path / "x.tar", "a.dcm", limits=LIMITS) as file:
        assert file.read() == b"a" * 512


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz"])
@pytest.mark.parametrize("content", [b"", b"no archive at all" * 100, b"\x1f\x8b\x08 cut", b"PK\5\6"])
def test_what_is_no_archive_is_one_item_with_a_problem(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert codes(tmp_path / name) == {"": Code.UNREADABLE}


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz"])
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a_cut_archive_says_so(tmp_path: Path, name: str, share: float) -> None:
    make = make_zip if name.endswith("zip") else make_tar
    members = {f"{i}.dcm": bytes(range(256)) * 10 for i in range(5)}
    path = make(tmp_path / name, members)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert codes(path)[""] == Code.UNREADABLE


def test_a_zip_member_whose_bytes_changed_is_an_error_of_reading(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip", {"a.dcm": b"abcdef"}, method=zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"abcdef", b"abcxef"))
    with pytest.raises(OSError, match="cannot be read"):
        open_member(path, "a.dcm", limits=LIMITS)


def test_no_detail_quotes_a_members_name(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip", {"../Mueller^Bello.dcm": b"", "Mueller.zip": b"", "/Mueller": b""})
    assert not any("Mueller" in m.problem.detail for m in list_members(path, limits=LIMITS) if m.problem)
