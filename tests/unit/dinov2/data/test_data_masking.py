"""Block masks: the official draws, bounds, and seeds of one's own."""

import hashlib
import math
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


def plain_mask(generator, wanted, rng):
    """The plain twin: official draws, an array of cells and slices of it."""
    mask, n_masked = np.zeros(generator.get_shape(), dtype=bool), 0
    largest = generator.num_patches if generator.max_num_patches is None else generator.max_num_patches
    while n_masked < wanted:
        max_new, n_added = min(wanted - n_masked, largest), 0
        for _ in range(10):
            area = rng.uniform(generator.min_num_patches, max_new)
            aspect = math.exp(rng.uniform(*generator.log_aspect_ratio))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if width >= generator.width or height >= generator.height:
                continue
            top, left = rng.randint(0, generator.height - height), rng.randint(0, generator.width - width)
            cells = mask[top : top + height, left : left + width]
            n_new = cells.size - int(cells.sum())
            if 0 < n_new <= max_new:
                cells[:] = True
                n_added = n_new
                break
        if n_added == 0:
            break
        n_masked += n_added
    return mask


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((16, 16), {"max_num_patches": 128.0}),
        ((5, 9), {"min_num_patches": 0, "max_aspect": 6.0}),
        ((37, 37), {"num_masking_patches": 300}),
        ((1, 3), {}),
    ],
    ids=str,
)
def test_masks_and_draws_equal_those_of_the_plain_twin(size, options):
    generator = MaskingGenerator(size, **options)
    fast, plain = random.Random(11), random.Random(11)
    for wanted in range(0, size[0] * size[1] + 1, max(1, size[0] * size[1] // 60)):
        assert np.array_equal(generator(wanted, rng=fast), plain_mask(generator, wanted, plain))
    assert fast.random() == plain.random()


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
