"""Crops of a batch by matrix products: what the workers cut by the same plans."""

import cv2
import numpy as np
import pytest
import torch

from vet_extensions.data.device_crops import blur_matrices, crops_on_device, resize_matrices
from vet_extensions.data.radiograph_crop import CropSettings, RadiographCrop
from vet_extensions.errors import UserError

SHAPES = [(120, 96), (100, 128)]
OF_IMAGE = [0, 1, 1, 0, 1, 0]


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


def both_ways(changed: CropSettings) -> tuple[np.ndarray, np.ndarray]:
    """The same plans by a worker and on the device, float64 [6, 1, 48, 48] each."""
    crop, images = RadiographCrop(changed), radiographs()
    in_worker = torch.stack(crop.crops([images[i] for i in OF_IMAGE], is_global=True, rng=np.random.default_rng(7)))
    plans = crop.plans([SHAPES[i] for i in OF_IMAGE], is_global=True, rng=np.random.default_rng(7))
    on_device = crops_on_device(padded(images), plans, of_image=OF_IMAGE, shapes=SHAPES, size=48)
    return in_worker.numpy().astype(np.float64), on_device.numpy().astype(np.float64)


@pytest.mark.parametrize(
    "changes",
    [
        {"gamma_sigma": 0.0, "contrast_sigma": 0.0, "brightness_sigma": 0.0},
        {},
        {"hflip_probability": 0.5},
        {"blur_probability": 0.7},
    ],
    ids=["boxes", "tone curves", "mirrored", "blurred"],
)
def test_a_batch_of_crops_equals_the_workers_crops(changes):
    in_worker, on_device = both_ways(settings(**changes))
    assert in_worker.shape == on_device.shape == (6, 1, 48, 48)
    assert 10 * np.log10(255**2 / np.mean((in_worker - on_device) ** 2)) > 45


def test_padding_beside_an_image_does_not_reach_its_crops():
    black = torch.full((1, 128, 128), 255, dtype=torch.uint8)
    black[0, :120, :96] = 0
    crop = RadiographCrop(settings(gamma_sigma=0.0, contrast_sigma=0.0, brightness_sigma=0.0))
    plans = crop.plans([SHAPES[0]] * 4, is_global=True, rng=np.random.default_rng(0))
    assert crops_on_device(black, plans, of_image=[0] * 4, shapes=SHAPES[:1], size=48).max() == 0


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
        return crops_on_device(
            images,
            plans,
            of_image=[0, 1],
            shapes=SHAPES,
            size=24,
            noise_sigma=0.02,
            generator=torch.Generator().manual_seed(seed),
        )

    assert torch.equal(noisy(1), noisy(1))
    assert not torch.equal(noisy(1), noisy(2))


def test_a_turned_box_is_refused_with_the_cure():
    crop = RadiographCrop(settings(rotation_deg=5.0))
    plans = crop.plans(SHAPES, is_global=True, rng=np.random.default_rng(0))
    with pytest.raises(UserError, match="rotation_deg=0"):
        crops_on_device(padded(radiographs()), plans, of_image=[0, 1], shapes=SHAPES, size=48)
