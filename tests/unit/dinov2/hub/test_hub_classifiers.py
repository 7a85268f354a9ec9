"""Linear classifiers of the hub: what they compute, by hand on a small backbone, and which files they take."""

from urllib.error import URLError

import pytest
import torch
from torch import nn

from dinov2.hub import classifiers
from dinov2.hub.classifiers import Weights, _LinearClassifierWrapper, _make_dinov2_linear_classifier
from dinov2.hub.utils import CenterPadding, make_linear_head_url
from dinov2.models import vision_transformer as vits
from dinov2.utils.errors import UserError

BASE = "https://dl.fbaipublicfiles.com/dinov2"
SMALL = {"arch_name": "vit_micro", "img_size": 56, "num_register_tokens": 2}
DIM = 128


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    model = vits.vit_micro(patch_size=14, img_size=56, init_values=0.5, block_chunks=0, num_register_tokens=2).eval()
    return model.requires_grad_(False)


@pytest.fixture
def images():
    return torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def saved(tmp_path, backbone):
    """Paths of a backbone's weights and of a classifier with three classes on four layers."""
    torch.save(backbone.state_dict(), tmp_path / "backbone.pth")
    head = {"weight": torch.randn(3, 5 * DIM), "bias": torch.randn(3)}
    torch.save(head, tmp_path / "head.pth")
    return {"backbone_weights": tmp_path / "backbone.pth", "weights": tmp_path / "head.pth"}


def tokens_after_each_block(backbone, images):
    """[B, 1 + R + N, D] after every block and the final norm, block by block."""
    tokens, outputs = backbone.prepare_tokens_with_masks(images), []
    for block in backbone.blocks:
        tokens = block(tokens)
        outputs.append(backbone.norm(tokens))
    return outputs


def test_on_one_layer_it_reads_the_class_token_and_the_mean_patch(backbone, images):
    head = nn.Linear(2 * DIM, 7)
    last = tokens_after_each_block(backbone, images)[-1]
    wanted = torch.cat([last[:, 0], last[:, 3:].mean(dim=1)], dim=1) @ head.weight.T + head.bias
    got = _LinearClassifierWrapper(backbone=backbone, linear_head=head, layers=1)(images)
    torch.testing.assert_close(got, wanted)


def test_on_four_layers_it_reads_their_class_tokens_earliest_first_and_the_last_mean_patch(backbone, images):
    head = nn.Linear(5 * DIM, 7)
    outputs = tokens_after_each_block(backbone, images)
    wanted = torch.cat([*(o[:, 0] for o in outputs[-4:]), outputs[-1][:, 3:].mean(dim=1)], dim=1)
    got = _LinearClassifierWrapper(backbone, head, 4)(images)
    torch.testing.assert_close(got, wanted @ head.weight.T + head.bias)


@pytest.mark.parametrize("layers", [1, 4])
def test_without_weights_it_has_imagenets_classes(layers, images):
    model = _make_dinov2_linear_classifier(layers=layers, pretrained=False, **SMALL)
    assert model.linear_head.weight.shape == (1000, (layers + 1) * DIM)
    assert model(images).shape == (2, 1000)


def test_files_of_ones_own_give_backbone_classifier_and_number_of_classes(saved, backbone, images):
    model = _make_dinov2_linear_classifier(**saved, **SMALL).eval()
    head = torch.load(saved["weights"])
    assert torch.equal(model.linear_head.weight, head["weight"])
    assert torch.equal(model.linear_head.bias, head["bias"])
    assert torch.equal(model.backbone.cls_token, backbone.cls_token)
    assert model(images).shape == (2, 3)


def test_a_classifier_of_another_number_of_layers_names_the_right_one(saved):
    with pytest.raises(UserError, match="Give layers=4"):
        _make_dinov2_linear_classifier(layers=1, **saved, **SMALL)


def test_a_classifier_of_another_backbone_is_refused(saved, tmp_path):
    torch.save({"weight": torch.ones(3, 77), "bias": torch.ones(3)}, tmp_path / "head.pth")
    with pytest.raises(UserError, match="77 features"):
        _make_dinov2_linear_classifier(**saved, **SMALL)


def test_a_file_that_is_no_classifier_is_refused(saved):
    with pytest.raises(UserError, match="is no linear classifier"):
        _make_dinov2_linear_classifier(weights=saved["backbone_weights"], **SMALL)


@pytest.mark.parametrize("layers", [0, 2, "4"])
def test_other_numbers_of_layers_are_refused(layers):
    with pytest.raises(UserError, match="the last 1 or the last 4"):
        classifiers.dinov2_vits14_lc(layers=layers, pretrained=False)


def test_a_missing_backbone_file_is_named_by_its_option(saved):
    with pytest.raises(UserError, match=r"backbone_weights='absent\.pth'"):
        _make_dinov2_linear_classifier(weights=saved["weights"], backbone_weights="absent.pth", **SMALL)


@pytest.mark.parametrize(
    ("arch", "registers", "layers", "path"),
    [
        ("vit_small", 0, 1, "dinov2_vits14/dinov2_vits14_linear_head.pth"),
        ("vit_large", 0, 4, "dinov2_vitl14/dinov2_vitl14_linear4_head.pth"),
        ("vit_giant2", 4, 4, "dinov2_vitg14/dinov2_vitg14_reg4_linear4_head.pth"),
    ],
)
def test_released_classifiers_have_their_official_address(arch, registers, layers, path):
    assert make_linear_head_url(arch, 14, registers, layers=layers) == f"{BASE}/{path}"


@pytest.mark.parametrize("weights", [Weights.IMAGENET1K, "IMAGENET1K"])
def test_without_a_network_the_classifier_is_asked_for_before_the_backbone(weights, monkeypatch):
    asked = []

    def offline(url, **kwargs):
        asked.append(url)
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(UserError, match="give its path"):
        classifiers.dinov2_vitb14_reg_lc(weights=weights)
    assert asked == [f"{BASE}/dinov2_vitb14/dinov2_vitb14_reg4_linear4_head.pth"]


@pytest.mark.parametrize(("size", "dim"), [("s", 384), ("b", 768), ("l", 1024), ("g", 1536)])
@pytest.mark.parametrize("registers", ["", "_reg"])
def test_every_entry_has_the_size_of_its_name(size, dim, registers):
    with torch.device("meta"):
        model = getattr(classifiers, f"dinov2_vit{size}14{registers}_lc")(layers=1, pretrained=False)
    assert model.linear_head.in_features == 2 * dim
    assert model.backbone.num_register_tokens == (4 if registers else 0)
    assert model.backbone.interpolate_antialias == bool(registers)


def test_padding_reaches_whole_patches_and_puts_the_odd_pixel_right_and_below():
    padded = CenterPadding(14)(torch.ones(1, 3, 25, 30))
    assert padded.shape == (1, 3, 28, 42)
    rows, columns = padded[0, 0].sum(dim=1).nonzero(), padded[0, 0].sum(dim=0).nonzero()
    assert (int(rows.min()), int(rows.max())) == (1, 25)
    assert (int(columns.min()), int(columns.max())) == (6, 35)


def test_padding_leaves_whole_patches_alone():
    images = torch.randn(1, 3, 28, 14)
    assert torch.equal(CenterPadding(14)(images), images)


def test_gradients_pass_through_padding():
    images = torch.ones(1, 1, 5, 5, requires_grad=True)
    CenterPadding(4)(images).sum().backward()
    assert torch.equal(images.grad, torch.ones_like(images))
