"""Jobs that really run, as processes on this machine: started by a file's path, from another folder."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinov2.run.submit import get_args_parser, submit_jobs

ROOT = Path(__file__).parents[4]
CONFIG = """
dino: {head_n_prototypes: 32, head_bottleneck_dim: 8, head_hidden_dim: 16}
ibot: {loss_weight: 0.0}
train: {batch_size_per_gpu: 3, num_workers: 0, OFFICIAL_EPOCH_LENGTH: 1, device: cpu, cpu_threads: 1}
student: {arch: vit_micro, patch_size: 8}
optim: {epochs: 2, warmup_epochs: 1}
crops: {global_crops_size: 32, local_crops_size: 16, local_crops_number: 2}
evaluation: {eval_period_iterations: 2}
"""

MODULE = """
from dinov2 import distributed
from dinov2.run.task import SubmittedTask


class Roll(SubmittedTask):
    def _main(self, args):
        with distributed.session():
            return distributed.all_gather_objects(distributed.get_global_rank())
"""


def launch_training(folder: Path, *options: str, n_processes: int = 1) -> subprocess.CompletedProcess[str]:
    (folder / "config.yaml").write_text(CONFIG)
    command = [
        sys.executable,
        str(ROOT / "dinov2" / "run" / "train" / "train.py"),
        "--cluster",
        "local",
        "--ngpus",
        str(n_processes),
    ]
    command += ["--config-file", "config.yaml", "--output-dir", "out/%j", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("n_processes", [1, 2])
def test_a_local_job_trains_and_leaves_a_teacher(n_processes, tmp_path):
    images = tmp_path / "images" / "only"
    images.mkdir(parents=True)
    for i in range(8):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(
            images / f"{i}.png"
        )
    done = launch_training(tmp_path, f"train.dataset_path=ImageFolder:root={images.parent}", n_processes=n_processes)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (tmp_path / "out").iterdir()
    assert f"job {run.name} is done" in done.stdout
    (teacher,) = run.glob("eval/*/teacher_checkpoint.pth")
    assert "backbone.cls_token" in torch.load(teacher, weights_only=True)["teacher"]


@pytest.mark.slow
def test_a_users_mistake_inside_a_job_is_told_with_the_place_of_its_log(tmp_path):
    failed = launch_training(tmp_path, "train.dataset_path=ImageFolder:root=absent")
    (run,) = (tmp_path / "out").iterdir()
    assert failed.returncode == 2
    assert "absent" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert str(run / f"{run.name}_0_log.err") in failed.stderr


@pytest.mark.slow
def test_the_processes_of_a_local_job_find_each_other(tmp_path, monkeypatch):
    """And find the module of the task, which lies in a folder that only this process was told of."""
    (tmp_path / "roll_of_a_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    from roll_of_a_test import Roll  # type: ignore[import-not-found]

    args = get_args_parser().parse_args(["--cluster", "local", "--ngpus", "2"])
    args.output_dir = str(tmp_path / "out")
    assert submit_jobs(Roll, args, "roll").results() == [[0, 1], [0, 1]]
