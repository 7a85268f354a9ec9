"""Every committed ablation is a valid plan whose arms can be built and trained, at equal cost."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from dinov2.data import collate_data_and_cast
from dinov2.data.loaders import make_dataset
from dinov2.data.registry import build_augmentation
from dinov2.data.samplers import PositionedIndex
from dinov2.loss.routing import build_router
from dinov2.models import build_model_from_cfg
from dinov2.train.ssl_meta_arch import SSLMetaArch
from dinov2.train.train import run
from dinov2.utils.plugins import load_plugins
from vet_extensions.ablation.configuration import fill, filled_options, resolve
from vet_extensions.ablation.plan import Plan, read_plan
from vet_extensions.intake.options import IntakeOptions
from vet_extensions.intake.run import run_intake
from vet_extensions.phantom.archive import write_archive
from vet_extensions.schema import View

ROOT = Path(__file__).parents[2]
PLANS = sorted((ROOT / "configs" / "ablation").glob("*.yaml"))
VIEWS = (View.LATERAL_LEFT, View.LATERAL_RIGHT, View.VD)
SMALL = [
    *("student.arch=vit_micro", "student.patch_size=8", "crops.global_crops_size=32", "crops.local_crops_size=16"),
    *(
        "dino.head_n_prototypes=32",
        "dino.head_hidden_dim=16",
        "dino.head_bottleneck_dim=8",
        "ibot.head_n_prototypes=32",
    ),
    *("train.batch_size_per_gpu=2", "train.OFFICIAL_EPOCH_LENGTH=1", "train.num_workers=0", "train.device=cpu"),
    *("optim.epochs=1", "optim.warmup_epochs=0", "teacher.warmup_teacher_temp_epochs=0"),
    *("evaluation.eval_period_iterations=1", "compute_precision.student.backbone.mixed_precision.param_dtype=fp32"),
]
"""Laid over a cell's configuration: one step that a test can afford. Routing, crop counts and scales, losses and data stay."""


@pytest.fixture(scope="module")
def intake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantom studies of three views, all for training."""
    root = tmp_path_factory.mktemp("phantom")
    write_archive(root / "dicom", n_studies=20, size_px=64, views=VIEWS, plain=True, n_workers=0)
    options = IntakeOptions(salt="a salt for tests", longest_side_px=64, split_fractions=(1.0, 0.0, 0.0))
    run_intake(root / "dicom", root / "intake", options=options, n_workers=0)
    return root / "intake"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone file that fits a cell made small."""
    plan = read_plan(ROOT / "configs" / "ablation" / "initial_weights.yaml")
    student, _, _ = build_model_from_cfg(small(resolve(plan, plan.baseline)))
    path = tmp_path_factory.mktemp("weights") / "backbone.pth"
    torch.save(student.state_dict(), path)
    return path


def small(config: DictConfig, *options: str) -> Any:
    return OmegaConf.merge(config, OmegaConf.from_dotlist([*options, *SMALL]))


def cells(path: Path) -> list[tuple[Plan, Mapping[str, str], DictConfig]]:
    plan = read_plan(path)
    return [(plan, arms, resolve(plan, arms)) for arms in plan.combinations()]


def budget(config: DictConfig) -> dict[str, Any]:
    """What a run costs: steps, studies a step, and the crops of a study by slot, with their sizes."""
    load_plugins(config.plugins)
    layout = build_router(config.routing, config.crops.local_crops_number).layout
    return {
        "steps": config.optim.epochs * config.train.OFFICIAL_EPOCH_LENGTH,
        "studies a step": config.train.batch_size_per_gpu * config.train.gradient_accumulation_steps,
        "student globals": (len(layout.student_globals), config.crops.global_crops_size),
        "student locals": (len(layout.student_locals), config.crops.local_crops_size),
        "teacher globals": (len(layout.teacher_globals), config.crops.global_crops_size),
        "network": (config.student.arch, config.student.patch_size),
    }


@pytest.mark.parametrize("path", PLANS, ids=lambda p: p.stem)
def test_an_ablation_asks_a_question_and_says_what_it_holds_fixed(path):
    header = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert all(word in header for word in ("Run:", "Hardware:", "Time:", "Data:", "Cells:", "Fixed:", "Result:"))
    plan = read_plan(path)
    assert (plan.name, "?" in plan.question) == (path.stem, True)
    assert f"{len(plan.combinations()) * len(plan.seeds)} runs of" in header


@pytest.mark.parametrize("path", PLANS, ids=lambda p: p.stem)
def test_all_arms_of_an_ablation_cost_the_same(path):
    budgets = {str(arms): budget(config) for _, arms, config in cells(path)}
    first, *others = budgets.values()
    assert all(other == first for other in others)
    header = path.read_text()
    stated = f"student {first['student globals'][0]} global + {first['student locals'][0]} local of a study, teacher 2 global"
    assert stated in header
    assert f"{first['steps']:,} steps" in header


@pytest.mark.parametrize("path", PLANS, ids=lambda p: p.stem)
def test_no_two_arms_of_an_ablation_are_the_same_run(path):
    configs = [OmegaConf.to_yaml(config) for _, _, config in cells(path)]
    assert len(set(configs)) == len(configs)


@pytest.mark.parametrize("path", PLANS, ids=lambda p: p.stem)
def test_every_arm_builds_model_routing_augmentation_and_data(path, intake, weights):
    values = {"data": str(intake), "weights": str(weights)}
    for _, arms, config in cells(path):
        cfg = small(config, *filled_options(config, values))
        load_plugins(cfg.plugins)
        model = SSLMetaArch(cfg)
        layout = model.router.layout
        dataset = make_dataset(
            dataset_str=fill(config.train.dataset_path, values), transform=build_augmentation(cfg, layout)
        )
        batch = collate_data_and_cast([dataset[PositionedIndex(0, 0)]] * 2, (0.1, 0.5), 0.5, torch.float32, 16)
        assert batch["collated_global_crops"].shape == (2 * len(layout.student_globals), 1, 32, 32), arms
        assert batch["collated_global_crops_teacher"].shape[0] == 2 * len(layout.teacher_globals), arms


@pytest.mark.slow
@pytest.mark.parametrize("path", PLANS, ids=lambda p: p.stem)
def test_every_arm_trains_a_step(path, intake, weights, tmp_path):
    values = {"data": str(intake), "weights": str(weights)}
    for i, (_, arms, config) in enumerate(cells(path)):
        file, out = tmp_path / f"{i}.yaml", tmp_path / str(i)
        OmegaConf.save(config, file)
        options = [*filled_options(config, values), *SMALL]
        assert run(["--config-file", str(file), "--output-dir", str(out), *options]) == 0, arms
        assert (out / "eval" / "training_0" / "teacher_checkpoint.pth").is_file(), arms
