"""Where the CLS token looks: attention maps of the last block, and their overlay on the radiograph. Called by demo and analyze.

Shape legend: I images, H heads, N tokens (1 CLS + R registers + h * w patches), h x w patches of an image.
"""

import matplotlib
import numpy as np
import torch
from PIL import Image

from vet_extensions.analysis.components import Backbone, evaluating
from vet_extensions.analysis.pictures import to_uint8
from vet_extensions.errors import UserError


def cls_attention(backbone: Backbone, images: torch.Tensor, *, batch_size: int = 16) -> np.ndarray:
    """Attention from the CLS token to every patch in the last block, per head.

    images: [I, 3, rows, columns], normalised; returns [I, H, h, w] float32. What the CLS token gives to itself and to
    registers is left out, so that a map sums to at most 1.
    """
    rows, columns = images.shape[-2] // backbone.patch_size, images.shape[-1] // backbone.patch_size
    first_patch = 1 + backbone.num_register_tokens
    parts = []
    with evaluating(backbone):
        for batch in images.split(batch_size):
            attention = backbone.get_last_self_attention(batch)  # [b, H, N, N]
            maps = attention[:, :, 0, first_patch:]  # [b, H, h * w]
            parts.append(maps.unflatten(-1, (rows, columns)).float().cpu())
    return torch.cat(parts).numpy()


def overlay(
    grey: np.ndarray, heat: np.ndarray, *, opacity: float = 0.55, percentiles: tuple[float, float] = (1.0, 99.0)
) -> np.ndarray:
    """A heat map over a grey image: grey [rows, columns], heat [h, w] -> [rows, columns, 3] uint8.

    The map is enlarged bilinearly and scaled from its own percentiles, so colours compare within one picture, not between
    pictures. Colours: inferno, which also reads without colour vision. A flat map is drawn at its lowest colour.
    """
    if grey.ndim != 2 or heat.ndim != 2:
        raise UserError(f"An overlay needs a grey image and a map, both 2-D; got shapes {grey.shape} and {heat.shape}.")
    if not 0.0 <= opacity <= 1.0:
        raise UserError(f"The opacity of an overlay lies in [0, 1]; got {opacity}.")
    low, high = np.percentile(heat, percentiles)
    unit = np.clip((heat - low) / (high - low), 0.0, 1.0) if high > low else np.zeros_like(heat, dtype=np.float64)
    size = (grey.shape[1], grey.shape[0])
    enlarged = np.asarray(Image.fromarray(unit.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
    colour = matplotlib.colormaps["inferno"](np.clip(enlarged, 0.0, 1.0))[..., :3]
    base = to_uint8(grey).astype(np.float64)[..., None] / 255.0
    return to_uint8((1.0 - opacity) * base + opacity * colour)
