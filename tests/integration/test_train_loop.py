"""The train loop as a user starts it: it trains, resumes exactly, and says what is wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from study_factory import make_intake
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dinov2.models import build_model_from_cfg
from dinov2.train.run_folder import is_free, sole_owner
from dinov2.train.train import run
from dinov2.utils.config import OmegaConf
from vet_extensions.schema import View

TINY = """
compute_precision: {grad_scaler: false}
dino: {head_n_prototypes: 32, head_bottleneck_dim: 8, head_hidden_dim: 16}
ibot: {loss_weight: 1.0}
train: {batch_size_per_gpu: 4, num_workers: 0, OFFICIAL_EPOCH_LENGTH: 4, sampler: seeded, checkpoint_period_iterations: 2,
        device: cpu, log_period_iterations: 1}
student: {arch: vit_micro, patch_size: 8, drop_path_rate: 0.2, layerscale: 1.0}
teacher: {warmup_teacher_temp_epochs: 1}
optim: {epochs: 3, warmup_epochs: 1}
crops: {global_crops_size: 32, local_crops_size: 16, local_crops_number: 2}
evaluation: {eval_period_iterations: 6}
plugins: [vet_extensions]
augmentation: {name: paired_views}
routing: {name: vet_dino}
"""


@pytest.fixture(scope="module")
def intake(tmp_path_factory) -> Path:
    return make_intake(tmp_path_factory.mktemp("studies"))


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def arguments(config: Path, intake: Path, out: Path, *opts: str) -> list[str]:
    data = f"train.dataset_path=VetStudies:root={intake}"
    return ["--config-file", str(config), "--output-dir", str(out), data, *opts]


def losses(out: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (out / "training_metrics.json").read_text().splitlines()]
    return {line["iteration"]: line["total_loss"] for line in lines}


def teacher(out: Path, iteration: int) -> dict[str, torch.Tensor]:
    path = out / "eval" / f"training_{iteration}" / "teacher_checkpoint.pth"
    return torch.load(path, weights_only=True)["teacher"]


def same_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def undisturbed(intake, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    config = folder / "tiny.yaml"
    config.write_text(TINY)
    assert run(arguments(config, intake, folder / "run")) == 0
    return folder / "run"


@pytest.mark.parametrize("routing", ["same_image", "vet_dino"])
def test_training_writes_config_metrics_checkpoints_and_teacher(routing, config, intake, tmp_path):
    out = tmp_path / "run"
    assert run(arguments(config, intake, out, f"routing.name={routing}", "optim.epochs=1")) == 0
    assert OmegaConf.load(out / "config.yaml").routing.name == routing
    metrics = json.loads((out / "training_metrics.json").read_text().splitlines()[-1])
    assert {"dino_local_crops_loss", "dino_global_crops_loss", "koleo_loss", "ibot_loss", "teacher_entropy"} <= set(
        metrics
    )
    assert (out / "checkpoints" / "0000003" / "meta.json").is_file()
    assert routing in (out / "logs" / "log.txt").read_text()


def test_teacher_checkpoint_loads_with_strict_keys_into_the_builders_model(undisturbed):
    cfg = OmegaConf.load(undisturbed / "config.yaml")
    model, _ = build_model_from_cfg(cfg, only_teacher=True)
    state = {k.removeprefix("backbone."): v for k, v in teacher(undisturbed, 11).items() if k.startswith("backbone.")}
    model.load_state_dict(state, strict=True)


def test_a_run_with_loader_workers_draws_the_same_crops(undisturbed, config, intake, tmp_path):
    assert run(arguments(config, intake, tmp_path / "run", "train.num_workers=2")) == 0
    assert losses(tmp_path / "run") == losses(undisturbed)


def test_killed_and_started_again_the_run_ends_bit_equal(undisturbed, config, intake, tmp_path):
    out = tmp_path / "run"
    kill_when(out, 5, arguments(config, intake, out), signal.SIGKILL)
    assert run(arguments(config, intake, out)) == 0
    assert "resuming after iteration" in (out / "logs" / "log.txt").read_text()
    assert sorted(losses(out)) == list(range(12))
    assert same_weights(teacher(out, 11), teacher(undisturbed, 11))


def test_interrupted_run_saves_and_goes_on_from_that_step(undisturbed, config, intake, tmp_path):
    out = tmp_path / "run"
    # Saved on the signal alone: no periodic checkpoint falls into the run.
    command = arguments(config, intake, out, "train.checkpoint_period_iterations=100")
    assert kill_when(out, 4, command, signal.SIGINT) == 130
    assert list((out / "checkpoints").iterdir())
    assert run(command) == 0
    assert same_weights(teacher(out, 11), teacher(undisturbed, 11))


def kill_when(out: Path, n_lines: int, command: list[str], number: signal.Signals) -> int:
    """Start a run in a process of its own, signal it once it has logged `n_lines` steps, and return its exit status."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-m", "dinov2.train.train", *command],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    metrics = out / "training_metrics.json"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.is_file() and metrics.read_bytes().count(b"\n") >= n_lines:
            process.send_signal(number)
            break
    return process.wait(timeout=60)


