"""One whole training step, and k-NN votes, give the official package's numbers in every configuration measured."""

import math
import random
from functools import partial
from typing import Any

import pytest
import torch
from golden_recipe import assert_golden, crop_samples, fill, load_golden
from omegaconf import OmegaConf
from torch import Tensor

import dinov2.models.vision_transformer as vits
from dinov2.configs import dinov2_default_config
from dinov2.data import MaskingGenerator, collate_data_and_cast
from dinov2.train.ssl_meta_arch import SSLMetaArch

WANT = load_golden("golden_ssl_step.json")
ONE_STEP = [name for name, case in WANT.items() if isinstance(case, dict) and "over" in case]
REL = 1e-4


@pytest.fixture(autouse=True)
def _tiny_architecture(monkeypatch):
    """Add an architecture the way users do: a function set on the module."""

    def build(patch_size: int = 16, num_register_tokens: int = 0, **kwargs: Any) -> vits.DinoVisionTransformer:
        block = partial(vits.Block, attn_class=vits.MemEffAttention)
        size: dict[str, Any] = {"embed_dim": 32, "depth": 4, "num_heads": 2, "block_fn": block}
        return vits.DinoVisionTransformer(
            patch_size=patch_size, num_register_tokens=num_register_tokens, **size, **kwargs
        )

    monkeypatch.setattr(vits, "vit_tiny_test", build, raising=False)


def make_config(*, sep=False, cent="centering", dp=0.0, chunks=0, reg=0, nl=3):
    head = {"head_bottleneck_dim": 16, "head_hidden_dim": 48}
    changes = {
        "compute_precision": {"grad_scaler": False},
        "dino": {"head_n_prototypes": 64, **head},
        "ibot": {"head_n_prototypes": 80, "separate_head": sep, **head},
        "train": {"centering": cent},
        "student": {
            "arch": "vit_tiny_test",
            "patch_size": 14,
            "drop_path_rate": dp,
            "layerscale": 0.1,
            "block_chunks": chunks,
            "num_register_tokens": reg,
        },
        "crops": {"global_crops_size": 56, "local_crops_size": 28, "local_crops_number": nl},
    }
    return OmegaConf.merge(OmegaConf.create(dinov2_default_config), OmegaConf.create(changes))


def make_model_and_batch(**over: Any) -> tuple[SSLMetaArch, dict[str, Any]]:
    model = SSLMetaArch(make_config(**over))
    fill(model.student)
    fill(model.teacher, 0.06)
    model.train()
    random.seed(0)
    masks = MaskingGenerator(input_size=(4, 4), max_num_patches=0.5 * 56 // 14 * 56 // 14)
    samples = crop_samples(4, over.get("nl", 3))
    return model, collate_data_and_cast(samples, (0.1, 0.5), 0.5, torch.float, 16, masks)


def step(model: SSLMetaArch, batch: dict[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """(displayed losses, gradient norm of every student parameter that has a gradient)."""
    losses = {name: float(value) for name, value in model.forward_backward(batch, teacher_temp=0.05).items()}
    gradients = {n: float(p.grad.norm()) for n, p in model.student.named_parameters() if p.grad is not None}
    return losses, gradients


def total_norm(gradients: dict[str, float]) -> float:
    return math.sqrt(sum(norm**2 for norm in gradients.values()))


@pytest.mark.parametrize("name", ONE_STEP)
def test_training_step_gives_the_official_losses_and_gradients(name):
    case = WANT[name]
    losses, gradients = step(*make_model_and_batch(**case["over"]))
    dino = losses["dino_local_crops_loss"] + losses["dino_global_crops_loss"]
    got = {
        "over": case["over"],
        "loss_dict": losses,
        "optimised_loss": dino + 2 * losses["koleo_loss"] + 2 * losses["ibot_loss"],
        "grad_norm_total": total_norm(gradients),
        "grad_norms": {key: gradients.get(key) for key in case["grad_norms"]},
    }
    assert_golden(case, got, rel=REL)


def test_training_step_with_stochastic_depth_gives_the_official_losses():
    torch.manual_seed(0)  # before the model is built: its initial values come off the same stream
    losses, gradients = step(*make_model_and_batch(dp=0.3))
    got = {"loss_dict": losses, "grad_norm_total": total_norm(gradients)}
    assert_golden(WANT["drop_path_0.3_seed0"], got, rel=REL)


def test_second_step_uses_the_centres_of_the_first():
    model, batch = make_model_and_batch()
    step(model, batch)
    losses, _ = step(model, batch)
    got = {
        "loss_dict": losses,
        "dino_center_l2": float(model.dino_loss.center.norm()),
        "ibot_center_l2": float(model.ibot_patch_loss.center.norm()),
    }
    assert_golden(WANT["default_second_step_same_batch"], got, rel=REL)


def test_knn_votes_are_the_official_ones():
    from dinov2.eval.knn import KnnModule

    def rows(n: int, k: float, shift: float = 0.0) -> Tensor:
        return torch.nn.functional.normalize(torch.sin(torch.arange(n * 8) * k + shift).view(n, 8), dim=1)

    knn = KnnModule(rows(40, 0.7), torch.arange(40) % 5, [3, 7, 10], 0.07, "cpu", num_classes=5)
    votes = {str(k): vote.tolist() for k, vote in knn(rows(6, 0.9, 1)).items()}
    assert_golden(WANT["knn"], votes, rel=REL)
