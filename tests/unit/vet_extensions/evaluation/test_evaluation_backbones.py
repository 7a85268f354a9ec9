"""Backbones of this project and released weights by one text; each gives what its own network gives."""

from pathlib import Path

import numpy as np
import pytest
import torch
from run_factory import micro_config, write_run
from torch import Tensor

from dinov2.hub import backbones as hub
from dinov2.models import build_model_from_cfg
from vet_extensions.errors import UserError
from vet_extensions.evaluation.backbones import architecture_of, open_backbone


def make_images(side: int) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_a_run_is_its_newest_teacher_with_the_preprocessing_it_was_trained_with(tmp_path: Path) -> None:
    saved = write_run(tmp_path, routing={"name": "vet_dino"}, train={"seed": 5})
    opened = open_backbone(tmp_path)
    expected = saved.forward_features(make_images(16))  # type: ignore[operator]
    torch.testing.assert_close(opened.cls(make_images(16)), expected["x_norm_clstoken"])
    torch.testing.assert_close(opened.patches(make_images(16)).flatten(1, 2), expected["x_norm_patchtokens"])
    assert (opened.name, opened.seed, opened.iteration) == ("vet_dino", 5, 9)
    assert (opened.embed_dim, opened.patch_size, opened.n_blocks, opened.image_size_px) == (128, 8, 4, 16)


def test_intermediate_blocks_come_in_their_order_and_pass_gradients(tmp_path: Path) -> None:
    write_run(tmp_path)
    opened = open_backbone(tmp_path)
    chosen, last = opened.intermediate(make_images(16), [3, 0]), opened.intermediate(make_images(16), 2)
    torch.testing.assert_close(chosen[1].cls, last[1].cls)
    assert not torch.allclose(chosen[0].cls, last[0].cls)
    last[0].cls.sum().backward()
    assert next(opened.model.parameters()).grad is not None


@pytest.mark.parametrize("n", [5, 0, [4], [-1]])
def test_blocks_that_are_not_there_are_refused(tmp_path: Path, n: object) -> None:
    write_run(tmp_path)
    with pytest.raises(UserError, match="at most its last 4"):
        open_backbone(tmp_path).intermediate(make_images(16), n)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("entry", [hub.dinov2_vits14, hub.dinov2_vits14_reg])
def test_released_files_give_the_features_of_the_hub_entry(tmp_path: Path, entry) -> None:
    torch.manual_seed(0)
    model = entry(pretrained=False).eval()
    torch.save(model.state_dict(), tmp_path / "dinov2_vits14_pretrain.pth")
    opened = open_backbone(tmp_path / "dinov2_vits14_pretrain.pth")
    with torch.inference_mode():
        expected = model.forward_features(make_images(56))
        torch.testing.assert_close(opened.cls(make_images(56)), expected["x_norm_clstoken"])
        torch.testing.assert_close(opened.patches(make_images(56)).flatten(1, 2), expected["x_norm_patchtokens"])
    assert (opened.name, opened.image_size_px, opened.n_blocks) == ("dinov2_vits14_pretrain", 224, 12)


def test_weights_of_an_unknown_size_ask_for_their_configuration(tmp_path: Path) -> None:
    model, _ = build_model_from_cfg(micro_config(), only_teacher=True)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"config\.yaml beside the file"):
        open_backbone(tmp_path / "weights.pth")


def test_released_dinov3_files_are_pointed_to_what_reads_them(tmp_path: Path) -> None:
    torch.save({"cls_token": torch.zeros(1, 1, 384), "storage_tokens": torch.zeros(1, 4, 384)}, tmp_path / "dinov3.pth")
    with pytest.raises(UserError, match="timm:vit_small_patch16_dinov3:FILE"):
        open_backbone(tmp_path / "dinov3.pth")


def test_random_weights_follow_from_the_seed_and_leave_the_global_state_alone(tmp_path: Path) -> None:
    write_run(tmp_path, train={"seed": 5})
    known, before = open_backbone(tmp_path), torch.random.get_rng_state()
    assert known.untrained is not None
    states = [known.untrained(seed).model.state_dict() for seed in (1, 1, 2)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["patch_embed.proj.weight"], states[2]["patch_embed.proj.weight"])
    assert known.untrained(1).weights_hash != known.untrained(2).weights_hash
    control = open_backbone(f"random:{tmp_path}")
    assert (control.seed, control.architecture, control.embed_dim) == (5, known.architecture, 128)


def test_runs_that_differ_only_in_training_share_their_architecture() -> None:
    assert architecture_of(micro_config(student={"drop_path_rate": 0.1})) == architecture_of(micro_config())
    assert architecture_of(micro_config(student={"num_register_tokens": 4})) != architecture_of(micro_config())


def test_pixels_ignore_exposure() -> None:
    ramp = torch.linspace(0, 1, 32 * 32).view(1, 1, 32, 32).expand(1, 3, 32, 32)
    opened = open_backbone("pixels")
    vectors = opened.cls(torch.cat([ramp, 0.2 + 0.5 * ramp]))
    torch.testing.assert_close(vectors[0], vectors[1], atol=1e-4, rtol=0)
    np.testing.assert_allclose(vectors.numpy().std(axis=1), 1, atol=1e-3)
    with pytest.raises(UserError, match="no patch features"):
        opened.patches(ramp)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("random:pixels", "Leave 'random:' out"),
        ("timm:vit_small_patch14_dinov2", "random:timm:vit_small_patch14_dinov2"),
        ("cnn:resnet18", "cnn:resnet18:FILE"),
        ("nowhere", "does not exist"),
    ],
)
def test_what_names_no_backbone_says_what_would(spec: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        open_backbone(spec)


def test_a_folder_of_transformers_without_its_prefix_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="write hf: before it"):
        open_backbone(tmp_path)
