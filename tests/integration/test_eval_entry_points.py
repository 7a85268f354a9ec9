"""`python -m dinov2.eval.{knn,linear,log_regression}` on a tiny folder of images, from checkpoint to results file."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from dinov2.configs import dinov2_default_config
from dinov2.models import build_model_from_cfg

CONFIG = {
    "student": {"arch": "vit_micro", "patch_size": 16, "layerscale": 1.0},
    "crops": {"global_crops_size": 32},
    "train": {"device": "cpu", "cpu_threads": 1},
}
SMALL = ["--batch-size", "6", "--num-workers", "0"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's configuration, a random teacher, and images of two classes, bright and dark."""
    root = tmp_path_factory.mktemp("run")
    OmegaConf.save(OmegaConf.create(CONFIG), root / "config.yaml")
    torch.manual_seed(0)
    teacher, _ = build_model_from_cfg(OmegaConf.merge(dinov2_default_config, CONFIG), only_teacher=True)
    state = {f"backbone.{name}": value for name, value in teacher.state_dict().items()}
    torch.save({"teacher": state}, root / "teacher_checkpoint.pth")
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for level, name in ((60, "dark"), (190, "light")):
            (root / split / name).mkdir(parents=True)
            for i in range(6):
                pixels = generator.integers(level - 40, level + 40, size=(32, 32), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def run_module(module: str, root: Path, output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"dinov2.eval.{module}", "--config-file", str(root / "config.yaml")]
    command += ["--pretrained-weights", str(root / "teacher_checkpoint.pth"), "--output-dir", str(output)]
    command += ["--train-dataset", f"ImageFolder:root={root}:split=train", *SMALL, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def val_of(root: Path) -> str:
    return f"ImageFolder:root={root}:split=val"


@pytest.mark.slow
def test_knn_evaluates_a_checkpoint_from_the_command_line(run_folder: Path, tmp_path: Path) -> None:
    options = ["--val-dataset", val_of(run_folder), "--nb_knn", "1", "5"]
    done = run_module("knn", run_folder, tmp_path, *options)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in (tmp_path / "results_eval_knn.json").read_text().splitlines()]
    assert [next(iter(line)) for line in results] == [f"('full', {k}) Top {top}" for k in (1, 5) for top in (1, 5)]
    assert results[0]["('full', 1) Top 1"] > 80


@pytest.mark.slow
def test_linear_evaluates_a_checkpoint_and_resumes_from_the_command_line(run_folder: Path, tmp_path: Path) -> None:
    options = ["--val-dataset", val_of(run_folder), "--epochs", "2", "--epoch-length", "3", "--unique-names"]
    done = run_module("linear", run_folder, tmp_path, *options)
    assert done.returncode == 0, done.stderr
    results = (tmp_path / "results_eval_linear.json").read_text()
    iteration, best = results.splitlines()[:2]
    assert iteration == "iter: 6"
    assert json.loads(best)["best_classifier"]["accuracy"] > 0.8
    assert len(torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]) == 2 * 52

    again = run_module("linear", run_folder, tmp_path, *options)
    assert again.returncode == 0, again.stderr
    assert "loaded model_final.pth, iteration 5" in again.stdout
    assert (tmp_path / "results_eval_linear.json").read_text() == results * 2


@pytest.mark.slow
def test_log_regression_evaluates_a_checkpoint_from_the_command_line(run_folder: Path, tmp_path: Path) -> None:
    done = run_module("log_regression", run_folder, tmp_path, "--val-dataset", val_of(run_folder))
    assert done.returncode == 0, done.stderr
    (result,) = [json.loads(line) for line in (tmp_path / "results_eval_log_regression.json").read_text().splitlines()]
    assert set(result) == {"top-1", "top-5", "best_C"}
    assert result["top-1"] > 80


@pytest.mark.slow
@pytest.mark.parametrize("module", ["knn", "linear", "log_regression"])
def test_a_users_mistake_is_one_sentence_and_status_2(run_folder: Path, tmp_path: Path, module: str) -> None:
    done = run_module(module, run_folder, tmp_path, "--val-dataset", f"ImageFoldr:root={run_folder}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "ImageFolder" in done.stderr
    assert "Traceback" not in done.stderr
