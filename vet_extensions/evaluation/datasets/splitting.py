"""Splits by patient, and the proof that a given split is one. `assembly.assemble` and the segmentation adapters call it.

Who goes where is decided by a hash of the patient's name and the seed: the same in any order of the files and on any machine.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vet_extensions.errors import UserError
from vet_extensions.schema import Split


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
        for part, share in shares.items():
            n = round(share * len(ordered))
            n = max(n, 1) if share and len(ordered) > len(shares) else n
            for name in ordered[start : start + n]:
                split[rows_of[name]] = part
            start += n
        if start >= len(ordered):
            raise UserError(
                f"The class '{stratum}' has {len(ordered)} patients, too few to leave one for training when "
                f"{', '.join(f'{share:g} go to {part}' for part, share in shares.items())}. Give a smaller share, or more data."
            )
    return split


def refuse_shared_patients(patients: NDArray[np.str_], split: NDArray[np.str_], *, name: str) -> None:
    """Errors: UserError where a patient has rows in more than one split."""
    pairs = np.unique(np.stack([patients.astype(str), split.astype(str)]), axis=1)
    names, counts = np.unique(pairs[0], return_counts=True)
    shared = int((counts > 1).sum())
    if shared:
        raise UserError(
            f"{name}: {shared} of {len(names)} patients have images in more than one split, so that a test on them would be on "
            "patients seen in training. Mend the split, or leave it out to have one cut by patient."
        )
