"""Evaluations in two processes give the numbers of one, on image folders and on studies, and go on where two were stopped."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from study_factory import make_intake

from dinov2.configs import dinov2_default_config
from dinov2.eval import knn, linear, log_regression
from dinov2.models import build_model_from_cfg
from vet_extensions.schema import Split

pytestmark = pytest.mark.slow

CONFIG = {
    "student": {"arch": "vit_micro", "patch_size": 16, "layerscale": 1.0},
    "crops": {"global_crops_size": 32},
    "train": {"device": "cpu", "cpu_threads": 1},
    "plugins": ["vet_extensions"],
}
EVALUATIONS: dict[str, ModuleType] = {"knn": knn, "linear": linear, "log_regression": log_regression}
BATCH = 5
"""22 and 14 images are 5 and 3 batches: the second process always has one fewer."""
LINEAR = ["--epochs", "2", "--epoch-length", "3", "--eval-period-iterations", "2", "--unique-names"]
LINEAR += ["--learning-rates", "0.001", "16"]
IN_TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
WORKER = """
import json, sys
from pathlib import Path
from dinov2 import distributed
from dinov2.eval import knn, linear, log_regression
modules = {"knn": knn, "linear": linear, "log_regression": log_regression}
with distributed.session():
    for name, arguments in json.loads(Path(sys.argv[1]).read_text()):
        modules[name].main(modules[name].get_args_parser().parse_args(arguments))
