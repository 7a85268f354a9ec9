"""Hub entries: names, addresses, and weights from files of every layout. A small architecture stands in for the real sizes."""

import runpy
from pathlib import Path
from urllib.error import URLError

import pytest
import torch

from dinov2.hub import backbones, classifiers
from dinov2.hub.backbones import Weights, _make_dinov2_model
from dinov2.hub.utils import make_backbone_url
from dinov2.models import vision_transformer as vits
from dinov2.utils.errors import UserError

BASE = "https://dl.fbaipublicfiles.com/dinov2"
ROOT = Path(__file__).parents[4]


def make_trained(**settings):
    torch.manual_seed(0)
    defaults = {"patch_size": 14, "img_size": 56, "init_values": 0.5, "block_chunks": 0}
    model = vits.vit_micro(**{**defaults, **settings}).eval()
    torch.nn.init.normal_(model.pos_embed)
    return model


def load(path, **settings):
    return _make_dinov2_model(arch_name="vit_micro", img_size=126, weights=path, **settings).eval()


def save(content, folder):
    torch.save(content, folder / "weights.pth")
    return folder / "weights.pth"


@pytest.mark.parametrize(
    ("arch", "registers", "path"),
    [
        ("vit_small", 0, "dinov2_vits14/dinov2_vits14_pretrain.pth"),
        ("vit_base", 4, "dinov2_vitb14/dinov2_vitb14_reg4_pretrain.pth"),
        ("vit_giant2", 4, "dinov2_vitg14/dinov2_vitg14_reg4_pretrain.pth"),
    ],
)
def test_released_weights_have_their_official_address(arch, registers, path):
    assert make_backbone_url(arch, 14, registers) == f"{BASE}/{path}"


@pytest.mark.parametrize("weights", [Weights.LVD142M, "LVD142M"])
def test_enum_and_name_mean_the_released_weights(weights, monkeypatch):
    asked = []

    def offline(url, **kwargs):
        asked.append(url)
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(UserError, match="give its path"):
        backbones.dinov2_vits14_reg(weights=weights)
    assert asked == [f"{BASE}/dinov2_vits14/dinov2_vits14_reg4_pretrain.pth"]


@pytest.mark.parametrize("block_chunks", [0, 2])
def test_teacher_checkpoint_loads_and_gives_its_features(block_chunks, tmp_path):
    trained = make_trained(block_chunks=block_chunks)
    state = {f"backbone.{name}": value for name, value in trained.state_dict().items()}
    path = save({"teacher": {**state, "dino_head.mlp.weight": torch.ones(1)}}, tmp_path)
    x = torch.randn(2, 3, 56, 56)
    torch.testing.assert_close(load(path)(x), trained(x), rtol=1e-4, atol=1e-4)


def test_plain_state_dict_loads_by_string_path_into_a_chunked_model(tmp_path):
    trained = make_trained(num_register_tokens=4)
    settings = {"num_register_tokens": 4, "interpolate_antialias": True, "interpolate_offset": 0.0}
    model = load(str(save({"model": trained.state_dict()}, tmp_path)), block_chunks=2, **settings)
    assert torch.equal(model.blocks[1][3].mlp.fc1.weight, trained.blocks[3].mlp.fc1.weight)
    assert model.pos_embed.shape == (1, 82, 128)


@pytest.mark.parametrize("change", [{"num_register_tokens": 2}, {"init_values": None}, {"patch_size": 16}])
def test_weights_of_another_architecture_are_refused(change, tmp_path):
    path = save(make_trained(**change).state_dict(), tmp_path)
    with pytest.raises(UserError, match="not those of this architecture"):
        load(path)


@pytest.mark.parametrize("weights", ["absent.pth", classifiers.Weights.IMAGENET1K, ""])
def test_an_unknown_set_of_weights_lists_what_is_allowed(weights):
    with pytest.raises(UserError, match="LVD142M"):
        load(weights)


def test_hubconf_exports_the_official_backbones_and_classifiers():
    exported = runpy.run_path(str(ROOT / "hubconf.py"))
    assert exported["dependencies"] == ["torch"]
    names = {name for name in exported if name.startswith("dinov2_")}
    kinds = ("", "_reg", "_lc", "_reg_lc")
    assert names == {f"dinov2_vit{size}14{kind}" for size in "sblg" for kind in kinds}


def test_register_entries_resize_positions_by_size():
    with torch.device("meta"):
        model = backbones.dinov2_vits14_reg(pretrained=False)
        plain = backbones.dinov2_vits14(pretrained=False, img_size=224)
    assert (model.num_register_tokens, model.interpolate_antialias, model.interpolate_offset) == (4, True, 0.0)
    assert (plain.num_register_tokens, plain.interpolate_antialias, plain.interpolate_offset) == (0, False, 0.1)
    assert plain.pos_embed.shape[1] == 257
