"""Preparing, embedding, loading and caching: the same image gives the same features wherever it is looked at."""

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dinov2.configs import dinov2_default_config
from dinov2.eval.run_folder import list_checkpoints
from dinov2.models import build_model_from_cfg
from vet_extensions.errors import UserError
from vet_extensions.evaluation.features import (
    FeatureCache,
    Features,
    embed,
    load_backbone,
    prepare_image,
)


class Pixels:
    """Images in memory, with the two methods of a ShardReader."""

    def __init__(self, n_images: int = 7) -> None:
        self.images = np.random.default_rng(0).integers(0, 256, size=(n_images, 20, 16), dtype=np.uint8)

    def read(self, row_index: int, /) -> np.ndarray:
        return self.images[row_index]

    def __len__(self) -> int:
        return len(self.images)


class MeanBackbone(nn.Module):
    """Stands in for a backbone: its class token is the image's mean and variance."""

    patch_size = 8

    def forward_features(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        assert not self.training
        flat = x.flatten(1)
        token = torch.stack([flat.mean(dim=1), flat.var(dim=1)], dim=1)
        return {"x_norm_clstoken": token, "x_norm_patchtokens": torch.stack([token, 3 * token], dim=1)}


def micro_config(**student: object) -> DictConfig:
    """A run's configuration of the smallest backbone."""
    changes = {"student": {"arch": "vit_micro", "patch_size": 8, **student}, "crops": {"global_crops_size": 16}}
    config = OmegaConf.merge(dinov2_default_config, changes)
    assert isinstance(config, DictConfig)
    return config


def write_run(folder: Path, *, iterations: tuple[int, ...] = (9,), **student: object) -> nn.Module:
    """A run folder with one teacher checkpoint an iteration (all the same weights); returns the backbone."""
    config = micro_config(**student)
    backbone, _ = build_model_from_cfg(config, only_teacher=True)
    state = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
    for iteration in iterations:
        path = folder / "eval" / f"training_{iteration}" / "teacher_checkpoint.pth"
        path.parent.mkdir(parents=True)
        torch.save({"teacher": {**state, "dino_head.last_layer.weight": torch.zeros(1)}}, path)
    OmegaConf.save(config, folder / "config.yaml")
    return backbone.eval()


def test_eight_and_sixteen_bit_pixels_span_the_same_range() -> None:
    narrow, wide = np.array([[0, 255]], dtype=np.uint8), np.array([[0, 65535]], dtype=np.uint16)
    np.testing.assert_array_equal(prepare_image(narrow, 2), prepare_image(wide, 2))
    assert prepare_image(wide, 2).max() == 1.0


def test_the_aspect_is_kept_and_the_rest_is_black_on_both_sides() -> None:
    image = prepare_image(np.full((40, 20), 255, dtype=np.uint8), 16)
    expected = np.zeros((16, 16), dtype=np.float32)
    expected[:, 4:12] = 1.0
    np.testing.assert_allclose(image, expected, atol=1e-6)


def test_shrinking_averages_instead_of_picking_pixels() -> None:
    checkerboard = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    np.testing.assert_allclose(prepare_image(checkerboard, 16), 0.5, atol=1e-3)


def test_an_image_of_the_right_size_passes_unchanged() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, size=(16, 16), dtype=np.uint8)
    np.testing.assert_array_equal(prepare_image(pixels, 16), pixels.astype(np.float32) / 255)


def test_colour_and_float_images_are_refused() -> None:
    for pixels in (np.zeros((8, 8, 3), dtype=np.uint8), np.zeros((8, 8), dtype=np.float32)):
        with pytest.raises(UserError, match="uint8 or uint16"):
            prepare_image(pixels, 8)


