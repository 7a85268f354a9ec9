"""The routings for two views in the objective itself: which crops KoLeo and iBOT look at."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from dinov2.configs import dinov2_default_config
from dinov2.data import MaskingGenerator, collate_data_and_cast
from dinov2.train.ssl_meta_arch import SSLMetaArch
from dinov2.utils.errors import UserError
from vet_extensions.data import StudySample, paired_views
from vet_extensions.routing import register
from vet_extensions.schema import View

SMALL = {
    "compute_precision": {"grad_scaler": False},
    "dino": {"head_n_prototypes": 16, "head_bottleneck_dim": 8, "head_hidden_dim": 16, "koleo_loss_weight": 1.0},
    "student": {"arch": "vit_micro", "patch_size": 8, "drop_path_rate": 0.0, "layerscale": 1.0},
    "crops": {
        "global_crops_size": 16,
        "local_crops_size": 8,
        "local_crops_number": 2,
        "global_crops_scale": [1.0, 1.0],
    },
    "augmentation": {"name": "paired_views", "aspect_ratio": [1.0, 1.0], "blur_probability": 0.0}
    | {f"{term}_sigma": 0.0 for term in ("gamma", "contrast", "brightness", "noise")},
}
EQUAL_ROWS = -np.log(1e-8)
"""KoLeo of two equal class tokens."""


def build(**changes) -> SSLMetaArch:
    register()
    model = SSLMetaArch(OmegaConf.merge(dinov2_default_config, SMALL, changes))
    model.train()
    model.prepare_for_distributed_training()
    return model


def batch_of_equal_views(model: SSLMetaArch) -> dict:
    """Three studies whose two images, and so all whole crops of them, are the same pixels."""
    augmentation = paired_views(model.cfg, model.router.layout)
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16), dtype=np.uint8)
    samples = [
        StudySample(pixels=(image, image), views=(View.VD, View.LATERAL_LEFT), position=i)
        for i, image in enumerate(images)
    ]
    masks = MaskingGenerator((2, 2), max_num_patches=2)
    return collate_data_and_cast([(augmentation(s), ()) for s in samples], (0.1, 0.5), 0.5, torch.float32, 4, masks)


@pytest.mark.parametrize("name", ["vet_dino", "symmetric", "cross_only"])
def test_koleo_never_compares_two_crops_of_a_study(name):
    model = build(routing={"name": name}, ibot={"loss_weight": 0.0})
    batch = batch_of_equal_views(model)
    globals_of_study = batch["collated_global_crops"].unflatten(0, (2, 3))
    assert torch.equal(globals_of_study[0], globals_of_study[1])  # else the test would show nothing
    losses = model.forward_backward(batch, teacher_temp=0.05)
    assert losses["koleo_loss"] < 0.9 * EQUAL_ROWS


def test_symmetric_masks_crops_of_both_views():
    model = build(routing={"name": "symmetric"})
    assert batch_of_equal_views(model)["n_shared"] == 2
    assert "ibot_loss" in model.forward_backward(batch_of_equal_views(model), teacher_temp=0.05)


def test_cross_only_with_ibot_says_what_to_set():
    with pytest.raises(UserError, match=r"ibot\.loss_weight=0"):
        build(routing={"name": "cross_only"})
