"""Folders of transformers: the features are those of the library's own forward, for every family of vision models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tests.torchvision_ops as torchvision_ops
from vet_extensions.errors import UserError
from vet_extensions.evaluation.backbones import open_backbone

torchvision_ops.define()
transformers = pytest.importorskip("transformers")

WIDTH = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
PLAIN = {**WIDTH, "intermediate_size": 64}
CONFIGS: dict[str, Callable[[], Any]] = {
    "dinov2": lambda: transformers.Dinov2Config(**WIDTH),
    "registers": lambda: transformers.Dinov2WithRegistersConfig(**WIDTH, num_register_tokens=2),
    "dinov3": lambda: transformers.DINOv3ViTConfig(**PLAIN, num_register_tokens=2),
    "vit": lambda: transformers.ViTConfig(**PLAIN),
    "deit": lambda: transformers.DeiTConfig(**PLAIN),
    "msn": lambda: transformers.ViTMSNConfig(**PLAIN),
    "beit": lambda: transformers.BeitConfig(**PLAIN),
}


def save(config: Any, folder: Path) -> Any:
    """A model with weights that are not those of its initialisation, which are too regular, and its folder."""
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def make_images(side: int = 32) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_tokens_are_those_of_the_last_hidden_state(kind: str, tmp_path: Path) -> None:
    model, images = save(CONFIGS[kind](), tmp_path), make_images()
    opened = open_backbone(f"hf:{tmp_path}")
    with torch.inference_mode():
        expected = model(pixel_values=images).last_hidden_state
        (found,) = opened.intermediate(images)
    assert found.patches is not None
    torch.testing.assert_close(found.cls, expected[:, 0])
    torch.testing.assert_close(found.patches.flatten(1, 2), expected[:, -16:])
    assert (opened.embed_dim, opened.patch_size, opened.n_blocks) == (32, 8, 3)
    assert opened.patches(make_images(48)).shape == (2, 6, 6, 32)


def test_earlier_blocks_are_hidden_states_through_the_final_norm(tmp_path: Path) -> None:
    model, images = save(CONFIGS["dinov2"](), tmp_path), make_images()
    with torch.inference_mode():
        states = model(pixel_values=images, output_hidden_states=True).hidden_states  # the embeddings, then each block
        found = open_backbone(f"hf:{tmp_path}").intermediate(images, 2)
        torch.testing.assert_close(found[0].cls, model.layernorm(states[2])[:, 0])


@pytest.mark.parametrize("is_whole", [False, True])
def test_clip_gives_what_its_vision_part_pools_before_the_projection(is_whole: bool, tmp_path: Path) -> None:
    text = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 100,
    }
    if is_whole:
        config = transformers.CLIPConfig(
            vision_config=PLAIN, text_config={**text, "bos_token_id": 1, "eos_token_id": 2}
        )
    else:
        config = transformers.CLIPVisionConfig(**PLAIN)
    model, images = save(config, tmp_path), make_images()
    with torch.inference_mode():
        vision = model.vision_model if is_whole else model
        torch.testing.assert_close(
            open_backbone(f"hf:{tmp_path}").cls(images), vision(pixel_values=images).pooler_output
        )


def test_a_network_without_a_class_token_gives_its_own_pooling(tmp_path: Path) -> None:
    model, images = save(transformers.SiglipVisionConfig(**PLAIN), tmp_path), make_images()
    with torch.inference_mode():
        expected = model(pixel_values=images)
        (found,) = open_backbone(f"hf:{tmp_path}").intermediate(images)
    assert found.patches is not None
    torch.testing.assert_close(found.cls, expected.pooler_output)
    torch.testing.assert_close(found.patches.flatten(1, 2), expected.last_hidden_state)


def test_mae_sees_every_patch_in_its_place(tmp_path: Path) -> None:
    model, images = save(transformers.ViTMAEConfig(**PLAIN), tmp_path), make_images()
    model.config.mask_ratio = 0.0
    opened = open_backbone(f"hf:{tmp_path}")
    with torch.inference_mode():
        expected = model(pixel_values=images, noise=torch.arange(16.0).expand(2, -1)).last_hidden_state
        first, again = opened.patches(images), opened.patches(images)
    torch.testing.assert_close(first.flatten(1, 2), expected[:, 1:])
    torch.testing.assert_close(first, again, rtol=0, atol=0)


def test_networks_with_a_changing_grid_give_their_pooled_vector(tmp_path: Path) -> None:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
    model, images = save(config, tmp_path), make_images()
    opened = open_backbone(f"hf:{tmp_path}")
    with torch.inference_mode():
        torch.testing.assert_close(opened.cls(images), model(pixel_values=images).pooler_output.flatten(1))
    assert (opened.embed_dim, opened.patch_size, opened.n_blocks) == (32, None, 0)
    with pytest.raises(UserError, match="no patch features"):
        opened.patches(images)


def test_preprocessing_is_the_folders_own(tmp_path: Path) -> None:
    save(CONFIGS["dinov2"](), tmp_path)
    stated = {
        "image_mean": [0.1] * 3,
        "image_std": [0.3] * 3,
        "size": {"shortest_edge": 60},
        "crop_size": {"height": 52, "width": 52},
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    opened = open_backbone(f"hf:{tmp_path}")
    assert (opened.mean, opened.std, opened.image_size_px) == ((0.1,) * 3, (0.3,) * 3, 48)


def test_a_random_one_has_the_architecture_and_other_weights(tmp_path: Path) -> None:
    save(CONFIGS["dinov3"](), tmp_path)
    opened, control = open_backbone(f"hf:{tmp_path}"), open_backbone(f"random:hf:{tmp_path}")
    assert control.architecture == opened.architecture
    assert control.weights_hash != opened.weights_hash
    assert control.cls(make_images()).shape == (2, 32)
    assert not torch.allclose(control.cls(make_images()), opened.cls(make_images()))


def test_other_weights_have_another_hash(tmp_path: Path) -> None:
    save(CONFIGS["vit"](), tmp_path)
    before = open_backbone(f"hf:{tmp_path}").weights_hash
    state = load_file(tmp_path / "model.safetensors")
    save_file(
        {name: value + 1 for name, value in state.items()}, tmp_path / "model.safetensors", metadata={"format": "pt"}
    )
    assert open_backbone(f"hf:{tmp_path}").weights_hash != before


def test_weights_that_lack_a_layer_are_refused(tmp_path: Path) -> None:
    save(CONFIGS["dinov2"](), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in state.items() if ".1.mlp" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="would stay random"):
        open_backbone(f"hf:{tmp_path}").cls(make_images())


def test_what_is_no_folder_of_a_vision_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lacks config\.json"):
        open_backbone(f"hf:{tmp_path}")
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50
    )
    save(config, tmp_path)
    with pytest.raises(UserError, match="no vision model"):
        open_backbone(f"hf:{tmp_path}")
