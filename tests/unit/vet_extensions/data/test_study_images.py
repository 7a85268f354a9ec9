"""VetStudies with a target: single images of an intake folder with a class each."""

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from study_factory import make_intake, write_images

import vet_extensions
from dinov2.data import make_dataset
from dinov2.eval.utils import check_same_classes, count_classes
from vet_extensions.data import MultiViewStudyDataset, StudyImages
from vet_extensions.data.study_images import to_8_bit
from vet_extensions.errors import UserError
from vet_extensions.evaluation.features import prepare_image
from vet_extensions.manifest import write_manifest
from vet_extensions.manifest.build import build_table
from vet_extensions.schema import ImageRecord, IntakeFolder, Split, View
from vet_extensions.shards import ShardReader

IMAGES: list[tuple[View, dict[str, int], Split]] = [
    (View.VD, {"effusion": 1}, Split.TRAIN),
    (View.LATERAL_LEFT, {"effusion": 0, "nodule": 1}, Split.TRAIN),
    (View.UNKNOWN, {"effusion": -1}, Split.TRAIN),
    (View.VD, {}, Split.TRAIN),
    (View.VD, {"effusion": 0}, Split.TRAIN),
    (View.DV, {"effusion": 1}, Split.VAL),
    (View.VD, {"effusion": 1, "nodule": -1}, Split.VAL),
]
"""View, labels and split of the images of seven patients."""


@pytest.fixture(scope="module", autouse=True)
def plugin() -> None:
    vet_extensions.register()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An intake folder with `IMAGES`, one study each."""
    folder = IntakeFolder(tmp_path_factory.mktemp("labelled"))
    size = {"rows": 40, "columns": 40, "stored_rows": 40, "stored_columns": 40}
    records = [
        ImageRecord(
            image_id=f"i{i}", study_id=f"s{i}", patient_id=f"p{i}", view=view, view_source="test", labels=labels, **size
        )
        for i, (view, labels, _) in enumerate(IMAGES)
    ]
    write_images(folder, records, 40)
    splits = {f"p{i}": split for i, (_, _, split) in enumerate(IMAGES)}
    write_manifest(build_table(records, splits=splits, label_names=("effusion", "nodule")), folder.manifest)
    return folder.root


def make(root: Path, keys: str, **transforms):
    return make_dataset(dataset_str=f"VetStudies:root={root}:{keys}", **transforms)


def test_images_whose_label_is_uncertain_or_not_stated_are_left_out(root):
    images = make(root, "split=train:target=effusion")
    assert isinstance(images, StudyImages)
    assert images.classes == ("absent", "present")
    assert images.get_targets().tolist() == [1, 0, 0]
    assert [images[i][1] for i in range(len(images))] == [1, 0, 0]
    assert count_classes(images, "VetStudies") == 2


def test_the_log_counts_classes_and_images_left_out(root, caplog):
    logging.getLogger("vet_extensions").propagate = True
    with caplog.at_level(logging.INFO, logger="vet_extensions"):
        StudyImages(root=str(root), target="effusion")
    assert "3 images (absent: 2, present: 1); 2 left out" in caplog.text
    assert str(root) not in caplog.text


def test_items_are_the_stored_images_in_rgb_through_the_transforms(root):
    image, _ = make(root, "split=val:target=effusion")[1]
    assert image.mode == "RGB"
    stored = ShardReader(root).read(6)
    assert (np.asarray(image) == stored[..., None]).all()
    transformed = make(root, "split=val:target=effusion", transform=lambda image: image.size, target_transform=str)
    assert transformed[0] == ((40, 40), "1")


def test_views_are_classes_that_every_split_shares_and_unknown_ones_are_left_out(root):
    train, val = make(root, "target=view"), make(root, "split=val:target=view")
    assert train.classes == val.classes == ("LATERAL_LEFT", "VD", "DV")
    assert train.get_targets().tolist() == [1, 0, 1, 1]
    assert val.get_targets().tolist() == [2, 1]
    check_same_classes(train, val, "validation")
    assert count_classes(train, "VetStudies") == 3  # DV occurs in the validation split alone


def test_all_splits_together_are_the_split_all(root):
    assert len(make(root, "split=all:target=view")) == 6


def test_a_copy_in_another_process_gives_the_same_images(root):
    images = make(root, "target=effusion")
    copy = pickle.loads(pickle.dumps(images))
    assert np.array_equal(np.asarray(copy[2][0]), np.asarray(images[2][0]))


def test_sixteen_bits_become_eight_by_the_full_range_as_in_the_evaluation_suite():
    pixels = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    assert (to_8_bit(pixels)[0, 0], to_8_bit(pixels)[-1, -1]) == (0, 255)
    assert np.abs(to_8_bit(pixels) / 255 - prepare_image(pixels, 64)).max() <= 0.501 / 255
    eight = to_8_bit(pixels)
    assert to_8_bit(eight) is eight
    assert Image.fromarray(eight).mode == "L"


def test_without_a_target_studies_are_pairs_for_training(root):
    pairs = make(root, "pairing=different_view:seed=3")
    assert isinstance(pairs, MultiViewStudyDataset)
    assert (pairs.pairing, pairs.seed) == ("different_view", 3)
    assert make(root, "split=val").pairing == "any"


def test_an_unknown_target_is_answered_with_the_labels(root, tmp_path):
    with pytest.raises(UserError, match=r"no target 'efusion'. Labels of this folder: effusion, nodule. .* view"):
        make(root, "target=efusion")
    with pytest.raises(UserError, match=r"none, for the intake was given no --labels"):
        make(make_intake(tmp_path, n_studies=1), "target=effusion")


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ("target=effusion:pairing=any", "pairing have no meaning"),
        ("target=effusion:split=training", "Unknown split 'training'"),
        ("target=effusion:split=test", "has 0 images"),
        ("target=nodule:split=val", "has 2 images, but none with a known class"),
        ("targt=effusion", "Did you mean 'target'"),
    ],
)
def test_keys_that_cannot_be_used_are_refused(root, keys, says):
    with pytest.raises(UserError, match=says):
        make(root, keys)
