"""Options, devices, dtypes and exit statuses that the evaluation command lines share."""

import argparse

import pytest
import torch
from omegaconf import OmegaConf

from dinov2.configs import dinov2_default_config
from dinov2.eval import knn, setup
from dinov2.models import build_model_from_cfg
from dinov2.utils.device import resolve_device
from dinov2.utils.errors import UserError


def config(**changes):
    small = {"student": {"arch": "vit_micro", "patch_size": 16}, "crops": {"global_crops_size": 32}}
    return OmegaConf.merge(dinov2_default_config, small, {"train": {"device": "cpu"}}, changes)


@pytest.mark.parametrize(("name", "dtype"), [("fp16", torch.half), ("bf16", torch.bfloat16), ("fp32", torch.float)])
def test_autocast_dtype_is_that_of_the_teacher_backbone(name, dtype):
    cfg = config()
    cfg.compute_precision.teacher.backbone.mixed_precision.param_dtype = name
    assert setup.get_autocast_dtype(cfg) == dtype


def test_the_model_is_the_teacher_of_the_checkpoint_ready_for_evaluation(tmp_path):
    teacher, _ = build_model_from_cfg(config(), only_teacher=True)
    state = {f"backbone.{name}": value for name, value in teacher.state_dict().items()}
    torch.save({"teacher": {**state, "dino_head.mlp.0.weight": torch.zeros(1)}}, tmp_path / "teacher_checkpoint.pth")
    model = setup.build_model_for_eval(config(), str(tmp_path / "teacher_checkpoint.pth"))
    assert not model.training
    torch.testing.assert_close(model.state_dict(), teacher.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("device", ["cuda", "gpu0"])
def test_a_device_that_is_not_there_is_named(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"train.device is '{device}'"):
        resolve_device(device)


def failing(error):
    def main(args: argparse.Namespace) -> None:
        raise error

    return main


def test_a_users_mistake_ends_with_its_sentence_and_status_2(capsys):
    with pytest.raises(SystemExit) as exit_:
        setup.run_command_line(failing(UserError("no such thing")), setup.get_args_parser(), [])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "error: no such thing\n"


def test_a_users_mistake_beside_the_main_process_is_told_with_the_rank(capsys, monkeypatch):
    place = {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as exit_:
        setup.run_command_line(failing(UserError("no such thing")), setup.get_args_parser(), [])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "[rank 3] error: no such thing\n"


def test_launcher_variables_that_contradict_themselves_are_told_as_they_are(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(SystemExit):
        setup.run_command_line(knn.main, knn.get_args_parser(), [])
    assert capsys.readouterr().err.startswith("error: The environment has WORLD_SIZE but not ")


def test_debug_shows_the_traceback_of_a_users_mistake():
    with pytest.raises(UserError):
        setup.run_command_line(failing(UserError("no such thing")), setup.get_args_parser(), ["--debug"])


def test_an_interruption_ends_with_status_130():
    assert setup.run_command_line(failing(KeyboardInterrupt()), setup.get_args_parser(), []) == 130


def test_success_ends_with_status_0():
    assert setup.run_command_line(lambda args: {"accuracy": 1.0}, setup.get_args_parser(), []) == 0


@pytest.mark.parametrize("text", ["0", "-3", "two", "1.5"])
def test_an_option_that_counts_refuses_what_is_no_count(text, capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-size", type=setup.positive_int)
    with pytest.raises(SystemExit):
        parser.parse_args([f"--batch-size={text}"])
    assert f"--batch-size: '{text}' is not a whole number above 0" in capsys.readouterr().err
