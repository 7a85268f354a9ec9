"""Whether results differ: every pair of scorers of one or several evaluations, paired over the same patients, after the fact.

`vetdino compare` and the leaderboard call `compare_evaluations` on the predictions that the suite kept. Macro averages are
compared by the patient bootstrap, single labels by the AUROC test for rows of one patient (Obuchowski's form of DeLong's). Each
of the two families is corrected for its size (Holm), over all scorers, measurements and metrics compared. What is not told apart
is said to be not distinguishable, never equal.

A scorer is an arm of one evaluation, the mean over its seeds. How the seeds vary is not in these intervals.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vet_extensions.errors import UserError
from vet_extensions.evaluation.cohort import MULTICLASS
from vet_extensions.evaluation.delong import correlated_aurocs
from vet_extensions.evaluation.metrics import AUROC, CLASS_METRICS, METRICS
from vet_extensions.evaluation.predictions import PredictionsFile, Scorer, list_predictions
from vet_extensions.evaluation.results import metric_name
from vet_extensions.evaluation.scoring import Predictions
from vet_extensions.evaluation.statistics import (
    Estimate,
    LabelSamples,
    PatientBootstrap,
    average,
    bootstrap_p,
    holm,
    macro_difference,
    macro_estimate,
    shared_letters,
)
from vet_extensions.schema import Split

BETTER, WORSE, SAME, UNTESTED = "better", "worse", "not distinguishable", "not tested"
ALPHA = 0.05

Measurement = tuple[str, str, str]
"""(level, group, protocol)."""


@dataclass(frozen=True)
class Difference:
    """`first` minus `second` in one metric of one measurement; label: "" for the macro average. p_holm decides the verdict."""

    level: str
    group: str
    protocol: str
    metric: str
    label: str
    first: str
    second: str
    value: float
    low: float
    high: float
    p: float
    p_holm: float = math.nan

    @property
    def verdict(self) -> str:
        if math.isnan(self.p_holm):
            return UNTESTED
        return SAME if self.p_holm >= ALPHA else (BETTER if self.value > 0 else WORSE)


@dataclass(frozen=True)
class Standing:
    """One scorer in one metric of one measurement. letters: scorers of the measurement that share one are not distinguishable."""

    level: str
    group: str
    protocol: str
    metric: str
    name: str
    is_control: bool
    leak: str
    n_seeds: int
    n_cases: int
    n_patients: int
    estimate: Estimate
    letters: str = ""


@dataclass(frozen=True)
class Comparison:
    """standings: best first within a measurement and metric. macros, labels: the two families of differences."""

    standings: tuple[Standing, ...]
    macros: tuple[Difference, ...]
    labels: tuple[Difference, ...]
    n_resamples: int
    confidence: float


@dataclass(frozen=True)
class _Entry:
    """The test predictions of all seeds of one scorer, in the order of its cases."""

    name: str
    scorer: Scorer
    seeds: tuple[Predictions, ...]


def compare_evaluations(
    folders: Sequence[str | Path],
    *,
    with_controls: bool = False,
    with_labels: bool = True,
    allow_single: bool = False,
    wanted: Mapping[str, str] | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    on_progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Compare all arms that the folders of `vetdino evaluate` hold predictions of, in every measurement that several have.

    wanted: level, group or protocol -> the only one to compare. with_controls: what was never trained too.
    allow_single: measurements of one arm too, for their standings. Raises `UserError` for
    folders without predictions, evaluations of different data, and where nothing is left to compare.
    """
    files = _files(folders, with_controls=with_controls, wanted=wanted or {}, n_least=1 if allow_single else 2)
    bootstrap: PatientBootstrap | None = None
    codes: dict[str, int] = {}
    standings: list[Standing] = []
    macros: list[Difference] = []
    labels: list[Difference] = []
    for done, (measurement, members) in enumerate(files.items(), start=1):
        entries = _aligned([_entry(name, given) for name, given in members.items()])
        if bootstrap is None:
            codes = _patient_codes(files)
            bootstrap = PatientBootstrap(np.array(list(codes.values())), n_resamples=n_resamples, seed=seed)
        coded = [_coded(entry, codes) for entry in entries]
        found = {entry.name: _macro_samples(entry, bootstrap) for entry in coded}
        for entry in coded:
            standings += _standings(entry, found[entry.name], measurement, confidence=confidence)
        for first, second in combinations(coded, 2):
            macros += _macro_differences(first.name, second.name, found, measurement, confidence=confidence)
            if with_labels:
                labels += _label_differences(first, second, measurement, confidence=confidence)
        if on_progress is not None:
            on_progress(done, len(files))
    macros, labels = _corrected(macros), _corrected(labels)
    return Comparison(tuple(_ranked(standings, macros)), tuple(macros), tuple(labels), n_resamples, confidence)


