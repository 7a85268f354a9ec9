"""Leaks between a pre-training folder and an evaluation folder: by id, by pixels, and by nearly equal pictures."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from vet_extensions.cli import app
from vet_extensions.commands.folders import compare_folders
from vet_extensions.errors import UserError
from vet_extensions.manifest import write_manifest
from vet_extensions.manifest.build import build_table
from vet_extensions.manifest.leaks import NEAR
from vet_extensions.schema import ImageRecord, Split, View
from vet_extensions.shards import ShardWriter
from vet_extensions.shards.fingerprints import MIN_SIMILARITY, near_hashes, similarity


def body(seed: int, *, shape=(220, 180)) -> np.ndarray:
    """A picture with large and small structures, uint8."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float64)
    image = np.zeros(shape)
    for _ in range(25):
        row, column = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        tall, wide = rng.uniform(6, 60, 2)
        image += rng.uniform(-1, 1) * np.exp(-(((rows - row) / tall) ** 2) - ((columns - column) / wide) ** 2)
    return np.rint(255 * (image - image.min()) / np.ptp(image)).astype(np.uint8)


COPIES = {
    "windowed anew": lambda image: np.clip((image.astype(float) - 20) * 1.25, 0, 255).astype(np.uint8),
    "gamma": lambda image: np.rint(255 * (image / 255) ** 0.8).astype(np.uint8),
    "resized": lambda image: cv2.resize(image, (120, 150), interpolation=cv2.INTER_AREA),
    "cut all round": lambda image: image[5:-5, 4:-4],
    "cut on two sides": lambda image: image[6:, :-4],
    "16 bit": lambda image: image.astype(np.uint16) * 257,
    "noisy": lambda image: np.clip(image + np.random.default_rng(0).normal(0, 3, image.shape), 0, 255).astype(np.uint8),
    "cut, windowed and resized": lambda image: cv2.resize(
        np.clip((image[4:-2, 3:-3].astype(float) - 10) * 1.1, 0, 255).astype(np.uint8),
        (130, 160),
        interpolation=cv2.INTER_AREA,
    ),
}


def make_folder(root: Path, images: dict[str, np.ndarray], *, prefix: str, salt: str | None = "s", **changes) -> Path:
    """A study and a patient an image, all with names of their own but for what `changes` says of the first."""
    records = []
    for number, name in enumerate(sorted(images)):
        rows, columns = images[name].shape
        record = ImageRecord(
            name, f"{prefix}s{number}", f"{prefix}p{number}", View.VD, "test", rows, columns, rows, columns
        )
        records.append(replace(record, **{"pixel_hash": f"{prefix}h{number}", **(changes if number == 0 else {})}))
    records.sort(key=lambda record: (record.patient_id, record.study_id, record.image_id))
    with ShardWriter(root / "shards") as writer:
        for record in records:
            writer.add(record.image_id, images.get(record.image_id, images[min(images)]))
    splits = {record.patient_id: Split.TRAIN for record in records}
    write_manifest(build_table(records, splits=splits), root / "manifest.parquet")
    (root / "intake.json").write_text(json.dumps({} if salt is None else {"salt_fingerprint": salt}))
    return root


def counts(root: Path, other: Path, **changes) -> dict[str, int]:
    return {leak.kind: leak.n_images for leak in compare_folders(root, other, **changes).leaks}


@pytest.fixture
def pretraining(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "a", {f"a{n:02}": body(n) for n in range(12)}, prefix="a")


@pytest.mark.parametrize("copy", list(COPIES))
def test_a_changed_copy_is_found(tmp_path: Path, pretraining: Path, copy: str) -> None:
    images = {"b0": COPIES[copy](body(3)), "b1": body(100), "b2": body(101)}
    report = compare_folders(pretraining, make_folder(tmp_path / "b", images, prefix="b"))
    near = next(leak for leak in report.leaks if leak.kind == NEAR)
    assert near.examples == (("a03", "b0"),)
    assert near.n_images == 1
    assert not report.is_clean


def test_a_cut_picture_in_the_pretraining_is_found_too(tmp_path: Path) -> None:
    cut = make_folder(tmp_path / "a", {"a0": body(1)[6:-4, 3:-5]}, prefix="a")
    assert counts(cut, make_folder(tmp_path / "b", {"b0": body(1)}, prefix="b"))[NEAR] == 1


