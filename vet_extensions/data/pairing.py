"""Which two images of a study make a training pair; called by the study data set, one study at a time or many at once."""

import difflib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

from vet_extensions.data.streams import MAX_POSITION, bounded, first_words
from vet_extensions.errors import UserError
from vet_extensions.manifest import Manifest
from vet_extensions.schema import View, ViewFamily, view_family

PAIRINGS: dict[str, Callable[[View, View], bool]] = {
    "any": lambda a, b: True,
    "different_view": lambda a, b: a != b,
    "different_family": lambda a, b: view_family(a) != view_family(b),
}
"""Policy -> whether an ordered pair of two images with these views may be drawn.

any: every two images. different_view: never the same projection twice. different_family: one lateral with one frontal.
"""

SAME: dict[str, str] = {"same_body_part": "body_part", "same_laterality": "laterality"}
"""Policy -> the column of the manifest in which the two images of a pair must agree.

An image without a body part has no partner. Laterality is stated of paired parts alone: two images without one agree.
"""
_UNKNOWN_IS_ALONE = ("body_part",)

NO_PARTNER = 0
"""The group of images that pair with none."""

_BLOCK = 2**15
"""Studies whose views are laid side by side at a time: a few MiB."""


@dataclass(frozen=True)
class Pairing:
    """A policy as it is applied. allows: two views, in either order. same: columns in which the two images must agree."""

    allows: Callable[[View, View], bool]
    same: tuple[str, ...]


@cache
def parse_policy(policy: str) -> Pairing:
    """The conditions of a policy, with commas between them; all must hold.

    A condition is a name in PAIRINGS or SAME, or two views or families with a plus: `CC+MLO`, `lateral+VD`.
    Errors: UserError for any other word.
    """
    rules: list[Callable[[View, View], bool]] = []
    same: list[str] = []
    for word in policy.split(","):
        ends = word.split("+")
        if word in SAME:
            same.append(SAME[word])
        elif word in PAIRINGS:
            rules.append(PAIRINGS[word])
        elif len(ends) == 2 and {*ends} <= {*View, *ViewFamily}:
            rules.append(_between(*ends))
        else:
            known = [*PAIRINGS, *SAME]
            near = difflib.get_close_matches(word, known, n=1)
            guess = f" Did you mean '{near[0]}'?" if near else ""
            raise UserError(
                f"Unknown pairing '{word}' for VetStudies.{guess} Allowed, several with commas between them: {', '.join(known)}, "
                f"or two views or families such as CC+MLO or lateral+VD, of {', '.join([*ViewFamily, *View])}."
            )
    allows = rules[0] if len(rules) == 1 else lambda a, b: all(rule(a, b) for rule in rules)
    return Pairing(allows=allows, same=tuple(same))


def _between(first: str, second: str) -> Callable[[View, View], bool]:
    """Whether one of two views is, or is of the family of, the first word and the other the second."""

    def fits(view: View, word: str) -> bool:
        return word in (view, view_family(view))

    return lambda a, b: (fits(a, first) and fits(b, second)) or (fits(a, second) and fits(b, first))


def image_groups(manifest: Manifest, columns: Sequence[str]) -> NDArray[np.unsignedinteger]:
    """A number for each image, equal for images that agree in all these columns, [N]; NO_PARTNER for those that pair with none.

    Errors: UserError for a column that no image states.
    """
    groups, is_alone = np.zeros(manifest.n_images, dtype=np.int64), np.zeros(manifest.n_images, dtype=bool)
    for column in columns:
        values, codes = manifest.codes(column)
        if values and not any(values):
            policy = next(name for name, of in SAME.items() if of == column)
            raise UserError(
                f"pairing={policy} needs the column {column}, which no chosen image of '{manifest.path.parent}' states. Leave "
                f"'{policy}' away, or see what is stated with: vetdino check {manifest.path.parent}"
            )
        groups = groups * len(values) + codes
        if column in _UNKNOWN_IS_ALONE and "" in values:
            is_alone |= codes == values.index("")
    groups = np.where(is_alone, NO_PARTNER, groups + 1)
    return groups.astype(np.min_scalar_type(int(groups.max(initial=0))))


