"""An exported file is loaded strictly, known by its hash, and counts only when it computes what its source does."""

import json
from pathlib import Path

import pytest
import torch

from dinov2.models import vision_transformer as vits
from vet_extensions.errors import UserError
from vet_extensions.export import checkpoint as checkpoint_module
from vet_extensions.export.checkpoint import export_hub
from vet_extensions.export.parity import (
    Architecture,
    ParityError,
    check_parity,
    file_sha256,
    fixed_images,
    load_hub_file,
    sidecar_path,
)


def backbone() -> vits.DinoVisionTransformer:
    torch.manual_seed(0)
    return vits.vit_micro(patch_size=8, img_size=32, init_values=1.0, block_chunks=0).eval()


@pytest.fixture
def exported(tmp_path: Path) -> tuple[vits.DinoVisionTransformer, Path]:
    """A teacher and its exported file."""
    model = backbone()
    torch.save({"teacher": {f"backbone.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "source.pth")
    path = tmp_path / "out" / "teacher.pth"
    export_hub(tmp_path / "source.pth", path, arch="vit_micro", fresh_process=False)
    return model, path


def test_fixed_images_are_the_same_on_every_call():
    assert torch.equal(fixed_images(16), fixed_images(16))


def test_a_changed_byte_is_noticed_on_loading(exported):
    _, path = exported
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="SHA-256 differs"):
        load_hub_file(path)


def test_a_file_without_its_sidecar_says_what_is_missing(exported):
    _, path = exported
    sidecar_path(path).unlink()
    with pytest.raises(UserError, match=r"'teacher\.json' beside 'teacher\.pth' is missing"):
        load_hub_file(path)


@pytest.mark.parametrize("change", [{"version": 99}, {"format": "something"}])
def test_a_sidecar_of_another_format_is_refused(exported, change):
    _, path = exported
    content = json.loads(sidecar_path(path).read_text())
    sidecar_path(path).write_text(json.dumps(content | change))
    with pytest.raises(UserError, match="no sidecar that this release reads"):
        load_hub_file(path)


def test_a_difference_in_one_weight_fails_parity(exported):
    model, path = exported
    state = torch.load(path, weights_only=True)
    state["blocks.1.attn.proj.weight"][0, 0] += 1.0
    torch.save(state, path)
    content = json.loads(sidecar_path(path).read_text())
    sidecar_path(path).write_text(json.dumps(content | {"weights_sha256": file_sha256(path)}))
    report = check_parity(model, path, img_size=32, fresh_process=False)
    assert not report.passed
    assert report.max_abs_patch > 1e-4


def test_an_export_that_differs_is_left_under_a_failed_name_and_raises(tmp_path, monkeypatch):
    model = backbone()
    torch.save({"teacher": {f"backbone.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "source.pth")
    weights = checkpoint_module._weights

    def damaged(*args):
        return {name: tensor * (1.1 if name == "norm.weight" else 1.0) for name, tensor in weights(*args).items()}

    monkeypatch.setattr(checkpoint_module, "_weights", damaged)
    with pytest.raises(ParityError, match="does not compute what the teacher does"):
        export_hub(tmp_path / "source.pth", tmp_path / "out" / "t.pth", arch="vit_micro", fresh_process=False)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["t.json.failed", "t.pth.failed"]


def hub_like(**changes) -> Architecture:
    settings = {
        "arch": "vit_small",
        "patch_size": 14,
        "img_size": 224,
        "embed_dim": 384,
        "num_register_tokens": 0,
        "has_layerscale": True,
        "ffn_layer": "mlp",
        "qkv_bias": True,
        "proj_bias": True,
        "ffn_bias": True,
        "interpolate_antialias": False,
        "interpolate_offset": 0.1,
    }
    return Architecture(**(settings | changes))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "dinov2_vits14"),
        ({"num_register_tokens": 4}, "dinov2_vits14_reg"),
        ({"arch": "vit_giant2", "ffn_layer": "swiglufused"}, "dinov2_vitg14"),
        ({"arch": "vit_micro"}, None),
        ({"patch_size": 16}, None),
    ],
)
def test_the_hubs_constructor_is_found_by_size(changes, name):
    assert hub_like(**changes).hub_constructor == name
    assert hub_like(**changes).hub_obstacles() == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"has_layerscale": False}, "LayerScale"),
        ({"ffn_layer": "swiglufused"}, "ffn_layer=mlp"),
        ({"num_register_tokens": 8}, "0 or 4 register tokens"),
        ({"qkv_bias": False}, "qkv_bias"),
    ],
)
def test_each_obstacle_to_loading_in_the_hub_is_named(changes, reason):
    (obstacle,) = hub_like(**changes).hub_obstacles()
    assert reason in obstacle


def test_an_unknown_architecture_names_the_known_ones():
    with pytest.raises(UserError, match=r"Known: .*vit_small"):
        hub_like(arch="vit_enormous").build()
