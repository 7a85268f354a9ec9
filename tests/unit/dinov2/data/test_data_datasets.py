"""Image folders, decoders and the base class of image data sets; the adapters around them."""

import pickle
import random
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from dinov2.data import DatasetWithEnumeratedTargets, make_dataset
from dinov2.data.adapters import PositionSeededDataset
from dinov2.data.datasets import ExtendedVisionDataset, ImageFolder
from dinov2.data.datasets.decoders import Decoder, ImageDataDecoder, TargetDecoder
from dinov2.data.samplers import PositionedIndex
from dinov2.utils.errors import UserError


def write_image(path, value=0, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (4, 3), value).save(path)


def encoded(image, file_format="PNG"):
    buffer = BytesIO()
    image.save(buffer, file_format)
    return buffer.getvalue()


class OneImage(ExtendedVisionDataset):
    """Encoded bytes given at construction; target 7."""

    def __init__(self, data, **options):
        super().__init__(**options)
        self.data = data

    def get_image_data(self, index):
        return self.data

    def get_target(self, index):
        return 7

    def __len__(self):
        return 1


# --- image folder


def test_class_folders_become_sorted_labels(tmp_path):
    for name in ("b/1.png", "a/2.JPG", "a/1.tif", "a-b/1.bmp"):
        write_image(tmp_path / name)
    dataset = ImageFolder(root=tmp_path)
    assert dataset.classes == ("a", "a-b", "b")
    assert dataset.get_targets().tolist() == [0, 0, 1, 2]
    assert [dataset[i][1] for i in range(4)] == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("shortest", "size"), [(0, (640, 480)), (481, (640, 480)), (240, (320, 240)), (100, (160, 120))]
)
def test_large_jpegs_are_decoded_at_a_part_that_leaves_the_shortest_side(tmp_path, shortest, size):
    y, x = np.mgrid[0:480, 0:640]
    smooth = Image.fromarray((127 + 60 * np.sin(x / 60) + 60 * np.cos(y / 45)).astype(np.uint8)).convert("RGB")
    smooth.save(tmp_path / "1.jpg", quality=95)
    smooth.save(tmp_path / "2.png")
    dataset = make_dataset(dataset_str=f"ImageFolder:root={tmp_path}:shortest_side={shortest}")
    jpeg, png = (dataset[i][0] for i in range(2))
    assert jpeg.size == size
    assert png.size == (640, 480)
    off = np.asarray(jpeg, np.float32) - np.asarray(png.resize(size, Image.Resampling.BOX), np.float32)
    assert np.abs(off).mean() < 1.5


@pytest.mark.parametrize("shortest", ["-1", "large", "1.5"])
def test_a_shortest_side_that_is_no_number_of_pixels_is_refused(tmp_path, shortest):
    write_image(tmp_path / "1.png")
    with pytest.raises(UserError, match="number of pixels"):
        ImageFolder(root=tmp_path, shortest_side=shortest)


@pytest.mark.parametrize("names", [("1.png", "2.png"), ("1.png", "a/2.png"), ("x/a/1.png", "x/b/2.png")])
def test_any_other_arrangement_has_label_zero(tmp_path, names):
    for name in names:
        write_image(tmp_path / name)
    dataset = ImageFolder(root=tmp_path)
    assert dataset.classes == ()
    assert dataset.get_targets().tolist() == [0, 0]


def test_images_come_in_the_order_of_their_paths(tmp_path):
    for value in (3, 1, 2):
        write_image(tmp_path / f"{value}.png", value)
    dataset = ImageFolder(root=str(tmp_path))
    assert [np.asarray(dataset[i][0]).max() for i in range(3)] == [1, 2, 3]


def test_split_is_a_sub_folder(tmp_path):
    write_image(tmp_path / "train" / "a" / "1.png")
    write_image(tmp_path / "val" / "a" / "1.png")
    assert len(ImageFolder(root=tmp_path, split="val")) == 1
    with pytest.raises(UserError, match=r"no sub-folder 'vall'\. It has: train, val"):
        ImageFolder(root=tmp_path, split="vall")


def test_hidden_files_and_other_files_are_passed_over(tmp_path):
    write_image(tmp_path / "1.png")
    (tmp_path / "._1.png").write_bytes(b"not an image")
    (tmp_path / "notes.txt").write_text("x")
    assert len(ImageFolder(root=tmp_path)) == 1


def test_linked_folders_are_followed_and_circles_entered_once(tmp_path):
    write_image(tmp_path / "store" / "1.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a").symlink_to(tmp_path / "store", target_is_directory=True)
    (tmp_path / "store" / "again").symlink_to(tmp_path / "root", target_is_directory=True)
    assert len(ImageFolder(root=tmp_path / "root")) == 1


