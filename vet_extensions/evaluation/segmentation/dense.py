"""From a stored image to class logits at its own size: preparing, the network of backbone and decoder, the way back.

`training` and `run` call it. Images are prepared as everywhere in the evaluation (`features.prepare_image`): the longer side
becomes image_size_px, the rest of the square is black; label maps go the same way, and predictions the same way back.

Shape legend: B windows, D feature width, C classes, S = image_size_px, H and W pixels of the stored image.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vet_extensions.errors import UserError
from vet_extensions.evaluation.embedding import Backbone, drawn_from
from vet_extensions.evaluation.segmentation.decoders import build_decoder, evenly_spaced_blocks
from vet_extensions.evaluation.segmentation.losses import import_monai
from vet_extensions.evaluation.segmentation.sets import IGNORED

WINDOW_OVERLAP = 0.5
_WINDOWS_AT_ONCE = 16


class Segmenter(nn.Module):
    """A backbone and a decoder on it. forward: normalised images [B, 3, H, W] -> logits [B, C, H, W]."""

    def __init__(self, backbone: Backbone, decoder_name: str, *, n_classes: int, seed: int, is_tuned: bool) -> None:
        """seed: of the decoder's first weights. is_tuned: let gradients into the backbone. Raises `UserError` for a backbone
        without patch features."""
        super().__init__()
        if backbone.patch_size is None or not backbone.n_blocks:
            raise UserError(
                f"{backbone.name} gives one vector an image and no patch features, so that nothing can be segmented with it. "
                "Use a vision transformer."
            )
        self.backbone, self.is_tuned = backbone, is_tuned
        self.network = backbone.model.requires_grad_(is_tuned)
        self.decoder = drawn_from(
            seed, lambda: build_decoder(decoder_name, width=backbone.embed_dim, n_classes=n_classes)
        )
        self.blocks = [backbone.n_blocks - 1] if decoder_name == "linear" else evenly_spaced_blocks(backbone.n_blocks)

    def train(self, mode: bool = True) -> "Segmenter":
        """The decoder's mode. The backbone stays in evaluation mode, tuned or not, so that it draws nothing at random."""
        super().train(mode)
        self.network.eval()
        return self

    def levels(self, images: Tensor) -> list[Tensor]:
        """Patch features [B, D, h, w] of the decoder's blocks, first block first; without gradients unless tuned."""
        wanted = sorted(set(self.blocks))
        with torch.set_grad_enabled(self.is_tuned and torch.is_grad_enabled()):
            found = dict(zip(wanted, self.backbone.intermediate(images, wanted), strict=True))
        maps = [found[block].patches for block in self.blocks]
        return [patches.permute(0, 3, 1, 2) for patches in maps if patches is not None]

    def decode(self, levels: Sequence[Tensor], *, size_px: int) -> Tensor:
        """Logits [B, C, size_px, size_px] from levels."""
        return F.interpolate(self.decoder(levels), size=(size_px, size_px), mode="bilinear", align_corners=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(self.levels(images), size_px=images.shape[-1])


def placement(shape: Sequence[int], image_size_px: int) -> tuple[slice, slice]:
    """Rows and columns of the prepared square [S, S] that an image of that shape covers; the rest is padding."""
    ratio = image_size_px / max(shape)
    rows, columns = (max(1, round(side * ratio)) for side in shape)
    top, left = (image_size_px - rows) // 2, (image_size_px - columns) // 2
    return slice(top, top + rows), slice(left, left + columns)


def prepare_mask(mask: NDArray[np.integer], image_size_px: int) -> NDArray[np.uint8]:
    """A label map on the grid of its prepared image, [S, S]: the class at the middle of each pixel, `IGNORED` in the padding."""
    rows, columns = placement(mask.shape, image_size_px)
    size = (columns.stop - columns.start, rows.stop - rows.start)
    prepared = np.full((image_size_px, image_size_px), IGNORED, np.uint8)
    prepared[rows, columns] = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT)
    return prepared


def restore(logits: Tensor, shape: Sequence[int]) -> NDArray[np.int64]:
    """Logits [C, S, S] of a prepared image -> classes at the stored image's own size [H, W].

    The logits are resized, not the classes: a border then falls between pixels of the small grid where they say it does.
    """
    rows, columns = placement(shape, logits.shape[-1])
    own = F.interpolate(logits[None, :, rows, columns].float(), size=tuple(shape), mode="bilinear", align_corners=False)
    return own[0].argmax(dim=0).cpu().numpy()


def slide(segmenter: Segmenter, images: Tensor, *, window_px: int) -> Tensor:
    """Logits [B, C, S, S] from overlapping windows, weighted towards their middles (monai's sliding window)."""
    return import_monai("inferers").sliding_window_inference(
        images, (window_px, window_px), _WINDOWS_AT_ONCE, segmenter, overlap=WINDOW_OVERLAP, mode="gaussian"
    )


def patch_grid_truth(
    mask: NDArray[np.integer], *, image_size_px: int, patch_size: int, n_classes: int
) -> NDArray[np.int64]:
    """The truth as a patch grid shows it: averaged over each patch, enlarged as logits are, the largest share wins. [H, W].

    Its Dice says how coarse the grid is for these organs. It is no bound: a decoder may weigh thin organs more than their shares.
    """
    prepared = torch.from_numpy(prepare_mask(mask, image_size_px).astype(np.int64))
    is_known = prepared != IGNORED
    shares = F.one_hot(prepared * is_known, n_classes).movedim(-1, 0) * is_known  # [C, S, S]
    of_patches = F.avg_pool2d(shares[None].float(), patch_size)
    enlarged = F.interpolate(of_patches, size=prepared.shape, mode="bilinear", align_corners=False)
    return restore(enlarged[0], mask.shape)
