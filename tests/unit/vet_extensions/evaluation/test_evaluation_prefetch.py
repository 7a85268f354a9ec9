"""Images made ahead: the same numbers in the same order, read by one thread, no more of them than stated, and no thread left."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vet_extensions.errors import UserError
from vet_extensions.evaluation.embedding import Backbone, BlockTokens, cls_name, embed
from vet_extensions.evaluation.features import network_input, prepare_image
from vet_extensions.evaluation.prefetch import N_AHEAD, batches_ahead

PATIENCE_S = 30.0


class Pixels:
    """Nine images of different sizes; `seen` lists the rows that were read, `threads` who read them."""

    def __init__(self, *, before: Callable[[int], object] = lambda row: None) -> None:
        rng = np.random.default_rng(0)
        self.images: list[np.ndarray] = [
            rng.integers(0, 2**16, size=(20 + row, 40), dtype=np.uint16) for row in range(9)
        ]
        self.before = before
        self.seen: list[int] = []
        self.threads: set[int] = set()

    def read(self, row_index: int, /) -> np.ndarray:
        self.before(row_index)
        self.seen.append(row_index)
        self.threads.add(threading.get_ident())
        return self.images[row_index % 9]

    def __len__(self) -> int:
        return 9


def ahead(pixels: Pixels, batches: Sequence[Sequence[int]], *, n_helpers: int = 0):
    """Batches of the images' means."""
    rows = [np.array(batch) for batch in batches]
    return batches_ahead(rows, read=pixels.read, prepare=lambda image: image.mean(), join=list, n_helpers=n_helpers)


def read_pixels(_model: nn.Module, images: Tensor, _indices: Sequence[int]) -> tuple[BlockTokens, ...]:
    return (BlockTokens(images.flatten(1), None),)


def make_backbone(*, read=read_pixels) -> Backbone:
    return Backbone(
        name="pixels", weights_hash="a", architecture="pixels", embed_dim=3 * 16 * 16, patch_size=None, n_blocks=0,
        mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), image_size_px=16, build=nn.Identity, read=read,
    )  # fmt: skip


def embedded(backbone: Backbone, pixels: Pixels, rows: np.ndarray, *, batch_size: int):
    return embed(backbone, pixels, rows=rows, names=[cls_name(1)], image_size_px=16, batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [1, 4, 9, 20])
def test_features_are_those_of_a_plain_loop_to_the_last_bit(batch_size: int) -> None:
    backbone, pixels = make_backbone(), Pixels()
    rows = np.array([5, 0, 8, 1, 7, 2, 6, 3, 4])
    found = list(embedded(backbone, pixels, rows, batch_size=batch_size))
    assert np.concatenate([batch for batch, _ in found]).tolist() == rows.tolist()
    images = [prepare_image(pixels.images[row], 16) for row in rows]
    expected = network_input(images, mean=backbone.mean, std=backbone.std).flatten(1).numpy()
    np.testing.assert_array_equal(np.concatenate([features["cls.1"] for _, features in found]), expected)


@pytest.mark.parametrize("n_helpers", [0, 1, 4])
def test_one_thread_reads_and_reads_in_order(n_helpers: int) -> None:
    pixels = Pixels()
    batches = [[4, 1], [8], [0, 2, 3, 7, 6], [5]]
    found = list(ahead(pixels, batches, n_helpers=n_helpers))
    assert found == [[pixels.images[row].mean() for row in batch] for batch in batches]
    assert pixels.seen == [row for batch in batches for row in batch]
    assert len(pixels.threads - {threading.get_ident()}) == len(pixels.threads) == 1


@pytest.mark.parametrize("n_helpers", [0, 2])
def test_the_next_batches_are_read_unasked_and_no_more_than_stated(n_helpers: int) -> None:
    pixels, reached = Pixels(), threading.Event()
    pixels.before = lambda row: reached.set() if row == N_AHEAD else None
    with closing(ahead(pixels, [[row] for row in range(9)], n_helpers=n_helpers)) as batches:
        next(batches)
        assert reached.wait(PATIENCE_S)
        time.sleep(0.05)  # one read too many would come now
        assert pixels.seen == list(range(1 + N_AHEAD))


@pytest.mark.parametrize("n_helpers", [0, 2])
def test_helpers_hold_no_more_raw_images_than_there_are_helpers_and_one(n_helpers: int) -> None:
    held, most, lock = [0], [0], threading.Lock()

    def took(_row: int) -> None:
        with lock:
            held[0] += 1
            most[0] = max(most[0], held[0])

    def prepare(_image: np.ndarray) -> int:
        time.sleep(0.002)
        with lock:
            held[0] -= 1
        return 0

    batches = batches_ahead(
        [np.arange(30)], read=Pixels(before=took).read, prepare=prepare, join=len, n_helpers=n_helpers
    )
    assert list(batches) == [30]
    assert most[0] <= n_helpers + 1


def refuse_six(row: int) -> None:
    if row == 6:
        raise UserError("image 6 is damaged")


@pytest.mark.parametrize("n_helpers", [0, 2])
def test_an_unreadable_image_is_told_when_its_batch_is_due(n_helpers: int) -> None:
    n_before, pixels = threading.active_count(), Pixels(before=refuse_six)
    batches = ahead(pixels, [[0, 1], [2, 3], [4, 5], [6, 7], [8]], n_helpers=n_helpers)
    found = [next(batches) for _ in range(3)]
    with pytest.raises(UserError, match="image 6 is damaged"):
        next(batches)
    assert len(found) == 3
    assert pixels.seen == [0, 1, 2, 3, 4, 5]
    assert threading.active_count() == n_before


def test_an_image_that_cannot_be_prepared_is_told_as_before() -> None:
    pixels = Pixels()
    pixels.images[4] = np.zeros((3, 3, 3), dtype=np.uint8)
    with pytest.raises(UserError, match="must be uint8 or uint16 with shape"):
        list(embedded(make_backbone(), pixels, np.arange(9), batch_size=2))


@pytest.mark.parametrize("n_helpers", [0, 2])
def test_whoever_closes_early_waits_for_one_image_and_not_for_a_batch(n_helpers: int) -> None:
    n_before = threading.active_count()
    pixels = Pixels(before=lambda row: time.sleep(0.01) if row else None)
    batches = ahead(pixels, [[0], list(range(1, 1000)), [0]], n_helpers=n_helpers)
    next(batches)
    batches.close()
    assert threading.active_count() == n_before
    assert len(pixels.seen) < 500


def test_an_interrupted_network_leaves_no_thread() -> None:
    def interrupt(_model: nn.Module, _images: Tensor, _indices: Sequence[int]) -> tuple[BlockTokens, ...]:
        raise KeyboardInterrupt

    n_before, backbone = threading.active_count(), make_backbone(read=interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(embedded(backbone, Pixels(), np.arange(9), batch_size=2))
    assert threading.active_count() == n_before


def test_gradients_stay_off_and_global_random_numbers_untouched() -> None:
    before = torch.get_rng_state()
    for _, features in embedded(make_backbone(), Pixels(), np.arange(9), batch_size=4):
        assert torch.is_grad_enabled()
        assert features["cls.1"].dtype == np.float32
    assert torch.equal(torch.get_rng_state(), before)
