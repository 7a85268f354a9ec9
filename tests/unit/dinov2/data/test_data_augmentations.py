"""The `dino` augmentation: its crop dictionary, its draws, and what its factory accepts."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from dinov2.data import DataAugmentationDINO
from dinov2.data.registry import AUGMENTATIONS, build_augmentation
from dinov2.loss.routing import CropLayout
from dinov2.utils.errors import UserError

OFFICIAL_LAYOUT = CropLayout(student_globals=(0, 0), student_locals=(0, 0), teacher_globals=(0, 0), n_shared=2)


def image(mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def small(**options):
    return DataAugmentationDINO((0.32, 1.0), (0.05, 0.32), 3, global_crops_size=28, local_crops_size=14, **options)


def config(**augmentation):
    return OmegaConf.create(
        {
            "crops": {
                "global_crops_scale": [0.32, 1.0],
                "local_crops_scale": [0.05, 0.32],
                "local_crops_number": 2,
                "global_crops_size": 28,
                "local_crops_size": 14,
            },
            "augmentation": {"name": "dino", **augmentation},
        }
    )


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_crop_dictionary_has_the_official_keys_and_shapes(mode):
    crops = small()(image(mode))
    assert list(crops) == ["global_crops", "global_crops_teacher", "local_crops", "offsets"]
    assert [tuple(crop.shape) for crop in crops["global_crops"]] == [(3, 28, 28)] * 2
    assert [tuple(crop.shape) for crop in crops["local_crops"]] == [(3, 14, 14)] * 3
    assert crops["offsets"] == ()


def test_the_teachers_crops_are_the_same_objects():
    crops = small()(image())
    assert all(a is b for a, b in zip(crops["global_crops"], crops["global_crops_teacher"], strict=True))


def test_geometry_and_colour_are_drawn_crop_by_crop_in_the_official_order():
    augmentation = small()
    calls = []
    names = ["geometric_augmentation_global", "global_transfo1", "global_transfo2"]
    for name in [*names, "geometric_augmentation_local", "local_transfo"]:
        step = getattr(augmentation, name)
        setattr(augmentation, name, lambda x, step=step, name=name: (calls.append(name), step(x))[1])
    augmentation(image())
    geometric, first, second = names
    assert calls == [geometric, first, geometric, second, *["geometric_augmentation_local", "local_transfo"] * 3]


def test_equal_seeds_give_equal_crops():
    augmentation, crops = small(), []
    for _ in range(2):
        torch.manual_seed(11)
        crops.append(augmentation(image()))
    assert torch.equal(crops[0]["local_crops"][2], crops[1]["local_crops"][2])


def test_no_local_crops_is_an_empty_list():
    augmentation = DataAugmentationDINO((0.32, 1.0), (0.05, 0.32), 0, global_crops_size=28)
    assert augmentation(image())["local_crops"] == []


def test_the_configuration_gives_sizes_and_normalisation():
    plain = build_augmentation(config(), OFFICIAL_LAYOUT)
    shifted = build_augmentation(config(mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0]), OFFICIAL_LAYOUT)
    assert plain(image())["local_crops"][1].shape == (3, 14, 14)
    pixels = shifted(image())["global_crops"][0]
    assert 0 <= pixels.min() <= pixels.max() <= 1


def test_the_blur_probability_as_stated_is_a_choice_of_the_configuration():
    official = build_augmentation(config(), OFFICIAL_LAYOUT)
    stated = build_augmentation(config(blur_p_is_of_blur=True), OFFICIAL_LAYOUT)
    assert [a.global_transfo1.transforms[1].p for a in (official, stated)] == [0.0, 1.0]


def test_an_unknown_key_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"augmentation\.gama.*blur_p_is_of_blur"):
        AUGMENTATIONS.get("dino")(config(gama=1), OFFICIAL_LAYOUT)


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        (CropLayout((0, 1), (0,), (0, 1), n_shared=2), "needs 2 images"),
        (CropLayout((0, 0), (0,), (0, 0), n_shared=1), "1 of them shared"),
        (CropLayout((0, 0, 0), (0,), (0, 0, 0), n_shared=3), "wants 3 for the student"),
    ],
)
def test_a_layout_that_is_not_the_official_one_is_refused(layout, reason):
    with pytest.raises(UserError, match=reason):
        build_augmentation(config(), layout)
