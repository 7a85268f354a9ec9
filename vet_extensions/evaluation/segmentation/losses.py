"""What a decoder is trained with: Dice, or Dice and cross-entropy; the Dice part is monai's. `training` calls them.

Shape legend: B windows, C classes with the background, H and W pixels.
"""

from collections.abc import Callable
from types import ModuleType

import torch.nn.functional as F
from torch import Tensor

from vet_extensions.errors import UserError
from vet_extensions.evaluation.segmentation.sets import IGNORED

LOSSES = ("dice", "dice_ce")

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits [B, C, H, W] and label maps [B, H, W] -> a number."""


def build_loss(name: str) -> Loss:
    """The loss of that name: soft Dice over all classes, each window for itself, alone or plus the mean cross-entropy.

    Pixels that are `IGNORED` count in neither part. Raises `UserError` for an unknown name, or where monai is absent.
    Sources: Milletari et al., arXiv 1606.04797; the sum as in nnU-Net (Isensee et al., Nature Methods 2021).
    """
    if name not in LOSSES:
        raise UserError(f"Unknown loss '{name}'. Allowed: {', '.join(LOSSES)}.")
    soft_dice = import_monai("losses").DiceLoss(include_background=True, reduction="mean")

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        is_known = (target != IGNORED)[:, None]  # [B, 1, H, W]
        wanted = F.one_hot(target * is_known[:, 0], logits.shape[1]).movedim(-1, 1) * is_known  # [B, C, H, W]
        of_dice = soft_dice(logits.softmax(dim=1) * is_known, wanted)
        if name == "dice":
            return of_dice
        n_known = is_known.sum().clamp(min=1)
        return of_dice + F.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum") / n_known

    return loss


def import_monai(part: str) -> ModuleType:
    """monai's module of that name; one sentence where it is not installed."""
    import importlib

    try:
        return importlib.import_module(f"monai.{part}")
    except ModuleNotFoundError as error:
        raise UserError(
            "Segmentation needs monai for its losses and its sliding window: pip install 'vet-dino[seg]'"
        ) from error
