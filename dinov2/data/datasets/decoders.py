"""From the bytes of an encoded image, and from a stored target, to what transforms take; called by `ExtendedVisionDataset`."""

from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image


class Decoder:
    """Something that can be decoded once."""

    def decode(self) -> Any:
        """The decoded value."""
        raise NotImplementedError


class ImageDataDecoder(Decoder):
    """An encoded image file in memory, decoded to a PIL image."""

    def __init__(self, image_data: bytes, *, mode: str = "RGB", shortest_side_px: int = 0) -> None:
        """mode: of the decoded image; "RGB" as official, or "L" for one grey channel.

        shortest_side_px: where the format can be decoded at a half, a quarter or an eighth of its size (JPEG), the smallest of
        these whose shorter side has at least so many pixels; 0 always decodes in full, as official.
        """
        self._image_data = image_data
        self._mode = mode
        self._shortest_side_px = shortest_side_px

    def decode(self) -> Image.Image:
        """The image in the chosen mode; 16-bit grey values keep their upper eight bits. Raises what Pillow raises."""
        with Image.open(BytesIO(self._image_data)) as image:
            if self._shortest_side_px:
                image.draft(None, (self._shortest_side_px, self._shortest_side_px))
            if image.mode.startswith("I;16"):
                # Pillow's own conversion clips at 255, which turns a 16-bit image white.
                upper_bits = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
                return Image.fromarray(upper_bits).convert(self._mode)
            return image.convert(self._mode)


class TargetDecoder(Decoder):
    """A target, which is stored as it is used."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def decode(self) -> Any:
        """The target itself."""
        return self._target