def test_a_missing_folder_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        ImageFolder(root=tmp_path / "nowhere")


def test_a_folder_without_images_says_what_was_found_and_the_cure(tmp_path):
    (tmp_path / "scan.dcm").write_bytes(b"")
    (tmp_path / "more.dcm").write_bytes(b"")
    with pytest.raises(UserError, match=r"found: 2 \.dcm\. Read are \.jpg.*Convert") as caught:
        ImageFolder(root=tmp_path)
    assert "scan" not in str(caught.value)


def test_an_image_folder_can_be_sent_to_a_worker(tmp_path):
    write_image(tmp_path / "a" / "1.png", 9)
    dataset = pickle.loads(pickle.dumps(ImageFolder(root=tmp_path)))
    assert np.asarray(dataset[0][0]).max() == 9


def test_a_vanished_file_is_reported_without_its_name(tmp_path):
    write_image(tmp_path / "owner.png")
    dataset = ImageFolder(root=tmp_path)
    (tmp_path / "owner.png").unlink()
    with pytest.raises(RuntimeError, match="can not read image for sample 0") as caught:
        dataset[0]
    assert "owner" not in str(caught.value.__cause__)


# --- decoding and transforms


def test_images_are_decoded_to_rgb_by_default_and_to_grey_on_request():
    data = encoded(Image.new("L", (4, 3), 5))
    assert ImageDataDecoder(data).decode().mode == "RGB"
    assert ImageDataDecoder(data, mode="L").decode().mode == "L"


def test_sixteen_bit_grey_keeps_its_upper_bits_instead_of_turning_white():
    data = encoded(Image.fromarray(np.array([[0, 255, 256, 40000, 65535]], dtype=np.uint16)))
    assert np.asarray(ImageDataDecoder(data, mode="L").decode()).tolist() == [[0, 0, 1, 156, 255]]


def test_targets_are_decoded_to_themselves_and_the_base_decodes_nothing():
    assert TargetDecoder(3).decode() == 3
    with pytest.raises(NotImplementedError):
        Decoder().decode()


@pytest.mark.parametrize("data", [b"", b"no image", encoded(Image.new("RGB", (64, 64), 9), "PNG")[:60]])
def test_an_unreadable_image_names_its_sample(data):
    with pytest.raises(RuntimeError, match="can not read image for sample 0"):
        OneImage(data)[0]


def test_separate_transforms_apply_to_image_and_target():
    dataset = OneImage(encoded(Image.new("L", (4, 3))), transform=lambda image: image.size, target_transform=str)
    assert dataset[0] == ((4, 3), "7")


def test_joint_transforms_take_the_pair():
    dataset = OneImage(encoded(Image.new("L", (4, 3))), transforms=lambda image, target: (target, image.size))
    assert dataset[0] == (7, (4, 3))


def test_joint_and_separate_transforms_together_are_refused():
    with pytest.raises(ValueError, match="Both 'transforms' and"):
        OneImage(b"", transforms=lambda image, target: (image, target), transform=str)


# --- adapters


class Untargeted:
    """Items without a target, whose image is a draw from both global generators."""

    def __getitem__(self, index):
        return {"draws": (torch.rand(1).item(), random.random())}, None

    def __len__(self):
        return 4


def test_enumerated_targets_carry_the_index():
    dataset = DatasetWithEnumeratedTargets(OneImage(encoded(Image.new("L", (4, 3)))))
    assert dataset[0][1] == (0, 7)
    assert dataset.get_target(0) == (0, 7)
    assert len(dataset) == 1
    assert dataset.get_image_data(0)[:4] == b"\x89PNG"


def test_an_item_without_target_gets_its_index():
    assert DatasetWithEnumeratedTargets(Untargeted())[3][1] == (3, 3)


def test_position_seeded_items_depend_only_on_seed_and_position():
    dataset = PositionSeededDataset(Untargeted(), seed=1)
    first = dataset[PositionedIndex(0, 10)][0]
    torch.manual_seed(99)
    random.seed(99)
    assert dataset[PositionedIndex(0, 10)][0] == first
    assert dataset[PositionedIndex(0, 11)][0]["draws"] != first["draws"]
    assert PositionSeededDataset(Untargeted(), seed=2)[PositionedIndex(0, 10)][0]["draws"] != first["draws"]
    assert first["position"] == 10


def test_position_seeding_leaves_the_global_generators_alone():
    expected = []
    for touch in (False, True):
        torch.manual_seed(5)
        random.seed(5)
        if touch:
            PositionSeededDataset(Untargeted(), seed=1)[PositionedIndex(0, 3)]
        expected.append((torch.rand(1).item(), random.random()))
    assert expected[0] == expected[1]


def test_an_index_without_position_is_passed_on():
    assert "position" not in PositionSeededDataset(Untargeted(), seed=1)[2][0]
