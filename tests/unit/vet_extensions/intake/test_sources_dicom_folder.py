"""A folder of DICOM files as a source: files and archive members in one order, and their bytes."""

import io
import os
import pickle
from pathlib import Path

import pydicom
import pytest
from factories import make_dicom
from test_sources_archives import make_tar, make_zip

from vet_extensions.errors import UserError
from vet_extensions.intake.files import NotRegularError
from vet_extensions.intake.sources.dicom_folder import DicomFolder
from vet_extensions.schema import RejectionCode as Code


def test_files_and_members_come_in_the_order_of_their_keys(tmp_path: Path) -> None:
    image = make_dicom(tmp_path / "b" / "image.dcm").read_bytes()
    make_zip(tmp_path / "a.zip", {"2.dcm": image, "1.dcm": image})
    make_tar(tmp_path / "c.tar.gz", {"deep/er/1.dcm": image})
    for name in ("a.zip .dcm", "a.zip#.dcm", "a.dcm", "ü.dcm"):
        (tmp_path / name).write_bytes(image)
    keys = [item.key for item in DicomFolder(tmp_path).items()]
    assert keys == [
        "a.dcm",
        "a.zip .dcm",
        "a.zip!/1.dcm",
        "a.zip!/2.dcm",
        "a.zip#.dcm",
        "b/image.dcm",
        "c.tar.gz!/deep/er/1.dcm",
        "ü.dcm",
    ]


def test_every_item_opens_as_the_image_that_it_is_also_after_a_pickle(tmp_path: Path) -> None:
    image = make_dicom(tmp_path / "image.dcm").read_bytes()
    make_zip(tmp_path / "a.zip", {"x/1.dcm": image})
    make_tar(tmp_path / "b.tar", {"2.dcm": image})
    source = pickle.loads(pickle.dumps(DicomFolder(tmp_path)))
    items = list(source.items())
    assert len(items) == 3
    for item in items:
        assert (item.problem, item.facts, item.size) == (None, None, len(image))
        with source.open(item.key) as file:
            assert pydicom.dcmread(file).SOPInstanceUID == pydicom.dcmread(io.BytesIO(image)).SOPInstanceUID


def test_a_damaged_archive_costs_itself_only(tmp_path: Path) -> None:
    make_dicom(tmp_path / "image.dcm")
    (tmp_path / "broken.zip").write_bytes(b"PK, it says")
    first, second = DicomFolder(tmp_path).items()
    assert (first.key, first.problem and first.problem.code) == ("broken.zip!/", Code.UNREADABLE)
    assert (second.key, second.problem) == ("image.dcm", None)


def test_a_folder_called_like_an_archives_inside_wins_and_the_archive_is_refused(tmp_path: Path) -> None:
    make_zip(tmp_path / "a.zip", {"1.dcm": b"from the archive"})
    (tmp_path / "a.zip!").mkdir()
    (tmp_path / "a.zip!" / "1.dcm").write_bytes(b"from the folder")
    source = DicomFolder(tmp_path)
    found = [(item.key, item.problem and item.problem.code) for item in source.items()]
    assert found == [("a.zip!/", Code.DUPLICATE_MEMBER), ("a.zip!/1.dcm", None)]
    with source.open("a.zip!/1.dcm") as file:
        assert file.read() == b"from the folder"


def test_a_member_has_another_stamp_when_its_content_changed(tmp_path: Path) -> None:
    def stamp(content: bytes) -> str:
        make_zip(tmp_path / "a.zip", {"1.dcm": content})
        return next(iter(DicomFolder(tmp_path).items())).stamp

    assert stamp(b"old") == stamp(b"old") != stamp(b"new")


def test_an_archive_behind_a_link_is_not_entered(tmp_path: Path) -> None:
    outside = make_zip(tmp_path / "outside.zip", {"1.dcm": b""})
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link.zip").symlink_to(outside)
    (item,) = DicomFolder(tmp_path / "in").items()
    assert (item.key, item.problem and item.problem.code) == ("link.zip", Code.NOT_A_REGULAR_FILE)


def test_opening_does_not_follow_a_link_nor_wait_for_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "link.dcm").symlink_to("/etc/hostname")
    os.mkfifo(tmp_path / "pipe.dcm")
    source = DicomFolder(tmp_path)
    with pytest.raises(NotRegularError):
        source.open("link.dcm")
    with pytest.raises(NotRegularError):
        source.open("pipe.dcm")


def test_a_folder_that_is_not_there_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        list(DicomFolder(tmp_path / "nowhere").items())
