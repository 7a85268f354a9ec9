"""The linear evaluation: it learns, writes the official files, goes on where it was stopped, and refuses what does not fit."""

import json
import logging
import re

import numpy as np
import pytest
import torch

from dinov2.data.datasets import ImageFolder
from dinov2.data.registry import DATASETS
from dinov2.eval import linear
from dinov2.eval.metrics import MetricType
from dinov2.utils.errors import UserError


@pytest.fixture
def evaluate(colour_folder, tmp_path):
    """`run_eval_linear` on the colours: 3 epochs of 4 steps of 4 images, two learning rates."""

    def run(model, *, val="val", **changes):
        options = {
            "output_dir": tmp_path,
            "train_dataset_str": f"ImageFolder:root={colour_folder}:split=train",
            "val_dataset_str": f"ImageFolder:root={colour_folder}:split={val}",
            "batch_size": 4,
            "epochs": 3,
            "epoch_length": 4,
            "num_workers": 0,
            "save_checkpoint_frequency": 2,
            "eval_period_iterations": 0,
            "learning_rates": [1e-5, 5.0],
            "autocast_dtype": torch.float,
            **changes,
        }
        return linear.run_eval_linear(model, **options)

    return run


def test_separable_classes_are_learned_by_every_head_that_moves(evaluate, colour_backbone, colour_folder, caplog):
    caplog.set_level(logging.INFO)
    results = evaluate(colour_backbone())
    assert results[f"ImageFolder:root={colour_folder}:split=val_accuracy"] == 100.0
    accuracies = re.findall(r"(classifier_\w+): top-1 ([\d.]+)", caplog.text)
    assert len(accuracies) == 8
    assert {accuracy for name, accuracy in accuracies if name.endswith("_lr_0_07812")} == {"1.0000"}
    assert {accuracy for name, accuracy in accuracies if name.endswith("_lr_0_00000")} != {"1.0000"}


def test_the_first_of_the_most_accurate_heads_is_the_best(evaluate, colour_backbone):
    assert evaluate(colour_backbone(), learning_rates=[2.5, 5.0])["best_classifier"].endswith("False_lr_0_03906")


def test_the_results_file_has_the_official_lines(evaluate, colour_backbone, tmp_path):
    evaluate(colour_backbone(), eval_period_iterations=8)
    lines = (tmp_path / "results_eval_linear.json").read_text().split("\n")
    assert [lines[0], lines[2], lines[3], lines[5:]] == ["iter: 7", "", "iter: 12", ["", ""]]
    best = json.loads(lines[4])["best_classifier"]
    assert set(best) == {"name", "accuracy"}
    assert best["accuracy"] == 1.0


def test_checkpoints_have_the_official_names_and_hold_plain_values_only(evaluate, colour_backbone, tmp_path):
    evaluate(colour_backbone())
    names = {path.name for path in tmp_path.iterdir()} - {"results_eval_linear.json"}
    assert names == {"running_checkpoint_linear_eval.pth", "model_0000007.pth", "model_final.pth", "last_checkpoint"}
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    state = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert {"model", "optimizer", "scheduler", "iteration"} < set(state)
    assert state["iteration"] == 11


class Killed(Exception):
    """Stands for a process that ends without notice."""


def stopping(backbone, *, after: int):
    """The backbone, which fails at its call number `after`; the first call is the one that measures widths."""
    inner, calls = backbone.get_intermediate_layers, iter(range(after))

    def get_intermediate_layers(*args, **kwargs):
        if next(calls, None) is None:
            raise Killed
        return inner(*args, **kwargs)

    backbone.get_intermediate_layers = get_intermediate_layers
    return backbone


def final_heads(folder):
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


@pytest.mark.parametrize("after", [1 + 6, 1 + 10])
def test_a_stopped_evaluation_ends_with_the_heads_of_one_that_was_not(evaluate, colour_backbone, tmp_path, after):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    stopped.mkdir()
    evaluate(colour_backbone(), output_dir=whole)
    with pytest.raises(Killed):
        evaluate(stopping(colour_backbone(), after=after), output_dir=stopped)
    torch.rand(5)  # whatever the new process draws before
    evaluate(colour_backbone(), output_dir=stopped)
    torch.testing.assert_close(final_heads(stopped), final_heads(whole), rtol=0, atol=0)


