"""Position embeddings on another grid: while a model runs (`interpolate_grid`), and on loading (`resample_pos_embed`).

Shape legend: N patches in h rows and w columns, D channels; a full `pos_embed` is [1, 1 + N, D], class position first.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dinov2.utils.errors import UserError

Grid = tuple[int, int]


def square_grid(n_patches: int) -> Grid:
    """The (rows, columns) of a square grid of this many patches; raises `UserError` when there is none."""
    side = math.isqrt(n_patches)
    if side * side != n_patches:
        raise UserError(
            f"A position embedding of {n_patches} patches is no square grid. "
            "Say which grid it is: (rows, columns) of patches of the images it was trained on."
        )
    return side, side


def interpolate_grid(grid: Tensor, new_grid: Grid, *, antialias: bool = False, offset: float = 0.0) -> Tensor:
    """Bicubic interpolation of a grid of positions, the arithmetic of the released models.

    grid: [1, h, w, D]        returns: [1, *new_grid, D]
    offset: 0 interpolates by size. Otherwise torch is given the scale (new + offset) / old and samples with exactly that
    scale, which is what models without registers were trained with (0.1) and gives other values than by size.
    """
    old_h, old_w = grid.shape[1:3]
    channels_first = grid.permute(0, 3, 1, 2)
    if offset:
        scale = ((new_grid[0] + offset) / old_h, (new_grid[1] + offset) / old_w)
        out = F.interpolate(channels_first, scale_factor=scale, mode="bicubic", antialias=antialias)
    else:
        out = F.interpolate(channels_first, size=new_grid, mode="bicubic", antialias=antialias)
    assert tuple(out.shape[-2:]) == tuple(new_grid), f"wanted grid {new_grid}, interpolated to {tuple(out.shape[-2:])}"
    return out.permute(0, 2, 3, 1)


def resample_pos_embed(
    pos_embed: Tensor,
    new_grid: Grid,
    *,
    old_grid: Grid | None = None,
    antialias: bool = False,
    round_trip_offset: float | None = None,
) -> Tensor:
    """A position embedding for a model of another grid; the class position is kept as it is.

    pos_embed: [1, 1 + h*w, D]        returns: [1, 1 + new_h*new_w, D], same dtype
    old_grid: (h, w), needed only when it is not square.
    antialias: as the receiving model's `interpolate_antialias`.
    round_trip_offset: the receiving model's `interpolate_offset`. A smaller grid is then made as a model of the old grid makes
        it for smaller images: released weights of 518 px give in a model of 224 px the outputs that they give at 224 px. To a
        larger grid, the smooth enlargement is corrected by the least change after which the receiving model, on images of the
        old grid, interpolates back to exactly the old positions: a model exported to 518 px gives at its training size the
        outputs it had before.
    """
    old_grid = old_grid or square_grid(pos_embed.shape[1] - 1)
    if tuple(old_grid) == tuple(new_grid):
        return pos_embed
    if pos_embed.shape[1] != 1 + old_grid[0] * old_grid[1]:
        raise UserError(
            f"A position embedding of {pos_embed.shape[1] - 1} patches cannot be a grid of {old_grid[0]} x {old_grid[1]}."
        )
    cls_position, patches = pos_embed[:, :1], pos_embed[:, 1:].double().unflatten(1, old_grid)
    shrinks = new_grid[0] <= old_grid[0] and new_grid[1] <= old_grid[1]
    offset = round_trip_offset if shrinks and round_trip_offset is not None else 0.0
    resampled = interpolate_grid(patches, new_grid, antialias=antialias, offset=offset)
    enlarges = new_grid[0] >= old_grid[0] and new_grid[1] >= old_grid[1]
    if round_trip_offset is not None and enlarges:
        lost = patches - interpolate_grid(resampled, old_grid, antialias=antialias, offset=round_trip_offset)
        rows, columns = (
            torch.linalg.pinv(_axis_matrix(new, old, antialias=antialias, offset=round_trip_offset))
            for new, old in zip(new_grid, old_grid, strict=True)
        )
        resampled = resampled + torch.einsum("yi,xj,bijd->byxd", rows, columns, lost)
    return torch.cat([cls_position, resampled.flatten(1, 2).to(pos_embed.dtype)], dim=1)


def _axis_matrix(n_from: int, n_to: int, *, antialias: bool, offset: float) -> Tensor:
    """[n_to, n_from]: bicubic interpolation along one axis as a matrix (the two axes of a grid are independent)."""
    if n_from == n_to:
        return torch.eye(n_from, dtype=torch.float64)
    units = torch.eye(n_from, dtype=torch.float64)[None, :, None, :].expand(1, n_from, 4, n_from)  # [1, from, 4, unit]
    # Interpolated along the first axis only: the second keeps its four equal columns (by size, scale 1 along it).
    if offset:
        scale = ((n_to + offset) / n_from, 1.0)
        out = F.interpolate(units.permute(0, 3, 1, 2), scale_factor=scale, mode="bicubic", antialias=antialias)
    else:
        out = F.interpolate(units.permute(0, 3, 1, 2), size=(n_to, 4), mode="bicubic", antialias=antialias)
    return out[0, :, :, 0].T
