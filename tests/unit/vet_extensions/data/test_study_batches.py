"""Studies asked for as whole batches are the studies asked for one by one."""

import random

import numpy as np
import pytest
import torch
from study_factory import make_intake

from dinov2.data import SamplerType, make_data_loader
from dinov2.data.adapters import NumberedDataset, PositionSeededDataset
from dinov2.data.samplers import PositionedIndex
from vet_extensions.data import MultiViewStudyDataset, study_dataset
from vet_extensions.data.study_dataset import StudySample, sample_rng
from vet_extensions.schema import View

N = 24


class OwnDraws:
    """Draws from the sample's position alone, and says so."""

    draws_by_position = True

    def __call__(self, sample: StudySample) -> dict:
        rng = sample_rng(3, sample.position)
        crops = [torch.from_numpy(pixels[rng.integers(8) :, rng.integers(8) :].copy()) for pixels in sample.pixels]
        return {"crops": crops, "views": sample.views, "position": sample.position}


class GlobalDraws:
    """Draws from the global generators of torch and Python."""

    def __call__(self, sample: StudySample) -> dict:
        return {"draws": (int(torch.randint(2**31, ())), random.random()), "views": sample.views}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_intake(tmp_path_factory.mktemp("three"), n_studies=N, views=(View.LATERAL_LEFT, View.VD, View.DV))


def studies(root, transform=None):
    return MultiViewStudyDataset(root=str(root), pairing="different_view", seed=4, transform=transform)


def wrapped(root, transform):
    return PositionSeededDataset(NumberedDataset(studies(root, transform)), seed=9)


def positioned(first=100):
    order = np.random.default_rng(0).permutation(N).tolist()
    return [PositionedIndex(study, first + i) for i, study in enumerate(order)]


def as_lists(items):
    """Something that `==` compares whole: tensors as lists."""
    return [
        {k: [c.tolist() for c in v] if k == "crops" else v for k, v in item.items()} | {"target": target}
        for item, target in items
    ]


def read_by_pairs(dataset, monkeypatch):
    """Fails if the data set draws a pair by itself."""
    monkeypatch.setattr(study_dataset, "draw_pair", None)
    return dataset.__getitems__(positioned())


@pytest.mark.parametrize("transform", [OwnDraws(), GlobalDraws()], ids=["own_draws", "global_draws"])
def test_items_of_a_batch_equal_the_items_one_by_one(root, transform):
    dataset = wrapped(root, transform)
    assert as_lists(dataset.__getitems__(positioned())) == as_lists([dataset[index] for index in positioned()])


def test_crops_do_not_depend_on_whether_the_transform_says_how_it_draws(root, monkeypatch):
    said = as_lists(wrapped(root, OwnDraws()).__getitems__(positioned()))
    monkeypatch.setattr(OwnDraws, "draws_by_position", False)
    assert as_lists(wrapped(root, OwnDraws()).__getitems__(positioned())) == said


def test_a_batch_draws_its_pairs_at_once(root, monkeypatch):
    assert len(read_by_pairs(wrapped(root, OwnDraws()), monkeypatch)) == N


def test_a_transform_that_says_nothing_is_seeded_for_every_item(root):
    assert not studies(root, GlobalDraws()).draws_by_position
    torch.manual_seed(1)
    before = as_lists(wrapped(root, GlobalDraws()).__getitems__(positioned()))
    torch.manual_seed(2)
    assert as_lists(wrapped(root, GlobalDraws()).__getitems__(positioned())) == before


def test_studies_with_a_single_image_keep_it_in_a_batch(tmp_path):
    dataset = studies(make_intake(tmp_path, n_studies=N, views=(View.VD,)))
    assert {(sample.views, len(sample.pixels)) for sample, _ in dataset.__getitems__(positioned())} == {((View.VD,), 1)}


def test_indices_without_a_position_draw_from_torch_in_the_order_of_the_items(root):
    dataset = studies(root, OwnDraws())
    torch.manual_seed(6)
    expected = as_lists([dataset[index] for index in range(N)])
    torch.manual_seed(6)
    assert as_lists(dataset.__getitems__(range(N))) == expected


@pytest.mark.parametrize("num_workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(root, num_workers):
    def batches(workers):
        loader = make_data_loader(
            dataset=wrapped(root, OwnDraws()),
            batch_size=12,
            num_workers=workers,
            sampler_type=SamplerType.SEEDED_INFINITE,
            collate_fn=as_lists,
        )
        found = iter(loader)
        return [next(found) for _ in range(5)]

    assert batches(num_workers) == batches(0)
