"""What a training starts from: backbone, heads, or the whole model of an official training file. Strict, and said."""

import logging

import pytest
import torch
from torch import nn

from dinov2.layers import DINOHead
from dinov2.loss import DINOLoss, iBOTPatchLoss
from dinov2.models import vision_transformer as vits
from dinov2.train.initial_weights import load_heads, load_student_backbone, load_whole_model
from dinov2.utils.errors import UserError

WIDTH = 128


class Model(nn.Module):
    """The names that training files have, without anything that trains."""

    def __init__(self, *, has_ibot_head=True, block_chunks=0, img_size=56, **head):
        super().__init__()
        sizes = {"out_dim": 12, "hidden_dim": 10, "bottleneck_dim": 6, **head}
        heads = ("dino_head", "ibot_head") if has_ibot_head else ("dino_head",)
        for network in ("student", "teacher"):
            backbone = vits.vit_micro(patch_size=14, img_size=img_size, init_values=1e-5, block_chunks=block_chunks)
            parts = {"backbone": backbone, **{name: DINOHead(WIDTH, **sizes) for name in heads}}
            setattr(self, network, nn.ModuleDict(parts))
        self.dino_loss = DINOLoss(sizes["out_dim"])
        self.ibot_patch_loss = iBOTPatchLoss(sizes["out_dim"])


def make_model(seed, **settings):
    """Every weight, and the centres, at values of their own."""
    torch.manual_seed(seed)
    model = Model(**settings)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.normal_(std=0.1)
    return model


def training_content(source, /, **entries):
    return {"model": source.state_dict(), "optimizer": {"state": {}, "param_groups": []}, "iteration": 41, **entries}


def save(content, folder):
    torch.save(content, folder / "weights.pth")
    return folder / "weights.pth"


def assert_equal_weights(module, source):
    ours, theirs = module.state_dict(), source.state_dict()
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different


# ------------------------------------------------------------------------------------------------ student.pretrained_weights


def test_the_backbone_of_a_training_file_is_the_teachers(tmp_path):
    source, model = make_model(0), make_model(1)
    report = load_student_backbone(model.student["backbone"], save(training_content(source), tmp_path))
    assert_equal_weights(model.student["backbone"], source.teacher["backbone"])
    assert "Taken from model.teacher.backbone" in str(report)


def test_new_registers_are_allowed_and_warned_of(tmp_path, caplog):
    backbone = vits.vit_micro(patch_size=14, img_size=56, init_values=1e-5, block_chunks=0, num_register_tokens=2)
    path = save({"teacher": make_model(0).teacher.state_dict()}, tmp_path)
    with caplog.at_level(logging.WARNING, logger="dinov2"):
        assert load_student_backbone(backbone, path).missing == ("register_tokens",)
    assert "still the model's own: register_tokens" in caplog.text


# ------------------------------------------------------------------------------------------------ student.heads_from


@pytest.mark.parametrize(
    "wrap",
    [lambda model: {"teacher": model.teacher.state_dict()}, training_content, lambda model: model.teacher.state_dict()],
    ids=["teacher", "training", "bare"],
)
def test_both_heads_are_loaded_and_the_backbone_is_left_alone(wrap, tmp_path):
    source, model, untouched = make_model(0), make_model(1), make_model(1)
    report = load_heads(model.student, save(wrap(source), tmp_path))
    for head in ("dino_head", "ibot_head"):
        assert_equal_weights(model.student[head], source.teacher[head])
    assert_equal_weights(model.student["backbone"], untouched.student["backbone"])
    assert (len(report.matched), report.missing, report.unexpected) == (16, (), ())


def test_prototypes_named_by_torchs_newer_weight_normalisation_are_read(tmp_path):
    source, model = make_model(0), make_model(1)
    newer = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    state = source.teacher.state_dict()
    for old, new in newer.items():
        state = {name.replace(old, new): value for name, value in state.items()}
    load_heads(model.student, save({"teacher": state}, tmp_path))
    assert_equal_weights(model.student["dino_head"], source.teacher["dino_head"])


def test_an_ibot_head_that_the_model_has_not_is_left_and_said(tmp_path):
    source, model = make_model(0), make_model(1, has_ibot_head=False)
    report = load_heads(model.student, save({"teacher": source.teacher.state_dict()}, tmp_path))
    assert_equal_weights(model.student["dino_head"], source.teacher["dino_head"])
    assert len(report.unexpected) == 8
    assert "no iBOT head of its own" in str(report)


def test_a_shared_head_does_not_fill_two(tmp_path):
    path = save({"teacher": make_model(0, has_ibot_head=False).teacher.state_dict()}, tmp_path)
    with pytest.raises(UserError, match=r"also has ibot_head.*ibot\.separate_head=false"):
        load_heads(make_model(1).student, path)


