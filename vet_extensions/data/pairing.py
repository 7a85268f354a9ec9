"""Which two images of a study make a training pair; called by the study data set, one study at a time or many at once."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from vet_extensions.data.streams import MAX_POSITION, bounded, first_words
from vet_extensions.errors import UserError
from vet_extensions.schema import View, view_family

PAIRINGS: dict[str, Callable[[View, View], bool]] = {
    "any": lambda a, b: True,
    "different_view": lambda a, b: a != b,
    "different_family": lambda a, b: view_family(a) != view_family(b),
}
"""Policy -> whether an ordered pair of two images with these views may be drawn.

any: every two images. different_view: never the same projection twice. different_family: one lateral with one frontal.
"""

_BLOCK = 2**15
"""Studies whose views are laid side by side at a time: a few MiB."""


def check_policy(name: str) -> None:
    """Raise `UserError` for a name that is not a policy."""
    if name not in PAIRINGS:
        raise UserError(f"Unknown pairing '{name}' for VetStudies. Allowed: {', '.join(PAIRINGS)}.")


def draw_pair(views: Sequence[View], policy: str, rng: np.random.Generator) -> tuple[int, ...]:
    """Indices of two images of a study in random order, or of a single one where the policy allows no pair.

    Every allowed ordered pair is equally likely.
    """
    allowed = PAIRINGS[policy]
    first = int(rng.integers(len(views)))
    partners = [j for j, view in enumerate(views) if j != first and allowed(views[first], view)]
    if not partners:
        # The image drawn first has no partner, but another one of the study may.
        pairs = [(i, j) for i in range(len(views)) for j in range(len(views)) if i != j and allowed(views[i], views[j])]
        return pairs[int(rng.integers(len(pairs)))] if pairs else (first,)
    return first, partners[int(rng.integers(len(partners)))]


def draw_pairs(
    view_codes: NDArray[np.uint8],
    *,
    offsets: NDArray[np.int64],
    studies: NDArray[np.int64],
    positions: NDArray[np.int64],
    views: Sequence[View],
    policy: str,
    seed: int,
) -> NDArray[np.int64]:
    """For each study and position the two images that `draw_pair` draws from `default_rng((seed, position))`, int64 [n, 2].

    view_codes: [N], places in `views`. offsets: [S + 1]. studies: [n], numbers of studies. positions: [n], from 0. The answer
    counts images as view_codes does; -1 is in the second column where the policy allows no pair.
    """
    allowed = _allowed(tuple(views), policy)
    found = np.full((len(studies), 2), -1, dtype=np.int64)
    for start in range(0, len(studies), _BLOCK):
        block = slice(start, start + _BLOCK)
        begins = offsets[studies[block]]
        sizes = offsets[studies[block] + 1] - begins
        place = np.arange(sizes.max(initial=0))
        is_there = place < sizes[:, None]  # [n, M]
        codes = view_codes[np.where(is_there, begins[:, None] + place, 0)]
        chosen, is_sure = _draw_block(codes, is_there, sizes, positions[block], allowed, seed)
        for i in np.flatnonzero(~is_sure):
            rng = np.random.default_rng((seed, int(positions[start + i])))
            pair = draw_pair([views[c] for c in codes[i, : sizes[i]]], policy, rng)
            chosen[i] = (*pair, -1)[:2]
        found[block] = np.where(chosen >= 0, chosen + begins[:, None], -1)
    return found


@cache
def _allowed(views: tuple[View, ...], policy: str) -> NDArray[np.bool_]:
    """Which ordered pairs of views the policy allows, [V, V]; kept, for every batch of a training asks."""
    return np.array([[PAIRINGS[policy](a, b) for b in views] for a in views], dtype=bool)


def _draw_block(
    codes: NDArray[np.uint8],
    is_there: NDArray[np.bool_],
    sizes: NDArray[np.int64],
    positions: NDArray[np.int64],
    allowed: NDArray[np.bool_],
    seed: int,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Pairs of places within each study [n, 2], and whether they are sure; the others are for `draw_pair`. codes: [n, M]."""
    is_sure = (positions >= 0) & (positions < MAX_POSITION) & (0 <= seed < MAX_POSITION)
    words = first_words(seed if is_sure.any() else 0, np.where(is_sure, positions, 0))
    rows = np.arange(len(codes))
    first, again = bounded(words[0], sizes)
    is_sure &= ~again
    is_partner = is_there & allowed[codes[rows, first]][rows[:, None], codes]  # [n, M]
    is_partner[rows, first] = False
    n_partners = is_partner.sum(axis=1)
    is_sure &= (n_partners > 0) | (sizes == 1)  # else another image may have a partner: rare
    rank, again = bounded(words[1], np.maximum(n_partners, 1))
    is_sure &= ~again
    second = np.where(n_partners > 0, (is_partner.cumsum(axis=1) > rank[:, None]).argmax(axis=1), -1)
    chosen = np.empty((len(codes), 2), dtype=np.int64)
    chosen[:, 0], chosen[:, 1] = first, second
    return chosen, is_sure


def pair_kinds(compositions: Iterable[tuple[Sequence[View], int]], policy: str) -> Counter[str]:
    """How many studies offer each kind of pair ("LATERAL_LEFT + VD"), and how many none ("single image"), for the log.

    compositions: the views of a study, and how many studies have just these.
    """
    allowed = PAIRINGS[policy]
    kinds: Counter[str] = Counter()
    for views, n_studies in compositions:
        found = {" + ".join(sorted((a, b))) for a, b in combinations(views, 2) if allowed(a, b)}
        kinds.update(dict.fromkeys(found or {"single image"}, n_studies))
    return kinds
