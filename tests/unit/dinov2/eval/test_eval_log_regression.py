"""The logistic regression: the fit against scikit-learn, the choice of C, the official split, and the results file."""

import json
import logging

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from dinov2 import distributed
from dinov2.eval import log_regression, log_regression_model
from dinov2.eval.metrics import MetricType, build_metric
from dinov2.utils.errors import UserError


def blobs(n: int, *, n_classes: int = 3, seed: int = 0, spread: float = 1.5) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping groups of points: features [n, 4] and labels [n]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % n_classes
    centres = torch.randn(n_classes, 4, generator=torch.Generator().manual_seed(9))
    return centres[labels] + spread * torch.randn(n, 4, generator=generator), labels


@pytest.mark.parametrize("n_classes", [2, 3])
def test_probabilities_are_those_of_a_direct_call_of_scikit_learn(n_classes):
    features, labels = blobs(60, n_classes=n_classes)
    ours = log_regression.train_for_C(C=0.3, max_iter=500, train_features=features, train_labels=labels)
    direct = LogisticRegression(C=0.3, max_iter=500, tol=1e-12).fit(features.double().numpy(), labels.numpy())
    got = ours(features, labels)
    np.testing.assert_allclose(
        got["preds"].numpy(), direct.predict_proba(features.double().numpy()), rtol=0, atol=1e-12
    )
    assert got["target"] is labels


def test_the_fit_minimises_c_times_the_summed_log_loss_plus_half_the_squared_weights():
    features, labels = blobs(60)
    C, model = 0.3, log_regression.LogRegModule(0.3)
    model.fit(features, labels)
    weights = torch.from_numpy(model.estimator.coef_).requires_grad_()
    bias = torch.from_numpy(model.estimator.intercept_).requires_grad_()
    logits = features.double() @ weights.T + bias
    loss = C * torch.nn.functional.cross_entropy(logits, labels, reduction="sum") + 0.5 * weights.square().sum()
    loss.backward()
    assert weights.grad.abs().max() < 1e-5
    assert bias.grad.abs().max() < 1e-5


def test_a_class_that_training_lacks_has_the_probability_0():
    features, labels = blobs(30)
    model = log_regression.train_for_C(C=1.0, max_iter=100, train_features=features, train_labels=labels * 2)
    preds = model(features, labels)["preds"]
    assert preds.shape == (30, 5)
    assert not preds[:, [1, 3]].any()
    torch.testing.assert_close(preds.sum(1), torch.ones(30, dtype=torch.float64))


@pytest.mark.parametrize("labels", [torch.zeros(4, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)])
def test_a_single_class_is_refused(labels):
    with pytest.raises(UserError, match="one class only"):
        log_regression.LogRegModule(1.0).fit(torch.zeros(len(labels), 4), labels)


def test_a_fit_that_reaches_the_greatest_number_of_iterations_says_so(caplog):
    caplog.set_level(logging.INFO)
    features, labels = blobs(60)
    log_regression.train_for_C(C=1.0, max_iter=2, train_features=features, train_labels=labels)
    assert "C = 1: 2 iterations (the greatest number allowed)" in caplog.text


def sweep(monkeypatch, powers, **changes):
    monkeypatch.setattr(log_regression_model, "C_POWER_RANGE", torch.tensor(powers))
    features, labels = blobs(60)
    options = {
        "train_features": features,
        "train_labels": labels,
        "test_data_loader": [blobs(45, seed=1)],
        "metric_type": MetricType.MEAN_ACCURACY,
        "num_classes": 3,
        **changes,
    }
    return log_regression.sweep_C_values(**options)


def test_the_sweep_chooses_the_c_of_the_best_accuracy(monkeypatch):
    powers = [-6.0, -3.0, 0.0, 2.0]
    values, best = sweep(monkeypatch, powers)
    accuracies = {}
    features, labels = blobs(60)
    for C in (10 ** torch.tensor(powers)).tolist():
        metric = build_metric(MetricType.MEAN_ACCURACY, num_classes=3)
        accuracies[C] = log_regression.train_and_evaluate(
            C=C,
            max_iter=1000,
            train_features=features,
            train_labels=labels,
            logreg_metric=metric,
            test_data_loader=[blobs(45, seed=1)],
        )["top-1"].item()
    assert len(set(accuracies.values())) > 1
    assert values["top-1"].item() == accuracies[best] == max(accuracies.values())


def test_of_equally_good_cs_the_smallest_is_chosen(monkeypatch):
    easy = blobs(30, spread=0.01)
    _, best = sweep(monkeypatch, [0.0, 1.0, 2.0], train_features=easy[0], train_labels=easy[1], test_data_loader=[easy])
    assert best == 1.0


def test_accuracies_per_class_choose_by_their_mean(monkeypatch):
    per_class, _ = sweep(monkeypatch, [-1.0, 0.0], metric_type=MetricType.PER_CLASS_ACCURACY)
    mean, _ = sweep(monkeypatch, [-1.0, 0.0], metric_type=MetricType.MEAN_PER_CLASS_ACCURACY)
    assert per_class == mean


