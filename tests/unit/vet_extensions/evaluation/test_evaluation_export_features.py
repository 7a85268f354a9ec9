"""Features for other programs: the same numbers in every format, rows that say whose they are, and a stop that costs nothing."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from vet_extensions.errors import UserError
from vet_extensions.evaluation import export_features as room
from vet_extensions.evaluation.backbones import open_backbone
from vet_extensions.evaluation.export_features import export_features
from vet_extensions.evaluation.features import network_input, prepare_image
from vet_extensions.manifest import write_manifest
from vet_extensions.schema import IntakeFolder
from vet_extensions.shards import ShardReader, ShardWriter

N_IMAGES = 7
SPEC = "pixels"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    root, generator = tmp_path / "archive", np.random.default_rng(0)
    rows: dict[str, list[str]] = {name: [] for name in ("image_id", "study_id", "patient_id", "view", "split")}
    with ShardWriter(IntakeFolder(root).shards) as writer:
        for place in range(N_IMAGES):
            row = (f"i{place}", f"s{place}", f"p{place}", "VD", "test" if place > 4 else "train")
            for name, value in zip(rows, row, strict=True):
                rows[name].append(value)
            writer.add(row[0], generator.integers(0, 256, size=(24, 20), dtype=np.uint8))
    write_manifest(pa.table(rows), IntakeFolder(root).manifest)
    return root


@pytest.fixture
def run(tmp_path: Path) -> Path:
    from tests.unit.vet_extensions.evaluation.test_evaluation_backbones import write_run

    write_run(tmp_path / "run")
    return tmp_path / "run"


def expected_of(run: Path, archive: Path) -> list[np.ndarray]:
    """Per block of the last two: class tokens [n, D]; then the last block's patches [n, h, w, D]."""
    backbone, reader = open_backbone(run), ShardReader(archive)
    images = network_input(
        [prepare_image(reader.read(row), 16) for row in range(N_IMAGES)], mean=backbone.mean, std=backbone.std
    )
    blocks = backbone.intermediate(images, 2)
    assert blocks[1].patches is not None
    return [tokens.detach().numpy() for tokens in (blocks[0].cls, blocks[1].cls, blocks[1].patches)]


@pytest.mark.parametrize("file_format", ["npy", "safetensors"])
def test_every_format_holds_the_backbones_tokens(file_format: str, run: Path, archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    about = export_features(run, archive, out, n_blocks=2, with_patches=True, file_format=file_format)
    if file_format == "npy":
        found = {name: np.load(out / f"{name}.npy") for name in ("cls", "mean_patch", "patches")}
    else:
        found = load_file(out / "features.safetensors")
    before, last, patches = expected_of(run, archive)
    np.testing.assert_allclose(found["cls"], np.stack([before, last], axis=1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["mean_patch"], patches.mean(axis=(1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["patches"], patches, rtol=2**-10, atol=1e-4)
    assert about["arrays"]["patches"]["shape"] == list(patches.shape)
    arrays = {f"{name}.npy" for name in found} if file_format == "npy" else {"features.safetensors"}
    assert {path.name for path in out.iterdir()} == {"embedding.json", "embedding.parquet", *arrays}


def test_the_table_says_whose_the_rows_are(run: Path, archive: Path, tmp_path: Path) -> None:
    export_features(run, archive, tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "embedding.parquet")
    assert table["image_id"].to_pylist() == [f"i{place}" for place in range(N_IMAGES)]
    assert table["split"].to_pylist() == ["train"] * 5 + ["test"] * 2
    np.testing.assert_array_equal(
        np.array(table["cls"].to_pylist(), np.float32), np.load(tmp_path / "out" / "cls.npy")[:, -1]
    )


def test_a_stopped_embedding_goes_on(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, seen = ShardReader.read, []

    def stop(self: ShardReader, row: int) -> np.ndarray:
        seen.append(row)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return read(self, row)

    monkeypatch.setattr(ShardReader, "read", stop)
    with pytest.raises(KeyboardInterrupt):
        export_features(SPEC, archive, tmp_path / "out", batch_size=2)
    export_features(SPEC, archive, tmp_path / "out", batch_size=2)
    assert seen == [0, 1, 2, 3, 4, 4, 5, 6]
    assert np.load(tmp_path / "out" / "cls.npy").shape == (N_IMAGES, 1, 1024)


def test_what_is_finished_is_left_and_what_differs_is_not_overwritten(archive: Path, tmp_path: Path) -> None:
    first = export_features(SPEC, archive, tmp_path / "out")
    written = (tmp_path / "out" / "cls.npy").stat().st_mtime_ns
    assert export_features(SPEC, archive, tmp_path / "out") == first
    assert (tmp_path / "out" / "cls.npy").stat().st_mtime_ns == written
    with pytest.raises(UserError, match=r"image_size_px differ"):
        export_features(SPEC, archive, tmp_path / "out", image_size_px=16)


def test_a_folder_of_pictures_is_sent_to_intake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vetdino intake"):
        export_features(SPEC, tmp_path, tmp_path / "out")


def test_tensors_that_the_disk_cannot_hold_twice_are_refused(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([2**40, 100])  # before the embedding, and after it
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: type("Usage", (), {"free": next(free)})())
    with pytest.raises(UserError, match="choose --format npy"):
        export_features(SPEC, archive, tmp_path / "out", file_format="safetensors")


def test_no_path_is_told(run: Path, archive: Path, tmp_path: Path) -> None:
    export_features(run, archive, tmp_path / "out")
    assert str(tmp_path) not in json.dumps((tmp_path / "out" / "embedding.json").read_text())
