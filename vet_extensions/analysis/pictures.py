"""Arrays -> labelled pictures inside a page: PNG data URIs, contact sheets of studies, panels of crops. Called by the report.

Array legend: a grey picture is [H, W], a colour picture [H, W, 3]; uint8 as stored, uint16 over its full range, floats in [0, 1].
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vet_extensions.errors import UserError


@dataclass(frozen=True)
class Picture:
    """One encoded picture. `label` is shown under it, `alt` read out in its place; `uri` is a data URI; sizes in pixels."""

    label: str
    alt: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class IntervalBar:
    """A value and its interval as positions on an axis shared with others, in percent of its width."""

    low: float
    value: float
    high: float


def interval_bars(intervals: Sequence[tuple[float, float, float] | None]) -> list[IntervalBar | None]:
    """(low, value, high) of several measurements on the smallest axis that holds them all; None stays None."""
    ends = [end for interval in intervals if interval is not None for end in interval]
    start, span = (min(ends), max(ends) - min(ends)) if ends else (0.0, 0.0)
    if span == 0:
        return [None] * len(intervals)
    return [
        None if interval is None else IntervalBar(*(100.0 * (end - start) / span for end in interval))
        for interval in intervals
    ]


def to_uint8(array: np.ndarray) -> np.ndarray:
    """[H, W] or [H, W, 3] uint8, uint16 or float in [0, 1] -> uint8 of the same shape; floats are clipped, NaN becomes 0.

    Raises `UserError` for another shape or kind of number.
    """
    array = np.asarray(array)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] != 3) or 0 in array.shape:
        raise UserError(f"A picture is [H, W] or [H, W, 3] and not empty; got an array of shape {array.shape}.")
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return (array >> 8).astype(np.uint8)
    if array.dtype == np.bool_ or np.issubdtype(array.dtype, np.floating):
        unit = np.clip(np.nan_to_num(array.astype(np.float32), nan=0.0, posinf=1.0, neginf=0.0), 0.0, 1.0)
        return np.round(unit * 255.0).astype(np.uint8)
    raise UserError(f"A picture holds uint8, uint16 or floats in [0, 1]; got {array.dtype}. Convert it first.")


def resize_longest(array: np.ndarray, *, longest_px: int, enlarge: bool = False) -> np.ndarray:
    """uint8 picture -> uint8 picture whose longest side is at most `longest_px` (exactly, if `enlarge`), antialiased."""
    height, width = array.shape[:2]
    scale = longest_px / max(height, width)
    if scale == 1.0 or (scale > 1.0 and not enlarge):
        return array
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(array).resize(size, Image.Resampling.LANCZOS))


def png_data_uri(array: np.ndarray) -> str:
    """A picture as `data:image/png;base64,...`, at its own size."""
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(array)).save(buffer, format="PNG", optimize=True)
    return data_uri(buffer.getvalue(), mime="image/png")


def data_uri(content: bytes, *, mime: str) -> str:
    """Encoded bytes of a picture as a data URI."""
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"


def picture(array: np.ndarray, *, label: str, alt: str, longest_px: int = 256) -> Picture:
    """An array as a labelled picture, made smaller where its longest side exceeds `longest_px`."""
    pixels = resize_longest(to_uint8(array), longest_px=longest_px)
    return Picture(label=label, alt=alt, uri=png_data_uri(pixels), width=pixels.shape[1], height=pixels.shape[0])


def contact_sheet(
    studies: Sequence[tuple[Sequence[str], Sequence[np.ndarray]]], *, longest_px: int = 256
) -> tuple[tuple[Picture, ...], ...]:
    """Studies as (view names, images) -> one row of pictures per study, each labelled with its view.

    Studies are numbered from 1 in the alternative texts; nothing else about them is known here. Raises `UserError` where a
    study has another number of names than of images.
    """
    rows = []
    for number, (views, images) in enumerate(studies, start=1):
        _same_length(views, images, what=f"Study {number}: view names and images")
        rows.append(
            tuple(
                picture(image, label=view, alt=f"Radiograph of study {number}, view {view}", longest_px=longest_px)
                for view, image in zip(views, images, strict=True)
            )
        )
    return tuple(rows)


def crop_panel(
    crops: Sequence[np.ndarray], labels: Sequence[str], *, arm: str, longest_px: int = 160
) -> tuple[Picture, ...]:
    """The crops of one sample with the labels of their slots, for example "student global 0 / view A"."""
    _same_length(labels, crops, what=f"Crops of arm {arm}: labels and images")
    return tuple(
        picture(crop, label=label, alt=f"Crop of arm {arm}: {label}", longest_px=longest_px)
        for crop, label in zip(crops, labels, strict=True)
    )


def _same_length(names: Sequence[str], arrays: Sequence[np.ndarray], *, what: str) -> None:
    if len(names) != len(arrays):
        raise UserError(f"{what} must be equally many; got {len(names)} and {len(arrays)}.")
