"""Adapters around data sets, at their edges: items that fail, items with a position of their own, copies for workers."""

import pickle
import random

import numpy as np
import pytest
import torch

from dinov2.data import DatasetWithEnumeratedTargets, SamplerType, make_data_loader
from dinov2.data.adapters import NumberedDataset, PositionSeededDataset
from dinov2.data.samplers import PositionedIndex


class Draws:
    """Items that are a draw from each global generator; the last item fails after drawing."""

    def __getitem__(self, index):
        draws = torch.tensor([torch.rand(1).item(), random.random()])
        if index == 3:
            raise RuntimeError("can not read image")
        return {"draws": draws}, int(index)

    def __len__(self):
        return 4


class Positioned:
    """Items that say their own position."""

    def __getitem__(self, index):
        return {"position": 77}, None

    def __len__(self):
        return 1


class Plain:
    """Items that are no crop dictionary."""

    def __getitem__(self, index):
        return torch.rand(1), int(index)

    def __len__(self):
        return 4


def first_of(batch):
    return [(sample[0]["position"], sample[0]["draws"].tolist()) for sample in batch]


def test_an_item_that_fails_leaves_the_global_generators_alone():
    torch.manual_seed(5)
    random.seed(5)
    expected = (torch.rand(1).item(), random.random())
    torch.manual_seed(5)
    random.seed(5)
    with pytest.raises(RuntimeError, match="can not read image"):
        PositionSeededDataset(Draws(), seed=1)[PositionedIndex(3, 0)]
    assert (torch.rand(1).item(), random.random()) == expected


def test_a_position_that_the_item_brings_is_kept():
    assert PositionSeededDataset(Positioned(), seed=1)[PositionedIndex(0, 5)][0]["position"] == 77


def test_an_item_without_crop_dictionary_is_seeded_too():
    dataset = PositionSeededDataset(Plain(), seed=1)
    assert torch.equal(dataset[PositionedIndex(0, 5)][0], dataset[PositionedIndex(2, 5)][0])


def test_a_copy_for_a_worker_draws_the_same():
    dataset = PositionSeededDataset(Draws(), seed=1)
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[PositionedIndex(0, 9)][0]["draws"], dataset[PositionedIndex(0, 9)][0]["draws"])
    assert len(copy) == 4


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_draws_do_not_depend_on_the_number_of_workers(num_workers):
    class Three(Draws):
        def __len__(self):
            return 3

    def batches(workers):
        loader = make_data_loader(
            dataset=PositionSeededDataset(Three(), seed=1),
            batch_size=2,
            num_workers=workers,
            sampler_type=SamplerType.SEEDED_INFINITE,
            collate_fn=first_of,
        )
        found = iter(loader)
        return [next(found) for _ in range(3)]

    assert batches(num_workers) == batches(0)


class Batched(Plain):
    """Says that it needs no seeding, and serves whole batches."""

    draws_by_position = True

    def __init__(self):
        self.asked = []

    def __getitems__(self, indices):
        self.asked.append([int(index) for index in indices])
        return [({"item": int(index)}, None) for index in indices]


def test_a_data_set_that_serves_batches_is_asked_for_them_through_the_wrappers():
    inner = Batched()
    items = PositionSeededDataset(NumberedDataset(inner), seed=1).__getitems__(
        [PositionedIndex(2, 8), PositionedIndex(0, 9)]
    )
    assert inner.asked == [[2, 0]]
    assert [item for item, _ in items] == [
        {"item": 2, "index": 2, "position": 8},
        {"item": 0, "index": 0, "position": 9},
    ]


def test_a_batch_of_seeded_items_equals_the_items_one_by_one():
    dataset = PositionSeededDataset(Draws(), seed=1)
    indices = [PositionedIndex(0, 5), PositionedIndex(2, 6), PositionedIndex(1, 5)]
    at_once = [(item["draws"].tolist(), item["position"]) for item, _ in dataset.__getitems__(indices)]
    assert at_once == [(item["draws"].tolist(), item["position"]) for item, _ in map(dataset.__getitem__, indices)]
    assert at_once[0] == at_once[2]


def test_enumerated_targets_pass_on_arrays_and_the_length():
    class Pairs(Plain):
        def __getitem__(self, index):
            return "image", np.array([index, -1])

    dataset = DatasetWithEnumeratedTargets(Pairs())
    index, target = dataset[2][1]
    assert (index, target.tolist(), len(dataset)) == (2, [2, -1], 4)
