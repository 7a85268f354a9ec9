"""CLS attention maps and their overlays."""

import numpy as np
import pytest
import torch

from vet_extensions.analysis.attention import cls_attention, overlay
from vet_extensions.errors import UserError


class NumberedAttention:
    """Attention whose CLS row numbers the tokens, with R registers after the CLS token; patches of 4 pixels, 2 heads."""

    training = False
    patch_size = 4

    def __init__(self, n_registers: int) -> None:
        self.num_register_tokens = n_registers

    def train(self, mode: bool = True) -> None:
        self.training = mode

    def get_last_self_attention(self, x: torch.Tensor) -> torch.Tensor:
        n_tokens = 1 + self.num_register_tokens + (x.shape[2] // 4) * (x.shape[3] // 4)
        attention = torch.full((len(x), 2, n_tokens, n_tokens), -1.0)
        attention[:, :, 0] = torch.arange(n_tokens) - 1.0 - self.num_register_tokens
        return attention

    def get_intermediate_layers(self, x: torch.Tensor, n: int = 1, reshape: bool = False) -> tuple[torch.Tensor, ...]:
        raise AssertionError("attention maps do not need features")


@pytest.mark.parametrize("n_registers", [0, 4])
def test_maps_skip_cls_and_registers_and_follow_the_image_row_by_row(n_registers):
    maps = cls_attention(NumberedAttention(n_registers), torch.zeros(3, 3, 8, 12), batch_size=2)
    assert maps.shape == (3, 2, 2, 3)
    np.testing.assert_array_equal(maps[2, 1], [[0, 1, 2], [3, 4, 5]])


def test_an_overlay_is_brightest_where_the_map_peaks():
    heat = np.zeros((4, 4))
    heat[1, 2] = 1.0
    picture = overlay(np.full((32, 32), 0.5), heat, percentiles=(0, 100))
    assert picture.shape == (32, 32, 3)
    row, column = np.unravel_index(picture.sum(axis=-1).argmax(), (32, 32))
    assert (row // 8, column // 8) == (1, 2)


def test_an_overlay_of_opacity_zero_is_the_radiograph():
    grey = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    np.testing.assert_array_equal(overlay(grey, np.eye(2), opacity=0.0), np.repeat(grey[..., None], 3, axis=-1))


def test_a_flat_map_gives_no_false_peak():
    picture = overlay(np.zeros((8, 8)), np.full((2, 2), 0.3))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 1


def test_an_overlay_refuses_what_is_not_two_dimensional():
    with pytest.raises(UserError, match="2-D"):
        overlay(np.zeros((8, 8, 3)), np.zeros((2, 2)))
