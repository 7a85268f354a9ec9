"""Crops of a batch by matrix products: what the workers cut by the same plans, in the batch that a step gets."""

from typing import Any

import cv2
import numpy as np
import pytest
import torch

from dinov2.configs import dinov2_default_config
from dinov2.data import collate_data_and_cast
from dinov2.loss.routing import build_router
from dinov2.train.device_batch import to_device
from vet_extensions.data import StudySample
from vet_extensions.data.device_crops import CropGroup, blur_matrices, crops_on_device, plan_table, resize_matrices
from vet_extensions.data.paired_augmentation import PairedViewAugmentation, paired_views
from vet_extensions.data.radiograph_crop import CropPlan, CropSettings, RadiographCrop
from vet_extensions.errors import UserError
from vet_extensions.routing import VetDino
from vet_extensions.schema import View

SHAPES = [(120, 96), (100, 128)]
SIZES = torch.tensor(SHAPES, dtype=torch.float32)
OF_IMAGE = [0, 1, 1, 0, 1, 0]
CPU = torch.device("cpu")
CROPS = ("collated_global_crops", "collated_local_crops", "collated_global_crops_teacher")
NO_TONES = {"gamma_sigma": 0.0, "contrast_sigma": 0.0, "brightness_sigma": 0.0}


def settings(**changes) -> CropSettings:
    plain = {"global_scale": (0.3, 1.0), "local_scale": (0.05, 0.3), "global_size_px": 48, "local_size_px": 24}
    return CropSettings(**{**plain, "noise_sigma": 0.0, "blur_probability": 0.0, **changes})


def radiographs() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    noise = [rng.normal(0, 40, shape).astype(np.float32) for shape in SHAPES]
    return [np.clip(120 + 4 * cv2.GaussianBlur(n, (0, 0), 2.0) + n / 20, 0, 255).astype(np.uint8) for n in noise]


def padded(images: list[np.ndarray]) -> torch.Tensor:
    batch = np.full((len(images), 128, 128), 255, dtype=np.uint8)
    for place, pixels in zip(batch, images, strict=True):
        place[: pixels.shape[0], : pixels.shape[1]] = pixels
    return torch.from_numpy(batch)


def group(plans: list[CropPlan], of_image: list[int], *, size: int) -> CropGroup:
    return CropGroup(size_px=size, plans=plan_table(plans), of_image=torch.tensor(of_image))


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return 10 * np.log10(255**2 / float((a.double() - b.double()).square().mean()))


