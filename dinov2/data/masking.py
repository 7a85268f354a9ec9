"""Block masks for masked image modelling (iBOT): which patches of a global crop the student does not see.

Called by `dinov2.data.collate`, once per global crop. Source: BEiT (arXiv 2106.08254), algorithm 1, in the variant that official
DINOv2 runs; the order of the random draws is the official one, so that equal seeds give equal masks.

While it grows, a mask is one whole number whose bit `row * width + column` says whether that patch is masked: on grids this small
a rectangle is then tried with three operations on whole numbers, where slices of an array cost ten times as much.
"""

import math
import random
from typing import Any, Protocol

import numpy as np

_TRIES_PER_BLOCK = 10


class RandomSource(Protocol):
    """What masks are drawn from: the module `random` (official) or a `random.Random` of one's own (reproducible runs)."""

    def random(self) -> float: ...
    def randrange(self, start: int) -> int: ...
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
        # columns[h]: the leftmost patch of the first h rows; times a row of w ones it is a rectangle h x w in the corner.
        self._columns = [sum(1 << (row * self.width) for row in range(height)) for height in range(self.height + 1)]

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
        largest = self.num_patches if self.max_num_patches is None else self.max_num_patches
        mask, n_masked = 0, 0
        while n_masked < num_masking_patches:
            rectangle, n_new = self._draw_rectangle(mask, min(num_masking_patches - n_masked, largest), source)
            if n_new == 0:
                break
            mask |= rectangle
            n_masked += n_new
        octets = np.frombuffer(mask.to_bytes(-(-self.num_patches // 8), "little"), dtype=np.uint8)
        bits = np.unpackbits(octets, count=self.num_patches, bitorder="little")
        return bits.view(bool).reshape(self.height, self.width)

    def _draw_rectangle(self, mask: int, max_new: float, rng: RandomSource) -> tuple[int, int]:
        """A rectangle that adds 1 to `max_new` patches to the mask, and how many; (0, 0) when no try fitted.

        The draws are those of `uniform`, `uniform`, `randint`, `randint`, without the calls: `uniform(a, b)` is documented as
        a + (b - a) * random(), and `randint(0, n)` as randrange(n + 1).
        """
        draw, least, (low, high) = rng.random, self.min_num_patches, self.log_aspect_ratio
        for _ in range(_TRIES_PER_BLOCK):
            # The bounds may be reversed when less than min_num_patches remains; official.
            area = least + (max_new - least) * draw()
            aspect = math.exp(low + (high - low) * draw())
            height = round(math.sqrt(area * aspect))
            width = round(math.sqrt(area / aspect))
            if width >= self.width or height >= self.height:
                continue
            top = rng.randrange(self.height - height + 1)
            left = rng.randrange(self.width - width + 1)
            rectangle = self._columns[height] * ((1 << width) - 1) << (top * self.width + left)
            n_new = height * width - (mask & rectangle).bit_count()
            if 0 < n_new <= max_new:
                return rectangle, n_new
        return 0, 0
