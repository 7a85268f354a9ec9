"""The meta-architecture: flags reach the losses, routings reach the loss, the teacher follows."""

import pytest
import torch
from omegaconf import OmegaConf

from dinov2.configs import dinov2_default_config
from dinov2.train.device_batch import to_device
from dinov2.train.ssl_meta_arch import SSLMetaArch
from dinov2.utils.errors import UserError

SMALL = {
    "compute_precision": {"grad_scaler": False},
    "dino": {"head_n_prototypes": 16, "head_bottleneck_dim": 8, "head_hidden_dim": 16},
    "student": {"arch": "vit_micro", "patch_size": 8, "drop_path_rate": 0.0, "layerscale": 1.0},
    "crops": {"global_crops_size": 16, "local_crops_size": 8, "local_crops_number": 2},
}


def build(**changes) -> SSLMetaArch:
    torch.manual_seed(0)
    model = SSLMetaArch(OmegaConf.merge(dinov2_default_config, SMALL, changes))
    model.train()
    model.prepare_for_distributed_training()
    return model


def batch(n: int = 3, *, dtype=torch.float32) -> dict:
    generator = torch.Generator().manual_seed(1)
    channels = 1 if dtype == torch.uint8 else 3

    def crops(count: int, size: int) -> torch.Tensor:
        pixels = torch.randint(0, 256, (count * n, channels, size, size), generator=generator)
        return pixels.to(dtype) if dtype == torch.uint8 else pixels / 255

    masks = torch.zeros(2 * n, 4, dtype=torch.bool)
    masks[0, :2] = True
    return {
        "collated_global_crops": crops(2, 16),
        "collated_local_crops": crops(2, 8),
        "collated_masks": masks,
        "mask_indices_list": masks.flatten().nonzero().flatten(),
        "masks_weight": torch.full((2,), 0.5),
        "upperbound": 2,
        "n_masked_patches": torch.tensor([2]),
    }


def test_flags_for_official_faults_reach_the_losses():
    model = build(dino={"koleo_in_fp32": True}, train={"sinkhorn_subtract_max": True})
    assert model.koleo_loss.cast_to_fp32
    assert model.dino_loss.sinkhorn_subtract_max
    assert model.ibot_patch_loss.sinkhorn_subtract_max


def test_the_teacher_starts_equal_and_follows_by_the_momentum():
    model = build()
    name = "blocks.0.attn.qkv.weight"
    student, teacher = (dict(m["backbone"].named_parameters())[name] for m in (model.student, model.teacher))
    assert torch.equal(student, teacher)
    before = teacher.clone()
    with torch.no_grad():
        student.add_(1.0)
    model.update_teacher(0.9)
    assert torch.allclose(teacher, before + 0.1, atol=1e-6)


def test_the_teacher_gets_no_gradient_and_stays_in_evaluation_mode():
    model = build()
    model.forward_backward(batch(), teacher_temp=0.05)
    assert all(p.grad is None for p in model.teacher.parameters())
    assert not model.teacher.training
    assert model.student.training
    model.eval()
    assert not model.student.training


def test_grey_bytes_are_normalised_to_the_floats_that_the_official_transform_gives():
    grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    expected = (grey.float() / 255 - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    on_device = to_device(
        {"collated_global_crops": grey}, torch.device("cpu"), mean=torch.tensor(mean), std=torch.tensor(std)
    )
    assert torch.allclose(on_device["collated_global_crops"], expected, atol=1e-6)
    assert set(build().forward_backward(batch(dtype=torch.uint8), teacher_temp=0.05)) >= {"koleo_loss", "ibot_loss"}


@pytest.mark.parametrize(
    ("off", "gone"),
    [
        ({"dino": {"loss_weight": 0.0}}, "dino_global_crops_loss"),
        ({"ibot": {"loss_weight": 0.0}}, "ibot_loss"),
        ({"dino": {"koleo_loss_weight": 0.0}}, "koleo_loss"),
    ],
)
def test_each_term_can_be_switched_off(off, gone):
    losses = build(**off).forward_backward(batch(), teacher_temp=0.05)
    assert gone not in losses
    assert len(losses) >= 2


def test_without_local_crops_only_global_cells_are_left():
    data = batch()
    data["collated_local_crops"] = data["collated_local_crops"][:0]
    losses = build(crops={"local_crops_number": 0}).forward_backward(data, teacher_temp=0.05)
    assert "dino_local_crops_loss" not in losses
    assert torch.isfinite(losses["dino_global_crops_loss"])


def test_frozen_prototypes_stay_and_everything_else_has_a_gradient():
    model = build(dino={"head_freeze_prototypes": True}, ibot={"loss_weight": 0.0})
    model.forward_backward(batch(), teacher_temp=0.05)
    without = {name for name, p in model.student.named_parameters() if p.grad is None}
    assert without == {"dino_head.last_layer.weight_g", "dino_head.last_layer.weight_v"}


def test_per_group_centering_needs_sinkhorn():
    with pytest.raises(UserError, match="sinkhorn_knopp"):
        build(dino={"centering_per_group": True})


def test_the_diagnostics_bound_the_entropy_by_ln_k():
    model = build()
    model.forward_backward(batch(), teacher_temp=0.05)
    assert 0 <= float(model.diagnostics["teacher_entropy"]) <= 2.7726
    assert float(model.diagnostics["teacher_entropy"]) <= float(model.diagnostics["teacher_marginal_entropy"]) + 1e-5