def test_heads_do_not_depend_on_the_number_of_workers(evaluate, colour_backbone, tmp_path):
    heads = []
    for n_workers in (0, 2):
        (folder := tmp_path / str(n_workers)).mkdir()
        evaluate(colour_backbone(), output_dir=folder, num_workers=n_workers, epochs=1)
        heads.append(final_heads(folder))
    torch.testing.assert_close(heads[0], heads[1], rtol=0, atol=0)


def test_a_finished_evaluation_is_only_evaluated_again(evaluate, colour_backbone, tmp_path):
    evaluate(colour_backbone())
    before = final_heads(tmp_path)
    evaluate(stopping(colour_backbone(), after=1 + 2))  # widths, and two batches of validation
    torch.testing.assert_close(final_heads(tmp_path), before, rtol=0, atol=0)
    assert (tmp_path / "results_eval_linear.json").read_text().count("iter: 12") == 2


def test_heads_of_another_backbone_are_not_resumed(evaluate, colour_backbone):
    evaluate(colour_backbone())
    with pytest.raises(UserError, match=r"differs in backbone.*--no-resume"):
        evaluate(colour_backbone(scale=2.0))
    evaluate(colour_backbone(scale=2.0), resume=False)


def test_a_longer_schedule_is_not_resumed(evaluate, colour_backbone):
    evaluate(colour_backbone())
    with pytest.raises(UserError, match="differs in steps"):
        evaluate(colour_backbone(), epochs=4)


def test_a_checkpoint_with_other_heads_is_refused(evaluate, colour_backbone):
    evaluate(colour_backbone())
    with pytest.raises(UserError, match="has other heads"):
        evaluate(colour_backbone(), learning_rates=[1e-5, 1.0, 5.0])


def test_a_truncated_checkpoint_is_named(evaluate, colour_backbone, tmp_path):
    evaluate(colour_backbone())
    path = tmp_path / "model_final.pth"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"model_final\.pth.*no readable weights file"):
        evaluate(colour_backbone())


def test_given_heads_without_iteration_start_the_training(evaluate, colour_backbone, tmp_path):
    evaluate(colour_backbone())
    torch.save({"model": final_heads(tmp_path)}, tmp_path / "heads.pth")
    (fresh := tmp_path / "fresh").mkdir()
    evaluate(colour_backbone(), output_dir=fresh, classifier_fpath=str(tmp_path / "heads.pth"))
    first, second = final_heads(tmp_path), final_heads(fresh)
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_given_finished_heads_are_only_evaluated(evaluate, colour_backbone, tmp_path):
    evaluate(colour_backbone())
    (fresh := tmp_path / "fresh").mkdir()
    evaluate(colour_backbone(), output_dir=fresh, classifier_fpath=str(tmp_path / "model_final.pth"))
    assert [path.name for path in fresh.iterdir()] == ["results_eval_linear.json"]


def test_a_file_without_heads_is_refused(evaluate, colour_backbone, tmp_path):
    torch.save({"teacher": {}}, tmp_path / "teacher.pth")
    with pytest.raises(UserError, match="holds no 'model'"):
        evaluate(colour_backbone(), classifier_fpath=str(tmp_path / "teacher.pth"))


def test_the_head_that_validation_chose_is_tested(evaluate, colour_backbone, colour_folder, tmp_path):
    tests = [f"ImageFolder:root={colour_folder}:split={split}" for split in ("train", "val")]
    types = [MetricType.MEAN_PER_CLASS_ACCURACY, MetricType.PER_CLASS_ACCURACY]
    results = evaluate(colour_backbone(), test_dataset_strs=tests, test_metric_types=types)
    assert {results[f"{name}_accuracy"] for name in tests} == {100.0}
    written = (tmp_path / "results_eval_linear.json").read_text()
    assert written.count(f'"name": "{results["best_classifier"]}"') == 3