def draw_pair(
    views: Sequence[View], policy: str, rng: np.random.Generator, *, groups: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Indices of two images of a study in random order, or of a single one where the policy allows no pair.

    Every allowed ordered pair is equally likely. groups: see `image_groups`, of each image; None where no column is named.
    """
    allows = parse_policy(policy).allows

    def may_pair(i: int, j: int) -> bool:
        agree = groups is None or groups[i] == groups[j] != NO_PARTNER
        return i != j and agree and allows(views[i], views[j])

    first = int(rng.integers(len(views)))
    partners = [j for j in range(len(views)) if may_pair(first, j)]
    if not partners:
        # The image drawn first has no partner, but another one of the study may.
        pairs = [(i, j) for i in range(len(views)) for j in range(len(views)) if may_pair(i, j)]
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
    groups: NDArray[np.unsignedinteger] | None = None,
) -> NDArray[np.int64]:
    """For each study and position the two images that `draw_pair` draws from `default_rng((seed, position))`, int64 [n, 2].

    view_codes: [N], places in `views`. offsets: [S + 1]. studies: [n], numbers of studies. positions: [n], from 0. groups: [N],
    as of `draw_pair`. The answer counts images as view_codes does; -1 is in the second column where the policy allows no pair.
    """
    allowed = _allowed(tuple(views), policy)
    found = np.full((len(studies), 2), -1, dtype=np.int64)
    for start in range(0, len(studies), _BLOCK):
        block = slice(start, start + _BLOCK)
        begins = offsets[studies[block]]
        sizes = offsets[studies[block] + 1] - begins
        place = np.arange(sizes.max(initial=0))
        is_there = place < sizes[:, None]  # [n, M]
        images = np.where(is_there, begins[:, None] + place, 0)
        codes, group_of = view_codes[images], None if groups is None else groups[images]
        chosen, is_sure = _draw_block(codes, is_there, sizes, positions[block], allowed, seed, group_of)
        for i in np.flatnonzero(~is_sure):
            rng = np.random.default_rng((seed, int(positions[start + i])))
            of_study = None if group_of is None else group_of[i, : sizes[i]].tolist()
            pair = draw_pair([views[c] for c in codes[i, : sizes[i]]], policy, rng, groups=of_study)
            chosen[i] = (*pair, -1)[:2]
        found[block] = np.where(chosen >= 0, chosen + begins[:, None], -1)
    return found


@cache
def _allowed(views: tuple[View, ...], policy: str) -> NDArray[np.bool_]:
    """Which ordered pairs of views the policy allows, [V, V]; kept, for every batch of a training asks."""
    allows = parse_policy(policy).allows
    return np.array([[allows(a, b) for b in views] for a in views], dtype=bool)


def _draw_block(
    codes: NDArray[np.uint8],
    is_there: NDArray[np.bool_],
    sizes: NDArray[np.int64],
    positions: NDArray[np.int64],
    allowed: NDArray[np.bool_],
    seed: int,
    groups: NDArray[np.unsignedinteger] | None,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Pairs of places within each study [n, 2], and whether they are sure; the others are for `draw_pair`.

    codes, is_there, groups: [n, M].
    """
    is_sure = (positions >= 0) & (positions < MAX_POSITION) & (0 <= seed < MAX_POSITION)
    words = first_words(seed if is_sure.any() else 0, np.where(is_sure, positions, 0))
    rows = np.arange(len(codes))
    first, again = bounded(words[0], sizes)
    is_sure &= ~again
    is_partner = is_there & allowed[codes[rows, first]][rows[:, None], codes]  # [n, M]
    is_partner[rows, first] = False
    if groups is not None:
        own = groups[rows, first][:, None]
        is_partner &= (groups == own) & (own != NO_PARTNER)
    n_partners = is_partner.sum(axis=1)
    is_sure &= (n_partners > 0) | (sizes == 1)  # else another image may have a partner: rare
    rank, again = bounded(words[1], np.maximum(n_partners, 1))
    is_sure &= ~again
    second = np.where(n_partners > 0, (is_partner.cumsum(axis=1) > rank[:, None]).argmax(axis=1), -1)
    chosen = np.empty((len(codes), 2), dtype=np.int64)
    chosen[:, 0], chosen[:, 1] = first, second
    return chosen, is_sure


def pair_kinds(
    view_codes: NDArray[np.uint8],
    *,
    offsets: NDArray[np.int64],
    views: Sequence[View],
    policy: str,
    groups: NDArray[np.unsignedinteger] | None = None,
) -> Counter[str]:
    """How many studies offer each kind of pair ("LATERAL_LEFT + VD"), and how many none ("single image"), for the log.

    Arguments as of `draw_pairs`.
    """
    n_studies, n_views = len(offsets) - 1, len(views)
    parts = study_of_part = np.repeat(np.arange(n_studies), np.diff(offsets))
    n_parts = n_studies
    if groups is not None:  # a part is what a study has of one group
        n_groups = int(groups.max(initial=0)) + 1
        found, parts = np.unique(parts * n_groups + groups, return_inverse=True)
        study_of_part, n_parts = found // n_groups, len(found)
        has_partners = found % n_groups != NO_PARTNER
    counts = np.bincount(parts * n_views + view_codes, minlength=n_parts * n_views).reshape(n_parts, n_views)
    is_there, is_twice = np.ascontiguousarray((counts > 0).T), np.ascontiguousarray((counts > 1).T)  # [V, parts]
    kinds: Counter[str] = Counter()
    is_single = np.ones(n_studies, dtype=bool)
    allowed = _allowed(tuple(views), policy)
    for a, b in combinations_with_replacement(range(n_views), 2):
        if not allowed[a, b]:
            continue
        offers = is_twice[a] if a == b else is_there[a] & is_there[b]
        if groups is not None:
            of_study = np.zeros(n_studies, dtype=bool)
            of_study[study_of_part[offers & has_partners]] = True
            offers = of_study
        is_single &= ~offers
        if offers.any():
            kinds[" + ".join(sorted((views[a], views[b])))] = int(offers.sum())
    if is_single.any():
        kinds["single image"] = int(is_single.sum())
    return kinds
