"""Collating samples into a batch: the official seven keys, and the additive ones for teacher crops of their own."""

import itertools
import random

import numpy as np
import pytest
import torch

from dinov2.data import MaskingGenerator, collate_data_and_cast

OFFICIAL_KEYS = {
    "collated_global_crops",
    "collated_local_crops",
    "collated_masks",
    "mask_indices_list",
    "masks_weight",
    "upperbound",
    "n_masked_patches",
}
N_TOKENS = 16


def crop(value, *, size=8, dtype=torch.float32, channels=3):
    return torch.full((channels, size, size), value, dtype=dtype)


def official_sample(number, *, n_local=3, dtype=torch.float32):
    return {
        "global_crops": [crop(10 * number + i, dtype=dtype) for i in range(2)],
        "local_crops": [crop(10 * number + 2 + i, size=4, dtype=dtype) for i in range(n_local)],
        "offsets": (),
    }


def two_view_sample(number, *, n_shared=1):
    """Student: two globals of image 0 and 1, locals of both; teacher: `n_shared` of the student's, then one of its own."""
    sample = official_sample(number, n_local=2)
    sample["global_crops_teacher"] = [*sample["global_crops"][:n_shared], crop(10 * number + 9)]
    sample["crop_sources"] = {
        "student_globals": [0, 1],
        "student_locals": [0, 1],
        "teacher_globals": [*[0, 1][:n_shared], 0],
    }
    sample["n_shared"] = n_shared
    sample["teacher_groups"] = [number, *[5] * n_shared]
    return sample


def collate(samples, *, dtype=torch.float32, probability=0.5, rng=None):
    generator = MaskingGenerator(input_size=(4, 4), max_num_patches=8)
    pairs = [(sample, ()) for sample in samples]
    return collate_data_and_cast(pairs, (0.1, 0.5), probability, dtype, N_TOKENS, generator, rng)


def test_masks_of_a_batch_equal_the_official_ones():
    random.seed(0)
    batch = collate([official_sample(number) for number in range(4)])
    assert batch["collated_masks"].sum(-1).tolist() == [6, 2, 0, 4, 3, 0, 0, 0]
    assert batch["mask_indices_list"].tolist() == [2, 3, 4, 5, 8, 9, 26, 27, 52, 53, 56, 57, 70, 74, 78]
    assert batch["upperbound"] == 21
    assert batch["n_masked_patches"].tolist() == [15]


def test_sizes_of_masks_are_rounded_as_from_official_tensors():
    """The plain twin: 0-dimensional float32 tensors, one official operation after the other."""
    asked, rng = [], random.Random(4)

    def note(wanted, *, rng):
        asked.append(wanted)
        return np.zeros((37, 37), dtype=bool)

    batch = collate_data_and_cast(
        [(official_sample(0), ())] * 300, (0.1, 0.5), 0.5, torch.float32, 1369, note, random.Random(4)
    )
    edges = torch.linspace(0.1, 0.5, 301)
    expected = [int(1369 * (low + (high - low) * rng.random())) for low, high in itertools.pairwise(edges)]
    assert asked == expected + [0] * 300
    assert batch["upperbound"] == sum(int(1369 * high) for high in edges[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.half, torch.bfloat16])
def test_stacking_and_casting_at_once_equals_one_after_the_other(dtype):
    samples = [{"global_crops": [torch.randn(3, 8, 8) for _ in range(2)], "local_crops": []} for _ in range(3)]
    expected = torch.stack([sample["global_crops"][slot] for slot in range(2) for sample in samples]).to(dtype)
    assert torch.equal(collate(samples, dtype=dtype)["collated_global_crops"], expected)


def test_an_official_sample_gives_exactly_the_official_keys():
    assert set(collate([official_sample(0)])) == OFFICIAL_KEYS


def test_crops_are_stacked_crop_major():
    batch = collate([official_sample(number) for number in range(3)])
    assert batch["collated_global_crops"][:, 0, 0, 0].tolist() == [0, 10, 20, 1, 11, 21]
    assert batch["collated_local_crops"][:, 0, 0, 0].tolist() == [2, 12, 22, 3, 13, 23, 4, 14, 24]


