"""Feature wrappers, extraction in the data set's order, and the checks of classes."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from dinov2 import distributed
from dinov2.eval import utils
from dinov2.utils.errors import UserError


class Vectors(torch.utils.data.Dataset):
    """Item i is the vector (i, i + 1) with target i % 3."""

    def __getitem__(self, index):
        return torch.tensor([index, index + 1.0]), index % 3

    def __len__(self):
        return 7


@pytest.mark.parametrize("n_workers", [0, 1])
def test_features_come_in_the_order_of_the_data_set(n_workers):
    features, labels = utils.extract_features(nn.Identity(), Vectors(), batch_size=3, num_workers=n_workers)
    assert features.tolist() == [[i, i + 1.0] for i in range(7)]
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_features_go_to_the_row_of_their_index_whatever_the_order():
    batches = [(torch.tensor([[2.0], [0.0]]), (torch.tensor([2, 0]), torch.tensor([7, 5])))]
    batches.append((torch.tensor([[1.0]]), (torch.tensor([1]), torch.tensor([6]))))
    features, labels = utils.extract_features_with_dataloader(nn.Identity(), batches, sample_count=3)
    assert features.flatten().tolist() == [0, 1, 2]
    assert labels.tolist() == [5, 6, 7]


def test_an_index_that_comes_twice_does_no_harm_and_one_left_out_is_noticed():
    batches = [(torch.tensor([[2.0], [0.0]]), (torch.tensor([2, 0]), torch.tensor([7, 5])))]
    batches.append((torch.tensor([[1.0], [0.0]]), (torch.tensor([1, 0]), torch.tensor([6, 5]))))
    features, labels = utils.extract_features_with_dataloader(nn.Identity(), batches, sample_count=3)
    assert (features.flatten().tolist(), labels.tolist()) == ([0, 1, 2], [5, 6, 7])
    with pytest.raises(AssertionError, match="left out 1 of 4 indices"):
        utils.extract_features_with_dataloader(nn.Identity(), batches, sample_count=4)


@pytest.mark.parametrize("n_processes", [1, 2, 3, 5])
def test_processes_share_the_batches_that_one_process_would_make(monkeypatch, n_processes):
    features, labels = torch.arange(7.0)[:, None], torch.arange(7)
    whole = [images[:, 0].int().tolist() for images, _ in utils.make_share_loader(Vectors(), 2, 0)]
    assert whole == [[0, 1], [2, 3], [4, 5], [6]]
    monkeypatch.setattr(distributed, "get_global_size", lambda: n_processes)
    for rank in range(n_processes):
        monkeypatch.setattr(distributed, "get_global_rank", lambda rank=rank: rank)
        loader = utils.make_share_loader(Vectors(), 2, 0)
        assert [images[:, 0].int().tolist() for images, _ in loader] == whole[rank::n_processes]
        assert isinstance(utils.whole_dataset(loader), Vectors)
        held = utils.share_of_batches(features, labels, 2)
        assert [targets.tolist() for _, targets in held] == whole[rank::n_processes]


def test_long_passes_log_their_progress(caplog):
    caplog.set_level(logging.INFO)
    utils.extract_features(nn.Identity(), torch.utils.data.ConcatDataset([Vectors()] * 3), batch_size=1, num_workers=0)
    assert "Features [20/21]" in caplog.text
    caplog.clear()
    utils.extract_features(nn.Identity(), Vectors(), batch_size=1, num_workers=0)
    assert "Features [" not in caplog.text


def test_gathering_in_a_single_process_gives_what_went_in():
    assert utils.all_gather_and_flatten(torch.arange(6).view(3, 2)).tolist() == [[0, 1], [2, 3], [4, 5]]


def test_several_labels_an_image_are_kept():
    batches = [(torch.zeros(2, 1), (torch.tensor([0, 1]), torch.tensor([[1, -1], [0, 3]])))]
    _, labels = utils.extract_features_with_dataloader(nn.Identity(), batches, sample_count=2)
    assert labels.tolist() == [[1, -1], [0, 3]]


def test_normalised_features_have_length_one():
    features = utils.ModelWithNormalize(nn.Identity())(torch.tensor([[3.0, 4.0]]))
    torch.testing.assert_close(features, torch.tensor([[0.6, 0.8]]))


def test_intermediate_layers_are_of_the_last_blocks_and_carry_no_gradient():
    asked = []

    class Backbone(nn.Module):
        weight = nn.Parameter(torch.ones(1))

        def get_intermediate_layers(self, images, n, return_class_token):
            asked.append((n, return_class_token))
            return ((images * self.weight, images[:, 0]),)

    model = utils.ModelWithIntermediateLayers(Backbone(), 4, utils.autocast_context(nn.Identity(), torch.float))
    ((patches, _),) = model(torch.ones(1, 2, 3))
    assert asked == [(4, True)]
    assert not patches.requires_grad
    assert not model.feature_model.training


def test_autocast_computes_in_the_wanted_dtype():
    layer = nn.Linear(2, 2)
    with utils.autocast_context(layer, torch.bfloat16)():
        assert layer(torch.ones(1, 2)).dtype == torch.bfloat16
    with utils.autocast_context(layer, torch.float)():
        assert layer(torch.ones(1, 2)).dtype == torch.float32


def test_evaluate_averages_the_criterion_over_batches():
    batches = [(torch.tensor([[1.0]]), torch.tensor([[0.0]])), (torch.tensor([[3.0]]), torch.tensor([[0.0]]))]
    stats, values = utils.evaluate(nn.Identity(), batches, {}, {}, torch.device("cpu"), criterion=nn.L1Loss())
    assert stats == {"loss": 2.0}
    assert values == {}


def with_targets(*targets, classes=()):
    return SimpleNamespace(get_targets=lambda: np.array(targets), classes=classes)


def test_classes_are_counted_up_to_the_greatest_target():
    assert utils.count_classes(with_targets(0, 4, 4), "Toy:root=x") == 5


def test_classes_that_are_named_count_although_no_image_has_them():
    assert utils.count_classes(with_targets(0, 1, classes=("a", "b", "c")), "Toy:root=x") == 3


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        (with_targets(0, 0), "two classes"),
        (with_targets(3, 3), "have the target 3"),
        (with_targets(0, -1), "class indices"),
        (with_targets(0.5, 1), "class indices"),
        (with_targets([0, 1], [1, 0]), "class indices"),
        (SimpleNamespace(), r"get_targets\(\)"),
    ],
)
def test_targets_that_are_no_classes_are_refused(dataset, says):
    with pytest.raises(UserError, match=says):
        utils.count_classes(dataset, "Toy:root=x")


def test_other_class_folders_than_those_of_training_are_refused():
    train = with_targets(0, 1, 2, classes=("a", "b", "c"))
    utils.check_same_classes(train, with_targets(1, classes=("a", "b", "c")), "validation")
    utils.check_same_classes(train, with_targets(1), "validation")  # it names none
    with pytest.raises(UserError, match=r"test data set .* 1 of its 2 .* 2 of those are missing"):
        utils.check_same_classes(train, with_targets(1, classes=("a", "d")), "test")


def test_targets_that_training_does_not_know_are_refused():
    with pytest.raises(UserError, match="has the target 3, but training knows only 0 to 2"):
        utils.check_same_classes(with_targets(0, 1, 2), with_targets(3), "test")


def test_a_data_set_without_targets_cannot_be_evaluated_on():
    with pytest.raises(UserError, match="The test data set has no targets"):
        utils.check_same_classes(with_targets(0, 1), SimpleNamespace(get_targets=lambda: None), "test")


def test_lists_of_several_labels_are_compared_by_their_greatest():
    several = SimpleNamespace(get_targets=lambda: [[0, 2], [], [1]])
    utils.check_same_classes(with_targets(0, 1, 2), several, "test")
    with pytest.raises(UserError, match="has the target 2"):
        utils.check_same_classes(with_targets(0, 1), several, "test")
