"""ImageNet in its folders: paths, metadata in the official format, subsets, and what is refused."""

import logging
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from dinov2.data import make_data_loader, make_dataset
from dinov2.data.datasets import ImageNet
from dinov2.eval.utils import check_same_classes, count_classes
from dinov2.utils.errors import UserError

LABELS = 'n01440764,tench\nn01443537,goldfish\nn02012849,"crane, a bird"\n'
TRAIN, VAL, TEST = ImageNet.Split


def write_image(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, value, value)).save(path, "JPEG")


@pytest.fixture
def root(tmp_path):
    """Two of three classes in train, one in val, two test images; the grey value of an image is its number."""
    root = tmp_path / "imagenet"
    for relpath, value in (
        ("train/n01443537/n01443537_20.JPEG", 20),
        ("train/n01443537/n01443537_3.JPEG", 3),
        ("train/n02012849/n02012849_7.JPEG", 7),
        ("val/n01443537/ILSVRC2012_val_00000042.JPEG", 42),
        ("test/ILSVRC2012_test_00000001.JPEG", 1),
        ("test/ILSVRC2012_test_00000010.JPEG", 10),
    ):
        write_image(root / relpath, value)
    (root / "labels.txt").write_text(LABELS)
    return root


@pytest.fixture
def extra(tmp_path):
    return tmp_path / "extra"


def prepared(split, root, extra, **options):
    dataset = ImageNet(split=split, root=root, extra=extra, **options)
    dataset.dump_extra()
    return dataset


def grey(item):
    return int(np.asarray(item[0]).mean().round())


# --- paths of a split


@pytest.mark.parametrize(
    ("split", "index", "class_id", "relpath"),
    [
        (TRAIN, 10026, "n01440764", "train/n01440764/n01440764_10026.JPEG"),
        (VAL, 293, "n01440764", "val/n01440764/ILSVRC2012_val_00000293.JPEG"),
        (TEST, 7, "", "test/ILSVRC2012_test_00000007.JPEG"),
    ],
)
def test_a_path_is_the_official_one_and_reads_back(split, index, class_id, relpath):
    assert split.get_image_relpath(index, class_id) == relpath
    assert split.parse_image_relpath(relpath) == (class_id, index)


@pytest.mark.parametrize(
    "relpath",
    [
        "train/n01440764/n01443537_1.JPEG",  # of another class
        "train/n01440764/n01440764_01.JPEG",
        "train/n01440764/n01440764_1.jpg",
        "train/n01440764/n01440764_1_2.JPEG",
        "train/n01440764/n01440764_4294967296.JPEG",  # does not fit the column
        "train/n01440764/n01440764_².JPEG",
        "val/n01440764/n01440764_1.JPEG",
    ],
)
def test_a_path_that_is_not_exactly_of_the_split_is_refused(relpath):
    with pytest.raises(ValueError, match=r"must be like 'train/n01440764/n01440764_1\.JPEG'"):
        TRAIN.parse_image_relpath(relpath)


def test_splits_have_the_official_folders_and_lengths():
    assert [(split.value, split.length) for split in ImageNet.Split] == [
        ("train", 1_281_167),
        ("val", 50_000),
        ("test", 100_000),
    ]
    assert VAL.get_dirname() == "val"
    assert VAL.get_dirname("n01440764") == "val/n01440764"


# --- metadata


def test_entries_have_the_official_columns_and_the_order_of_folders_and_names(root, extra):
    prepared(TRAIN, root, extra)
    entries = np.load(extra / "entries-TRAIN.npy")
    assert [(name, entries.dtype[name].str) for name in entries.dtype.names] == [
        ("actual_index", "<u4"),
        ("class_index", "<u4"),
        ("class_id", "<U9"),
        ("class_name", "<U13"),
    ]
    assert entries.tolist() == [
        (20, 1, "n01443537", "goldfish"),
        (3, 1, "n01443537", "goldfish"),
        (7, 2, "n02012849", "crane, a bird"),
    ]


