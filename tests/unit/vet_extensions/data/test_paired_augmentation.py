"""Paired augmentation: where crops come from, what they may change, and that they repeat."""

import numpy as np
import pytest
import torch

from dinov2.configs import dinov2_default_config
from dinov2.loss.routing import build_router
from dinov2.utils.errors import UserError as CoreUserError
from vet_extensions.data import StudySample
from vet_extensions.data.paired_augmentation import CropSettings, PairedViewAugmentation, RadiographCrop, paired_views
from vet_extensions.errors import UserError
from vet_extensions.routing import CrossOnly, Symmetric, VetDino
from vet_extensions.schema import View


def settings(**changes) -> CropSettings:
    plain = {
        "global_scale": (0.5, 1.0),
        "local_scale": (0.1, 0.5),
        "global_size_px": 48,
        "local_size_px": 24,
        "gamma_sigma": 0.0,
        "contrast_sigma": 0.0,
        "brightness_sigma": 0.0,
        "noise_sigma": 0.0,
        "blur_probability": 0.0,
    }
    return CropSettings(**{**plain, **changes})


def study(*values: int, views=(View.LATERAL_LEFT, View.VD), position=7) -> StudySample:
    images = tuple(np.full((128, 100), v, dtype=np.uint8) for v in values)
    return StudySample(pixels=images, views=tuple(views[: len(values)]), position=position)


def augmentation(teacher_view="first", n_local=4, **changes) -> PairedViewAugmentation:
    layout = VetDino({"name": "vet_dino"}, n_local).layout
    return PairedViewAugmentation(RadiographCrop(settings(**changes)), layout, seed=0, teacher_view=teacher_view)


def grey_of(crops: list[torch.Tensor]) -> list[int]:
    return [int(c.median()) for c in crops]


def test_teacher_crops_come_from_image_a_and_student_crops_from_both():
    out = augmentation()(study(50, 200))
    assert grey_of(out["global_crops_teacher"]) == [50, 50]
    assert grey_of(out["global_crops"]) == [50, 200]
    assert grey_of(out["local_crops"]) == [50, 50, 200, 200]
    assert out["global_crops_teacher"][0] is out["global_crops"][0]


def test_crops_are_single_channel_bytes_of_the_configured_sizes():
    out = augmentation()(study(50, 200))
    assert {(c.shape, c.dtype) for c in out["global_crops"]} == {(torch.Size([1, 48, 48]), torch.uint8)}
    assert {c.shape for c in out["local_crops"]} == {torch.Size([1, 24, 24])}


def test_a_single_image_study_takes_every_crop_from_it_and_says_so():
    out = augmentation()(study(50))
    assert set(grey_of(out["global_crops"] + out["local_crops"])) == {50}
    assert out["crop_sources"]["student_globals"] == [0, 0]


def test_teacher_view_by_name_puts_that_view_first():
    out = augmentation(teacher_view="VD")(study(50, 200))
    assert grey_of(out["global_crops_teacher"]) == [200, 200]
    assert out["teacher_groups"] == [1, 1]


@pytest.mark.parametrize("views", [(View.LATERAL_LEFT, View.DV), (View.DV, View.LATERAL_RIGHT)])
def test_teacher_view_by_family_puts_its_image_first(views):
    frontal = 50 if views[0] == View.DV else 200
    assert (
        grey_of(augmentation(teacher_view="frontal")(study(50, 200, views=views))["global_crops_teacher"])[0] == frontal
    )


@pytest.mark.parametrize("views", [(View.VD, View.DV), (View.LATERAL_LEFT, View.LATERAL_RIGHT)])
def test_a_pair_within_or_without_the_family_keeps_the_order_it_was_drawn_in(views):
    assert grey_of(augmentation(teacher_view="frontal")(study(50, 200, views=views))["global_crops_teacher"]) == [
        50,
        50,
    ]


def test_under_symmetric_both_views_teach_with_the_students_own_crops():
    out = PairedViewAugmentation(RadiographCrop(settings()), Symmetric({}, 4).layout, seed=0, teacher_view="first")(
        study(50, 200)
    )
    assert grey_of(out["global_crops_teacher"]) == [50, 200]
    assert all(teacher is student for teacher, student in zip(out["global_crops_teacher"], out["global_crops"]))
    assert out["teacher_groups"] == [0, 1]


def test_under_cross_only_the_student_sees_the_image_that_the_teacher_does_not():
    out = PairedViewAugmentation(RadiographCrop(settings()), CrossOnly({}, 4).layout, seed=0, teacher_view="VD")(
        study(50, 200)
    )
    assert grey_of(out["global_crops_teacher"]) == [200, 200]
    assert set(grey_of(out["global_crops"] + out["local_crops"])) == {50}


def test_random_teacher_view_takes_either_image():
    make = augmentation(teacher_view="random")
    seen = {grey_of(make(study(50, 200, position=p))["global_crops_teacher"])[0] for p in range(20)}
    assert seen == {50, 200}


