"""What an uncertain or a blank label counts as in training, as data: every policy is a table, and results name theirs.

`sourced` applies them. An uncertain label of a validation or test image stays uncertain and is never counted.
Source of the policies: CheXpert (arXiv 1901.07031), U-Zeros, U-Ones and U-Ignore.
Shape legend: n images, L labels.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

COMPETITION = ("atelectasis", "cardiomegaly", "consolidation", "edema", "pleural_effusion")
"""The five labels that CheXpert's leaderboard averages."""

EVERY_OTHER = "*"
UNCERTAIN: Mapping[str, Mapping[str, int]] = {
    "zeros": {EVERY_OTHER: 0},
    "ones": {EVERY_OTHER: 1},
    "ignore": {EVERY_OTHER: -1},
    "mixed": {"atelectasis": 1, "edema": 1, "pleural_effusion": 1, EVERY_OTHER: 0},
}
"""Policy -> label -> what -1 becomes. mixed: ones where a doubtful mention mostly means the finding, zeros for the rest."""

BLANK: Mapping[str, int] = {"zeros": 0, "ignore": -128}
"""Policy -> what an empty cell becomes, in all splits: a labeller leaves blank what a report does not mention."""


def apply_policy(
    values: NDArray[np.integer],
    names: Sequence[str],
    *,
    uncertain: str,
    blank: str,
    is_train: NDArray[np.bool_],
    is_listed: NDArray[np.bool_],
) -> NDArray[np.int8]:
    """Labels [n, L] of 1, 0, -1 and -128 -> the same after the policy.

    is_train: [n], the images whose uncertain labels are decided. is_listed: [n], those that the table of labels speaks of: only
    their empty cells are blanks.
    """
    table = UNCERTAIN[uncertain]
    becomes = np.array([table.get(name, table[EVERY_OTHER]) for name in names], dtype=np.int8)
    decided = np.where((values == -1) & is_train[:, None], becomes, values)
    return np.where((values == -128) & is_listed[:, None], BLANK[blank], decided).astype(np.int8)


def describe_policy(uncertain: str, blank: str, names: Sequence[str], values: NDArray[np.integer]) -> dict[str, str]:
    """In words, for the results, as far as there was something to decide. values: labels before the policy."""
    words: dict[str, str] = {}
    if (values == -1).any():
        table = UNCERTAIN[uncertain]
        ones = [name for name in names if table.get(name, table[EVERY_OTHER]) == 1]
        detail = f" (1 for {', '.join(ones)})" if uncertain == "mixed" else ""
        words["uncertain"] = f"{uncertain}{detail} in training, not counted in val and test"
    if (values == -128).any():
        words["blank"] = blank
    return words
