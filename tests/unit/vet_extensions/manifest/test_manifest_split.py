"""The split: by patient, deterministic, with exact counts."""

from collections import Counter

import pytest

from vet_extensions.manifest.split import split_patients
from vet_extensions.schema import Split

SHARES = {Split.TRAIN: 0.7, Split.VAL: 0.1, Split.TEST: 0.2}


def patients(n: int) -> list[str]:
    return [f"patient {number}" for number in range(n)]


@pytest.mark.parametrize(
    ("n", "counts"),
    [(100, (70, 10, 20)), (10, (7, 1, 2)), (3, (1, 1, 1)), (4, (2, 1, 1)), (1, (1, 0, 0)), (0, (0, 0, 0))],
)
def test_shares_are_exact_to_the_patient(n: int, counts: tuple[int, int, int]) -> None:
    found = Counter(split_patients(patients(n), fractions=SHARES, seed=0).values())
    assert tuple(found[split] for split in Split) == counts


def test_the_order_of_the_patients_does_not_matter() -> None:
    forward = split_patients(patients(50), fractions=SHARES, seed=3)
    assert split_patients(patients(50)[::-1], fractions=SHARES, seed=3) == forward


def test_another_seed_is_another_split() -> None:
    assert split_patients(patients(50), fractions=SHARES, seed=0) != split_patients(
        patients(50), fractions=SHARES, seed=1
    )


def test_a_share_of_nothing_gets_nobody() -> None:
    shares = {Split.TRAIN: 1.0, Split.VAL: 0.0, Split.TEST: 0.0}
    assert set(split_patients(patients(20), fractions=shares, seed=0).values()) == {Split.TRAIN}


def test_neighbours_by_name_are_not_kept_together() -> None:
    splits = split_patients(patients(200), fractions=SHARES, seed=0)
    first_half = Counter(splits[name] for name in patients(100))
    assert 55 <= first_half[Split.TRAIN] <= 85