def test_other_pictures_are_no_leak(tmp_path: Path, pretraining: Path) -> None:
    other = make_folder(tmp_path / "b", {f"b{n}": body(n) for n in range(50, 62)}, prefix="b")
    report = compare_folders(pretraining, other)
    assert report.is_clean
    assert report.notes == ()


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"patient_id": "ap2"}, "same patient"),
        ({"study_id": "as2"}, "same study"),
        ({"pixel_hash": "ah2"}, "same pixels"),
    ],
)
def test_shared_ids_and_hashes_are_counted_with_an_example(
    tmp_path: Path, pretraining: Path, change, kind: str
) -> None:
    other = make_folder(tmp_path / "b", {"b0": body(70), "b1": body(71)}, prefix="b", **change)
    report = compare_folders(pretraining, other)
    assert {leak.kind: leak.n_images for leak in report.leaks if leak.n_images} == {kind: 1}
    assert next(leak for leak in report.leaks if leak.n_images).examples == (("a02", "b0"),)


def test_the_same_image_is_not_counted_as_nearly_the_same(tmp_path: Path, pretraining: Path) -> None:
    other = make_folder(tmp_path / "b", {"a03": body(3)}, prefix="b")
    found = counts(pretraining, other)
    assert (found["same image"], found[NEAR]) == (1, 0)


def test_empty_values_are_like_no_other(tmp_path: Path) -> None:
    first = make_folder(tmp_path / "a", {"a0": body(0)}, prefix="a", pixel_hash="")
    second = make_folder(tmp_path / "b", {"b0": body(1)}, prefix="b", pixel_hash="")
    assert counts(first, second)["same pixels"] == 0


@pytest.mark.parametrize(("salt", "said"), [("other", "different salts"), (None, "not known"), ("", "not known")])
def test_ids_that_cannot_be_compared_are_named(tmp_path: Path, pretraining: Path, salt: str | None, said: str) -> None:
    other = make_folder(tmp_path / "b", {"b0": body(50)}, prefix="b", salt=salt)
    assert said in str(compare_folders(pretraining, other))


def test_a_folder_is_not_compared_with_itself(pretraining: Path) -> None:
    with pytest.raises(UserError, match="--against-split test"):
        compare_folders(pretraining, pretraining)


def test_the_splits_of_one_folder_can_be_compared(pretraining: Path) -> None:
    assert set(counts(pretraining, pretraining, split="train", other_split="test").values()) == {0}


def test_the_command_ends_with_1_on_a_leak_and_names_image_ids_only(tmp_path: Path, pretraining: Path) -> None:
    other = make_folder(tmp_path / "b", {"b0": body(50)}, prefix="b", patient_id="ap2")
    found = CliRunner().invoke(app, ["check", str(pretraining), "--against", str(other), "--no-pixels"])
    assert found.exit_code == 1
    assert "same patient" in found.stdout
    assert "ap2" not in found.stdout
    assert "not looked for" in found.stdout
    clean = make_folder(tmp_path / "c", {"c0": body(51)}, prefix="c")
    assert CliRunner().invoke(app, ["check", str(pretraining), "--against", str(clean)]).exit_code == 0


def test_no_pair_of_near_hashes_is_missed() -> None:
    rng = np.random.default_rng(0)
    many, few = (rng.integers(0, 2**63, (n, 2), dtype=np.uint64) for n in (400, 30))
    for j in range(30):  # a copy with 0 to 14 flipped bits, in either column
        flipped = sum(1 << int(bit) for bit in rng.choice(64, j % 15, replace=False))
        many[7 * j, j % 2] = few[j, (j // 2) % 2] ^ np.uint64(flipped)
    distance = np.bitwise_count(many[:, None, :, None] ^ few[None, :, None, :]).min(axis=(2, 3))
    assert near_hashes(many, few) == [tuple(pair) for pair in np.argwhere(distance <= 10).tolist()]


def test_constant_pictures_are_like_nothing() -> None:
    assert similarity(np.zeros((50, 50), np.uint8), body(0)) < MIN_SIMILARITY
    assert similarity(np.zeros((50, 50), np.uint8), np.zeros((50, 50), np.uint8)) < MIN_SIMILARITY
