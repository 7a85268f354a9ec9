"""Block masks: the official draws, bounds, and seeds of one's own."""

import hashlib
import random

import numpy as np
import pytest

from dinov2.data import MaskingGenerator


def test_masks_equal_the_official_ones():
    random.seed(0)
    generator = MaskingGenerator(input_size=(14, 14), max_num_patches=98.0)
    masks = [generator(count) for count in (0, 1, 20, 59, 98, 150)]
    assert [int(mask.sum()) for mask in masks] == [0, 1, 20, 59, 98, 150]
    digests = [hashlib.sha1(np.packbits(mask).tobytes()).hexdigest()[:12] for mask in masks]
    assert digests == ["3b575420ceea", "0bd690596fda", "344a28c8bf18", "0f203e8b2ed4", "f8839f9af085", "15e544ab60ac"]


@pytest.mark.parametrize("size", [(4, 4), (5, 9), (16, 16)])
def test_a_mask_never_exceeds_the_request(size):
    generator = MaskingGenerator(size, max_num_patches=0.5 * size[0] * size[1])
    rng = random.Random(1)
    for wanted in range(size[0] * size[1]):
        assert generator(wanted, rng=rng).sum() <= wanted


def test_a_generator_of_ones_own_leaves_the_module_random_alone():
    generator = MaskingGenerator(14)
    random.seed(3)
    expected = random.random()
    random.seed(3)
    first = generator(50, rng=random.Random(7))
    assert random.random() == expected
    assert np.array_equal(first, generator(50, rng=random.Random(7)))


def test_repr_works_without_a_number_of_masking_patches():
    assert "14, 14" in repr(MaskingGenerator(14))


def test_without_bounds_a_rectangle_may_cover_up_to_the_whole_grid():
    mask = MaskingGenerator((8, 10))(40, rng=random.Random(0))
    assert mask.shape == (8, 10)
    assert 0 < mask.sum() <= 40
