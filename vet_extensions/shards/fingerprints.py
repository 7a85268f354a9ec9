"""Which images of two folders show the same picture, though resized, windowed anew, cut a little or saved again.

Two 64-bit hashes an image (the whole picture, and without a margin, so that a cut copy meets one of them) find candidates; the
candidates are then laid over each other and correlated. The hash is the "pHash" of C. Zauner, Implementation and Benchmarking
of Perceptual Image Hash Functions (2010): which of the 64 lowest frequencies lie above their median. Used by `vetdino check
OUT --against OTHER`. Legend: N images of the one folder, n of the other.
"""

from collections.abc import Callable, Iterator
from itertools import combinations

import cv2
import numpy as np
from numpy.typing import NDArray

from vet_extensions.shards.mapped import cache_key, mapped_arrays
from vet_extensions.shards.reader import ShardReader, index_key

MAX_DISTANCE = 10
"""Bits in which the hashes of candidates may differ. Copies that were windowed, resized and cut by 2 % differ by 4 on average."""

MIN_SIMILARITY = 0.99
"""Correlation of laid-over pictures from which on they count as one. Different phantoms of one view reach 0.98."""

_SIDE = 64
_MARGIN = 0.03
_MAX_STRETCH = 0.1
_VERSION = 1
_BANDS = 4
_MAX_CANDIDATES = 2**22


def picture(pixels: np.ndarray) -> NDArray[np.float32]:
    """An image at 64 x 64 with the 5th to 95th percentile of its greys spread over 0 to 1. pixels: uint8 or uint16 [H, W]."""
    small = cv2.resize(pixels.astype(np.float32), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    low, high = np.percentile(small, [5, 95])
    return np.clip((small - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)


def hashes_of(pixels: np.ndarray) -> tuple[int, int]:
    """The hashes of the whole image and of it without 3 % on each side."""
    rows, columns = (int(side * _MARGIN) for side in pixels.shape)
    inner = pixels[rows : pixels.shape[0] - rows, columns : pixels.shape[1] - columns]
    return _hash(picture(pixels)), _hash(picture(inner))


def _hash(image: NDArray[np.float32]) -> int:
    waves = cv2.dct(image)[:9, :9].ravel()[1:65]  # without the mean
    return int.from_bytes(np.packbits(waves > np.median(waves)).tobytes(), "big")


def similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of two images after the second was moved and stretched a little onto the first, and given its greys.

    The alignment maximises the enhanced correlation coefficient (G. Evangelidis and E. Psarakis, TPAMI 2008), the greys are
    mapped by rank, so that no rising window matters. 0 where the pictures cannot be aligned.
    """
    still, moving = picture(first), picture(second)
    matrix = np.eye(2, 3, dtype=np.float32)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 50, 1e-5)
    mask = np.ones_like(still, dtype=np.uint8)
    try:
        _, found = cv2.findTransformECC(still, moving, matrix, cv2.MOTION_AFFINE, criteria, mask, 5)
    except cv2.error:  # it does not converge, or a picture is constant
        return 0.0
    turn = np.asarray(found, dtype=np.float32)
    if np.abs(turn[:, :2] - np.eye(2)).max() > _MAX_STRETCH:
        return 0.0
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(moving, turn, (_SIDE, _SIDE), flags=flags)
    both = cv2.warpAffine(np.ones_like(moving), turn, (_SIDE, _SIDE), flags=flags) > 0.99
    if both.sum() < both.size // 2:
        return 0.0
    a, b = still[both], np.empty(int(both.sum()), dtype=np.float32)
    b[np.argsort(moved[both], kind="stable")] = np.sort(a)
    a = a - a.mean()
    spread = float((a * a).sum())
    return float((a * (b - b.mean())).sum()) / spread if spread > 0 else 0.0


def fingerprints(reader: ShardReader, *, on_progress: Callable[[int, int], None] | None = None) -> NDArray[np.uint64]:
    """`hashes_of` every image of a folder, uint64 [N, 2]; kept in OUT/.cache where that can be written.

    on_progress: called with (images done, images).
    """

    def make() -> dict[str, np.ndarray]:
        hashes = np.empty((len(reader), 2), dtype=np.uint64)
        for row in range(len(reader)):
            hashes[row] = hashes_of(reader.read(row))
            if on_progress is not None:
                on_progress(row + 1, len(reader))
        return {"hashes": hashes}

    key = cache_key(_VERSION, index_key(reader.root))
    return mapped_arrays(reader.root, "fingerprints", key=key, make=make, min_bytes=2**16)["hashes"]


def near_hashes(
    many: NDArray[np.uint64], few: NDArray[np.uint64], *, max_distance: int = MAX_DISTANCE
) -> list[tuple[int, int]]:
    """Pairs (row of `many` [N, 2], row of `few` [n, 2]) of which any two hashes differ in at most `max_distance` bits, sorted.

    None is missed: of four bands of 16 bits, one differs in at most a quarter of the bits, and each such value is looked up.
    """
    flips = [0]
    for n_bits in range(1, max_distance // _BANDS + 1):
        flips += [sum(1 << bit for bit in bits) for bits in combinations(range(16), n_bits)]
    asked = few.reshape(-1)
    found: set[tuple[int, int]] = set()
    for column in range(many.shape[1]):
        bank = np.ascontiguousarray(many[:, column])
        for band in range(_BANDS):
            shift = np.uint64(16 * band)
            values = (bank >> shift).astype(np.uint16)
            order = np.argsort(values, kind="stable")
            probes = ((asked >> shift).astype(np.uint16)[:, None] ^ np.array(flips, dtype=np.uint16)).ravel()
            begins, ends = (np.searchsorted(values[order], probes, side=side) for side in ("left", "right"))
            for probe, place in _in_blocks(begins, ends):
                rows, questions = order[place], probe // len(flips)
                is_near = np.bitwise_count(bank[rows] ^ asked[questions]) <= max_distance
                found.update(zip(rows[is_near].tolist(), (questions[is_near] // few.shape[1]).tolist()))
    return sorted(found)


def _in_blocks(begins: np.ndarray, ends: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every (range, place in it), some millions at a time."""
    counts = ends - begins
    totals = np.append(0, np.cumsum(counts))
    start = 0
    while start < len(counts):
        stop = max(start + 1, int(np.searchsorted(totals, totals[start] + _MAX_CANDIDATES, side="right")) - 1)
        here = counts[start:stop]
        probe = np.repeat(np.arange(start, stop), here)
        yield probe, np.arange(len(probe)) - np.repeat(totals[start:stop] - totals[start], here) + begins[probe]
        start = stop


def near_duplicates(
    here: ShardReader,
    there: ShardReader,
    *,
    rows_here: NDArray[np.int64],
    rows_there: NDArray[np.int64],
    on_progress: Callable[[int, int], None] | None = None,
) -> list[tuple[int, int]]:
    """Pairs of places in rows_here and rows_there, sorted, whose images show the same picture."""
    hashes = [
        fingerprints(reader, on_progress=on_progress)[rows] for reader, rows in ((here, rows_here), (there, rows_there))
    ]
    return [
        (i, j)
        for i, j in near_hashes(hashes[0], hashes[1])
        if similarity(here.read(int(rows_here[i])), there.read(int(rows_there[j]))) >= MIN_SIMILARITY
    ]
