"""Every committed recipe builds: configuration, routing, augmentation and one step where it is small enough."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from study_factory import make_intake

from dinov2.loss.routing import build_router
from dinov2.train.train import run
from dinov2.utils.config import get_cfg_from_args
from dinov2.utils.plugins import load_plugins
from vet_extensions.data import paired_views
from vet_extensions.demo.plan import ARMS, config_path
from vet_extensions.export.checkpoint import export_hub

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configs" / "pretrain").glob("*.yaml")) + sorted((ROOT / "configs" / "debug").glob("*.yaml"))


@pytest.mark.parametrize("path", [*RECIPES, *map(config_path, ARMS)], ids=lambda p: p.stem)
def test_recipe_has_known_keys_and_a_routing_and_augmentation_that_fit(path):
    cfg = get_cfg_from_args(Namespace(config_file=str(path), opts=[], output_dir="out"))
    load_plugins(cfg.plugins)
    router = build_router(cfg.routing, cfg.crops.local_crops_number)
    assert paired_views(cfg, router.layout).layout == router.layout


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe_header_states_command_hardware_and_result(path):
    header = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert all(word in header for word in ("Run:", "Hardware:", "Time:", "Data:"))


@pytest.mark.slow
def test_a_vits14_run_exports_to_a_hub_file_that_dinov2_vits14_loads(tmp_path):
    """The recipe as it is but for sizes that a test can afford; the network is the real ViT-S/14."""
    intake = make_intake(tmp_path / "studies", size_px=112)
    small = [
        *("train.batch_size_per_gpu=2", "train.OFFICIAL_EPOCH_LENGTH=2", "optim.epochs=1", "optim.warmup_epochs=0"),
        *(
            "dino.head_n_prototypes=64",
            "train.num_workers=0",
            "train.device=cpu",
            "evaluation.eval_period_iterations=2",
        ),
        *("crops.global_crops_size=112", "crops.local_crops_size=56", "crops.local_crops_number=2"),
        "compute_precision.student.backbone.mixed_precision.param_dtype=fp32",
    ]
    recipe = ROOT / "configs" / "pretrain" / "vits14_vet.yaml"
    data = f"train.dataset_path=VetStudies:root={intake}"
    assert run(["--config-file", str(recipe), "--output-dir", str(tmp_path / "run"), data, *small]) == 0
    export_hub(tmp_path / "run", tmp_path / "backbone.pth", img_size=518)

    from dinov2.hub.backbones import dinov2_vits14

    model = dinov2_vits14(pretrained=False)
    model.load_state_dict(torch.load(tmp_path / "backbone.pth", weights_only=True), strict=True)
    assert model.pos_embed.shape == (1, 37 * 37 + 1, 384)