def test_a_class_mapping_reads_another_data_sets_classes(evaluate, colour_backbone, colour_folder, tmp_path):
    np.save(tmp_path / "mapping.npy", np.array([1, 0]))  # crimson is what training calls red, its class 1
    other = f"ImageFolder:root={colour_folder}:split=renamed"
    paths = [str(tmp_path / "mapping.npy")]
    results = evaluate(colour_backbone(), test_dataset_strs=[other], test_class_mapping_fpaths=paths)
    assert results[f"{other}_accuracy"] == 100.0
    with pytest.raises(UserError, match="test data set has other classes"):
        evaluate(colour_backbone(), test_dataset_strs=[other], test_class_mapping_fpaths=["None"])


class SeveralLabels(ImageFolder):
    """Red images with one or two of the classes 0 and 1, as lists of different lengths."""

    def get_target(self, index):
        return [[1], [0], [0, 1], []][index]

    def get_targets(self):
        return [self.get_target(i) for i in range(len(self))]


def test_images_with_several_true_labels_are_evaluated_by_the_real_accuracy(
    evaluate, colour_backbone, colour_folder, monkeypatch
):
    monkeypatch.setitem(DATASETS._objects, "SeveralLabels", SeveralLabels)
    tests = [f"SeveralLabels:root={colour_folder}/val:split=red"]
    results = evaluate(
        colour_backbone(), test_dataset_strs=tests, test_metric_types=[MetricType("imagenet_real_accuracy")]
    )
    assert results[f"{tests[0]}_accuracy"] == pytest.approx(100 * 2 / 3)


@pytest.mark.parametrize("content", [np.zeros((2, 2), dtype=np.int64), np.array([0.5])])
def test_a_class_mapping_that_maps_no_classes_is_refused(evaluate, colour_backbone, tmp_path, content):
    np.save(tmp_path / "mapping.npy", content)
    with pytest.raises(UserError, match="one training class"):
        evaluate(colour_backbone(), val_class_mapping_fpath=str(tmp_path / "mapping.npy"))


def test_a_class_mapping_to_unknown_classes_is_refused_before_the_training(evaluate, colour_backbone, tmp_path):
    np.save(tmp_path / "mapping.npy", np.array([0, 2]))
    with pytest.raises(UserError, match="classes from 0 to 2, but training has 0 to 1"):
        evaluate(stopping(colour_backbone(), after=0), val_class_mapping_fpath=str(tmp_path / "mapping.npy"))


def test_a_class_mapping_that_is_not_there_is_refused(evaluate, colour_backbone, tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        evaluate(colour_backbone(), val_class_mapping_fpath=str(tmp_path / "none.npy"))


def test_as_many_metrics_as_test_sets_are_wanted(evaluate, colour_backbone, colour_folder):
    tests = [f"ImageFolder:root={colour_folder}:split=train"]
    with pytest.raises(UserError, match="--test-datasets names 1 data sets, --test-metric-types 2"):
        evaluate(colour_backbone(), test_dataset_strs=tests, test_metric_types=list(MetricType)[:2])


def test_logs_do_not_tell_where_the_data_is(evaluate, colour_backbone, colour_folder, caplog):
    caplog.set_level(logging.INFO)
    evaluate(colour_backbone())
    assert caplog.text
    assert str(colour_folder) not in caplog.text


def test_command_line_defaults_are_official():
    args = vars(linear.get_args_parser().parse_args([]))
    official = {
        "train_dataset_str": "ImageNet:split=TRAIN",
        "val_dataset_str": "ImageNet:split=VAL",
        "test_dataset_strs": None,
        "epochs": 10,
        "batch_size": 128,
        "num_workers": 8,
        "epoch_length": 1250,
        "save_checkpoint_frequency": 20,
        "eval_period_iterations": 1250,
        "learning_rates": [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1],
        "no_resume": False,
        "val_metric_type": MetricType.MEAN_ACCURACY,
        "test_metric_types": None,
        "classifier_fpath": None,
        "val_class_mapping_fpath": None,
        "unique_names": False,
    }
    assert {name: args[name] for name in official} == official


def test_metric_types_are_chosen_by_their_official_names(capsys):
    args = linear.get_args_parser().parse_args(["--val-metric-type", "mean_per_class_accuracy"])
    assert args.val_metric_type is MetricType.MEAN_PER_CLASS_ACCURACY
    with pytest.raises(SystemExit):
        linear.get_args_parser().parse_args(["--val-metric-type", "auroc"])
    assert "mean_accuracy" in capsys.readouterr().err
