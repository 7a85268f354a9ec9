"""What a step costs and how fast it is: counted FLOPs against arithmetic by hand, device peaks by name, and the logged values."""

import random

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dinov2.configs import dinov2_default_config
from dinov2.models import vision_transformer as vits
from dinov2.train.throughput import Throughput, peak_flops_of, step_flops

B, SIZE, LOCAL, PATCH, WIDTH, DEPTH, K = 3, 32, 16, 8, 128, 4, 64


def config(*overrides: str) -> DictConfig:
    small = OmegaConf.create(
        {
            "dino": {"head_n_prototypes": K, "head_bottleneck_dim": 8, "head_hidden_dim": 16},
            "student": {"arch": "vit_micro", "patch_size": PATCH, "drop_path_rate": 0.0},
            "crops": {"global_crops_size": SIZE, "local_crops_size": LOCAL, "local_crops_number": 2},
        }
    )
    return OmegaConf.merge(dinov2_default_config, small, OmegaConf.from_dotlist(list(overrides)))


def batch(*, n_local: int = 2, n_masked: int = 5, dtype=torch.float32, channels: int = 3) -> dict[str, object]:
    n_patches = (SIZE // PATCH) ** 2
    return {
        "collated_global_crops": torch.zeros(2 * B, channels, SIZE, SIZE, dtype=dtype),
        "collated_local_crops": torch.zeros(n_local * B, channels, LOCAL, LOCAL, dtype=dtype),
        "collated_masks": torch.zeros(2 * B, n_patches, dtype=torch.bool),
        "mask_indices_list": torch.zeros(n_masked, dtype=torch.int64),
    }


def backbone_flops(size: int) -> int:
    """Of one crop, forward: projections of 12 d^2 a token in a block, two products of the attention, the patch embedding."""
    n_patches = (size // PATCH) ** 2
    n = n_patches + 1
    blocks = DEPTH * (2 * n * 12 * WIDTH**2 + 4 * n**2 * WIDTH)
    return blocks + 2 * n_patches * 3 * PATCH**2 * WIDTH


HEAD_ROW = 2 * (WIDTH * 16 + 16 * 16 + 16 * 8 + 8 * K)


def test_the_flops_of_a_step_are_those_of_the_arithmetic_by_hand():
    in_student = 2 * backbone_flops(SIZE) + 2 * backbone_flops(LOCAL)
    in_teacher = 2 * backbone_flops(SIZE)
    heads = HEAD_ROW * (3 * (4 * B + 5) + 2 * B + 5)
    assert step_flops(config(), batch()) == B * (3 * in_student + in_teacher) + heads


class CropsByName:
    """Crops that are made on a device, of which only the shapes are asked for."""

    def __init__(self, crops):
        self._crops = crops

    def crops(self, device):
        assert device.type == "meta"
        return {name: value.to(device) for name, value in self._crops.items()}


def test_crops_that_the_device_makes_count_as_crops_that_are_there():
    with_crops = batch(dtype=torch.uint8, channels=1)
    crops = {name: with_crops.pop(name) for name in ("collated_global_crops", "collated_local_crops")}
    assert step_flops(config(), {**with_crops, "crops_on_device": CropsByName(crops)}) == step_flops(config(), batch())


def test_without_local_crops_and_ibot_only_the_global_crops_count():
    cfg = config("crops.local_crops_number=0", "ibot.loss_weight=0")
    expected = B * (3 + 1) * 2 * backbone_flops(SIZE) + HEAD_ROW * (3 + 1) * 2 * B
    assert step_flops(cfg, batch(n_local=0)) == expected


def test_teacher_crops_of_their_own_are_what_the_teacher_sees():
    more = batch() | {"collated_global_crops_teacher": torch.zeros(B, 3, SIZE, SIZE)}
    less = B * (backbone_flops(SIZE) + HEAD_ROW)
    assert step_flops(config(), batch()) - step_flops(config(), more) == less


def test_frozen_prototypes_and_a_head_for_patches_change_the_count():
    official = step_flops(config(), batch())
    frozen = step_flops(config("dino.head_freeze_prototypes=true"), batch())
    assert official - frozen == 2 * 8 * K * (4 * B + 5)
    separate = (
        "ibot.separate_head=true",
        "ibot.head_n_prototypes=32",
        "ibot.head_hidden_dim=16",
        "ibot.head_bottleneck_dim=8",
    )
    assert official - step_flops(config(*separate), batch()) == 4 * 5 * 2 * 8 * (K - 32)


def test_stochastic_depth_saves_work_of_the_student():
    assert step_flops(config("student.drop_path_rate=0.5"), batch()) < 0.75 * step_flops(config(), batch())


def test_grey_crops_of_bytes_count_as_the_three_channels_they_become():
    assert step_flops(config(), batch(dtype=torch.uint8, channels=1)) == step_flops(config(), batch())


def test_counting_touches_no_random_state():
    torch.manual_seed(3)
    random.seed(3)
    before = torch.get_rng_state(), random.getstate()
    step_flops(config("student.drop_path_rate=0.5"), batch())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


@pytest.mark.parametrize("arch", ["vit_micro_conv", "vit_tiny"])
def test_other_backbones_are_counted_too(arch):
    assert step_flops(
        config(f"student.arch={arch}", "student.num_register_tokens=2", "student.block_chunks=2"), batch()
    )


def test_a_backbone_that_cannot_be_counted_gives_none_and_a_line_in_the_log(monkeypatch, caplog):
    class NeedsValues(nn.Module):
        embed_dim = WIDTH

        def forward(self, x, **_):
            return x * x[0].sum().item()

    monkeypatch.setattr(vits, "vit_of_a_plugin", lambda **_: NeedsValues(), raising=False)
    with caplog.at_level("INFO", logger="dinov2"):
        assert step_flops(config("student.arch=vit_of_a_plugin"), batch()) is None
    assert "vit_of_a_plugin" in caplog.text


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A10", 125),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA RTX A6000", 155),
        ("NVIDIA GeForce RTX 4090", 165),
        ("Tesla V100-SXM2-32GB", None),
        ("Some Card 9000", None),
    ],
)
def test_the_peak_in_bfloat16_is_looked_up_by_the_words_of_the_name(name, tflops, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    peak = peak_flops_of(torch.device("cuda"), torch.bfloat16)
    assert peak == (tflops * 1e12 if tflops else None)


def test_a_card_without_bfloat16_units_has_a_peak_in_float16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100-SXM2-32GB")
    assert peak_flops_of(torch.device("cuda"), torch.float16) == 125e12


def test_a_peak_is_unknown_on_the_cpu_and_in_float32_unless_it_is_given():
    assert peak_flops_of(torch.device("cpu"), torch.bfloat16) is None
    assert peak_flops_of(torch.device("cuda"), None) is None
    assert peak_flops_of(torch.device("cpu"), None, override_tflops=1.5) == 1.5e12


def test_the_values_of_a_step_follow_from_its_times():
    throughput = Throughput(images_per_step=128, flops_per_step=4e12, peak_flops=10e12)
    values = throughput.update(2.0, 0.5)
    memory = values.pop("max_memory_mb")
    assert values == {"images_per_second": 64.0, "data_wait": 0.25, "tflops": 2.0, "mfu": 0.2}
    assert 10 < memory < 1e6


def test_what_is_not_known_is_not_logged():
    assert set(Throughput(images_per_step=1).update(1.0, 0.0)) == {"images_per_second", "data_wait", "max_memory_mb"}
    assert "mfu" not in Throughput(images_per_step=1, flops_per_step=1e9).update(1.0, 0.0)
