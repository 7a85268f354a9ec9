"""Who trains and who tests, decided by patient, so that no animal is on both sides. Used by intake and by `vetdino split`."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from vet_extensions.errors import UserError
from vet_extensions.manifest.io import Manifest
from vet_extensions.schema import LABEL_PREFIX, Split

TRAITS_BY = ("label.<finding>", "labels", "species", "body_part", "view")


def split_patients(
    patients: Iterable[str],
    *,
    fractions: Mapping[Split, float],
    seed: int,
    strata: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Split]:
    """patient id -> split. Patients are ordered by a hash of (seed, id) and cut at the shares: exact counts, no regard to order.

    Shares are rounded down to whole patients, and what is left goes to the largest remainders; a share above 0 gets at least
    one patient where there are enough. fractions sum to 1.
    strata: patient id -> its traits, such as "label.effusion=1" and "species=canine". With them every trait is spread over the
    splits as the shares say, rare ones first (K. Sechidis et al., On the Stratification of Multi-Label Data, ECML 2011); the
    counts of patients stay exact. The order of the patients and of their traits does not matter.
    """
    ordered = sorted(set(patients), key=lambda patient: hashlib.sha256(f"{seed}:{patient}".encode()).digest())
    if strata is not None:
        return _stratified(ordered, {split: fractions.get(split, 0.0) for split in Split}, strata)
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


def _stratified(
    ordered: Sequence[str], fractions: dict[Split, float], strata: Mapping[str, Sequence[str]]
) -> dict[str, Split]:
    """Iterative stratification: the rarest trait that has patients left deals them to the split that lacks it most."""
    traits = {patient: sorted(set(strata.get(patient, ()))) for patient in ordered}
    members: dict[str, list[str]] = {}
    for patient in ordered:
        for trait in traits[patient]:
            members.setdefault(trait, []).append(patient)
    room = _whole_shares(len(ordered), fractions)
    lacking = {trait: _whole_shares(len(owners), fractions) for trait, owners in members.items()}
    splits: dict[str, Split] = {}
    # Traits in order of their number at the start: to sort anew after each one changes little and costs much.
    for trait in sorted(members, key=lambda trait: (len(members[trait]), trait)):
        for patient in members[trait]:
            if patient not in splits:
                _deal(patient, trait, splits, room, lacking, traits[patient])
    for patient in ordered:
        if patient not in splits:
            _deal(patient, None, splits, room, lacking, traits[patient])
    return splits


def _deal(
    patient: str,
    trait: str | None,
    splits: dict[str, Split],
    room: dict[Split, int],
    lacking: dict[str, dict[Split, int]],
    traits: Sequence[str],
) -> None:
    """Put a patient into the split that has room and lacks its trait most, then its other traits, then patients."""
    free = [split for split in Split if room[split] > 0]

    def need(split: Split) -> tuple[int, int, int]:
        of_trait = 0 if trait is None else lacking[trait][split]
        return of_trait, sum(lacking[other][split] > 0 for other in traits), room[split]

    chosen = max(free, key=need)
    splits[patient] = chosen
    room[chosen] -= 1
    for other in traits:
        lacking[other][chosen] -= 1


def traits_of(manifest: Manifest, by: Sequence[str]) -> dict[str, list[str]]:
    """patient id -> the traits that its images have in the columns `by`: "species=canine", "label.effusion=1" ...

    by: text columns, labels as `label.<finding>` or as their values present and absent, `labels` for all of them. Empty cells
    and labels that are not stated or uncertain are no trait. Errors: UserError for a column that is not there or is a number.
    """
    names = [name for given in by for name in (_all_labels(manifest) if given == "labels" else [given])]
    patients = manifest.columns(["patient_id"])["patient_id"].combine_chunks()
    first = np.flatnonzero(np.diff(manifest.patient_codes, prepend=-1))
    ids = patients.take(pa.array(first)).to_pylist()
    traits: dict[str, list[str]] = {patient: [] for patient in ids}
    for name in names:
        values, codes = _values_of(manifest, name)
        pairs = np.unique(manifest.patient_codes * len(values) + codes) if len(values) else np.zeros(0, dtype=np.int64)
        for pair in pairs.tolist():
            patient, value = divmod(pair, len(values))
            if values[value]:
                traits[ids[patient]].append(f"{name}={values[value]}")
    return traits


def _all_labels(manifest: Manifest) -> list[str]:
    return [LABEL_PREFIX + name for name in manifest.label_names]


def _values_of(manifest: Manifest, name: str) -> tuple[list[str], np.ndarray]:
    """The values of a column, "" where there is no trait, and the place of each image's value."""
    if name.startswith(LABEL_PREFIX) and name in manifest.column_names:
        cells = manifest.labels(names=[name.removeprefix(LABEL_PREFIX)])[:, 0]
        return ["", "0", "1"], np.where(cells >= 0, cells + 1, 0).astype(np.int64)
    kind = manifest.columns([name]).schema.field(name).type
    if not (pa.types.is_string(kind) or pa.types.is_dictionary(kind)):
        raise UserError(
            f"A split is stratified by texts and labels; '{name}' is a number. Allowed: {', '.join(TRAITS_BY)}."
        )
    values, codes = manifest.codes(name)
    return values, codes.astype(np.int64)


def split_again(manifest: Manifest, *, fractions: Mapping[Split, float], seed: int, by: Sequence[str] = ()) -> pa.Table:
    """The whole table of a manifest with a new split column. Errors: as `traits_of`."""
    strata = traits_of(manifest, by) if by else None
    patients = manifest.columns(["patient_id"])["patient_id"].to_pylist()
    splits = split_patients(patients, fractions=fractions, seed=seed, strata=strata)
    column = pa.array([str(splits[patient]) for patient in patients], pa.string())
    table = manifest.table
    return table.set_column(table.column_names.index("split"), "split", column)


def count_traits(manifest: Manifest, splits: Mapping[str, Split | str], by: Sequence[str]) -> dict[str, dict[str, int]]:
    """trait -> split -> number of patients, rarest first: the report of a stratified split."""
    counts: dict[str, Counter[str]] = {}
    for patient, traits in traits_of(manifest, by).items():
        for trait in traits:
            counts.setdefault(trait, Counter())[str(splits[patient])] += 1
    rarest = sorted(counts, key=lambda trait: (counts[trait].total(), trait))
    return {trait: {str(split): counts[trait][str(split)] for split in Split} for trait in rarest}
