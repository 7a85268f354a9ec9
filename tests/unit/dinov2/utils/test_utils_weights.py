"""Loading weights into any module: what matches is said, what does not is refused."""

import logging

import pytest
import torch
from torch import nn

from dinov2.utils.errors import UserError
from dinov2.utils.utils import load_pretrained_weights


def make_model():
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))


def save(content, folder):
    torch.save(content, folder / "weights.pth")
    return folder / "weights.pth"


def test_only_leading_prefixes_are_removed(tmp_path):
    model = nn.ModuleDict({"my_backbone": nn.Linear(2, 1)})
    state = {"backbone.my_backbone.weight": torch.full((1, 2), 3.0), "backbone.my_backbone.bias": torch.zeros(1)}
    assert load_pretrained_weights(model, save(state, tmp_path), None).matched == (
        "my_backbone.weight",
        "my_backbone.bias",
    )


def test_weights_below_the_key_are_loaded_and_reported(tmp_path, caplog):
    source, target = make_model(), make_model()
    state = {f"module.backbone.{name}": value for name, value in source.state_dict().items()}
    path = save({"teacher": {**state, "dino_head.weight": torch.ones(1)}, "epoch": 3}, tmp_path)
    with caplog.at_level(logging.INFO, logger="dinov2"):
        report = load_pretrained_weights(target, path, "teacher")
    assert torch.equal(target[0].weight, source[0].weight)
    assert report.matched == ("0.weight", "0.bias", "1.weight", "1.bias")
    assert report.missing == ()
    assert report.unexpected == ("dino_head.weight",)
    assert "4 matched, 0 missing, 1 (dino_head.weight) not used" in caplog.text


def test_a_file_without_the_key_is_taken_whole(tmp_path):
    source, target = make_model(), make_model()
    assert not load_pretrained_weights(target, save(source.state_dict(), tmp_path), "teacher").missing
    assert torch.equal(target[1].bias, source[1].bias)


def test_nothing_matched_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"No name .* matches.*conv\.weight"):
        load_pretrained_weights(make_model(), save({"conv.weight": torch.ones(1)}, tmp_path), None)


def test_a_weight_that_the_file_lacks_is_an_error_and_changes_nothing(tmp_path):
    model = make_model()
    before = model[0].weight.clone()
    state = {name: value + 1 for name, value in make_model().state_dict().items() if name != "1.bias"}
    with pytest.raises(UserError, match=r"lacks 1 \(1\.bias\) of the model's 4 weights"):
        load_pretrained_weights(model, save(state, tmp_path), None)
    assert torch.equal(model[0].weight, before)


def test_a_weight_without_a_place_in_the_model_is_an_error(tmp_path):
    state = {**make_model().state_dict(), "1.gain": torch.ones(1)}
    with pytest.raises(UserError, match=r"no place for: 1 \(1\.gain\)"):
        load_pretrained_weights(make_model(), save(state, tmp_path), None)


def test_another_shape_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"0\.bias \(9,\) for \(3,\)"):
        load_pretrained_weights(make_model(), save({"0.bias": torch.ones(9)}, tmp_path), None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_an_error(value, tmp_path):
    state = make_model().state_dict()
    state["1.weight"][0, 0] = value
    with pytest.raises(UserError, match=r"not finite: 1 \(1\.weight\)"):
        load_pretrained_weights(make_model(), save(state, tmp_path), None)


def test_a_model_may_adapt_the_layout(tmp_path):
    class Renaming(nn.Linear):
        def adapt_state_dict(self, state):
            return {name.removeprefix("old_"): value for name, value in state.items()}

    model = Renaming(2, 1)
    path = save({"old_weight": torch.full((1, 2), 7.0), "old_bias": torch.zeros(1)}, tmp_path)
    load_pretrained_weights(model, path, None)
    assert model.weight.tolist() == [[7, 7]]
