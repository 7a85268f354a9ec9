"""Layers, heads, losses, data pieces, schedules and parameter groups give the official package's numbers."""

import hashlib
import random
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_recipe import assert_golden, crop_samples, fill, load_golden, sines, summary, tiny_vit

from dinov2.data import MaskingGenerator, collate_data_and_cast
from dinov2.data.samplers import EpochSampler, InfiniteSampler, ShardedInfiniteSampler
from dinov2.layers import DINOHead, MemEffAttention, NestedTensorBlock
from dinov2.loss import DINOLoss, KoLeoLoss, iBOTPatchLoss
from dinov2.utils.param_groups import fuse_params_groups, get_params_groups_with_decay
from dinov2.utils.utils import CosineScheduler

WANT = load_golden("golden_values.json")

VIT_VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "reg": {"num_register_tokens": 2, "interpolate_antialias": True, "interpolate_offset": 0.0},
    "chunks": {"block_chunks": 2},
    "swiglu": {"ffn_layer": "swiglufused"},
    "nols": {"init_values": None},
    "nobias": {"qkv_bias": False, "proj_bias": False, "ffn_bias": False},
}


@pytest.mark.parametrize("variant", VIT_VARIANTS)
@torch.no_grad()
def test_vision_transformer_gives_the_official_features(variant):
    model = tiny_vit(**VIT_VARIANTS[variant])
    square, rectangle = sines(2, 3, 56, 56), sines(2, 3, 84, 42)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, 3:9] = True
    features = model.forward_features(square)
    pairs = model.get_intermediate_layers(square, n=[0, 3], return_class_token=True)
    maps = model.get_intermediate_layers(rectangle, n=2, reshape=True, norm=False)
    got = {
        "": {key: summary(value) for key, value in features.items() if value is not None and value.numel()},
        ".rect": summary(model(rectangle)),
        ".inter": [summary(tensor) for pair in pairs for tensor in pair],
        ".inter_reshape_nonorm": [summary(tensor) for tensor in maps],
        ".masked": summary(model.forward_features(square, mask)["x_prenorm"]),
        ".keys": len(model.state_dict()),
    }
    for part, value in got.items():
        assert_golden(WANT[f"vit.{variant}{part}"], value)


@pytest.mark.parametrize(("entry", "settings"), [("head", {"hidden_dim": 48}), ("head.n1", {"nlayers": 1})])
def test_head_gives_the_official_logits(entry, settings):
    head = fill(DINOHead(32, 64, bottleneck_dim=16, **settings))
    assert_golden(WANT[entry], summary(head(sines(5, 32, k=0.3))))


def test_dino_loss_gives_the_official_targets_and_loss():
    loss, teacher, student = DINOLoss(64), sines(6, 64, k=0.7), sines(6, 64, k=0.9)
    first = loss.softmax_center_teacher(teacher, 0.07)
    loss.update_center(teacher)
    second = loss.softmax_center_teacher(teacher, 0.07)
    assert_golden(WANT["dino.softmax"], [summary(first), summary(second), summary(loss.center)])
    balanced = loss.sinkhorn_knopp_teacher(teacher, 0.07)
    assert_golden(WANT["dino.sinkhorn"], summary(balanced))
    assert_golden(WANT["dino.loss"], float(loss(list(student.chunk(3)), list(balanced.chunk(3)))))
    assert_golden(WANT["dino.loss.one"], float(loss([student], [first])))


def test_ibot_loss_gives_the_official_centre_and_losses():
    loss, teacher, student = iBOTPatchLoss(64), sines(8, 64, k=0.5), sines(8, 64, k=0.8)
    targets = loss.softmax_center_teacher(teacher.unsqueeze(0), 0.07).squeeze(0)
    loss.update_center(teacher.unsqueeze(0))
    loss.apply_center_update()
    masks = torch.zeros(4, 16, dtype=torch.bool)
    masks[0, :3] = True
    masks[2, :5] = True
    weighted = loss.forward_masked(
        student, targets, masks, n_masked_patches=8, masks_weight=torch.linspace(0.1, 0.8, 8)
    )
    dense = loss(sines(2, 16, 64, k=0.8), F.softmax(sines(2, 16, 64, k=0.5), -1), masks[[0, 2]])
    assert_golden(WANT["ibot.masked"], float(loss.forward_masked(student, targets, masks)))
    assert_golden(WANT["ibot.center"], summary(loss.center))
    assert_golden(WANT["ibot.masked.weights"], float(weighted))
    assert_golden(WANT["ibot.dense"], float(dense))


def test_koleo_loss_gives_the_official_value():
    assert_golden(WANT["koleo"], float(KoLeoLoss()(sines(7, 32, k=0.61))))


