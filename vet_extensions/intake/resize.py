"""Bringing an image to its stored size and depth; the last step of the pixel pass."""

import cv2
import numpy as np


def reduce_to(pixels: np.ndarray, *, longest_side_px: int) -> np.ndarray:
    """`pixels` [H, W], reduced so that the longer side has `longest_side_px`; never enlarged.

    Each new pixel is the mean over the area it covers (cv2.INTER_AREA), which is the antialiasing: thin lines fade
    instead of breaking up.
    """
    height, width = pixels.shape
    longest = max(height, width)
    if longest <= longest_side_px:
        return pixels
    scale = longest_side_px / longest
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def to_bits(pixels: np.ndarray, *, bits: int) -> np.ndarray:
    """uint16 grey over the full range as uint8 (nearest level, 257 steps each) or unchanged."""
    if bits == 16:
        return pixels
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
