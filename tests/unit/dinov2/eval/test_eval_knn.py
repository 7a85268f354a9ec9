"""k-NN: votes by hand, official draws of few samples, and the results file. The official golden votes: tests/parity."""

import json
import math

import pytest
import torch

from dinov2.eval import knn
from dinov2.eval.metrics import AccuracyAveraging
from dinov2.utils.errors import UserError

TRAIN = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]])
LABELS = torch.tensor([0, 1, 1, 2])


def votes_by_hand(k: int, temperature: float) -> list[float]:
    """Of the query (1, 0), whose similarities are 1, .8, 0, -1: the softmax over the three nearest, of which k vote."""
    weights = [math.exp(s / temperature) for s in (1.0, 0.8, 0.0)]
    weights = [w / sum(weights) for w in weights]
    return [weights[0], sum(weights[1:k]), 0.0]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_votes_are_a_softmax_over_the_nearest_cut_off_after_k(k):
    module = knn.KnnModule(TRAIN, LABELS, [1, 2, 3], 0.5, "cpu", num_classes=3)
    votes = module(torch.tensor([[1.0, 0.0]]))[k]
    torch.testing.assert_close(votes, torch.tensor([votes_by_hand(k, 0.5)]))


def test_few_samples_are_the_official_draws_of_each_class():
    labels = torch.tensor([1, 0, 0, 1, 0, 1, 0])
    torch.manual_seed(3)  # the official code seeds the global generator and goes through the classes in order
    wanted = [torch.tensor(places)[torch.randperm(n)[:2]] for places, n in (([1, 2, 4, 6], 4), ([0, 3, 5], 3))]
    got = knn.filter_train(knn.create_class_indices_mapping(labels), 2, seed=3)
    assert got.tolist() == torch.cat(wanted).tolist()


def test_drawing_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    knn.filter_train({0: torch.arange(9)}, 3, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_class_with_fewer_samples_gives_all_of_them():
    mapping = knn.create_class_indices_mapping(torch.tensor([0, 1, 1, 1]))
    assert sorted(knn.filter_train(mapping, 3, seed=0).tolist()) == [0, 1, 2, 3]


class Points(torch.utils.data.Dataset):
    """Two groups of five directions that hardly differ within a group."""

    def __getitem__(self, index):
        angle = torch.tensor(0.1 * (index % 5) + (2.0 if index >= 5 else 0.0))
        return torch.stack([angle.cos(), angle.sin()]) * (index + 1), int(index >= 5)

    def __len__(self):
        return 10


def eval_points(**changes):
    options = {
        "nb_knn": [1, 3],
        "temperature": 0.07,
        "batch_size": 4,
        "num_workers": 0,
        "gather_on_cpu": True,
        "n_per_class_list": [-1, 2],
        "n_tries": 2,
        **changes,
    }
    return knn.eval_knn(torch.nn.Identity(), Points(), Points(), AccuracyAveraging.MEAN_ACCURACY, **options)


def test_every_number_of_samples_and_of_neighbours_is_evaluated_as_in_the_official_code():
    accuracies = eval_points()
    assert list(accuracies) == [("full", 1), ("full", 3), ("2 per class", 1), ("2 per class", 2)]
    assert all(value["top-1"] == 1.0 for value in accuracies.values())


def test_neighbours_beyond_the_training_set_are_left_out():
    assert list(eval_points(nb_knn=[1, 200], n_per_class_list=[-1])) == [("full", 1)]


def test_only_impossible_numbers_of_neighbours_are_refused():
    with pytest.raises(UserError, match=r"\(100, 200\) is greater than the number of training images, 10.* --nb_knn 1"):
        eval_points(nb_knn=[100, 200])


def test_no_samples_a_class_are_refused():
    with pytest.raises(UserError, match="has a 0"):
        eval_points(n_per_class_list=[0])


def eval_colours(colour_folder, backbone, tmp_path, val="val", train="train"):
    return knn.eval_knn_with_model(
        backbone,
        tmp_path,
        f"ImageFolder:root={colour_folder}:split={train}",
        f"ImageFolder:root={colour_folder}:split={val}",
        nb_knn=[3],
        n_per_class_list=[-1, 2],
        num_workers=0,
    )


def test_results_are_appended_as_one_json_object_a_line(colour_folder, colour_backbone, tmp_path):
    results = eval_colours(colour_folder, colour_backbone(), tmp_path)
    names = ["('full', 3) Top 1", "('full', 3) Top 5", "('2 per class', 2) Top 1", "('2 per class', 2) Top 5"]
    assert results == dict.fromkeys(names, 100.0)
    eval_colours(colour_folder, colour_backbone(), tmp_path)
    lines = (tmp_path / "results_eval_knn.json").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{name: 100.0} for name in names] * 2


def test_a_validation_set_with_other_class_folders_is_refused(colour_folder, colour_backbone, tmp_path):
    with pytest.raises(UserError, match="validation data set has other classes"):
        eval_colours(colour_folder, colour_backbone(), tmp_path, val="renamed")


def test_a_training_set_without_classes_is_refused(colour_folder, colour_backbone, tmp_path):
    with pytest.raises(UserError, match="two classes"):
        eval_colours(colour_folder, colour_backbone(), tmp_path, train="train/red")


def test_command_line_defaults_are_official():
    args = vars(knn.get_args_parser().parse_args([]))
    official = {
        "train_dataset_str": "ImageNet:split=TRAIN",
        "val_dataset_str": "ImageNet:split=VAL",
        "nb_knn": [10, 20, 100, 200],
        "temperature": 0.07,
        "gather_on_cpu": False,
        "batch_size": 256,
        "n_per_class_list": [-1],
        "n_tries": 1,
    }
    assert {name: args[name] for name in official} == official