def test_no_resume_starts_anew_and_sets_the_old_checkpoints_aside(config, intake, tmp_path):
    out = tmp_path / "run"
    command = arguments(config, intake, out, "optim.epochs=1")
    assert run(command) == 0
    assert run(["--no-resume", *command]) == 0
    assert (out / "checkpoints.before_1" / "0000003").is_dir()
    assert sorted(losses(out)) == [0, 1, 2, 3]


def test_single_image_studies_train_and_are_counted(config, tmp_path):
    root = make_intake(tmp_path / "singles", views=(View.VD,))
    assert run(arguments(config, root, tmp_path / "run", "optim.epochs=1")) == 0
    metrics = json.loads((tmp_path / "run" / "training_metrics.json").read_text().splitlines()[-1])
    assert metrics["single_image_samples"] == 4.0


@pytest.mark.parametrize(
    ("opts", "said"),
    [
        (["train.dataset_path=VetStudys:root=x"], "Did you mean 'VetStudies'"),
        (["train.dataset_path=VetStudies:root=nowhere"], "nowhere"),
        (["train.dataset_path=VetStudies:rot=x"], "root"),
        (["routing.name=vetdino"], "vet_dino"),
        (["routing.strength=1"], "cross_view_weight"),
        (["augmentation.name=paired"], "paired_views"),
        (["optim.base_lrr=1"], "optim.base_lr"),
        (["train.batch_size_per_gpu=4000"], "fewer than one batch"),
        (["crops.global_crops_size=30"], "not a multiple"),
        (["train.centering=sinkhorn"], "sinkhorn_knopp"),
        (["train.device=gpu"], "auto"),
        (["student.arch=vit_enormous"], "vit_small"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_two(opts, said, config, intake, tmp_path, capsys):
    assert run([*arguments(config, intake, tmp_path / "run"), *opts]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert said in message
    assert "Traceback" not in message


def test_an_output_folder_with_another_run_is_refused_and_left_alone(undisturbed, config, intake, capsys):
    before = {path: path.read_bytes() for path in undisturbed.rglob("*") if path.is_file()}
    assert run([*arguments(config, intake, undisturbed), "optim.base_lr=0.5"]) == 2
    assert "optim.base_lr" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in undisturbed.rglob("*") if path.is_file()} == before


def test_a_second_process_in_the_same_folder_is_refused_with_the_number_of_the_first(config, intake, tmp_path, capsys):
    assert is_free(tmp_path / "run")
    with sole_owner(tmp_path / "run"):
        assert not is_free(tmp_path / "run")
        assert run(arguments(config, intake, tmp_path / "run")) == 2
    assert f"Process {os.getpid()} is already training" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.yaml").exists()
    assert is_free(tmp_path / "run")


def test_non_finite_loss_stops_before_the_weights_change(config, intake, tmp_path, capsys):
    command = arguments(config, intake, tmp_path / "run", "optim.base_lr=1e38", "optim.clip_grad=0")
    assert run(command) == 3
    said = capsys.readouterr().err
    assert "Not finite at iteration" in said
    assert "Process 0: dino_local_crops_loss" in said
    assert "The last good checkpoint is checkpoints/0000001" in said


def test_steps_with_non_finite_losses_are_left_out_up_to_the_limit(config, intake, tmp_path, capsys):
    out = tmp_path / "run"
    broken = ["optim.base_lr=1e38", "optim.clip_grad=0", "train.on_nonfinite=skip", "train.max_nonfinite_steps=2"]
    assert run(arguments(config, intake, out, *broken)) == 3
    assert "2 steps before it were left out" in capsys.readouterr().err
    assert "left out (2 in a row, 2 so far)" in (out / "logs" / "log.txt").read_text()


def test_accumulated_batches_make_one_step_of_the_larger_batch(config, intake, tmp_path):
    accumulated = ["train.batch_size_per_gpu=2", "train.gradient_accumulation_steps=2"]
    # Neighbours and masks are drawn within a batch.
    whole = ["dino.koleo_loss_weight=0", "student.drop_path_rate=0", "ibot.mask_sample_probability=0"]
    assert run(arguments(config, intake, tmp_path / "whole", *whole)) == 0
    assert run(arguments(config, intake, tmp_path / "parts", *whole, *accumulated)) == 0
    a, b = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert a.keys() == b.keys()
    assert [a[i] for i in a] == pytest.approx([b[i] for i in b], rel=1e-4)


def test_probes_on_held_out_images_are_logged_and_leave_no_trace_in_the_weights(undisturbed, config, intake, tmp_path):
    out = tmp_path / "run"
    held_out = [f"evaluation.probe_{which}_dataset=VetStudies:root={intake}:target=view" for which in ("train", "val")]
    assert run(arguments(config, intake, out, "evaluation.probe_period_iterations=3", *held_out)) == 0
    assert same_weights(teacher(undisturbed, 11), teacher(out, 11))
    last = json.loads((out / "training_metrics.json").read_text().splitlines()[-1])
    assert last["rankme"] > 1
    assert 0 <= last["knn_top1"] <= 100


def test_speed_memory_and_tensorboard_stand_beside_the_official_values(undisturbed):
    last = json.loads((undisturbed / "training_metrics.json").read_text().splitlines()[-1])
    assert last["images_per_second"] > 0
    assert 0 <= last["data_wait"] <= 1
    assert last["max_memory_mb"] > 100
    assert last["tflops"] > 0
    (events,) = (undisturbed / "tensorboard").iterdir()
    board = EventAccumulator(str(events)).Reload()
    assert [point.step for point in board.Scalars("total_loss")] == list(range(12))


@pytest.fixture(scope="module")
def undisturbed_on_device(intake, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("crops_on_device")
    config = folder / "tiny.yaml"
    config.write_text(TINY)
    assert run(arguments(config, intake, folder / "run", "augmentation.crops_on_device=true")) == 0
    return folder / "run"


def test_crops_made_on_the_device_train_as_those_of_the_workers(config, intake, tmp_path):
    """Without noise, which each draws for itself, crops differ by about a grey level."""
    opts = ["augmentation.noise_sigma=0", "optim.epochs=1"]
    assert run(arguments(config, intake, tmp_path / "workers", *opts)) == 0
    assert run(arguments(config, intake, tmp_path / "device", *opts, "augmentation.crops_on_device=true")) == 0
    a, b = losses(tmp_path / "workers"), losses(tmp_path / "device")
    assert [a[i] for i in a] == pytest.approx([b[i] for i in b], rel=1e-2)


def test_crops_made_on_the_device_do_not_depend_on_the_number_of_workers(
    undisturbed_on_device, config, intake, tmp_path
):
    opts = ["augmentation.crops_on_device=true", "train.num_workers=2"]
    assert run(arguments(config, intake, tmp_path / "run", *opts)) == 0
    assert losses(tmp_path / "run") == losses(undisturbed_on_device)
    last = json.loads((tmp_path / "run" / "training_metrics.json").read_text().splitlines()[-1])
    assert last["tflops"] > 0


def test_a_run_with_crops_on_the_device_resumes_bit_equal(undisturbed_on_device, config, intake, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(undisturbed_on_device, out)
    _, *newer = sorted((out / "checkpoints").iterdir())
    shutil.rmtree(out / "eval")
    for folder in newer:
        shutil.rmtree(folder)
    assert run(arguments(config, intake, out, "augmentation.crops_on_device=true")) == 0
    assert "resuming after iteration" in (out / "logs" / "log.txt").read_text()
    assert same_weights(teacher(out, 11), teacher(undisturbed_on_device, 11))