def test_same_position_gives_the_same_crops_and_another_gives_others():
    pixels = np.random.default_rng(0).integers(0, 255, (128, 100), dtype=np.uint8)
    make = augmentation(noise_sigma=0.02, rotation_deg=5.0)

    def crops(position):
        sample = StudySample(pixels=(pixels, pixels), views=(View.VD, View.VD), position=position)
        return torch.stack(make(sample)["global_crops"])

    assert torch.equal(crops(3), crops(3))
    assert not torch.equal(crops(3), crops(4))


def test_same_image_layout_crops_one_image_only():
    layout = build_router({"name": "same_image"}, 2).layout
    make = PairedViewAugmentation(RadiographCrop(settings()), layout, seed=0, teacher_view="random")
    for position in range(6):
        out = make(study(50, 200, position=position))
        assert len(set(grey_of(out["global_crops"] + out["local_crops"]))) == 1


def test_a_crop_of_the_whole_image_is_its_antialiased_reduction():
    yy, xx = np.mgrid[0:96, 0:96]
    image = (127 + 100 * np.sin(xx / 20) * np.cos(yy / 25)).astype(np.uint8)
    cut = RadiographCrop(settings(global_scale=(1.0, 1.0), aspect_ratio=(1.0, 1.0)))
    crop = cut(image, is_global=True, rng=np.random.default_rng(0))[0].numpy().astype(float)
    expected = image.reshape(48, 2, 48, 2).mean((1, 3))
    assert np.abs(crop - expected).max() <= 1.0


def test_mirroring_reverses_columns():
    image = np.tile(np.arange(0, 192, 2, dtype=np.uint8), (96, 1))
    whole = {"global_scale": (1.0, 1.0), "aspect_ratio": (1.0, 1.0)}
    plain = RadiographCrop(settings(**whole))(image, is_global=True, rng=np.random.default_rng(0))
    mirrored = RadiographCrop(settings(**whole, hflip_probability=1.0))(
        image, is_global=True, rng=np.random.default_rng(0)
    )
    assert torch.equal(mirrored, plain.flip(-1))


def test_sixteen_bit_images_use_their_full_range():
    image = np.full((64, 64), 65535, dtype=np.uint16)
    assert RadiographCrop(settings())(image, is_global=True, rng=np.random.default_rng(0)).min() == 255


def test_photometrics_keep_the_geometry_and_change_the_values():
    image = np.random.default_rng(0).integers(40, 200, (96, 96), dtype=np.uint8)
    plain = RadiographCrop(settings())(image, is_global=True, rng=np.random.default_rng(1)).float().flatten()
    varied = RadiographCrop(settings(gamma_sigma=0.3, contrast_sigma=0.3, brightness_sigma=0.1))
    other = varied(image, is_global=True, rng=np.random.default_rng(1)).float().flatten()
    assert not torch.equal(plain, other)
    assert torch.corrcoef(torch.stack([plain, other]))[0, 1] > 0.95


def test_unknown_teacher_view_and_unknown_keys_are_named():
    with pytest.raises(UserError, match="LATERAL_LEFT"):
        augmentation(teacher_view="sideways")
    cfg = dinov2_default_config.copy()
    cfg.augmentation = {"name": "paired_views", "gama_sigma": 0.1}
    with pytest.raises(CoreUserError, match="gamma_sigma"):
        paired_views(cfg, build_router({"name": "same_image"}, 8).layout)


def test_crops_neither_read_nor_move_the_generators_of_the_process():
    pixels = np.random.default_rng(0).integers(0, 255, (128, 100), dtype=np.uint8)
    make = augmentation(noise_sigma=0.02, blur_probability=0.5, teacher_view="random")
    sample = StudySample(pixels=(pixels, pixels), views=(View.VD, View.LATERAL_LEFT), position=3)
    assert make.draws_by_position
    before = torch.random.get_rng_state()
    expected = torch.stack(make(sample)["local_crops"])
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(torch.stack(make(sample)["local_crops"]), expected)


def test_switching_one_variation_off_leaves_the_boxes_where_they_were():
    image = np.tile(np.arange(0, 200, 2, dtype=np.uint8), (100, 1))
    plain = RadiographCrop(settings())(image, is_global=False, rng=np.random.default_rng(4))
    noisy = RadiographCrop(settings(noise_sigma=0.005, blur_probability=1.0, blur_sigma_px=(0.3, 0.5)))(
        image, is_global=False, rng=np.random.default_rng(4)
    )
    assert not torch.equal(noisy, plain)
    assert (noisy.float() - plain.float()).abs().max() < 12


def test_boxes_of_extreme_shape_stay_inside_the_image():
    flat = np.full((40, 400), 77, dtype=np.uint8)
    cut = RadiographCrop(settings(global_scale=(0.01, 1.0), aspect_ratio=(0.05, 20.0)))
    rng = np.random.default_rng(0)
    for _ in range(50):
        assert set(cut(flat, is_global=True, rng=rng).unique().tolist()) == {77}