def test_class_files_hold_all_classes_of_the_labels(root, extra):
    prepared(TRAIN, root, extra)
    assert np.load(extra / "class-ids-TRAIN.npy").tolist() == ["n01440764", "n01443537", "n02012849"]
    assert np.load(extra / "class-names-TRAIN.npy").tolist() == ["tench", "goldfish", "crane, a bird"]


def test_the_test_split_has_entries_without_classes(root, extra):
    dataset = prepared(TEST, root, extra)
    entries = np.load(extra / "entries-TEST.npy")
    assert entries["actual_index"].tolist() == [1, 10]
    assert entries["class_index"].tolist() == [0xFFFFFFFF, 0xFFFFFFFF]
    assert [path.name for path in extra.iterdir()] == ["entries-TEST.npy"]
    assert dataset[1][1] is None
    assert grey(dataset[1]) == 10
    assert dataset.get_targets() is None
    assert dataset.get_class_id(0) is None
    assert dataset.get_class_name(0) is None
    assert dataset.classes == ()


def test_the_test_split_needs_no_labels_file(root, extra):
    (root / "labels.txt").unlink()
    assert len(prepared(TEST, root, extra)) == 2


def test_the_classes_of_test_are_refused_with_a_reason(root, extra):
    with pytest.raises(UserError, match=r"never published\. Use VAL"):
        prepared(TEST, root, extra).find_class_id(0)


def test_official_metadata_with_wider_columns_is_read(root, extra):
    extra.mkdir()
    columns = [("actual_index", "<u4"), ("class_index", "<u4"), ("class_id", "U9"), ("class_name", "U121")]
    np.save(extra / "entries-VAL.npy", np.array([(42, 5, "n01443537", "gold")], dtype=columns))
    np.save(extra / "class-ids-VAL.npy", np.array(["n0", "n1", "n2", "n3", "n4", "n01443537"]))
    np.save(extra / "class-names-VAL.npy", np.array(["a", "b", "c", "d", "e", "gold"]))
    dataset = ImageNet(split=VAL, root=root, extra=extra)
    assert grey(dataset[0]) == 42
    assert dataset[0][1] == 5
    assert (dataset.get_class_id(0), dataset.get_class_name(0)) == ("n01443537", "gold")
    assert (dataset.find_class_id(5), dataset.find_class_name(5)) == ("n01443537", "gold")


def test_metadata_made_anew_is_seen_by_a_data_set_that_is_open(root, extra):
    dataset = prepared(TRAIN, root, extra)
    assert len(dataset) == 3
    write_image(root / "train/n01440764/n01440764_1.JPEG", 1)
    dataset.dump_extra()
    assert np.asarray(dataset.get_targets()).tolist() == [0, 1, 1, 2]


def test_no_file_is_left_when_writing_fails(root, extra, monkeypatch):
    prepared(VAL, root, extra)
    before = {path.name: path.read_bytes() for path in extra.iterdir()}
    monkeypatch.setattr("dinov2.data.datasets.metadata.os.fsync", _full_disk)
    with pytest.raises(OSError, match="No space"):
        prepared(VAL, root, extra)
    assert {path.name: path.read_bytes() for path in extra.iterdir()} == before


def _full_disk(_):
    raise OSError(28, "No space left on device")


# --- reading


def test_items_are_images_with_the_line_of_their_label(root, extra):
    dataset = prepared(TRAIN, root, extra)
    assert [(grey(dataset[i]), dataset[i][1]) for i in range(3)] == [(20, 1), (3, 1), (7, 2)]
    assert np.asarray(dataset.get_targets()).tolist() == [1, 1, 2]
    assert dataset.get_class_name(2) == "crane, a bird"


def test_transforms_apply(root, extra):
    dataset = prepared(VAL, root, extra, transform=lambda image: image.size, target_transform=str)
    assert dataset[0] == ((8, 8), "1")


def test_a_subset_is_read_and_its_size_noted_once(root, extra, caplog):
    dataset = prepared(TRAIN, root, extra)
    caplog.set_level(logging.INFO, logger="dinov2")
    caplog.clear()
    assert len(dataset) == len(dataset) == 3
    assert caplog.messages == ["ImageNet TRAIN: 3 images; the whole split has 1,281,167"]
    assert caplog.records[0].levelno == logging.INFO


