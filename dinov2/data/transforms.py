"""Image transforms on PIL images, and the step from there to normalised tensors: what official DINOv2 takes from torchvision.

Called by `dinov2.data.augmentations` and by evaluations. Meaning, arithmetic and the order of random draws (from torch's global
generator) are torchvision's for PIL images, so that equal seeds give equal crops. Images are RGB or L; a grey image stays one
channel until `Normalize`, where the three means and deviations expand it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

IMAGENET_DEFAULT_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEFAULT_STD = (0.229, 0.224, 0.225)

BICUBIC = Image.Resampling.BICUBIC

Transform = Callable[[Any], Any]


class Compose:
    """Transforms one after another."""

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = list(transforms)

    def __call__(self, image: Any) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image


class RandomApply:
    """All of `transforms` with probability p, else none."""

    def __init__(self, transforms: Sequence[Transform], p: float = 0.5) -> None:
        self.transforms = list(transforms)
        self.p = p

    def __call__(self, image: Any) -> Any:
        if self.p < torch.rand(1).item():
            return image
        for transform in self.transforms:
            image = transform(image)
        return image


class RandomResizedCrop:
    """A crop of random area and aspect ratio, resized to `size`.

    size: pixels, one number for a square or (height, width). scale: bounds of the crop's share of the image's area. ratio:
    bounds of width / height, drawn log-uniformly. An image in which ten draws find no room gives its largest central crop.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        interpolation: Image.Resampling = BICUBIC,
    ) -> None:
        self.size = (size, size) if isinstance(size, int) else size
        self.scale = scale
        self.ratio = ratio
        self.interpolation = interpolation

    def __call__(self, image: Image.Image) -> Image.Image:
        top, left, height, width = self.get_params(image)
        # Cut first, then resize: resize(box=...) would let pixels outside the crop into its border.
        crop = image.crop((left, top, left + width, top + height))
        return crop.resize((self.size[1], self.size[0]), self.interpolation)

    def get_params(self, image: Image.Image) -> tuple[int, int, int, int]:
        """Draw (top, left, height, width) of a crop."""
        log_ratio = torch.log(torch.tensor(self.ratio))
        for _ in range(10):
            area = image.width * image.height * torch.empty(1).uniform_(*self.scale).item()
            aspect = torch.exp(torch.empty(1).uniform_(float(log_ratio[0]), float(log_ratio[1]))).item()
            width = round(math.sqrt(area * aspect))
            height = round(math.sqrt(area / aspect))
            if 0 < width <= image.width and 0 < height <= image.height:
                top = int(torch.randint(0, image.height - height + 1, size=(1,)).item())
                left = int(torch.randint(0, image.width - width + 1, size=(1,)).item())
                return top, left, height, width
        return self._largest_central_crop(image)

    def _largest_central_crop(self, image: Image.Image) -> tuple[int, int, int, int]:
        width, height = image.size
        if width / height < min(self.ratio):
            height = round(width / min(self.ratio))
        elif width / height > max(self.ratio):
            width = round(height * max(self.ratio))
        return (image.height - height) // 2, (image.width - width) // 2, height, width