"""
"""Starting two processes takes longer than all evaluations here: one launch does them all."""


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's configuration, a random teacher, noisy images of two classes that overlap, and studies of two views."""
    root = tmp_path_factory.mktemp("run")
    OmegaConf.save(OmegaConf.create(CONFIG), root / "config.yaml")
    torch.manual_seed(0)
    teacher, _ = build_model_from_cfg(OmegaConf.merge(dinov2_default_config, CONFIG), only_teacher=True)
    state = {f"backbone.{name}": value for name, value in teacher.state_dict().items()}
    torch.save({"teacher": state}, root / "teacher_checkpoint.pth")
    generator = np.random.default_rng(0)
    for split, n_each in (("train", 11), ("val", 7)):
        for level, name in ((120, "dark"), (128, "light")):
            (root / split / name).mkdir(parents=True)
            for i in range(n_each):
                pixels = generator.normal(level + generator.normal(0, 12), 30, size=(32, 32)).clip(0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{i}.png")
    make_intake(root / "studies_train", n_studies=11, split=Split.TRAIN)
    make_intake(root / "studies_val", n_studies=7, split=Split.VAL)
    return root


def options_of(root: Path, data: str, output: Path, *, batch: int) -> list[str]:
    sets = {
        "folder": [f"ImageFolder:root={root}:split={split}" for split in ("train", "val")],
        "studies": [f"VetStudies:root={root}/studies_{split}:split={split}:target=view" for split in ("train", "val")],
    }
    options = ["--config-file", str(root / "config.yaml"), "--output-dir", str(output), "--num-workers", "0"]
    options += ["--pretrained-weights", str(root / "teacher_checkpoint.pth"), "--batch-size", str(batch)]
    return [*options, "--train-dataset", sets[data][0], "--val-dataset", sets[data][1]]


def arguments_of(module: str, root: Path, data: str, output: Path, *, n_processes: int) -> list[str]:
    """Options with which `n_processes` do what one process does: the batch of a linear step is that of all processes."""
    own = {
        "knn": ["--nb_knn", "1", "3", "--n-per-class-list", "-1", "3", "--n-tries", "2"],
        "linear": LINEAR,
        "log_regression": ["--max-train-iters", "30"],
    }
    batch = 2 * BATCH // n_processes if module == "linear" else BATCH
    if (module, data) == ("knn", "studies"):
        batch = 32  # a single batch, of which the second process has none
    return [*options_of(root, data, output, batch=batch), *own[module]]


CASES = [(module, data) for module in EVALUATIONS for data in ("folder", "studies")]


@pytest.fixture(scope="module")
def outputs(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `<module>_<data>_<number of processes>` with what each evaluation wrote."""
    root = tmp_path_factory.mktemp("outputs")
    plan = []
    for module, data in CASES:
        folders = [root / f"{module}_{data}_{n}" for n in (1, 2)]
        evaluation: Any = EVALUATIONS[module]
        alone = arguments_of(module, run_folder, data, folders[0], n_processes=1)
        evaluation.main(evaluation.get_args_parser().parse_args(alone))
        plan.append((module, arguments_of(module, run_folder, data, folders[1], n_processes=2)))
    (root / "plan.json").write_text(json.dumps(plan))
    (root / "worker.py").write_text(WORKER)
    in_two(str(root / "worker.py"), str(root / "plan.json"))
    return root


def in_two(*command: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*IN_TWO, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def json_lines(folder: Path, module: str) -> list[dict[str, Any]]:
    lines = (folder / f"results_eval_{module}.json").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


@pytest.mark.parametrize("data", ["folder", "studies"])
@pytest.mark.parametrize("module", ["knn", "log_regression"])
def test_two_processes_write_the_results_of_one(outputs: Path, module: str, data: str) -> None:
    one, two = (json_lines(outputs / f"{module}_{data}_{n}", module) for n in (1, 2))
    assert one == two
    assert len(one) == (8 if module == "knn" else 1)
    tops = [value for line in one for name, value in line.items() if name.lower().endswith("1")]
    assert any(0 < value < 100 for value in tops), "the task is too easy or too hard to show a difference"


@pytest.mark.parametrize("data", ["folder", "studies"])
def test_linear_heads_of_two_processes_are_those_of_one_with_twice_the_batch(outputs: Path, data: str) -> None:
    one, two = (
        torch.load(outputs / f"linear_{data}_{n}" / "model_final.pth", weights_only=True)["model"] for n in (1, 2)
    )
    assert list(one) == list(two)
    assert len(one) == 2 * 8
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)
    moved = one["classifiers_dict.classifier_4_blocks_avgpool_True_lr_0_625.linear.bias"]
    assert moved.abs().max() > 1e-3, "the heads were not trained"


@pytest.mark.parametrize("data", ["folder", "studies"])
def test_linear_results_of_two_processes_are_those_of_one(outputs: Path, data: str) -> None:
    one, two = (outputs / f"linear_{data}_{n}" / "results_eval_linear.json" for n in (1, 2))
    assert one.read_text() == two.read_text()
    assert [line for line in one.read_text().splitlines() if line.startswith("iter")] == [
        "iter: 1",
        "iter: 3",
        "iter: 6",
    ]


def test_linear_losses_of_two_processes_are_those_of_one(outputs: Path) -> None:
    losses = []
    for n in (1, 2):
        log = (outputs / f"linear_folder_{n}" / "logs" / "log.txt").read_text()
        losses.append([line.split("loss: ")[1].split()[0] for line in log.splitlines() if "Training [0/6]" in line])
    assert losses[0]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("n_processes", [1, 2])
def test_a_linear_evaluation_that_two_processes_began_goes_on(
    run_folder: Path, outputs: Path, tmp_path: Path, n_processes: int
) -> None:
    """From the checkpoint after the first of two epochs, in two processes, or in one with twice the batch."""
    running = outputs / "linear_folder_2" / "running_checkpoint_linear_eval.pth"
    (tmp_path / running.name).write_bytes(running.read_bytes())
    (tmp_path / "last_checkpoint").write_text(running.name)
    options = arguments_of("linear", run_folder, "folder", tmp_path, n_processes=n_processes)
    if n_processes == 1:
        linear.main(linear.get_args_parser().parse_args(options))
    else:
        done = in_two("-m", "dinov2.eval.linear", *options)
        assert "loaded running_checkpoint_linear_eval.pth, iteration 2" in done.stdout
    heads = [
        torch.load(folder / "model_final.pth", weights_only=True)["model"]
        for folder in (outputs / "linear_folder_2", tmp_path)
    ]
    if n_processes == 2:
        torch.testing.assert_close(heads[1], heads[0], rtol=0, atol=0)
    else:
        torch.testing.assert_close(heads[1], heads[0], rtol=1e-4, atol=1e-6)


def test_two_tasks_of_a_slurm_step_write_the_results_of_one_process(
    run_folder: Path, outputs: Path, tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    step = {"SLURM_JOB_ID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost"}
    step |= {"SLURM_STEP_TASKS_PER_NODE": "2", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "dinov2.eval.knn"]
    command += arguments_of("knn", run_folder, "folder", tmp_path, n_processes=2)
    tasks = [
        subprocess.Popen(command, env=os.environ | step | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank})
        for rank in ("0", "1")
    ]
    assert [task.wait(timeout=120) for task in tasks] == [0, 0]
    assert json_lines(tmp_path, "knn") == json_lines(outputs / "knn_folder_1", "knn")
    assert (tmp_path / "logs" / "log.txt.rank1").is_file()


def test_a_mistake_in_two_processes_is_a_sentence_of_each_without_a_traceback_of_ours(
    run_folder: Path, tmp_path: Path
) -> None:
    options = options_of(run_folder, "folder", tmp_path, batch=BATCH)
    command = [*IN_TWO, "-m", "dinov2.eval.knn", *options, "--val-dataset", f"ImageFoldr:root={run_folder}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if "Did you mean 'ImageFolder'" in line]
    assert told
    assert len(set(told)) == len(told)
    assert all(line.startswith(("error: ", "[rank 1] error: ")) for line in told)
    assert "dinov2/eval/knn.py" not in done.stderr
