"""timm's networks with the weights of a local file: the features are those of timm's own forward."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import tests.torchvision_ops as torchvision_ops
from vet_extensions.errors import UserError
from vet_extensions.evaluation.backbones import open_backbone

torchvision_ops.define()
timm = pytest.importorskip("timm")


def save(name: str, path: Path, *, n_classes: int = 0) -> Any:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=n_classes).eval()
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    if path.suffix == ".pth":
        torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    else:
        save_file(state, path)
    return model


def make_images(side: int) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "file", "n_classes"),
    [
        ("test_vit", "w.safetensors", 0),
        ("test_vit", "w.pth", 5),
        pytest.param("vit_tiny_patch16_dinov3_qkvb", "w.safetensors", 0, marks=pytest.mark.slow),
    ],
)
def test_tokens_are_those_of_forward_features(name: str, file: str, n_classes: int, tmp_path: Path) -> None:
    model = save(name, tmp_path / file, n_classes=n_classes)
    opened = open_backbone(f"timm:{name}:{tmp_path / file}")
    images = make_images(opened.image_size_px)
    with torch.inference_mode():
        expected = model.forward_features(images)
        first, last = opened.intermediate(images, [0, opened.n_blocks - 1])
    assert first.patches is not None
    assert last.patches is not None
    torch.testing.assert_close(last.patches.flatten(1, 2), expected[:, model.num_prefix_tokens :])
    torch.testing.assert_close(last.cls, expected[:, 0])
    assert first.patches.shape == last.patches.shape
    assert not torch.allclose(first.cls, last.cls)


def test_images_of_another_size_are_taken(tmp_path: Path) -> None:
    save("test_vit", tmp_path / "w.safetensors")
    assert open_backbone(f"timm:test_vit:{tmp_path / 'w.safetensors'}").patches(make_images(48)).shape == (2, 3, 3, 64)


@pytest.mark.parametrize(
    "name", ["test_vit2", "test_vit3", pytest.param("vit_base_patch16_siglip_224", marks=pytest.mark.slow)]
)
def test_a_network_without_a_class_token_gives_its_own_pooling(name: str, tmp_path: Path) -> None:
    model = save(name, tmp_path / "w.safetensors")
    opened = open_backbone(f"timm:{name}:{tmp_path / 'w.safetensors'}")
    images = make_images(opened.image_size_px)
    with torch.inference_mode():
        torch.testing.assert_close(opened.cls(images), model(images))


@pytest.mark.parametrize("spec", ["timm:test_resnet", "cnn:test_resnet", "cnn:test_vit"])
def test_pooled_vectors_are_what_the_network_gives_without_a_classifier(spec: str, tmp_path: Path) -> None:
    name = spec.partition(":")[2]
    model, images = save(name, tmp_path / "w.safetensors", n_classes=3), make_images(160)
    opened = open_backbone(f"{spec}:{tmp_path / 'w.safetensors'}")
    model.reset_classifier(0)
    with torch.inference_mode():
        torch.testing.assert_close(opened.cls(images), model(images))
    assert (opened.patch_size, opened.n_blocks, opened.embed_dim) == (None, 0, model.num_features)


def test_a_random_one_needs_no_file_and_follows_from_its_seed() -> None:
    first, again = (open_backbone("random:cnn:test_resnet") for _ in range(2))
    torch.testing.assert_close(first.cls(make_images(64)), again.cls(make_images(64)), rtol=0, atol=0)
    assert first.weights_hash == again.weights_hash != ""


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save("test_vit2", tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="not those of timm's test_vit"):
        open_backbone(f"timm:test_vit:{tmp_path / 'w.safetensors'}").cls(make_images(160))


def test_names_that_timm_does_not_know_come_with_near_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Near: .*resnet1"):
        open_backbone("random:timm:resnet1")
    with pytest.raises(UserError, match="no weights file"):
        open_backbone(f"timm:test_vit:{tmp_path / 'nowhere.pth'}")