def test_the_weights_of_a_crops_masked_patches_sum_to_one():
    batch = collate([official_sample(number) for number in range(4)], rng=random.Random(2))
    total = torch.zeros(8).index_add_(0, batch["mask_indices_list"] // N_TOKENS, batch["masks_weight"])
    masked = batch["collated_masks"].any(-1)
    assert torch.allclose(total, masked.float())


def test_float_crops_are_cast_and_uint8_crops_are_not():
    assert collate([official_sample(0)], dtype=torch.half)["collated_global_crops"].dtype == torch.half
    batch = collate([official_sample(0, dtype=torch.uint8)], dtype=torch.half)
    assert batch["collated_global_crops"].dtype == torch.uint8
    assert batch["collated_local_crops"].dtype == torch.uint8


def test_no_local_crops_give_an_empty_tensor():
    batch = collate([official_sample(number, n_local=0) for number in range(2)])
    assert batch["collated_local_crops"].shape == (0, 3, 8, 8)


def test_equal_generators_give_equal_masks_whatever_the_module_random_does():
    batches = [collate([official_sample(0), official_sample(1)], rng=random.Random(5)) for _ in range(2)]
    assert torch.equal(batches[0]["collated_masks"], batches[1]["collated_masks"])


def test_without_a_mask_generator_nothing_is_masked():
    batch = collate_data_and_cast([(official_sample(0), ())], (0.1, 0.5), 0.5, torch.float32, N_TOKENS, None)
    assert batch["collated_masks"].shape == (2, N_TOKENS)
    assert batch["n_masked_patches"].tolist() == [0]


def test_sources_and_groups_become_slots_by_samples():
    batch = collate([two_view_sample(number) for number in range(3)])
    assert batch["crop_sources_student_globals"].tolist() == [[0, 0, 0], [1, 1, 1]]
    assert batch["crop_sources_student_locals"].tolist() == [[0, 0, 0], [1, 1, 1]]
    assert batch["crop_sources_teacher_globals"].tolist() == [[0, 0, 0], [0, 0, 0]]
    assert batch["teacher_groups"].tolist() == [[0, 1, 2], [5, 5, 5]]
    assert batch["n_shared"] == 1
    assert all(batch[key].dtype == torch.int64 for key in batch if key.startswith(("crop_sources", "teacher_groups")))


def test_teacher_crops_are_stacked_crop_major():
    batch = collate([two_view_sample(number) for number in range(3)])
    assert batch["collated_global_crops_teacher"][:, 0, 0, 0].tolist() == [0, 10, 20, 9, 19, 29]


def test_only_shared_crops_are_masked():
    batch = collate([two_view_sample(number) for number in range(4)], probability=1.0, rng=random.Random(0))
    masks = batch["collated_masks"]
    assert masks.shape == (8, N_TOKENS)
    assert masks[:4].any(-1).all()
    assert not masks[4:].any()
    # flat indices below n_shared * B * N hold for the teacher's tokens too
    assert batch["mask_indices_list"].max() < 1 * 4 * N_TOKENS


def test_without_shared_crops_nothing_is_masked():
    batch = collate([two_view_sample(number, n_shared=0) for number in range(2)], probability=1.0)
    assert not batch["collated_masks"].any()
    assert batch["collated_masks"].shape == (4, N_TOKENS)
    assert batch["upperbound"] == 0
    assert batch["mask_indices_list"].numel() == batch["masks_weight"].numel() == 0


def test_a_layout_without_local_crops_gives_empty_local_sources():
    samples = [two_view_sample(number) for number in range(2)]
    for sample in samples:
        sample["local_crops"], sample["crop_sources"]["student_locals"] = [], []
    assert collate(samples)["crop_sources_student_locals"].shape == (0, 2)


def test_samples_that_disagree_on_shared_crops_are_refused():
    with pytest.raises(ValueError, match="agree on n_shared"):
        collate([two_view_sample(0, n_shared=1), two_view_sample(1, n_shared=0)])


def test_crops_of_different_shapes_are_refused_instead_of_broadcast():
    samples = [official_sample(0), official_sample(1)]
    samples[1]["global_crops"][1] = crop(0, channels=1)
    with pytest.raises(ValueError, match="Crop 1 of sample 1"):
        collate(samples)


def test_samples_with_different_numbers_of_crops_are_refused():
    with pytest.raises(ValueError, match="Sample 1 of the batch has 2 crops, the first one 3"):
        collate([official_sample(0, n_local=3), official_sample(1, n_local=2)])


class DrawnByNumber:
    """Crops of one sample before they are made: its number."""

    def __init__(self, number):
        self.number = number

    def collate(self, samples):
        return [sample.number for sample in samples]


def test_crops_for_the_device_are_collated_by_themselves_and_the_rest_as_with_crops():
    samples = [two_view_sample(number) for number in range(4)]
    crops = {"global_crops", "local_crops", "global_crops_teacher"}
    drawn = [
        {
            **{name: value for name, value in sample.items() if name not in crops},
            "crops_on_device": DrawnByNumber(number),
        }
        for number, sample in enumerate(samples)
    ]
    expected, batch = (collate(those, rng=random.Random(0)) for those in (samples, drawn))
    assert batch.pop("crops_on_device") == [0, 1, 2, 3]
    assert set(expected) - set(batch) == {f"collated_{name}" for name in crops}
    for name, value in batch.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
