"""Official DINOv2 training, nothing multi-view: ordinary images, the `dino` augmentation, `same_image`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinov2.train.train import run

CONFIG = """
dino: {head_n_prototypes: 32, head_bottleneck_dim: 8, head_hidden_dim: 16}
ibot: {separate_head: true, head_n_prototypes: 16, head_bottleneck_dim: 8, head_hidden_dim: 16}
train: {batch_size_per_gpu: 3, num_workers: 0, OFFICIAL_EPOCH_LENGTH: 2, device: cpu, log_period_iterations: 1}
student: {arch: vit_micro, patch_size: 8, num_register_tokens: 2, block_chunks: 2, drop_path_rate: 0.2}
optim: {epochs: 2, warmup_epochs: 1}
crops: {global_crops_size: 32, local_crops_size: 16, local_crops_number: 2}
evaluation: {eval_period_iterations: 2}
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(6):
        (root / f"class{i % 2}").mkdir(exist_ok=True)
        mode = rng.integers(0, 256, (40, 50, 3) if i % 3 else (40, 50), dtype=np.uint8)
        Image.fromarray(mode).save(root / f"class{i % 2}" / f"{i}.png")
    return root


def train(tmp_path: Path, images: Path, name: str, *opts: str) -> Path:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    command = [
        "--config-file",
        str(config),
        "--output-dir",
        str(tmp_path / name),
        f"train.dataset_path=ImageFolder:root={images}",
    ]
    assert run([*command, *opts]) == 0
    return tmp_path / name


def teacher(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "eval" / "training_3" / "teacher_checkpoint.pth", weights_only=True)["teacher"]


@pytest.mark.parametrize("opts", [(), ("train.centering=sinkhorn_knopp",), ("crops.local_crops_number=0",)])
def test_images_train_with_the_official_defaults(images, tmp_path, opts):
    out = train(tmp_path, images, "run", *opts)
    lines = [json.loads(line) for line in (out / "training_metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [0, 1, 2, 3]
    assert all(np.isfinite(line["total_loss"]) for line in lines)
    assert ("dino_local_crops_loss" in lines[0]) == ("crops.local_crops_number=0" not in opts)
    assert {"backbone.register_tokens", "ibot_head.last_layer.weight_g", "backbone.blocks.1.3.norm1.weight"} <= set(
        teacher(out)
    )


def test_with_the_seeded_sampler_a_resumed_run_equals_an_undisturbed_one(images, tmp_path):
    seeded = ("train.sampler=seeded", "train.checkpoint_period_iterations=1", "train.checkpoints_to_keep=4")
    undisturbed = train(tmp_path, images, "undisturbed", *seeded)
    again = train(tmp_path, images, "again", *seeded)
    for iteration in (2, 3):  # as if the run had been killed after its second step
        folder = again / "checkpoints" / f"{iteration:07d}"
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    train(tmp_path, images, "again", *seeded)
    assert "resuming after iteration 1" in (again / "logs" / "log.txt").read_text()
    first, second = teacher(undisturbed), teacher(again)
    assert all(torch.equal(first[name], second[name]) for name in first)
