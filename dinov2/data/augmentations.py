"""The official DINOv2 augmentation: two global crops and some local ones from a single image; `dino` in configurations."""

import logging
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from dinov2.data.registry import AUGMENTATIONS
from dinov2.data.transforms import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ColorJitter,
    Compose,
    GaussianBlur,
    RandomApply,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomSolarize,
    ToTensor,
    make_normalize_transform,
)
from dinov2.utils.errors import UserError

logger = logging.getLogger("dinov2")

_DINO_KEYS = ("name", "mean", "std", "blur_p_is_of_blur")


class DataAugmentationDINO:
    """One PIL image -> the crop dictionary of a sample.

    The steps are attributes, to be replaced in a subclass: `geometric_augmentation_global`, `geometric_augmentation_local`,
    `normalize`, `global_transfo1`, `global_transfo2`, `local_transfo`.
    """

    def __init__(
        self,
        global_crops_scale: Sequence[float],
        local_crops_scale: Sequence[float],
        local_crops_number: int,
        global_crops_size: int = 224,
        local_crops_size: int = 96,
        *,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
        blur_p_is_of_blur: bool = False,
    ) -> None:
        """Scales are (lowest, highest) share of the image's area, sizes the side of a crop in pixels.

        mean, std: of the normalisation. blur_p_is_of_blur: see `GaussianBlur`; False is official, and then the first global
        crop is never blurred, the second in 9 of 10 cases.
        """
        self.global_crops_scale = global_crops_scale
        self.local_crops_scale = local_crops_scale
        self.local_crops_number = local_crops_number
        self.global_crops_size = global_crops_size
        self.local_crops_size = local_crops_size
        logger.info(
            f"DINO augmentation: 2 global crops of {global_crops_size} px (scale {tuple(global_crops_scale)}), "
            f"{local_crops_number} local crops of {local_crops_size} px (scale {tuple(local_crops_scale)})"
        )

        self.geometric_augmentation_global = _crop_and_flip(global_crops_size, global_crops_scale)
        self.geometric_augmentation_local = _crop_and_flip(local_crops_size, local_crops_scale)
        self.normalize = Compose([ToTensor(), make_normalize_transform(mean=mean, std=std)])

        def blur(p: float) -> GaussianBlur:
            return GaussianBlur(p=p, p_is_of_blur=blur_p_is_of_blur)

        colour = Compose(
            [
                RandomApply([ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)], p=0.8),
                RandomGrayscale(p=0.2),
            ]
        )
        solarize = RandomSolarize(threshold=128, p=0.2)
        self.global_transfo1 = Compose([colour, blur(1.0), self.normalize])
        self.global_transfo2 = Compose([colour, blur(0.1), solarize, self.normalize])
        self.local_transfo = Compose([colour, blur(0.5), self.normalize])

    def __call__(self, image: Image.Image) -> dict[str, Any]:
        """`global_crops` and `global_crops_teacher` (the same two tensors [3, S, S]), `local_crops`, `offsets` (empty)."""
        global_crops: list[Tensor] = [
            self.global_transfo1(self.geometric_augmentation_global(image)),
            self.global_transfo2(self.geometric_augmentation_global(image)),
        ]
        local_crops: list[Tensor] = [
            self.local_transfo(self.geometric_augmentation_local(image)) for _ in range(self.local_crops_number)
        ]
        return {
            "global_crops": global_crops,
            "global_crops_teacher": list(global_crops),
            "local_crops": local_crops,
            "offsets": (),
        }


@AUGMENTATIONS.register("dino")
def make_dino_augmentation(cfg: Any, layout: Any) -> DataAugmentationDINO:
    """The `dino` augmentation with the sizes and scales of `cfg.crops`.

    Of `cfg.augmentation` it takes `mean`, `std` and `blur_p_is_of_blur` (false by default). Raises `UserError` for another key
    there, and for a layout of crops that is not the official one: two global crops of one image, seen by student and teacher.
    """
    options = OmegaConf.select(cfg, "augmentation") or {}
    unknown = sorted(set(options) - set(_DINO_KEYS))
    if unknown:
        raise UserError(
            f"Unknown key 'augmentation.{unknown[0]}' for the augmentation 'dino'. "
            f"Keys under 'augmentation' that it knows: {', '.join(_DINO_KEYS)}."
        )
    _check_is_official_layout(layout)
    crops = cfg.crops
    return DataAugmentationDINO(
        tuple(crops.global_crops_scale),
        tuple(crops.local_crops_scale),
        crops.local_crops_number,
        global_crops_size=crops.global_crops_size,
        local_crops_size=crops.local_crops_size,
        mean=tuple(options.get("mean", IMAGENET_DEFAULT_MEAN)),
        std=tuple(options.get("std", IMAGENET_DEFAULT_STD)),
        blur_p_is_of_blur=options.get("blur_p_is_of_blur", False),
    )


def _crop_and_flip(size: int, scale: Sequence[float]) -> Compose:
    low, high = scale
    return Compose([RandomResizedCrop(size, scale=(low, high)), RandomHorizontalFlip(p=0.5)])


def _check_is_official_layout(layout: Any) -> None:
    cure = "Choose routing.name=same_image, or an augmentation that follows the layout of this routing."
    if layout.n_sources > 1:
        raise UserError(
            f"The augmentation 'dino' cuts all crops from one image, but the chosen loss routing needs {layout.n_sources} "
            f"images of each sample. {cure}"
        )
    if not layout.teacher_is_student or len(layout.student_globals) != 2:
        raise UserError(
            "The augmentation 'dino' makes two global crops that student and teacher share, but the chosen loss routing wants "
            f"{len(layout.student_globals)} for the student and {len(layout.teacher_globals)} for the teacher, "
            f"{layout.n_shared} of them shared. {cure}"
        )