def test_a_subset_of_classes_has_the_classes_of_the_whole(root, extra):
    train, val = prepared(TRAIN, root, extra), prepared(VAL, root, extra)
    assert train.classes == val.classes == ("n01440764", "n01443537", "n02012849")
    check_same_classes(train, val, "validation")
    assert count_classes(train, "ImageNet") == 3


def test_a_copy_in_another_process_opens_the_metadata_itself(root, extra):
    dataset = prepared(TRAIN, root, extra)
    assert len(dataset) == 3
    data = pickle.dumps(dataset)
    assert "goldfish".encode("utf-32-le") not in data
    assert pickle.loads(data).get_image_data(1) == dataset.get_image_data(1)


@pytest.mark.slow
def test_spawned_workers_read_it(root, extra):
    dataset = prepared(TRAIN, root, extra, transform=np.asarray)
    loader = torch.utils.data.DataLoader(dataset, num_workers=1, multiprocessing_context="spawn", batch_size=3)
    assert [target.tolist() for _, target in loader] == [[1, 1, 2]]


def test_forked_workers_read_it(root, extra):
    dataset = prepared(TRAIN, root, extra, transform=np.asarray)
    loader = make_data_loader(dataset=dataset, batch_size=3, num_workers=1, sampler_type=None, drop_last=False)
    assert [target.tolist() for _, target in loader] == [[1, 1, 2]]


def test_a_vanished_image_is_reported_without_its_path(root, extra):
    dataset = prepared(VAL, root, extra)
    (root / "val/n01443537/ILSVRC2012_val_00000042.JPEG").unlink()
    with pytest.raises(RuntimeError, match="can not read image for sample 0") as caught:
        dataset[0]
    assert str(root) not in str(caught.value.__cause__)


# --- what is refused


def test_missing_metadata_names_the_command_that_makes_it(root, extra):
    dataset = ImageNet(split="TRAIN", root=root, extra=extra)
    command = f"python -m dinov2.data.datasets.prepare ImageNet --root {root} --extra {extra} --split TRAIN"
    for use in (lambda: len(dataset), dataset.get_targets, lambda: dataset.classes, lambda: dataset.find_class_id(0)):
        with pytest.raises(UserError, match="There is no metadata file") as caught:
            use()
        assert str(caught.value).endswith(f"Make it once with: {command}")


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda file: file.write(b"not an array"), "cannot be read as a .npy array"),
        (lambda file: file.write(b""), "cannot be read as a .npy array"),
        (lambda file: np.save(file, np.arange(3)), "expected are rows with actual_index, class_index, class_id"),
        (lambda file: np.save(file, np.array([{}], dtype=object)), "cannot be read as a .npy array"),
    ],
)
def test_a_file_that_is_no_metadata_is_refused(root, extra, write, reason):
    extra.mkdir()
    with (extra / "entries-VAL.npy").open("wb") as file:
        write(file)
    with pytest.raises(UserError, match=f"{reason}.*Make it anew with"):
        len(ImageNet(split=VAL, root=root, extra=extra))


def test_a_missing_root_is_refused(root, extra):
    with pytest.raises(UserError, match=r"there is no folder '.*nowhere/train'"):
        ImageNet(split=TRAIN, root=root / "nowhere", extra=extra)


@pytest.mark.parametrize(("name", "guess"), [("train", "Did you mean 'TRAIN'\\? "), ("x", "")])
def test_an_unknown_split_names_the_allowed_ones(root, extra, name, guess):
    with pytest.raises(UserError, match=rf"no split '{name}'\. {guess}Allowed: TRAIN, VAL, TEST"):
        ImageNet(split=name, root=root, extra=extra)


