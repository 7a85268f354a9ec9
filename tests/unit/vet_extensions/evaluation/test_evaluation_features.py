"""Preparing images and loading backbones: the same image gives the same features wherever it is looked at."""

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from run_factory import micro_config, write_run

from dinov2.eval.run_folder import list_checkpoints
from vet_extensions.errors import UserError
from vet_extensions.evaluation.features import load_backbone, prepare_image


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


def test_checkpoints_are_listed_by_iteration_not_by_name(tmp_path: Path) -> None:
    write_run(tmp_path, iterations=(100, 9, 25))
    assert [iteration for iteration, _ in list_checkpoints(tmp_path)] == [9, 25, 100]


def test_a_loaded_backbone_gives_the_features_of_the_one_that_was_saved(tmp_path: Path) -> None:
    saved = write_run(tmp_path)
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for given in (tmp_path, list_checkpoints(tmp_path)[-1][1]):
        loaded, config = load_backbone(given)
        assert config.student.arch == "vit_micro"
        torch.testing.assert_close(loaded(images), saved(images), rtol=0, atol=0)


def test_a_checkpoint_of_another_architecture_is_refused_with_what_differs(tmp_path: Path) -> None:
    write_run(tmp_path)
    OmegaConf.save(micro_config(student={"num_register_tokens": 2}), tmp_path / "config.yaml")
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