class RandomHorizontalFlip:
    """Left and right exchanged with probability p."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if torch.rand(1).item() < self.p else image


class ColorJitter:
    """Brightness, contrast, saturation and hue changed by random factors, in random order.

    The first three factors are drawn from [max(0, 1 - value), 1 + value], the turn of the hue from [-hue, hue] of a full circle;
    a value of 0 leaves its property alone and takes no draw. On a grey image saturation and hue change nothing.
    """

    def __init__(self, brightness: float = 0, contrast: float = 0, saturation: float = 0, hue: float = 0) -> None:
        if not 0 <= hue <= 0.5:
            raise ValueError(f"ColorJitter: hue must lie between 0 and 0.5 (half a circle either way), got {hue}.")
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue

    def __call__(self, image: Image.Image) -> Image.Image:
        order = torch.randperm(4).tolist()
        bounds = [(max(0.0, 1 - v), 1 + v) for v in (self.brightness, self.contrast, self.saturation)]
        bounds.append((-self.hue, self.hue))
        # All factors are drawn before any is used, in the order of the constructor.
        factors = [float(torch.empty(1).uniform_(low, high)) if low < high else None for low, high in bounds]
        steps = (_adjust_brightness, _adjust_contrast, _adjust_saturation, _adjust_hue)
        for i in order:
            factor = factors[i]
            if factor is not None:
                image = steps[i](image, factor)
        return image


class RandomGrayscale:
    """Colours replaced by their luminance with probability p; the number of channels stays."""

    def __init__(self, p: float = 0.1) -> None:
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.convert("L").convert(image.mode) if torch.rand(1).item() < self.p else image


class RandomSolarize:
    """Values of `threshold` and above inverted with probability p."""

    def __init__(self, threshold: int, p: float = 0.5) -> None:
        self.threshold = threshold
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        return ImageOps.solarize(image, self.threshold) if torch.rand(1).item() < self.p else image


class RandomSigmaBlur:
    """Gaussian blur whose standard deviation is drawn uniformly from `sigma`, in pixels; borders are mirrored."""

    def __init__(self, kernel_size: int, sigma: tuple[float, float]) -> None:
        """kernel_size: odd, in pixels; the image must measure more than half of it along either side."""
        self.kernel_size = kernel_size
        self.sigma = sigma

    def __call__(self, image: Image.Image) -> Image.Image:
        return self.blur(image, torch.empty(1).uniform_(*self.sigma).item())

    def blur(self, image: Image.Image, sigma: float) -> Image.Image:
        """The image blurred with this standard deviation, rounded to 8 bits once."""
        half = self.kernel_size // 2
        offsets = torch.linspace(-half, half, self.kernel_size)
        kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
        kernel = kernel / kernel.sum()
        pixels = F.pad(_channels_first(image).float(), [half] * 4, mode="reflect")  # [C, H + 2 half, W + 2 half]
        # Along the columns, then along the rows: the same Gaussian as one square kernel, for a fifth of the products.
        for axis in (1, 2):
            pixels = _correlate(pixels, kernel.tolist(), axis)
        return _to_pil(pixels.round_().clamp_(0, 255).to(torch.uint8))


class GaussianBlur(RandomApply):
    """9 x 9 Gaussian blur with a random standard deviation, applied with probability 1 - p.

    That p is the probability of *no* blur is the official behaviour, with which the published models were trained
    (facebookresearch/dinov2 issue 411). `p_is_of_blur=True` makes p the probability of a blur.
    """

    def __init__(
        self,
        *,
        p: float = 0.5,
        radius_min: float = 0.1,
        radius_max: float = 2.0,
        p_is_of_blur: bool = False,
    ) -> None:
        blur = RandomSigmaBlur(kernel_size=9, sigma=(radius_min, radius_max))
        super().__init__([blur], p=p if p_is_of_blur else 1 - p)


class Resize:
    """The shorter side brought to `size` pixels with the aspect ratio kept, or both sides to (height, width)."""

    def __init__(self, size: int | tuple[int, int], interpolation: Image.Resampling = BICUBIC) -> None:
        self.size = size
        self.interpolation = interpolation

    def __call__(self, image: Image.Image) -> Image.Image:
        if isinstance(self.size, tuple):
            return image.resize((self.size[1], self.size[0]), self.interpolation)
        shorter, longer = min(image.size), max(image.size)
        new_longer = int(self.size * longer / shorter)
        is_upright = image.width <= image.height
        return image.resize((self.size, new_longer) if is_upright else (new_longer, self.size), self.interpolation)


class CenterCrop:
    """The central `size` pixels (a square's side, or (height, width)); a smaller image is set on black."""

    def __init__(self, size: int | tuple[int, int]) -> None:
        self.size = (size, size) if isinstance(size, int) else size

    def __call__(self, image: Image.Image) -> Image.Image:
        top, left = (
            round((have - want) / 2) if have >= want else -((want - have) // 2)
            for have, want in zip((image.height, image.width), self.size, strict=True)
        )
        return image.crop((left, top, left + self.size[1], top + self.size[0]))


class ToTensor:
    """A PIL image (RGB or L) as a float32 tensor [C, H, W] from 0 to 1."""

    def __call__(self, image: Image.Image) -> Tensor:
        return _channels_first(image).contiguous().float().div_(255)


class MaybeToTensor(ToTensor):
    """`ToTensor` that lets a tensor pass as it is."""

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        return image if isinstance(image, Tensor) else super().__call__(image)


class Normalize:
    """(tensor - mean) / std by channel; one grey channel [1, H, W] becomes as many as there are means."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = mean
        self.std = std

    def __call__(self, tensor: Tensor) -> Tensor:
        mean = torch.as_tensor(self.mean, dtype=tensor.dtype).view(-1, 1, 1)
        std = torch.as_tensor(self.std, dtype=tensor.dtype).view(-1, 1, 1)
        return (tensor - mean).div_(std)


def make_normalize_transform(
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN, std: Sequence[float] = IMAGENET_DEFAULT_STD
) -> Normalize:
    """Normalisation with ImageNet's statistics by default."""
    return Normalize(mean=mean, std=std)


def make_classification_train_transform(
    *,
    crop_size: int = 224,
    interpolation: Image.Resampling = BICUBIC,
    hflip_prob: float = 0.5,
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
) -> Compose:
    """Random crop, flip, tensor, normalisation: for training a probe."""
    steps: list[Transform] = [RandomResizedCrop(crop_size, interpolation=interpolation)]
    if hflip_prob > 0:
        steps.append(RandomHorizontalFlip(hflip_prob))
    return Compose([*steps, MaybeToTensor(), make_normalize_transform(mean=mean, std=std)])


def make_classification_eval_transform(
    *,
    resize_size: int = 256,
    interpolation: Image.Resampling = BICUBIC,
    crop_size: int = 224,
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
) -> Compose:
    """Resize, central crop, tensor, normalisation: the one crop of an image that evaluations look at."""
    steps: list[Transform] = [Resize(resize_size, interpolation=interpolation), CenterCrop(crop_size), MaybeToTensor()]
    return Compose([*steps, make_normalize_transform(mean=mean, std=std)])


def _adjust_brightness(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(factor)


def _adjust_contrast(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(factor)


def _adjust_saturation(image: Image.Image, factor: float) -> Image.Image:
    return image if image.mode == "L" else ImageEnhance.Color(image).enhance(factor)


def _adjust_hue(image: Image.Image, factor: float) -> Image.Image:
    """Turn the hue by `factor` of a full circle; PIL keeps hue in 8 bits, which wrap around."""
    if image.mode == "L":
        return image
    hue, saturation, value = image.convert("HSV").split()
    turned = np.asarray(hue) + np.uint8(int(factor * 255) % 256)
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert(image.mode)


def _correlate(pixels: Tensor, kernel: list[float], axis: int) -> Tensor:
    """`pixels` with `kernel` along one axis, without padding. Sums of shifted images: twice as fast here as `conv2d`."""
    length = pixels.shape[axis] - len(kernel) + 1
    total = pixels.narrow(axis, 0, length) * kernel[0]
    for shift, weight in enumerate(kernel[1:], start=1):
        total.add_(pixels.narrow(axis, shift, length), alpha=weight)
    return total


def _channels_first(image: Image.Image) -> Tensor:
    """uint8 [C, H, W], a copy of the image's pixels."""
    pixels = torch.from_numpy(np.array(image))  # [H, W] or [H, W, C]
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def _to_pil(pixels: Tensor) -> Image.Image:
    """The image of a uint8 tensor [1, H, W] or [3, H, W]."""
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