def _files(
    folders: Sequence[str | Path], *, with_controls: bool, wanted: Mapping[str, str], n_least: int
) -> dict[Measurement, dict[str, list[PredictionsFile]]]:
    """Measurement -> name of a scorer -> its files, one a seed; measurements of fewer than n_least scorers are left out."""
    places = list(dict.fromkeys(Path(folder) for folder in folders))
    given = [(place, file) for place in places for file in _newest(list_predictions(place))]
    if len({file.scorer.data for _, file in given}) > 1:
        raise UserError(
            "These results were measured on different data (content hashes "
            f"{', '.join(sorted({file.scorer.data for _, file in given}))}), so their differences mean nothing. "
            "Evaluate both on one folder."
        )
    places_of: dict[str, set[Path]] = defaultdict(set)
    for place, file in given:
        places_of[file.scorer.arm].add(place)
    found: dict[Measurement, dict[str, list[PredictionsFile]]] = defaultdict(lambda: defaultdict(list))
    for place, file in given:
        if file.scorer.is_control and not with_controls:
            continue
        if all(getattr(file, name) == value for name, value in wanted.items()):
            name = file.scorer.arm
            if len(places_of[name]) > 1:
                name = f"{_name_of(place, places)}: {name}"
            found[file.measurement][name].append(file)
    several = {key: dict(members) for key, members in found.items() if len(members) >= n_least}
    if not several:
        names = sorted({name for members in found.values() for name in members})
        raise UserError(
            f"There are no two results to compare: found {', '.join(names) or 'none'}. Give a second folder of "
            "`vetdino evaluate`, evaluate several runs into one, or add --controls."
        )
    return several


def _newest(files: Sequence[PredictionsFile]) -> list[PredictionsFile]:
    """Of several checkpoints of one arm and seed, the one that was judged last."""
    by_age = sorted(files, key=lambda file: file.path.stat().st_mtime_ns)
    return list({(file.scorer.arm, file.scorer.seed, file.measurement): file for file in by_age}.values())


def _name_of(place: Path, places: Sequence[Path]) -> str:
    """The shortest end of a folder's path that no other has."""
    parts = place.absolute().parts
    for length in range(1, len(parts) + 1):
        end = parts[-length:]
        if sum(other.absolute().parts[-length:] == end for other in places) == 1:
            break
    return "/".join(end)


def _entry(name: str, files: Sequence[PredictionsFile]) -> _Entry:
    """The test rows of each seed, sorted by fold and case."""
    seeds = []
    for file in files:
        test = file.read().of_split(Split.TEST)
        seeds.append(test.take(np.lexsort((test.case_ids, test.fold))))
    return _Entry(name, files[0].scorer, tuple(seeds))


def _aligned(entries: Sequence[_Entry]) -> Sequence[_Entry]:
    """The entries as they are. Raises `UserError` where they do not hold the same cases with the same labels."""
    base = entries[0].seeds[0]
    for entry in entries:
        for test in entry.seeds:
            same = test.label_names == base.label_names and all(
                np.array_equal(getattr(test, part), getattr(base, part))
                for part in ("fold", "case_ids", "patient_ids", "labels")
            )
            if not same:
                raise UserError(
                    f"'{entry.name}' was not scored on the same cases and labels as '{entries[0].name}' ({base.level}, "
                    f"{base.group}, {base.protocol}). Evaluate both with this release on one folder."
                )
    return entries


def _patient_codes(files: Mapping[Measurement, Mapping[str, Sequence[PredictionsFile]]]) -> dict[str, int]:
    """A number for every test patient of any measurement, so that all share the resamples."""
    patients: set[str] = set()
    for members in files.values():
        test = next(iter(members.values()))[0].read().of_split(Split.TEST)
        patients.update(test.patient_ids.tolist())
    return {patient: number for number, patient in enumerate(sorted(patients))}