@pytest.mark.parametrize(
    ("head", "settings"),
    [
        ({"out_dim": 20}, r"dino\.head_n_prototypes=20 \(now 12\)"),
        ({"bottleneck_dim": 4}, r"dino\.head_bottleneck_dim=4 \(now 6\)"),
        ({"hidden_dim": 9, "out_dim": 20}, r"head_n_prototypes=20 \(now 12\), dino\.head_hidden_dim=9 \(now 10\)"),
        ({"nlayers": 2}, r"dino\.head_nlayers=2 \(now 3\)"),
        ({"nlayers": 1}, r"dino\.head_nlayers=1 \(now 3\)"),
    ],
)
def test_a_head_of_another_shape_is_refused_with_the_keys_that_mend_it(head, settings, tmp_path):
    path = save({"teacher": make_model(0, **head).teacher.state_dict()}, tmp_path)
    with pytest.raises(UserError, match=rf"dino_head of.*in the file.*in the model.*To use it, set .*{settings}"):
        load_heads(make_model(1).student, path)


def test_no_head_is_changed_when_one_of_two_does_not_fit(tmp_path):
    state = make_model(0).teacher.state_dict()
    state["ibot_head.last_layer.weight_v"] = torch.ones(20, 6)
    model, untouched = make_model(1), make_model(1)
    with pytest.raises(UserError, match=r"ibot\.head_n_prototypes=20 \(now 12\)"):
        load_heads(model.student, save({"teacher": state}, tmp_path))
    assert_equal_weights(model, untouched)


def test_a_file_without_heads_is_refused_with_the_cure(tmp_path):
    path = save(make_model(0).teacher["backbone"].state_dict(), tmp_path)
    with pytest.raises(UserError, match=r"holds no head.*leave student\.heads_from empty"):
        load_heads(make_model(1).student, path)


# ------------------------------------------------------------------------------------------------ MODEL.WEIGHTS


@pytest.mark.parametrize(("in_file", "in_model"), [(0, 0), (0, 2), (2, 0), (4, 1)])
def test_a_whole_training_file_is_loaded_and_its_iteration_continued(in_file, in_model, tmp_path):
    source, model = make_model(0, block_chunks=in_file), make_model(1, block_chunks=in_model)
    assert load_whole_model(model, save(training_content(source), tmp_path)) == 42
    wanted = make_model(2, block_chunks=in_model)
    for network in ("student", "teacher"):
        backbone = getattr(wanted, network)["backbone"]
        backbone.load_state_dict(backbone.adapt_state_dict(getattr(source, network)["backbone"].state_dict()))
        for head in ("dino_head", "ibot_head"):
            getattr(wanted, network)[head].load_state_dict(getattr(source, network)[head].state_dict())
    wanted.dino_loss.load_state_dict(source.dino_loss.state_dict())
    wanted.ibot_patch_loss.load_state_dict(source.ibot_patch_loss.state_dict())
    assert_equal_weights(model, wanted)


def test_names_with_the_wrappers_of_fsdp_are_read(tmp_path):
    source, model = make_model(0), make_model(1)
    state = {
        name.replace("backbone.", "backbone._fsdp_wrapped_module.").replace(
            "head.", "head._fsdp_wrapped_module."
        ): value
        for name, value in source.state_dict().items()
    }
    load_whole_model(model, save(training_content(source, model=state), tmp_path))
    assert_equal_weights(model, source)


def test_a_file_without_iteration_starts_at_zero_and_one_with_nonsense_is_refused(tmp_path):
    model = make_model(1)
    assert load_whole_model(model, save({"model": model.state_dict()}, tmp_path)) == 0
    with pytest.raises(UserError, match="iteration='many'"):
        load_whole_model(model, save(training_content(model, iteration="many"), tmp_path))


def test_a_loss_without_centre_in_the_file_keeps_its_own(tmp_path):
    source, model, untouched = make_model(0), make_model(1), make_model(1)
    state = {name: value for name, value in source.state_dict().items() if name != "ibot_patch_loss.center"}
    load_whole_model(model, save(training_content(source, model=state), tmp_path))
    assert torch.equal(model.ibot_patch_loss.center, untouched.ibot_patch_loss.center)
    assert torch.equal(model.dino_loss.center, source.dino_loss.center)


def test_a_teacher_checkpoint_is_refused_with_the_keys_for_it(tmp_path):
    path = save({"teacher": make_model(0).teacher.state_dict()}, tmp_path)
    with pytest.raises(UserError, match=r"student\.pretrained_weights.*student\.heads_from"):
        load_whole_model(make_model(1), path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"has_ibot_head": False}, r"16 names missing \(student\.ibot_head"),
        ({"out_dim": 20}, r"other shapes \(student\.dino_head\.last_layer\.weight_g \(20, 1\) for \(12, 1\)"),
        ({"nlayers": 4}, "names too many"),
    ],
)
def test_the_training_of_another_model_is_refused(settings, message, tmp_path):
    path = save(training_content(make_model(0, **settings)), tmp_path)
    model, untouched = make_model(1), make_model(1)
    with pytest.raises(UserError, match=message):
        load_whole_model(model, path)
    assert_equal_weights(model, untouched)


def test_one_processs_slice_is_refused(tmp_path):
    state = {f"student.backbone.blocks.0.{name}": torch.ones(3) for name in ("attn.qkv.weight", "_flat_param")}
    with pytest.raises(UserError, match="one process's slice"):
        load_whole_model(make_model(1), save({"model": state, "iteration": 3}, tmp_path))
