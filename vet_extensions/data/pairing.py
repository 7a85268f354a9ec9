"""Which two images of a study make a training pair; called by the study data set."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations

import numpy as np

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