def _coded(entry: _Entry, codes: Mapping[str, int]) -> _Entry:
    numbers = np.array([codes[patient] for patient in entry.seeds[0].patient_ids.tolist()])
    return replace(entry, seeds=tuple(replace(test, patient_codes=numbers) for test in entry.seeds))


def _macro_samples(entry: _Entry, bootstrap: PatientBootstrap) -> dict[str, LabelSamples]:
    """Metric -> the mean over folds and seeds."""
    parts = []
    for test in entry.seeds:
        for fold in np.unique(test.fold):
            one = test.take(np.flatnonzero(test.fold == fold))
            found = bootstrap.label_samples(one.scores, labels=one.labels, patient_codes=one.patient_codes)
            if entry.scorer.task == MULTICLASS:
                found |= bootstrap.class_samples(one.scores, labels=one.labels, patient_codes=one.patient_codes)
            parts.append(found)
    metrics = (*METRICS, *CLASS_METRICS) if entry.scorer.task == MULTICLASS else METRICS
    return {metric: average([part[metric] for part in parts]) for metric in metrics}


def _standings(
    entry: _Entry, samples: Mapping[str, LabelSamples], measurement: Measurement, *, confidence: float
) -> list[Standing]:
    test = entry.seeds[0]
    return [
        Standing(
            *measurement,
            metric_name(metric),
            entry.name,
            entry.scorer.is_control,
            entry.scorer.leak,
            len(entry.seeds),
            len(test.case_ids),
            len(np.unique(test.patient_codes)),
            macro_estimate(found, confidence=confidence),
        )
        for metric, found in samples.items()
    ]


def _macro_differences(
    first: str,
    second: str,
    samples: Mapping[str, Mapping[str, LabelSamples]],
    measurement: Measurement,
    *,
    confidence: float,
) -> list[Difference]:
    rows = []
    for metric, found in samples[first].items():
        other = samples[second][metric]
        d = macro_difference(found, other, confidence=confidence)
        p = bootstrap_p(found, other)
        rows.append(Difference(*measurement, metric_name(metric), "", first, second, d.value, d.low, d.high, p))
    return rows


def _label_differences(
    first: _Entry, second: _Entry, measurement: Measurement, *, confidence: float
) -> list[Difference]:
    """AUROC of each label; not where a measurement has two folds, whose areas share patients but not rows."""
    test = first.seeds[0]
    if len(np.unique(test.fold)) > 1:
        return []
    weights = [1 / len(first.seeds)] * len(first.seeds) + [-1 / len(second.seeds)] * len(second.seeds)
    rows = []
    for column, label in enumerate(test.label_names):
        scores: NDArray[np.floating] = np.stack(
            [of_seed.scores[:, column] for entry in (first, second) for of_seed in entry.seeds], axis=1
        )
        found = correlated_aurocs(scores, labels=test.labels[:, column], patient_codes=test.patient_codes)
        c = found.contrast(weights, confidence=confidence)
        rows.append(Difference(*measurement, AUROC, label, first.name, second.name, c.value, c.low, c.high, c.p))
    return rows


def _corrected(rows: Sequence[Difference]) -> list[Difference]:
    adjusted = holm([row.p for row in rows])
    return [replace(row, p_holm=p) for row, p in zip(rows, adjusted, strict=True)]


def _ranked(standings: Sequence[Standing], differences: Sequence[Difference]) -> list[Standing]:
    """Best first within each measurement and metric, with letters."""
    apart = {(*_key(row), frozenset((row.first, row.second))) for row in differences if row.verdict in (BETTER, WORSE)}
    groups: dict[tuple[str, ...], list[Standing]] = defaultdict(list)
    for standing in standings:
        groups[_key(standing)].append(standing)
    ranked = []
    for key, members in groups.items():
        members.sort(key=lambda s: (math.isnan(s.estimate.value), -s.estimate.value, s.name))
        names = [s.name for s in members if not math.isnan(s.estimate.value)]
        letters = shared_letters(names, lambda a, b, key=key: (*key, frozenset((a, b))) in apart)
        ranked += [replace(s, letters=letters.get(s.name, "")) for s in members]
    return ranked


def _key(row: Difference | Standing) -> tuple[str, ...]:
    return row.level, row.group, row.protocol, row.metric