def test_features_follow_row_index_whatever_the_batch_size() -> None:
    rows = np.array([5, 0, 3])
    whole = embed(MeanBackbone(), Pixels(), image_size_px=16, batch_size=64)
    some = embed(MeanBackbone(), Pixels(), image_size_px=16, row_index=rows, batch_size=2)
    np.testing.assert_allclose(some.cls, whole.cls[rows], rtol=1e-6)
    assert some.row_index.tolist() == rows.tolist()
    assert whole.cls.dtype == np.float32


def test_the_mean_patch_token_is_appended_on_request() -> None:
    features = embed(MeanBackbone(), Pixels(), image_size_px=16, tokens="cls+mean_patch").cls
    np.testing.assert_allclose(features[:, 2:], 2 * features[:, :2], rtol=1e-6)


def test_embedding_reports_progress_and_leaves_the_mode_as_it_was() -> None:
    seen: list[tuple[int, int]] = []
    backbone = MeanBackbone().train()
    embed(
        backbone, Pixels(), image_size_px=16, batch_size=3, on_progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(3, 7), (6, 7), (7, 7)]
    assert backbone.training


def test_a_size_that_patches_do_not_tile_names_the_sizes_that_fit() -> None:
    with pytest.raises(UserError, match="Use 16 or 24"):
        embed(MeanBackbone(), Pixels(), image_size_px=20)


def test_features_that_are_not_finite_are_refused() -> None:
    class Diverged(MeanBackbone):
        def forward_features(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"x_norm_clstoken": torch.full((len(x), 2), torch.nan)}

    with pytest.raises(UserError, match="7 of 7 images"):
        embed(Diverged(), Pixels(), image_size_px=16)


def test_checkpoints_are_listed_by_iteration_not_by_name(tmp_path: Path) -> None:
    write_run(tmp_path, iterations=(100, 9, 25))
    assert [iteration for iteration, _ in list_checkpoints(tmp_path)] == [9, 25, 100]


def test_a_loaded_backbone_gives_the_features_of_the_one_that_was_saved(tmp_path: Path) -> None:
    saved = write_run(tmp_path)
    loaded, config = load_backbone(tmp_path)
    by_file, _ = load_backbone(list_checkpoints(tmp_path)[-1][1])
    expected = embed(saved, Pixels(), image_size_px=16).cls
    assert config.student.arch == "vit_micro"
    for backbone in (loaded, by_file):
        np.testing.assert_array_equal(embed(backbone, Pixels(), image_size_px=16).cls, expected)


def test_a_checkpoint_of_another_architecture_is_refused_with_what_differs(tmp_path: Path) -> None:
    write_run(tmp_path)
    OmegaConf.save(micro_config(num_register_tokens=2), tmp_path / "config.yaml")
    with pytest.raises(UserError, match="1 keys missing \\(register_tokens\\)"):
        load_backbone(tmp_path)


def test_a_cut_off_checkpoint_is_a_sentence(tmp_path: Path) -> None:
    write_run(tmp_path)
    path = list_checkpoints(tmp_path)[-1][1]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="no readable weights file"):
        load_backbone(tmp_path)


def test_a_folder_without_checkpoint_or_config_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no eval/training_<iteration>/teacher_checkpoint\.pth"):
        load_backbone(tmp_path)
    write_run(tmp_path)
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"no config\.yaml"):
        load_backbone(tmp_path)


def test_cached_features_are_computed_once_and_again_after_damage(tmp_path: Path) -> None:
    cache, calls = FeatureCache(tmp_path), []

    def compute() -> Features:
        calls.append(1)
        return Features(cls=np.ones((2, 3), dtype=np.float32), row_index=np.arange(2))

    first, second = cache.get({"weights": "a"}, compute), cache.get({"weights": "a"}, compute)
    np.testing.assert_array_equal(first.cls, second.cls)
    assert len(calls) == 1
    for path in tmp_path.glob("*.npz"):
        path.write_bytes(b"PK\x03\x04 cut off")
    cache.get({"weights": "a"}, compute)
    cache.get({"weights": "b"}, compute)
    assert len(calls) == 3
