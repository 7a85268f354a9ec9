"""The feature store: each image is embedded once, wherever an embedding was cut off, and what is damaged is made again."""

import multiprocessing
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vet_extensions.errors import UserError
from vet_extensions.evaluation import store as store_room
from vet_extensions.evaluation.embedding import Backbone, BlockTokens
from vet_extensions.evaluation.store import Features, FeatureStore

N_IMAGES = 9


class Pixels:
    """Images in memory, with the two methods of a ShardReader; `seen` lists the rows that were read."""

    def __init__(self, *, stop_at: int | None = None) -> None:
        self.images = np.random.default_rng(0).integers(0, 256, size=(N_IMAGES, 20, 16), dtype=np.uint8)
        self.seen: list[int] = []
        self.stop_at = stop_at

    def read(self, row_index: int, /) -> np.ndarray:
        if len(self.seen) == self.stop_at:
            raise KeyboardInterrupt
        self.seen.append(row_index)
        return self.images[row_index]

    def __len__(self) -> int:
        return N_IMAGES


def read_means(model: nn.Module, images: Tensor, indices: Sequence[int]) -> tuple[BlockTokens, ...]:
    """Patch tokens: mean and variance of each patch, times the block's number plus one; class token: of the image."""
    assert not model.training
    patches = images[:, 0].unfold(1, 8, 8).unfold(2, 8, 8).flatten(3)  # [B, h, w, 64]
    tokens = torch.stack([patches.mean(dim=-1), patches.var(dim=-1)], dim=-1)
    return tuple(BlockTokens((1 + i) * tokens.mean(dim=(1, 2)), (1 + i) * tokens) for i in indices)


def make_backbone(*, read=read_means, weights_hash: str = "a") -> Backbone:
    return Backbone(
        name="means", weights_hash=weights_hash, architecture="means", embed_dim=2, patch_size=8, n_blocks=3, mean=(0.5,),
        std=(0.25,), image_size_px=16, build=nn.Identity, read=read,
    )  # fmt: skip


def ask(folder: Path, pixels: Pixels, *, backbone: Backbone | None = None, **wanted) -> Features:
    given = {"content_hash": "d", "batch_size": 2, **wanted}
    return FeatureStore(folder).features(backbone or make_backbone(), pixels, **given)


def test_images_are_read_once_for_every_later_question(tmp_path: Path) -> None:
    first, pixels = ask(tmp_path, Pixels()), Pixels()
    again = ask(tmp_path, pixels)
    part = ask(tmp_path, pixels, rows=np.array([5, 0]))
    assert pixels.seen == []
    np.testing.assert_array_equal(again.cls, first.cls)
    np.testing.assert_array_equal(part.cls, first.cls[[5, 0]])
    assert part.rows.tolist() == [5, 0]


def test_weights_are_not_read_where_the_features_are_there(tmp_path: Path) -> None:
    def refuse() -> nn.Module:
        raise AssertionError("the weights were read")

    ask(tmp_path, Pixels())
    sealed = make_backbone()
    object.__setattr__(sealed, "build", refuse)
    assert ask(tmp_path, Pixels(), backbone=sealed).cls.shape == (N_IMAGES, 1, 2)


def test_a_part_is_embedded_alone_and_not_a_second_time_with_the_whole(tmp_path: Path) -> None:
    pixels = Pixels()
    ask(tmp_path, pixels, rows=np.array([7, 2]))
    assert pixels.seen == [7, 2]
    ask(tmp_path, pixels)
    assert sorted(pixels.seen) == list(range(N_IMAGES))