def test_metadata_is_not_made_without_labels(root, extra):
    (root / "labels.txt").unlink()
    with pytest.raises(UserError, match=r"there is no '.*labels.txt'. It has a line 'wnid,name'.*docs/datasets.md"):
        prepared(TRAIN, root, extra)
    assert not extra.exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("n01440764,tench\nn01443537\n", "2 by count, has no wnid and name"),
        ("n01440764,tench\n,goldfish\n", "2 by count, has no wnid and name"),
        ("n01440764,tench\nn01440764,tench\n", "2 by count.*lists 'n01440764' a second time"),
    ],
)
def test_labels_that_are_no_table_of_classes_are_refused(root, extra, text, reason):
    (root / "labels.txt").write_text(text)
    with pytest.raises(UserError, match=reason):
        prepared(TRAIN, root, extra)


def test_labels_may_have_a_byte_order_mark_blank_lines_and_commas_without_quotes(root, extra):
    (root / "labels.txt").write_text("\ufeffn01443537,goldfish\n\nn02012849,crane, a bird\n")
    assert prepared(TRAIN, root, extra).find_class_name(1) == "crane, a bird"


def test_folders_that_the_labels_do_not_list_are_named(root, extra):
    write_image(root / "train/n09999999/n09999999_1.JPEG", 0)
    (root / "train/cats").mkdir()
    with pytest.raises(UserError, match=r"2 of the 4 folders .* not in labels.txt: cats, n09999999\. Add a line"):
        prepared(TRAIN, root, extra)
    assert not extra.exists()


def test_stray_files_are_passed_over_and_counted(root, extra, caplog):
    caplog.set_level(logging.INFO, logger="dinov2")
    (root / "train/n01443537/n01443537_5.jpg").write_bytes(b"")
    (root / "train/n01443537/boxes").mkdir()
    (root / "train/readme.txt").write_text("")
    (root / "train/.cache").mkdir()
    assert len(prepared(TRAIN, root, extra)) == 3
    assert caplog.messages[0].startswith("ImageNet TRAIN: 3 images of 2 classes (labels.txt lists 3)")
    (warning,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert sorted(warning.partition(": passed over, not named like train/<wnid>/<wnid>_<n>.JPEG: ")[2].split(", ")) == [
        "1 .jpg",
        "1 .txt",
        "1 folder",
        "1 hidden folder",
    ]


def test_a_split_without_images_says_what_was_found(root, extra):
    image = root / "val/n01443537/ILSVRC2012_val_00000042.JPEG"
    image.rename(root / "val/ILSVRC2012_val_00000042.JPEG")  # as the official archive has them
    with pytest.raises(
        UserError,
        match=r"found: 1 \.JPEG\. .* val/<wnid>/ILSVRC2012_val_<8 digits>\.JPEG.*docs/datasets.md.*ImageFolder",
    ):
        prepared(VAL, root, extra)


# --- data set strings


def test_a_data_set_string_gives_the_split(root, extra):
    prepared(VAL, root, extra)
    dataset = make_dataset(dataset_str=f"ImageNet:split=VAL:root={root}:extra={extra}", transform=np.asarray)
    assert dataset.split is VAL
    assert dataset[0][0].shape == (8, 8, 3)


def test_the_official_default_string_says_what_is_missing_and_how_to_go_on():
    with pytest.raises(UserError) as caught:
        make_dataset(dataset_str="ImageNet:split=TRAIN")
    message = str(caught.value)
    assert message.startswith("The data set ImageNet needs root and extra: ImageNet:split=TRAIN:root=ROOT:extra=EXTRA.")
    assert "python -m dinov2.data.datasets.prepare ImageNet --root ROOT --extra EXTRA" in message
    assert "ImageFolder:root=FOLDER" in message


@pytest.mark.parametrize(("text", "missing"), [("root=/r:extra=/e", "split"), ("split=VAL:root=/r", "extra")])
def test_a_string_without_a_key_names_that_key(text, missing):
    with pytest.raises(UserError, match=f"ImageNet needs {missing}: ImageNet:split=\\w+:root=/r:extra="):
        make_dataset(dataset_str=f"ImageNet:{text}")


def test_an_unknown_split_in_a_string_names_the_allowed_ones(root, extra):
    with pytest.raises(UserError, match="Allowed: TRAIN, VAL, TEST"):
        make_dataset(dataset_str=f"ImageNet:split=TRAINING:root={root}:extra={extra}")
