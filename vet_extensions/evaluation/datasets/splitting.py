"""Splits by patient, for data sets that prescribe none or no validation part. `assembly.assemble` and the adapters of label maps
call it.

Who goes where is decided by a hash of the patient's name and the seed: the same in any order of the files and on any machine.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vet_extensions.errors import UserError
from vet_extensions.evaluation.datasets.options import share, whole
from vet_extensions.schema import Split


@dataclass(frozen=True)
class Cutting:
    """How a missing split is cut: shares of the patients. val: of those in train; test: of all, where there is no test split."""

    val: float = 0.1
    test: float = 0.2
    seed: int = 0


def read_cutting(val: str, test: str = "0.2", *, seed: str) -> Cutting:
    """From the texts of a data set string. Errors: UserError."""
    return Cutting(share(val, key="val"), share(test, key="test"), whole(seed, key="seed"))


def cut_by_patient(
    patients: Sequence[str] | NDArray[np.str_],
    *,
    strata: Sequence[str] | NDArray[np.str_],
    shares: Mapping[str, float],
    seed: int = 0,
) -> NDArray[np.str_]:
    """A split for every row, [n] texts: train, and the splits in `shares` (split -> share of the patients).

    strata: [n], the class of each row; patients are drawn within the class that most of their rows have, so that every split
    has its share of each class, rounded, and at least one patient where the class has as many patients as there are splits.
    Errors: UserError where a class has too few patients for that.
    """
    rows_of: dict[str, list[int]] = {}
    for row, patient in enumerate(np.asarray(patients).tolist()):
        rows_of.setdefault(patient, []).append(row)
    words = np.asarray(strata).tolist()
    members: dict[str, list[str]] = {}
    for patient, rows in rows_of.items():
        # Of equally frequent classes the first by name, so that the order of the rows does not matter.
        stratum = min(Counter(words[row] for row in rows).items(), key=lambda item: (-item[1], item[0]))[0]
        members.setdefault(stratum, []).append(patient)
    split = np.full(len(words), str(Split.TRAIN), dtype="<U5")
    for stratum, names in members.items():
        ordered = sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
        start = 0
        for part, of_all in shares.items():
            n = round(of_all * len(ordered))
            n = max(n, 1) if of_all and len(ordered) > len(shares) else n
            for name in ordered[start : start + n]:
                split[rows_of[name]] = part
            start += n
        if start >= len(ordered):
            raise UserError(
                f"The class '{stratum}' has {len(ordered)} patients, too few to leave one for training when "
                f"{', '.join(f'{of_all:g} go to {part}' for part, of_all in shares.items())}. Give a smaller share, or more data."
            )
    return split


def complete_split(
    split: NDArray[np.str_], *, patients: NDArray[np.str_], strata: NDArray[np.str_], cutting: Cutting
) -> tuple[NDArray[np.str_], str]:
    """The split with what is not prescribed cut by patient, and in words how it came about.

    split: [n] of train, val, test; "" for all where nothing is prescribed. Where test is and val is not, val is cut from train.
    """
    words = f"by patient, seed {cutting.seed}"
    if (split == "").all():
        shares = {str(Split.TEST): cutting.test, str(Split.VAL): cutting.val}
        cut = cut_by_patient(patients, strata=strata, shares=shares, seed=cutting.seed)
        return cut, f"none prescribed; cut {words}: {cutting.val:g} val, {cutting.test:g} test"
    train = split == Split.TRAIN
    if (split == Split.VAL).any() or not cutting.val or not train.any():
        return split, "prescribed"
    split = split.copy()
    shares = {str(Split.VAL): cutting.val}
    split[train] = cut_by_patient(patients[train], strata=strata[train], shares=shares, seed=cutting.seed)
    return split, f"test prescribed; val cut from train {words}: {cutting.val:g}"
