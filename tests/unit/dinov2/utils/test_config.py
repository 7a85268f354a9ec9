"""The configuration: defaults, unknown keys, types, scaling."""

from argparse import Namespace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dinov2.configs import dinov2_default_config, load_and_merge_config
from dinov2.utils.config import ConfigError, apply_scaling_rules_to_cfg, get_cfg_from_args, write_config


def arguments(tmp_path: Path, text: str = "", *opts: str) -> Namespace:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return Namespace(config_file=str(path), output_dir=str(tmp_path / "out"), opts=list(opts))


def test_command_line_wins_over_file_which_wins_over_defaults(tmp_path):
    cfg = get_cfg_from_args(arguments(tmp_path, "optim: {epochs: 3, base_lr: 1e-3}", "optim.epochs=5"))
    assert (cfg.optim.epochs, cfg.optim.base_lr, cfg.optim.clip_grad) == (5, 1e-3, 3.0)
    assert cfg.train.output_dir == str((tmp_path / "out").resolve())


def test_misspelt_key_names_the_nearest_key_file_and_line(tmp_path):
    with pytest.raises(ConfigError) as error:
        get_cfg_from_args(arguments(tmp_path, "train:\n  seed: 1\noptim:\n  base_lrr: 0.1\n"))
    message = str(error.value)
    assert "Unknown key 'optim.base_lrr'" in message
    assert "Did you mean 'optim.base_lr'?" in message
    assert "run.yaml:4" in message


def test_all_unknown_keys_are_reported_at_once(tmp_path):
    with pytest.raises(ConfigError) as error:
        get_cfg_from_args(arguments(tmp_path, "trian: {seed: 1}\ndino: {koleo: 1}", "crops.size=3"))
    assert all(word in str(error.value) for word in ("'trian'", "'dino.koleo'", "'crops.size'"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optim: {epochs: many}", "optim.epochs"),
        ("crops: {global_crops_scale: 0.3}", "crops.global_crops_scale"),
        ("train: 3", "'train'"),
        ("- a\n- b", "mapping"),
        ("a: [", "not valid YAML"),
        ("train: {output_dir: '${oc.env:HOME}'}", "Interpolation"),
    ],
)
def test_wrong_values_are_named(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said):
        get_cfg_from_args(arguments(tmp_path, text))


def test_open_sections_take_keys_of_the_named_object(tmp_path):
    cfg = get_cfg_from_args(arguments(tmp_path, "routing: {name: mine, strength: 2}"))
    assert cfg.routing.strength == 2


def test_option_without_equals_sign_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="key=value"):
        get_cfg_from_args(arguments(tmp_path, "", "optim.epochs"))


def test_learning_rate_scales_with_the_square_root_of_the_batch():
    cfg = dinov2_default_config.copy()
    cfg.train.batch_size_per_gpu = 256
    assert apply_scaling_rules_to_cfg(cfg).optim.lr == pytest.approx(0.004 / 2)


def test_written_config_reads_back_equal(tmp_path):
    cfg = load_and_merge_config("train/vitl14")
    assert OmegaConf.load(write_config(cfg, tmp_path)) == cfg
    assert cfg.ibot.head_n_prototypes == 131072
