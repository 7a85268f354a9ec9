"""Loading weights: what matches is said, what does not is not hidden."""

import pickle

import pytest
import torch
from torch import nn

from dinov2.utils.errors import UserError
from dinov2.utils.utils import load_pretrained_weights, read_checkpoint, strip_prefix


def make_model():
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))


def save(content, folder):
    torch.save(content, folder / "weights.pth")
    return folder / "weights.pth"


def test_only_leading_prefixes_are_removed():
    names = ["module.backbone.a", "backbone.module.b", "my_backbone.c", "head.module.d", "backbone"]
    assert list(strip_prefix(dict.fromkeys(names))) == ["a", "b", "my_backbone.c", "head.module.d", "backbone"]


def test_weights_below_the_key_are_loaded_and_reported(tmp_path):
    source, target = make_model(), make_model()
    state = {f"module.backbone.{name}": value for name, value in source.state_dict().items() if name != "1.bias"}
    path = save({"teacher": {**state, "dino_head.weight": torch.ones(1)}, "epoch": 3}, tmp_path)
    report = load_pretrained_weights(target, path, "teacher")
    assert torch.equal(target[0].weight, source[0].weight)
    assert report.matched == ("0.weight", "0.bias", "1.weight")
    assert report.missing == ("1.bias",)
    assert report.unexpected == ("dino_head.weight",)


def test_a_file_without_the_key_is_taken_whole(tmp_path):
    source, target = make_model(), make_model()
    assert not load_pretrained_weights(target, save(source.state_dict(), tmp_path), "teacher").missing
    assert torch.equal(target[1].bias, source[1].bias)


def test_nothing_matched_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"No name .* matches.*conv\.weight"):
        load_pretrained_weights(make_model(), save({"conv.weight": torch.ones(1)}, tmp_path), None)


def test_another_shape_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"0\.bias \(9,\) for \(3,\)"):
        load_pretrained_weights(make_model(), save({"0.bias": torch.ones(9)}, tmp_path), None)


def test_a_model_may_adapt_the_layout(tmp_path):
    class Renaming(nn.Linear):
        def adapt_state_dict(self, state):
            return {name.removeprefix("old_"): value for name, value in state.items()}

    model = Renaming(2, 1)
    path = save({"old_weight": torch.full((1, 2), 7.0), "old_bias": torch.zeros(1)}, tmp_path)
    load_pretrained_weights(model, path, None)
    assert model.weight.tolist() == [[7, 7]]


def test_an_absent_file_is_named():
    with pytest.raises(UserError, match=r"absent\.pth"):
        read_checkpoint("absent.pth")


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint at all", pickle.dumps(UserError("code in a pickle"), protocol=2)]
)
def test_unreadable_or_unsafe_files_are_refused(content, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match="no readable weights file"):
        read_checkpoint(path)


def test_a_file_that_holds_no_dictionary_is_refused(tmp_path):
    with pytest.raises(UserError, match="list"):
        read_checkpoint(save([torch.ones(1)], tmp_path))
