"""Who trains and who tests, decided by patient, so that no animal is on both sides. Used by intake."""

import hashlib
from collections.abc import Iterable, Mapping

from vet_extensions.schema import Split


def split_patients(patients: Iterable[str], *, fractions: Mapping[Split, float], seed: int) -> dict[str, Split]:
    """patient id -> split. Patients are ordered by a hash of (seed, id) and cut at the shares: exact counts, no regard to order.

    Shares are rounded down to whole patients, and what is left goes to the largest remainders; a share above 0 gets at least
    one patient where there are enough. fractions sum to 1.
    """
    ordered = sorted(set(patients), key=lambda patient: hashlib.sha256(f"{seed}:{patient}".encode()).digest())
    counts = _whole_shares(len(ordered), {split: fractions.get(split, 0.0) for split in Split})
    splits: dict[str, Split] = {}
    start = 0
    for split, count in counts.items():
        splits.update(dict.fromkeys(ordered[start : start + count], split))
        start += count
    return splits


def _whole_shares(n: int, fractions: dict[Split, float]) -> dict[Split, int]:
    exact = {split: n * share for split, share in fractions.items()}
    # A share of 3 x 0.1 patients is 0.30000000000000004: the small addend keeps such dust from moving a patient.
    counts = {split: int(value + 1e-9) for split, value in exact.items()}
    by_remainder = sorted(Split, key=lambda split: counts[split] - exact[split])
    for split in by_remainder[: n - sum(counts.values())]:
        counts[split] += 1
    wanted = [split for split in Split if fractions[split] > 0]
    for split in wanted if n >= len(wanted) else []:
        if counts[split] == 0:
            largest = max(Split, key=lambda other: counts[other])
            counts[largest] -= 1
            counts[split] = 1
    return counts
