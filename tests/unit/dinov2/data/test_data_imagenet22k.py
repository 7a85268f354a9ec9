"""ImageNet-22k in tar files: byte offsets, compressed members, mapped files, and what is refused."""

import gzip
import io
import logging
import pickle
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from dinov2.data import make_dataset
from dinov2.data.datasets import ImageNet22k
from dinov2.data.datasets.metadata import offset_dtype
from dinov2.utils.errors import UserError

LONG = "n00000002_" + "1" * 120 + ".JPEG"  # longer than a tar header holds


def jpeg(value):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(path, members, tar_format=tarfile.GNU_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def images():
    """Per class, name -> bytes: the second of the first class compressed, the last of the second with a long name."""
    return {
        "n00000001": {"n00000001_5.JPEG": jpeg(5), "n00000001_2.JPEG": gzip.compress(jpeg(2))},
        "n00000002": {"n00000002_9.JPEG": jpeg(9), LONG: jpeg(11)},
    }


@pytest.fixture
def root(tmp_path, images):
    for class_id, members in images.items():
        write_tar(tmp_path / "tars" / f"{class_id}.tar", members)
    return tmp_path / "tars"


@pytest.fixture
def extra(tmp_path):
    return tmp_path / "extra"


def prepared(root, extra, **options):
    dataset = ImageNet22k(root=root, extra=extra, **options)
    dataset.dump_extra()
    return dataset


# --- metadata


def test_entries_have_the_official_columns(root, extra):
    prepared(root, extra)
    entries = np.load(extra / "entries.npy")
    assert [(name, entries.dtype[name].kind) for name in entries.dtype.names] == [
        ("class_index", "u"),
        ("class_id", "U"),
        ("start_offset", "u"),
        ("end_offset", "u"),
        ("filename", "U"),
    ]
    assert entries.dtype["start_offset"].str == entries.dtype["end_offset"].str == "<u4"
    assert entries["class_index"].tolist() == [0, 0, 1, 1]
    assert entries["class_id"].tolist() == ["n00000001"] * 2 + ["n00000002"] * 2
    assert entries["filename"].tolist() == ["n00000001_5.JPEG", "n00000001_2.JPEG", "n00000002_9.JPEG", LONG]
    assert np.load(extra / "class-ids.npy").tolist() == ["n00000001", "n00000002"]


def test_offsets_run_from_the_header_of_a_member_to_that_of_the_next(root, extra):
    prepared(root, extra)
    entries = np.load(extra / "entries.npy")
    assert entries["start_offset"][0] == 0
    assert entries["end_offset"][0] == entries["start_offset"][1]
    assert (entries["end_offset"] % 512 == 0).all()


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_images_come_out_of_any_kind_of_tar_to_the_byte(tmp_path, extra, tar_format):
    name = "ä_1.JPEG" if tar_format == tarfile.PAX_FORMAT else "n1_1.JPEG"  # a name that needs an extended header
    write_tar(tmp_path / "tars/n1.tar", {"n1_0.JPEG": jpeg(1), name: jpeg(2)}, tar_format)
    dataset = prepared(tmp_path / "tars", extra)
    assert [dataset.get_image_data(i) for i in range(2)] == [jpeg(1), jpeg(2)]
    assert np.load(extra / "entries.npy")["filename"].tolist() == ["n1_0.JPEG", name]


def test_offsets_beyond_four_gibibytes_get_wider_columns():
    assert offset_dtype(2**32 - 1) == np.dtype("<u4")
    assert offset_dtype(2**32) == np.dtype("<u8")


def test_an_image_beyond_four_gibibytes_is_read(tmp_path, extra):
    path = tmp_path / "tars/n1.tar"
    write_tar(path, {"n1_0.JPEG": jpeg(3)})
    image_block = path.read_bytes()[: -(-len(jpeg(3)) // 512) * 512 + 512]
    filler = tarfile.TarInfo("filler.bin")
    filler.size = 2**32
    with path.open("wb") as file:  # a sparse file: the filler takes no space
        file.write(filler.tobuf())
        file.seek(512 + filler.size)
        file.write(image_block + bytes(1024))
    dataset = prepared(tmp_path / "tars", extra)
    assert np.load(extra / "entries.npy").dtype["start_offset"].str == "<u8"
    assert dataset.get_image_data(0) == jpeg(3)


def test_other_members_and_files_are_passed_over_and_counted(tmp_path, extra, caplog):
    caplog.set_level(logging.INFO, logger="dinov2")
    members = {"n1_1.JPEG": jpeg(1), "n1_2.JPEG": b"", "note.txt": b"x", "n06470073_47249.JPEG": b"no image"}
    write_tar(tmp_path / "tars/n1.tar", members)
    write_tar(tmp_path / "tars/n2.tar", {})
    (tmp_path / "tars/blocks").mkdir()
    (tmp_path / "tars/list.csv").write_text("")
    dataset = prepared(tmp_path / "tars", extra)
    assert len(dataset) == 1
    assert dataset.classes == ("n1", "n2")
    assert caplog.messages[0] == "ImageNet22k: 1 images of 1 classes, in 2 tar files"
    assert sorted(caplog.messages[1].partition("passed over: ")[2].split(", ")) == [
        "1 .csv",
        "1 .txt in a tar",
        "1 empty file in a tar",
        "1 folder",
        "1 image known to be broken",
    ]


# --- reading


def test_items_are_images_with_the_place_of_their_class(root, extra):
    dataset = prepared(root, extra)
    greys = [int(np.asarray(dataset[i][0]).mean().round()) for i in range(len(dataset))]
    assert greys == [5, 2, 9, 11]
    assert dataset.get_targets().tolist() == [dataset.get_target(i) for i in range(4)] == [0, 0, 1, 1]
    assert dataset.get_class_id(3) == dataset.find_class_id(1) == "n00000002"
    assert dataset.get_class_ids().tolist() == list(dataset.classes) == ["n00000001", "n00000002"]


def test_a_compressed_member_is_decompressed(root, extra):
    assert prepared(root, extra).get_image_data(1) == jpeg(2)


def test_entries_as_the_block_logs_give_them_are_read(root, extra, images):
    """The official way: 512 times the block numbers of `tar -R`, with the end marker's block for the last end."""
    extra.mkdir()
    second = 512 + -(-len(images["n00000001"]["n00000001_5.JPEG"]) // 512) * 512
    third = second + 512 + -(-len(images["n00000001"]["n00000001_2.JPEG"]) // 512) * 512
    columns = (
        ("class_index", "<u4"),
        ("class_id", "U9"),
        ("start_offset", "<u4"),
        ("end_offset", "<u4"),
        ("filename", "U30"),
    )
    rows = [(0, "n00000001", 0, second, "n00000001_5.JPEG"), (0, "n00000001", second, third, "n00000001_2.JPEG")]
    np.save(extra / "entries.npy", np.array(rows, dtype=list(columns)))
    np.save(extra / "class-ids.npy", np.array(["n00000001", "n00000002"]))
    dataset = ImageNet22k(root=root, extra=extra)
    assert [dataset.get_image_data(i) for i in range(2)] == [jpeg(5), jpeg(2)]


def test_no_more_tar_files_stay_open_than_asked_for(root, extra):
    dataset = prepared(root, extra, mmap_cache_size=1)
    assert [dataset.get_image_data(i) for i in (0, 2, 1, 3)] == [jpeg(5), jpeg(9), jpeg(2), jpeg(11)]
    assert list(dataset._tars._open) == ["n00000002"]


def test_the_tar_file_used_longest_ago_is_closed_first(tmp_path, extra):
    for class_id in ("n1", "n2", "n3"):
        write_tar(tmp_path / f"tars/{class_id}.tar", {f"{class_id}_1.JPEG": jpeg(1)})
    dataset = prepared(tmp_path / "tars", extra, mmap_cache_size=2)
    for index in (0, 1, 0, 2):
        dataset.get_image_data(index)
    assert list(dataset._tars._open) == ["n1", "n3"]


def test_a_copy_in_another_process_maps_the_files_itself(root, extra):
    dataset = prepared(root, extra)
    expected = [dataset.get_image_data(i) for i in range(4)]
    copy = pickle.loads(pickle.dumps(dataset))
    assert [copy.get_image_data(i) for i in range(4)] == expected


@pytest.mark.slow
def test_spawned_workers_read_tar_files(root, extra):
    dataset = prepared(root, extra, transform=np.asarray)
    loader = torch.utils.data.DataLoader(dataset, num_workers=1, multiprocessing_context="spawn", batch_size=4)
    assert [target.tolist() for _, target in loader] == [[0, 0, 1, 1]]


def test_a_missing_tar_is_reported_by_its_name_alone(root, extra):
    dataset = prepared(root, extra)
    (root / "n00000002.tar").unlink()
    with pytest.raises(RuntimeError, match="can not read image for sample 2") as caught:
        dataset[2]
    assert str(caught.value.__cause__) == "[Errno 2] No such file or directory: 'n00000002.tar'"


@pytest.mark.parametrize("change", ["exchanged", "cut short"])
def test_metadata_that_does_not_fit_the_tar_is_reported(root, extra, change):
    dataset = prepared(root, extra)
    path = root / "n00000001.tar"
    if change == "exchanged":
        write_tar(path, {"n00000001_1.JPEG": bytes(5000), "n00000001_2.JPEG": jpeg(2)})
    else:
        path.write_bytes(path.read_bytes()[: int(np.load(extra / "entries.npy")["start_offset"][1]) + 600])
    with pytest.raises(
        UserError, match=r"does not fit n00000001.tar.*python -m dinov2.data.datasets.prepare ImageNet22k"
    ):
        dataset.get_image_data(1)


# --- what is refused


def test_missing_metadata_of_the_tar_files_names_the_command(root, extra):
    with pytest.raises(UserError) as caught:
        len(ImageNet22k(root=root, extra=extra))
    command = f"python -m dinov2.data.datasets.prepare ImageNet22k --root {root} --extra {extra}"
    assert str(caught.value).endswith(f"Make it once with: {command}")


def test_a_compressed_tar_is_refused(root, extra):
    path = root / "n00000002.tar"
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(UserError, match=r"n00000002.tar' is no whole, uncompressed tar file .* Decompress it"):
        prepared(root, extra)
    assert not extra.exists()


@pytest.mark.parametrize("kept", [0, 300, 700])
def test_a_tar_that_was_cut_short_is_refused(root, extra, kept):
    path = root / "n00000001.tar"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match="no whole, uncompressed tar file"):
        prepared(root, extra)


@pytest.mark.parametrize("keep_header", [0, 300])
def test_a_tar_that_ends_in_the_middle_is_refused(root, extra, images, keep_header):
    path = root / "n00000002.tar"
    second = 512 + -(-len(images["n00000002"]["n00000002_9.JPEG"]) // 512) * 512
    path.write_bytes(path.read_bytes()[: second + keep_header] if keep_header else path.read_bytes()[: second - 512])
    with pytest.raises(UserError, match="no whole, uncompressed tar file"):
        prepared(root, extra)


def test_a_tar_with_a_damaged_header_in_the_middle_is_refused(root, extra):
    prepared(root, extra)
    path = root / "n00000001.tar"
    data = bytearray(path.read_bytes())
    data[int(np.load(extra / "entries.npy")["start_offset"][1]) + 3] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"damaged at byte 1,\d{3}"):
        prepared(root, extra)


def test_a_tar_without_end_marker_is_whole(root, extra, images):
    path = root / "n00000001.tar"
    size = sum(512 + -(-len(data) // 512) * 512 for data in images["n00000001"].values())
    path.write_bytes(path.read_bytes()[:size])
    assert len(prepared(root, extra)) == 4


def test_a_folder_without_tar_files_says_what_it_holds(tmp_path, extra):
    (tmp_path / "n00000001").mkdir()
    with pytest.raises(UserError, match=r"no \.tar in '.*'; found: 1 folder\. .*ImageFolder:root="):
        prepared(tmp_path, extra)


def test_tar_files_without_images_are_refused(tmp_path, extra):
    write_tar(tmp_path / "tars/n1.tar", {"a.txt": b"x"})
    with pytest.raises(UserError, match=r"hold no image; found: 1 \.txt in a tar.*\.jpeg"):
        prepared(tmp_path / "tars", extra)


def test_a_missing_folder_of_tar_files_is_refused(tmp_path, extra):
    with pytest.raises(UserError, match="there is no folder"):
        ImageNet22k(root=tmp_path / "nowhere", extra=extra)


# --- data set strings


def test_a_string_gives_the_tar_data_set(root, extra):
    prepared(root, extra)
    assert len(make_dataset(dataset_str=f"ImageNet22k:root={root}:extra={extra}:mmap_cache_size=2")) == 4


def test_the_bare_name_says_what_is_missing():
    with pytest.raises(UserError, match="ImageNet22k needs root and extra: ImageNet22k:root=ROOT:extra=EXTRA"):
        make_dataset(dataset_str="ImageNet22k")


@pytest.mark.parametrize(("size", "reason"), [("many", "is no whole number"), ("0", "it must be 1 or more")])
def test_a_cache_size_that_is_none_is_refused(root, extra, size, reason):
    with pytest.raises(UserError, match=f"mmap_cache_size={size}.*{reason}|mmap_cache_size={size}; {reason}"):
        make_dataset(dataset_str=f"ImageNet22k:root={root}:extra={extra}:mmap_cache_size={size}")
