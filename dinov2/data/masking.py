"""Block masks for masked image modelling (iBOT): which patches of a global crop the student does not see.

Called by `dinov2.data.collate`, once per global crop. Source: BEiT (arXiv 2106.08254), algorithm 1, in the variant that official
DINOv2 runs; the order of the random draws is the official one, so that equal seeds give equal masks.
"""

import math
import random
from typing import Any, Protocol

import numpy as np

_TRIES_PER_BLOCK = 10


class RandomSource(Protocol):
    """What masks are drawn from: the module `random` (official) or a `random.Random` of one's own (reproducible runs)."""

    def random(self) -> float: ...
    def uniform(self, a: float, b: float) -> float: ...
    def randint(self, a: int, b: int) -> int: ...
    def shuffle(self, x: Any) -> None: ...


class MaskingGenerator:
    """Draws a mask out of random rectangles, never more patches than asked for."""

    def __init__(
        self,
        input_size: int | tuple[int, int],
        num_masking_patches: int | None = None,
        min_num_patches: int = 4,
        max_num_patches: float | None = None,
        min_aspect: float = 0.3,
        max_aspect: float | None = None,
    ) -> None:
        """input_size: patches along (height, width), or one number for both.

        min_num_patches, max_num_patches: bounds of one rectangle's area in patches; the upper one defaults to
        `num_masking_patches`, and without that to the whole grid. min_aspect, max_aspect: bounds of height / width; the upper
        one defaults to 1 / min_aspect.
        """
        self.height, self.width = input_size if isinstance(input_size, tuple) else (input_size, input_size)
        self.num_patches = self.height * self.width
        self.num_masking_patches = num_masking_patches
        self.min_num_patches = min_num_patches
        self.max_num_patches = num_masking_patches if max_num_patches is None else max_num_patches
        self.log_aspect_ratio = (math.log(min_aspect), math.log(max_aspect or 1 / min_aspect))

    def __repr__(self) -> str:
        low, high = self.log_aspect_ratio
        return (
            f"MaskingGenerator({self.height}, {self.width} -> [{self.min_num_patches} ~ {self.max_num_patches}], "
            f"max = {self.num_masking_patches}, {low:.3f} ~ {high:.3f})"
        )

    def get_shape(self) -> tuple[int, int]:
        """(height, width) of the mask in patches."""
        return self.height, self.width

    def __call__(self, num_masking_patches: int = 0, *, rng: RandomSource | None = None) -> np.ndarray:
        """A mask [height, width] of bool with at most `num_masking_patches` True cells.

        rng: where the draws come from; the module `random` by default, as official.
        """
        source: RandomSource = random if rng is None else rng
        mask = np.zeros(self.get_shape(), dtype=bool)
        largest = self.num_patches if self.max_num_patches is None else self.max_num_patches
        n_masked = 0
        while n_masked < num_masking_patches:
            n_added = self._add_rectangle(mask, min(num_masking_patches - n_masked, largest), source)
            if n_added == 0:
                break
            n_masked += n_added
        return mask

    def _add_rectangle(self, mask: np.ndarray, max_new: float, rng: RandomSource) -> int:
        """Mask one rectangle that adds 1 to `max_new` patches; returns how many it added, 0 when no try fitted."""
        for _ in range(_TRIES_PER_BLOCK):
            # The bounds may be reversed when less than min_num_patches remains; uniform() accepts that, as official.
            area = rng.uniform(self.min_num_patches, max_new)
            aspect = math.exp(rng.uniform(*self.log_aspect_ratio))
            height = round(math.sqrt(area * aspect))
            width = round(math.sqrt(area / aspect))
            if width >= self.width or height >= self.height:
                continue
            top = rng.randint(0, self.height - height)
            left = rng.randint(0, self.width - width)
            rectangle = mask[top : top + height, left : left + width]
            n_new = height * width - int(np.count_nonzero(rectangle))
            if 0 < n_new <= max_new:
                rectangle[:] = True
                return n_new
        return 0