def test_masks_and_collate_follow_the_official_random_stream():
    random.seed(0)
    generator = MaskingGenerator(input_size=(14, 14), max_num_patches=0.5 * 224 // 16 * 224 // 16)
    masks = [generator(count) for count in (0, 1, 20, 59, 98, 150)]
    assert_golden(WANT["mask.counts"], [int(mask.sum()) for mask in masks])
    assert_golden(WANT["mask.sha"], [hashlib.sha1(np.packbits(m).tobytes()).hexdigest()[:12] for m in masks])

    random.seed(0)
    small = MaskingGenerator(input_size=(4, 4), max_num_patches=0.5 * 56 // 14 * 56 // 14)
    batch = collate_data_and_cast(crop_samples(4, 3), (0.1, 0.5), 0.5, torch.float, 16, small)
    assert_golden(
        WANT["collate"],
        {
            "keys": sorted(batch),
            "upperbound": batch["upperbound"],
            "n": int(batch["n_masked_patches"]),
            "per_image": batch["collated_masks"].sum(-1).tolist(),
            "idx": batch["mask_indices_list"].tolist(),
            "w": batch["masks_weight"].tolist(),
            "g": summary(batch["collated_global_crops"]),
            "l": summary(batch["collated_local_crops"]),
        },
    )
    random.seed(0)
    large = collate_data_and_cast(crop_samples(5, 1, global_px=224), (0.1, 0.5), 0.5, torch.float, 196, generator)
    per_image = large["collated_masks"].sum(-1).tolist()
    assert_golden(WANT["collate2"], {"upperbound": large["upperbound"], "per_image": per_image})


def test_samplers_give_the_official_orders():
    def take(sampler, n):
        return [int(index) for index in islice(iter(sampler), n)]

    six = {"sample_count": 6, "shuffle": True, "seed": 1, "start": 0, "step": 2}
    eight = {"sample_count": 8, "shuffle": True, "seed": 1, "start": 1, "step": 2}
    got = {
        "epoch": take(EpochSampler(size=9, sample_count=6, shuffle=True, seed=3, start=1, step=2), 9),
        "infinite": take(InfiniteSampler(**six), 9),
        "infinite_adv": take(InfiniteSampler(**six, advance=4), 5),
        "sharded": take(ShardedInfiniteSampler(**eight), 10),
        "sharded_new": take(ShardedInfiniteSampler(**eight, use_new_shuffle_tensor_slice=True), 10),
        "sharded_adv": take(ShardedInfiniteSampler(**eight, advance=19), 6),
    }
    assert_golden(WANT["sampler"], got)


def test_cosine_schedule_gives_the_official_values():
    schedule = CosineScheduler(base_value=0.004, final_value=1e-6, total_iters=100, warmup_iters=10, freeze_iters=5)
    assert_golden(WANT["sched"], [float(schedule[i]) for i in (0, 4, 5, 14, 15, 50, 99, 100, 10**6)])


@pytest.mark.parametrize("rate", [0.05, 0.4])
def test_stochastic_depth_draws_as_the_official_block(rate):
    block = fill(NestedTensorBlock(32, 2, init_values=0.1, drop_path=rate, attn_class=MemEffAttention)).train()
    torch.manual_seed(0)
    assert_golden(WANT[f"block.train.{rate}"], summary(block(sines(6, 17, 32, k=0.07))))


@pytest.mark.parametrize(("entry", "training"), [("block.list.0.4", True), ("block.list.eval", False)])
def test_block_on_a_list_of_crops_gives_the_official_values(entry, training):
    block = fill(NestedTensorBlock(32, 2, init_values=0.1, drop_path=0.4, attn_class=MemEffAttention)).train(training)
    torch.manual_seed(0)
    outputs = block([sines(6, 17, 32, k=0.07), sines(9, 5, 32, k=0.05)])
    assert_golden(WANT[entry], [summary(out) for out in outputs])


@pytest.mark.parametrize("block_chunks", [0, 2])
def test_parameter_groups_have_the_official_multipliers(block_chunks):
    model = tiny_vit(block_chunks=block_chunks, num_register_tokens=2)
    groups = get_params_groups_with_decay(model, 0.9, 0.2)
    got = {g["name"]: [round(g["lr_multiplier"], 9), g["wd_multiplier"], g["is_last_layer"]] for g in groups}
    assert_golden(WANT[f"params.{block_chunks}"], got)
    assert_golden(WANT[f"params.fused.{block_chunks}"], len(list(fuse_params_groups(groups))))


def test_every_golden_entry_is_looked_at():
    prefixes = ("vit.", "head", "dino.", "ibot.", "koleo", "mask.", "collate", "sampler", "sched", "block.", "params.")
    assert [entry for entry in WANT if entry != "torch" and not entry.startswith(prefixes)] == []