def both_ways(changed: CropSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """The same plans by a worker and on the device, uint8 [6, 1, 48, 48] each."""
    crop, images = RadiographCrop(changed), radiographs()
    in_worker = torch.stack(crop.crops([images[i] for i in OF_IMAGE], is_global=True, rng=np.random.default_rng(7)))
    plans = crop.plans([SHAPES[i] for i in OF_IMAGE], is_global=True, rng=np.random.default_rng(7))
    return in_worker, crops_on_device(padded(images), group(plans, OF_IMAGE, size=48), sizes=SIZES)


@pytest.mark.parametrize(
    "changes",
    [
        NO_TONES,
        {},
        {"hflip_probability": 0.5},
        {"blur_probability": 0.7},
    ],
    ids=["boxes", "tone curves", "mirrored", "blurred"],
)
def test_a_batch_of_crops_equals_the_workers_crops(changes):
    in_worker, on_device = both_ways(settings(**changes))
    assert in_worker.shape == on_device.shape == (6, 1, 48, 48)
    assert psnr(in_worker, on_device) > 45


def test_padding_beside_an_image_does_not_reach_its_crops():
    black = torch.full((1, 128, 128), 255, dtype=torch.uint8)
    black[0, :120, :96] = 0
    crop = RadiographCrop(settings(**NO_TONES))
    plans = crop.plans([SHAPES[0]] * 4, is_global=True, rng=np.random.default_rng(0))
    assert crops_on_device(black, group(plans, [0] * 4, size=48), sizes=SIZES).max() == 0


def test_more_crops_than_are_made_at_once_are_those_made_apart():
    crop, images = RadiographCrop(settings(blur_probability=0.5)), padded(radiographs())
    of_image = [0, 1] * 50
    plans = crop.plans([SHAPES[i] for i in of_image], is_global=False, rng=np.random.default_rng(3))
    together = crops_on_device(images, group(plans, of_image, size=24), sizes=SIZES)
    last = crops_on_device(images, group(plans[90:], of_image[90:], size=24), sizes=SIZES)
    assert (together[90:].int() - last.int()).abs().max() <= 1


def test_a_resize_matrix_keeps_a_flat_image_flat():
    start, length = torch.tensor([0.0, 3.5]), torch.tensor([96.0, 20.25])
    matrices = resize_matrices(start, length, size=24, n_pixels=torch.tensor([96.0, 96.0]), n_columns=128)
    torch.testing.assert_close(matrices.sum(2), torch.ones(2, 24))
    assert matrices[:, :, 96:].abs().max() == 0


def test_a_blur_matrix_is_opencvs_gaussian():
    pixels = radiographs()[0][:48, :48].astype(np.float32)
    blur, identity = blur_matrices(torch.tensor([0.8, 0.0]), size=48)
    blurred = blur @ torch.from_numpy(pixels) @ blur.mT
    np.testing.assert_allclose(blurred.numpy(), cv2.GaussianBlur(pixels, (0, 0), 0.8), atol=1e-3)
    torch.testing.assert_close(identity, torch.eye(48))


def test_noise_of_a_batch_repeats_with_its_generator():
    crop, images = RadiographCrop(settings()), padded(radiographs())
    plans = crop.plans(SHAPES, is_global=False, rng=np.random.default_rng(0))

    def noisy(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return crops_on_device(
            images, group(plans, [0, 1], size=24), sizes=SIZES, noise_sigma=0.02, generator=generator
        )

    assert torch.equal(noisy(1), noisy(1))
    assert not torch.equal(noisy(1), noisy(2))


def test_a_blur_as_wide_as_the_border_repeats_opencvs_mirroring():
    pixels = np.random.default_rng(0).uniform(0, 255, (16, 16)).astype(np.float32)
    blur = blur_matrices(torch.tensor([3.0]), size=16)[0]
    expected = cv2.GaussianBlur(pixels, (25, 25), 3.0)
    np.testing.assert_allclose((blur @ torch.from_numpy(pixels) @ blur.T).numpy(), expected, atol=1e-2)


def study(position: int, *, n_images: int = 2, bits: int = 8) -> StudySample:
    images = [np.roll(image, 7 * position, axis=0) for image in radiographs()][:n_images]
    if bits == 16:
        images = [image.astype(np.uint16) * 257 for image in images]
    return StudySample(tuple(images), (View.LATERAL_LEFT, View.VD)[:n_images], position)


def batch_of(
    samples: list[StudySample], *, on_device: bool, routing: str = "vet_dino", n_local: int = 4, **changes
) -> dict[str, Any]:
    routers = {
        "vet_dino": VetDino({"name": "vet_dino"}, n_local),
        "same_image": build_router({"name": "same_image"}, n_local),
    }
    layout = routers[routing].layout
    augmentation = PairedViewAugmentation(
        RadiographCrop(settings(**changes)), layout, seed=5, crops_on_device=on_device
    )
    made = [(augmentation(sample), ()) for sample in samples]
    return collate_data_and_cast(made, (0.1, 0.5), 0.5, torch.float32, n_tokens=9)


def crops_of(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Grey levels of the crops that a step gets."""
    ready = to_device(batch, CPU, mean=torch.tensor([0.0]), std=torch.tensor([1 / 255]))
    return {name: ready[name] for name in CROPS}


@pytest.mark.parametrize("routing", ["vet_dino", "same_image"])
def test_a_step_gets_the_workers_crops_of_every_slot(routing):
    samples = [study(0), study(1, n_images=1), study(2)]
    kinds = {"routing": routing, "blur_probability": 0.5, "hflip_probability": 0.5}
    in_workers, on_device = (batch_of(samples, on_device=it, **kinds) for it in (False, True))
    expected, got = crops_of(in_workers), crops_of(on_device)
    assert {name: crops.shape for name, crops in got.items()} == {name: crops.shape for name, crops in expected.items()}
    for name in CROPS:
        pairs = zip(got[name], expected[name], strict=True)
        assert min(psnr(one, other) for one, other in pairs) > 40, name
        assert psnr(got[name], expected[name]) > 45, name


def test_all_but_the_crops_is_the_same_in_both_batches():
    in_workers, on_device = (batch_of([study(0), study(1)], on_device=it) for it in (False, True))
    assert set(in_workers) - set(CROPS) == set(on_device) - {"crops_on_device"}
    for name in set(in_workers) - set(CROPS):
        torch.testing.assert_close(on_device[name], in_workers[name], rtol=0, atol=0)


def test_noise_in_the_workers_does_not_move_the_boxes_on_the_device():
    """Local crops are drawn behind the noise of the global ones. 0.02 of noise is a PSNR of 34 against none, 31 twice."""
    in_workers, on_device = (batch_of([study(0), study(1)], on_device=it, noise_sigma=0.02) for it in (False, True))
    expected, got = crops_of(in_workers), crops_of(on_device)
    for name in CROPS:
        pairs = zip(got[name], expected[name], strict=True)
        assert min(psnr(one, other) for one, other in pairs) > 30, name
        assert psnr(got[name], expected[name]) < 33, name


def test_crops_that_teacher_and_student_share_have_the_same_noise():
    batch = batch_of([study(0), study(1)], on_device=True, noise_sigma=0.02)
    crops, n = crops_of(batch), 2 * batch["n_shared"]
    assert n
    assert torch.equal(crops["collated_global_crops"][:n], crops["collated_global_crops_teacher"][:n])


def test_noise_of_a_batch_repeats_and_follows_the_position_of_its_first_sample():
    def noise(position: int) -> torch.Tensor:
        maker = batch_of([study(position), study(3)], on_device=True, noise_sigma=0.02)["crops_on_device"]
        return maker.crops(CPU)["collated_local_crops"]

    assert torch.equal(noise(1), noise(1))
    seeds = {batch_of([study(p)], on_device=True)["crops_on_device"].noise_seed for p in range(5)}
    assert len(seeds) == 5


def test_images_of_sixteen_bits_are_sent_as_they_are_and_give_the_workers_crops():
    samples = [study(0, bits=16), study(1, bits=16)]
    in_workers, on_device = (batch_of(samples, on_device=it) for it in (False, True))
    assert on_device["crops_on_device"].images.dtype == torch.uint16
    expected, got = crops_of(in_workers), crops_of(on_device)
    assert all(psnr(got[name], expected[name]) > 45 for name in CROPS)


def test_bytes_among_images_of_sixteen_bits_keep_their_grey():
    mixed, bytes_alone = ([study(0), study(1, bits=bits)] for bits in (16, 8))
    a, b = (crops_of(batch_of(samples, on_device=True)) for samples in (mixed, bytes_alone))
    assert all((a[name] - b[name]).abs().max() <= 2 for name in CROPS)


def test_on_the_meta_device_crops_have_the_shapes_of_the_real_ones():
    for n_local in (4, 0):
        maker = batch_of([study(0), study(1)], on_device=True, n_local=n_local)["crops_on_device"]
        real, shapes = maker.crops(CPU), maker.crops(torch.device("meta"))
        assert {name: (v.shape, v.dtype) for name, v in shapes.items()} == {
            name: (v.shape, v.dtype) for name, v in real.items()
        }
        assert all(v.is_meta for v in shapes.values())


def test_only_images_that_the_layout_looks_at_travel():
    maker = batch_of([study(0), study(1)], on_device=True, routing="same_image")["crops_on_device"]
    assert len(maker.images) == 2


def config_of(**augmentation):
    cfg = dinov2_default_config.copy()
    cfg.augmentation = {"name": "paired_views", **augmentation}
    return cfg


@pytest.mark.parametrize(
    ("options", "said"),
    [({"rotation_deg": 5.0, "crops_on_device": True}, "rotation_deg=0"), ({"crops_on_device": 1}, "true, false")],
    ids=["turned boxes", "not a switch"],
)
def test_what_the_device_cannot_do_is_refused_with_the_cure(options, said):
    with pytest.raises(UserError, match=said):
        paired_views(config_of(**options), build_router({"name": "same_image"}, 2).layout)


def test_crops_are_cut_in_the_workers_unless_asked_for_on_the_device():
    layout = build_router({"name": "same_image"}, 2).layout
    assert not paired_views(config_of(), layout).crops_on_device
    assert paired_views(config_of(crops_on_device=True), layout).crops_on_device