def test_an_interrupted_embedding_goes_on_after_its_last_whole_batch(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        ask(tmp_path, Pixels(stop_at=5))
    rest = Pixels()
    found = ask(tmp_path, rest)
    assert rest.seen == list(range(4, N_IMAGES))
    np.testing.assert_array_equal(found.cls, ask(tmp_path / "other", Pixels()).cls)


def test_blocks_and_patches_are_those_of_the_backbone(tmp_path: Path) -> None:
    found = ask(tmp_path, Pixels(), n_blocks=2, with_mean_patch=True, with_patches=True)
    assert found.mean_patch is not None
    assert found.patches is not None
    np.testing.assert_allclose(found.cls[:, 0], found.cls[:, 1] * 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(found.mean_patch, found.cls[:, 1], rtol=1e-6)
    assert (found.patches.dtype, found.patches.shape) == (np.float16, (N_IMAGES, 2, 2, 2))
    np.testing.assert_allclose(
        found.patches.mean(axis=(1, 2), dtype=np.float64), found.mean_patch, rtol=2**-11, atol=1e-4
    )
    assert found.vectors("cls").shape == (N_IMAGES, 2)
    np.testing.assert_array_equal(found.vectors("cls+mean_patch")[:, 2:], found.mean_patch)


def test_more_blocks_asked_for_later_leave_what_is_there(tmp_path: Path) -> None:
    before = ask(tmp_path, Pixels())
    (path,) = tmp_path.glob("*/cls.1.npy")
    written = path.stat().st_mtime_ns
    later = ask(tmp_path, Pixels(), n_blocks=3)
    assert path.stat().st_mtime_ns == written
    np.testing.assert_array_equal(later.cls[:, -1:], before.cls)


def damage_value(content: bytearray) -> bytearray:
    content[-4 * N_IMAGES - 1] ^= 1  # the last value of the last image
    return content


@pytest.mark.parametrize(
    ("damage", "n_again"),
    [(damage_value, 1), (lambda content: content[:-3], N_IMAGES), (lambda content: b"", N_IMAGES)],
    ids=["one bit", "cut off", "empty"],
)
def test_only_damaged_images_are_computed_again(tmp_path: Path, damage, n_again: int) -> None:
    before = np.array(ask(tmp_path, Pixels()).cls)
    (path,) = tmp_path.glob("*/cls.1.npy")
    path.write_bytes(bytes(damage(bytearray(path.read_bytes()))))
    pixels = Pixels()
    np.testing.assert_array_equal(ask(tmp_path, pixels).cls, before)
    assert len(pixels.seen) == n_again


@pytest.mark.parametrize(
    "other",
    [
        {"backbone": make_backbone(weights_hash="b")},
        {"content_hash": "e"},
        {"image_size_px": 24},
        {"amp_dtype": torch.bfloat16},
    ],
    ids=["weights", "data", "size", "number format"],
)
def test_whatever_decides_features_has_an_entry_of_its_own(tmp_path: Path, other: dict) -> None:
    ask(tmp_path, Pixels())
    pixels = Pixels()
    ask(tmp_path, pixels, **other)
    assert len(pixels.seen) == N_IMAGES


def embed_in_parallel(folder: Path) -> None:
    torch.set_num_threads(1)
    for batch_size in (1, 3):
        ask(folder, Pixels(), batch_size=batch_size, n_blocks=3)


@pytest.mark.slow
def test_two_writers_at_once_leave_whole_features(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=embed_in_parallel, args=(tmp_path / "shared",)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=120)
    assert [writer.exitcode for writer in writers] == [0, 0]
    pixels = Pixels()
    shared = ask(tmp_path / "shared", pixels, n_blocks=3)
    assert pixels.seen == []
    np.testing.assert_allclose(shared.cls, ask(tmp_path / "alone", Pixels(), n_blocks=3).cls, rtol=1e-5)


def test_a_writer_whose_file_was_replaced_still_gets_what_it_wrote(tmp_path: Path) -> None:
    class Meddling(Pixels):
        """Reading the fourth image, someone else begins the file anew."""

        def read(self, row_index: int, /) -> np.ndarray:
            if len(self.seen) == 3:
                (path,) = tmp_path.glob("*/cls.1.npy")
                path.unlink()
                path.write_bytes(b"")
            return super().read(row_index)

    expected = ask(tmp_path / "other", Pixels()).cls
    np.testing.assert_array_equal(ask(tmp_path, Meddling()).cls, expected)


def test_features_as_they_lie_on_disk_are_plain_numpy_files(tmp_path: Path) -> None:
    found = ask(tmp_path, Pixels())
    (path,) = tmp_path.glob("*/cls.1.npy")
    np.testing.assert_array_equal(np.load(path, mmap_mode="r"), found.cls[:, 0])


def test_patches_that_float16_would_make_equal_stay_float32(tmp_path: Path) -> None:
    def read_nearly_equal(model: nn.Module, images: Tensor, indices: Sequence[int]) -> tuple[BlockTokens, ...]:
        return tuple(BlockTokens(cls, 1 + 1e-5 * patches) for cls, patches in read_means(model, images, indices))  # type: ignore[operator]

    found = ask(tmp_path, Pixels(), backbone=make_backbone(read=read_nearly_equal), with_patches=True)
    assert found.patches is not None
    assert found.patches.dtype == np.float32
    assert len(np.unique(found.patches)) > N_IMAGES


def test_features_that_the_disk_cannot_hold_are_refused_before_a_byte_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_room.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100})())
    with pytest.raises(UserError, match="GiB free"):
        ask(tmp_path, Pixels(), with_patches=True)
    assert all(not np.load(path, mmap_mode="r").any() for path in tmp_path.glob("*/*.npy"))


def test_features_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    def read_nan(_model: nn.Module, images: Tensor, _indices: Sequence[int]) -> tuple[BlockTokens, ...]:
        return (BlockTokens(torch.full((len(images), 2), torch.nan), None),)

    with pytest.raises(UserError, match="2 of 2 images"):
        ask(tmp_path, Pixels(), backbone=make_backbone(read=read_nan))


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [({"image_size_px": 20}, "Use 16 or 24"), ({"n_blocks": 4}, "Ask for 1 to 3"), ({"n_blocks": 0}, "Ask for 1 to 3")],
)
def test_what_the_backbone_does_not_have_is_refused_with_what_it_has(
    tmp_path: Path, wanted: dict, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        ask(tmp_path, Pixels(), **wanted)


def test_progress_counts_what_is_there_at_once(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    ask(tmp_path, Pixels(), rows=np.arange(4))
    ask(tmp_path, Pixels(), batch_size=3, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 9), (7, 9), (9, 9)]