def test_processes_share_the_fits_of_the_sweep(monkeypatch):
    wanted = sweep(monkeypatch, [-2.0, -1.0, 0.0])
    fitted = []
    fit = log_regression_model.train_for_C
    monkeypatch.setattr(log_regression_model, "train_for_C", lambda *, C, **kw: fitted.append(C) or fit(C=C, **kw))
    features, labels = blobs(60)
    (C,) = (10 ** torch.tensor([-1.0])).tolist()
    others = {C: fit(C=C, max_iter=1000, train_features=features, train_labels=labels)}
    monkeypatch.setattr(distributed, "get_global_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_gather_objects", lambda own: [own, others])
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda tensor: None)
    assert sweep(monkeypatch, [-2.0, -1.0, 0.0]) == wanted
    assert fitted == (10 ** torch.tensor([-2.0, 0.0])).tolist()


class Points(torch.utils.data.Dataset):
    """`blobs` as a data set."""

    def __init__(self, n: int, seed: int = 0) -> None:
        self.features, self.labels = blobs(n, seed=seed)

    def __getitem__(self, index):
        return self.features[index], int(self.labels[index])

    def __len__(self):
        return len(self.labels)


@pytest.fixture
def fits(monkeypatch):
    """(C, images) of every fit; the sweep has two C."""
    seen, fit = [], log_regression_model.LogRegModule.fit

    def spying(self, train_features, train_labels):
        seen.append((self.estimator.C, train_features.float()))
        fit(self, train_features, train_labels)

    monkeypatch.setattr(log_regression_model.LogRegModule, "fit", spying)
    monkeypatch.setattr(log_regression_model, "C_POWER_RANGE", torch.tensor([-4.0, 0.0]))
    return seen


def eval_points(**changes):
    options = {
        "model": torch.nn.Identity(),
        "train_dataset": Points(60),
        "val_dataset": Points(30, seed=1),
        "finetune_dataset": None,
        "metric_type": MetricType.MEAN_ACCURACY,
        "batch_size": 8,
        "num_workers": 0,
        **changes,
    }
    return log_regression.eval_log_regression(**options)


def test_c_is_chosen_on_the_official_tenth_of_training_and_the_final_fit_sees_all(fits):
    torch.manual_seed(0)  # the official code seeds the global generator
    order = torch.randperm(60)
    before = torch.random.get_rng_state()
    values = eval_points()
    features = Points(60).features
    assert [len(images) for _, images in fits] == [54, 54, 60]
    assert torch.equal(fits[0][1], features[order[6:]])
    assert torch.equal(fits[2][1], features[torch.cat([order[6:], order[:6]])])
    assert fits[2][0] == values["best_C"]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_data_set_of_its_own_chooses_c_and_then_helps_to_train(fits):
    eval_points(finetune_dataset=Points(21, seed=2))
    assert [len(images) for _, images in fits] == [60, 60, 81]


def test_the_validation_set_may_choose_c_but_is_never_trained_on(fits):
    eval_points(finetune_on_val=True)
    assert [len(images) for _, images in fits] == [60, 60, 60]


def test_too_few_images_to_hold_any_out_are_refused():
    with pytest.raises(UserError, match=r"has 9 images.* --finetune-dataset-str"):
        eval_points(train_dataset=Points(9))


def eval_colours(colour_folder, backbone, **changes):
    train, val = (f"ImageFolder:root={colour_folder}:split={split}" for split in ("train", changes.pop("val", "val")))
    return log_regression.eval_log_regression_with_model(backbone, train, val, num_workers=0, **changes)


def test_results_are_appended_as_one_json_object_a_line(colour_folder, colour_backbone, tmp_path, fits):
    results = eval_colours(colour_folder, colour_backbone(), output_dir=tmp_path)
    assert (results["top-1"], results["top-5"]) == (100.0, 100.0)
    assert results["best_C"] in (10 ** torch.tensor([-4.0, 0.0])).tolist()
    eval_colours(colour_folder, colour_backbone(), output_dir=tmp_path)
    lines = (tmp_path / "results_eval_log_regression.json").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [results] * 2


def test_a_validation_set_with_other_class_folders_is_refused(colour_folder, colour_backbone):
    with pytest.raises(UserError, match="validation data set has other classes"):
        eval_colours(colour_folder, colour_backbone(), val="renamed")


def test_command_line_defaults_are_official():
    args = vars(log_regression.get_args_parser().parse_args([]))
    official = {
        "train_dataset_str": "ImageNet:split=TRAIN",
        "val_dataset_str": "ImageNet:split=VAL",
        "finetune_dataset_str": None,
        "finetune_on_val": False,
        "metric_type": MetricType.MEAN_ACCURACY,
        "train_features_device": "cpu",
        "train_dtype": "float64",
        "max_train_iters": 1000,
    }
    assert {name: args[name] for name in official} == official


def test_the_45_candidates_are_official():
    assert log_regression.DEFAULT_MAX_ITER == 1000
    assert torch.equal(log_regression.C_POWER_RANGE, torch.linspace(-6, 5, 45))
