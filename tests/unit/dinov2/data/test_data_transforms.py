"""Transforms: torchvision's arithmetic and order of draws, and the official blur quirk."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance

from dinov2.data import transforms as tr


def noise(width=40, height=30, *, mode="RGB", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def as_int(image):
    return np.asarray(image).astype(int)


def is_changed(transform, image):
    return not np.array_equal(np.asarray(transform(image)), np.asarray(image))


# --- crops and sizes


def test_crop_parameters_are_drawn_in_torchvisions_order():
    """The area first, then the log of the aspect ratio, then top, then left."""
    crop = tr.RandomResizedCrop(8, scale=(0.3, 0.6))
    for seed in range(20):
        torch.manual_seed(seed)
        area = 40 * 30 * torch.empty(1).uniform_(0.3, 0.6).item()
        aspect = math.exp(torch.empty(1).uniform_(math.log(3 / 4), math.log(4 / 3)).item())
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        top = torch.randint(0, 30 - height + 1, (1,)).item()
        left = torch.randint(0, 40 - width + 1, (1,)).item()
        torch.manual_seed(seed)
        assert crop.get_params(noise()) == (top, left, height, width)


@pytest.mark.parametrize(("size", "expected"), [((100, 10), (0, 43, 10, 13)), ((10, 100), (43, 0, 13, 10))])
def test_an_image_without_room_gives_its_largest_central_crop(size, expected):
    assert tr.RandomResizedCrop(8, scale=(1.0, 1.0)).get_params(noise(*size)) == expected


def test_a_crop_does_not_see_pixels_outside_itself():
    image = Image.new("L", (40, 30), 255)
    torch.manual_seed(3)
    top, left, height, width = tr.RandomResizedCrop(16, scale=(0.2, 0.3)).get_params(image)
    image.paste(0, (left, top, left + width, top + height))
    torch.manual_seed(3)
    assert np.asarray(tr.RandomResizedCrop(16, scale=(0.2, 0.3))(image)).max() == 0


def test_a_resized_crop_has_height_and_width_as_asked():
    assert tr.RandomResizedCrop((8, 12))(noise()).size == (12, 8)


@pytest.mark.parametrize(
    ("before", "size", "after"), [((40, 30), 15, (20, 15)), ((30, 40), 15, (15, 20)), ((40, 30), (5, 7), (7, 5))]
)
def test_resize_keeps_the_aspect_ratio_for_one_number(before, size, after):
    assert tr.Resize(size)(noise(*before)).size == after


@pytest.mark.parametrize(("width", "left"), [(40, 15), (41, 16), (43, 16)])
def test_center_crop_takes_the_middle_and_rounds_half_to_even(width, left):
    image = noise(width, 30)
    assert np.array_equal(np.asarray(tr.CenterCrop(10)(image)), np.asarray(image)[10:20, left : left + 10])


def test_center_crop_sets_a_smaller_image_on_black():
    pixels = np.asarray(tr.CenterCrop((6, 5))(Image.new("L", (3, 10), 200)))
    assert pixels.shape == (6, 5)
    assert pixels[:, 1:4].min() == 200
    assert pixels[:, [0, 4]].max() == 0


def test_flip_exchanges_left_and_right():
    assert np.array_equal(np.asarray(tr.RandomHorizontalFlip(1.0)(noise())), np.asarray(noise())[:, ::-1])
    assert not is_changed(tr.RandomHorizontalFlip(0.0), noise())


# --- colours


def test_jitter_draws_the_order_then_all_factors_and_applies_them_in_that_order():
    steps = [
        lambda image, f: ImageEnhance.Brightness(image).enhance(f),
        lambda image, f: ImageEnhance.Contrast(image).enhance(f),
        lambda image, f: ImageEnhance.Color(image).enhance(f),
    ]
    jitter = tr.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2)
    for seed in range(10):
        torch.manual_seed(seed)
        order = torch.randperm(4).tolist()
        factors = [torch.empty(1).uniform_(1 - v, 1 + v).item() for v in (0.4, 0.4, 0.2)]
        expected = noise()
        for i in order:
            expected = steps[i](expected, factors[i]) if i < 3 else expected
        torch.manual_seed(seed)
        assert np.array_equal(np.asarray(jitter(noise())), np.asarray(expected))


def test_a_property_with_value_zero_takes_no_draw():
    torch.manual_seed(0)
    torch.randperm(4)
    expected = torch.rand(1)
    torch.manual_seed(0)
    tr.ColorJitter()(noise())
    assert torch.rand(1) == expected


@pytest.mark.parametrize(("factor", "step"), [(0.1, 25), (-0.1, 256 - 25)])
def test_hue_turns_around_the_circle_in_both_directions(factor, step):
    image = noise()
    expected = (as_int(image.convert("HSV"))[..., 0] + step) % 256
    hsv = image.convert("HSV").split()
    turned = Image.merge("HSV", (Image.fromarray(expected.astype(np.uint8)), hsv[1], hsv[2])).convert("RGB")
    assert np.array_equal(np.asarray(tr._adjust_hue(image, factor)), np.asarray(turned))


def test_a_hue_beyond_half_a_circle_is_refused():
    with pytest.raises(ValueError, match=r"between 0 and 0\.5"):
        tr.ColorJitter(hue=0.6)


def test_jitter_of_a_grey_image_equals_jitter_of_its_three_equal_channels():
    jitter = tr.ColorJitter(0.4, 0.4, 0.2, 0.1)
    grey = noise(mode="L")
    for seed in range(10):
        torch.manual_seed(seed)
        one_channel = np.asarray(jitter(grey))
        torch.manual_seed(seed)
        three_channels = np.asarray(jitter(grey.convert("RGB")))
        assert np.array_equal(np.stack([one_channel] * 3, axis=-1), three_channels)


def test_grayscale_keeps_the_number_of_channels():
    pixels = np.asarray(tr.RandomGrayscale(1.0)(noise()))
    assert np.array_equal(pixels, np.stack([np.asarray(noise(mode="L"))] * 3, axis=-1))


def test_solarize_inverts_from_the_threshold_on():
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    expected = [v if v < 128 else 255 - v for v in range(256)]
    assert np.asarray(tr.RandomSolarize(128, p=1.0)(ramp))[0].tolist() == expected


# --- blur


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_separable_blur_equals_the_square_kernel(mode):
    """The plain twin: torchvision's 9 x 9 convolution; rounding may differ by one grey level where a sum ends in .5."""
    image, sigma = noise(mode=mode), 1.3
    offsets = torch.linspace(-4, 4, 9)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    pixels = torch.from_numpy(np.array(image)).float()
    pixels = pixels[None, None] if mode == "L" else pixels.permute(2, 0, 1)[:, None]
    square = F.conv2d(F.pad(pixels, [4] * 4, mode="reflect"), (kernel[:, None] * kernel)[None, None])
    expected = square.round().squeeze(1).permute(1, 2, 0).squeeze(-1).numpy()
    blurred = tr.RandomSigmaBlur(9, (0.1, 2.0)).blur(image, sigma)
    assert blurred.mode == mode
    difference = np.abs(as_int(blurred) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001


@pytest.mark.parametrize(("p", "p_is_of_blur", "low", "high"), [
    (1.0, False, 0, 0), (0.1, False, 160, 195), (1.0, True, 200, 200), (0.1, True, 5, 40),
])  # fmt: skip
def test_blur_is_applied_with_one_minus_p_unless_asked_otherwise(p, p_is_of_blur, low, high):
    torch.manual_seed(0)
    blur = tr.GaussianBlur(p=p, radius_min=1.0, p_is_of_blur=p_is_of_blur)
    assert low <= sum(is_changed(blur, noise(12, 12)) for _ in range(200)) <= high


# --- tensors


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_tensors_are_channels_first_from_zero_to_one(mode, channels):
    image = noise(mode=mode)
    tensor = tr.ToTensor()(image)
    assert tensor.shape == (channels, 30, 40)
    assert tensor.dtype == torch.float32
    assert np.array_equal(tensor.permute(1, 2, 0).squeeze(-1).numpy(), np.asarray(image, dtype=np.float32) / 255)


def test_maybe_to_tensor_lets_a_tensor_pass():
    tensor = torch.rand(3, 2, 2)
    assert tr.MaybeToTensor()(tensor) is tensor


def test_normalisation_expands_a_grey_channel_to_what_three_equal_ones_give():
    normalize = tr.make_normalize_transform()
    grey = torch.rand(1, 4, 5)
    before = grey.clone()
    assert torch.equal(normalize(grey), normalize(grey.expand(3, -1, -1)))
    assert torch.equal(grey, before)
    assert normalize(grey)[2, 0, 0] == pytest.approx((grey[0, 0, 0].item() - 0.406) / 0.225, abs=1e-6)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_classification_transforms_give_network_inputs(mode):
    for transform in (
        tr.make_classification_train_transform(crop_size=14),
        tr.make_classification_eval_transform(resize_size=16, crop_size=14),
    ):
        assert transform(noise(mode=mode)).shape == (3, 14, 14)


def test_a_train_transform_without_flip_takes_no_draw_for_it():
    assert len(tr.make_classification_train_transform(hflip_prob=0).transforms) == 3


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_random_apply_applies_all_or_none(p):
    transform = tr.RandomApply([lambda x: x + 1, lambda x: x * 10], p=p)
    assert transform(1) == (20 if p else 1)
