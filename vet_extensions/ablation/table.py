"""The numbers of an ablation's table: scores over seeds, paired differences to the baseline, verdicts, cost.

`vetdino ablate` calls `ablation_table` on the cells that are there, finished or not; `vet_extensions.ablation.page` writes it.
Only cells that are done are counted, every row says how many seeds it rests on, and what is missing is listed.

Two uncertainties stand side by side and are never mixed. Over seeds: would the same training, started anew, give the same
difference on these test patients? Over patients: how far would the score move with other patients?
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from vet_extensions.ablation.cells import DONE, CellResult
from vet_extensions.ablation.paired import CONFIDENCE, PairedDifference, paired_difference, spread
from vet_extensions.ablation.plan import FULL, Arms, Plan
from vet_extensions.evaluation.results import Result
from vet_extensions.evaluation.statistics import holm
from vet_extensions.evaluation.suite_config import CONTROLS

COMBINATION, AXIS, CONTROL = "combination", "axis", "control"
BASELINE, BETTER, WORSE, SAME = "baseline", "better", "worse", "not distinguishable"
ONE_SEED, NO_SEED = "one seed: no interval", "no shared seed"
IDENTICAL, NO_SPREAD = "identical scores", "same difference for every seed: no interval"
NO_SCORE = "no score yet"
NOT_AFTER_HOLM = "not after the correction"


@dataclass(frozen=True)
class Score:
    """One metric over the seeds of a row.

    per_seed: seed -> score. sd: over seeds, NaN for one. low, high: the means of the ends of the seeds' own intervals over
    patients; the interval of the mean of the seeds is this wide or narrower, because part of each seed's error is its own.
    """

    per_seed: Mapping[int, float]
    mean: float
    sd: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A row against the baseline: the paired difference, its p-value after Holm's correction over the table, the verdict.

    note: why the verdict is more careful than the interval; empty where both say the same.
    """

    paired: PairedDifference
    p_holm: float = math.nan
    verdict: str = SAME
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    kind: "combination", the runs with exactly these arms; "axis", one arm of one axis, averaged over the arms of all others
    (full designs only); "control", what was never trained. scores, comparisons: by metric; without a comparison: nothing to
    compare with itself. n_planned: seeds in the plan; missing: seed -> the state of a combination's cell that is not done.
    """

    kind: str
    label: str
    arms: Arms
    n_planned: int
    is_baseline: bool = False
    missing: Mapping[int, str] = field(default_factory=dict)
    scores: Mapping[str, Score] = field(default_factory=dict)
    comparisons: Mapping[str, Comparison] = field(default_factory=dict)


@dataclass(frozen=True)
class Cost:
    """What the cells of one combination took. steps: of its done cells, each different number once; seconds: NaN if unknown."""

    arms: Arms
    n_done: int
    steps: tuple[int, ...]
    device: str
    seconds_per_cell: float
    seconds_of_all: float


@dataclass(frozen=True)
class AblationTable:
    """Everything that is written. combinations, axes, controls: rows; `axes` is empty where the combinations say the same."""

    plan: Plan
    cells: Sequence[CellResult]
    combinations: Sequence[Row]
    axes: Sequence[Row]
    controls: Sequence[Row]
    costs: Sequence[Cost]
    n_comparisons: int

    @property
    def rows(self) -> list[Row]:
        return [*self.combinations, *self.axes, *self.controls]

    @property
    def missing(self) -> list[CellResult]:
        """The cells that are not in the numbers."""
        return [cell for cell in self.cells if cell.state != DONE]

    @property
    def has_equal_budgets(self) -> bool:
        """Whether all cells that are done took the same number of steps."""
        return len({cell.steps for cell in self.cells if cell.state == DONE}) <= 1


def ablation_table(plan: Plan, cells: Sequence[CellResult]) -> AblationTable:
    """The table of a plan from its cells (`read_cells`), as far as they are done."""
    done = [cell for cell in cells if cell.state == DONE]
    combinations = _combination_rows(plan, cells)
    axes = _axis_rows(plan, done) if plan.design == FULL and len(plan.axes) > 1 else []
    rows, n_comparisons = _judged([*combinations, *axes])
    return AblationTable(
        plan=plan,
        cells=cells,
        combinations=rows[: len(combinations)],
        axes=rows[len(combinations) :],
        controls=_control_rows(plan, done),
        costs=[_cost(arms, cells) for arms in plan.combinations()],
        n_comparisons=n_comparisons,
    )


def _combination_rows(plan: Plan, cells: Sequence[CellResult]) -> list[Row]:
    rows = []
    for arms in plan.combinations():
        mine = [cell for cell in cells if cell.arms == arms]
        scores = {}
        for metric in plan.metrics:
            found = {cell.seed: cell.score(metric) for cell in mine if cell.state == DONE}
            scores[metric] = _score({s: [r] for s, r in found.items() if r is not None and math.isfinite(r.value)})
        rows.append(
            Row(
                COMBINATION,
                _label(plan, arms),
                arms,
                len(plan.seeds),
                is_baseline=arms == plan.baseline,
                missing={cell.seed: cell.state for cell in mine if cell.state != DONE},
                scores=_known(scores),
            )
        )
    baseline = next(row for row in rows if row.is_baseline)
    return [_compared(row, baseline, plan.metrics) for row in rows]


def _axis_rows(plan: Plan, done: Sequence[CellResult]) -> list[Row]:
    """Each arm of each axis over all arms of the other axes; a seed counts where all of these cells are done."""
    found = {(frozenset(cell.arms.items()), cell.seed): cell for cell in done}

    def per_seed(axis: str, arm: str, metric: str) -> dict[int, list[Result]]:
        members = [frozenset(arms.items()) for arms in plan.combinations() if arms[axis] == arm]
        complete = [seed for seed in plan.seeds if all((arms, seed) in found for arms in members)]
        results = {seed: [found[arms, seed].score(metric) for arms in members] for seed in complete}
        return {
            seed: [row for row in rows if row is not None]
            for seed, rows in results.items()
            if all(row is not None and math.isfinite(row.value) for row in rows)
        }

    rows = []
    for axis, arms in plan.axes.items():
        members = [
            Row(
                AXIS,
                f"{axis} {arm}, averaged",
                {axis: arm},
                len(plan.seeds),
                is_baseline=arm == plan.baseline[axis],
                scores=_known({metric: _score(per_seed(axis, arm, metric)) for metric in plan.metrics}),
            )
            for arm in arms
        ]
        baseline = next(row for row in members if row.is_baseline)
        rows += [_compared(row, baseline, plan.metrics) for row in members]
    return rows


def _control_rows(plan: Plan, done: Sequence[CellResult]) -> list[Row]:
    """The controls that the suite measured beside the baseline's cells; those that no seed changes count as one."""
    results = [r for cell in done if cell.arms == plan.baseline for r in cell.results if r.kind == "score"]
    rows = []
    for name in dict.fromkeys(r.arm for r in results if r.arm.startswith(CONTROLS)):
        scores = {}
        for metric in plan.metrics:
            mine = [r for r in results if r.arm == name and _metric(r) == metric and math.isfinite(r.value)]
            scores[metric] = _score({r.seed or 0: [r] for r in mine})
        rows.append(Row(CONTROL, name, {}, max(len(s.per_seed) for s in scores.values()), scores=_known(scores)))
    return rows


def _metric(result: Result) -> str:
    return f"{result.protocol}/{result.level}/{result.group}/{result.metric}"


def _label(plan: Plan, arms: Arms) -> str:
    """The arms in a picture: with one axis its arm alone, with several each with its axis."""
    return (
        next(iter(arms.values())) if len(plan.axes) == 1 else ", ".join(f"{axis} {arm}" for axis, arm in arms.items())
    )


def _score(results: Mapping[int, Sequence[Result]]) -> Score:
    """Seed -> the results of one seed (several: averaged) -> one score over the seeds."""

    def mean_of(value: Callable[[Result], float]) -> dict[int, float]:
        return {seed: fmean(map(value, results[seed])) for seed in sorted(results)}

    values, lows, highs = (list(mean_of(v).values()) for v in (lambda r: r.value, lambda r: r.low, lambda r: r.high))
    if not values:
        return Score({}, math.nan, math.nan, math.nan, math.nan)
    return Score(mean_of(lambda r: r.value), fmean(values), spread(values), fmean(lows), fmean(highs))


def _known(scores: Mapping[str, Score]) -> dict[str, Score]:
    return {metric: score for metric, score in scores.items() if score.per_seed}


def _compared(row: Row, baseline: Row, metrics: Sequence[str]) -> Row:
    """The row with its paired differences to the baseline, not judged yet."""
    if row is baseline:
        return row

    def values(of: Row, metric: str) -> Mapping[int, float]:
        return of.scores[metric].per_seed if metric in of.scores else {}

    pairs = {metric: paired_difference(values(row, metric), values(baseline, metric)) for metric in metrics}
    return replace(row, comparisons={metric: Comparison(pair) for metric, pair in pairs.items()})


def _judged(rows: Sequence[Row]) -> tuple[list[Row], int]:
    """The rows with their verdicts, and how many comparisons were tested: Holm's correction runs over all of them."""
    places = [(row, metric) for row in range(len(rows)) for metric in rows[row].comparisons]
    p_values = [rows[row].comparisons[metric].paired.p for row, metric in places]
    adjusted = dict(zip(places, holm(p_values), strict=True))
    n_tested = sum(not math.isnan(p) for p in p_values)
    judged = [
        replace(row, comparisons={m: _verdict(row, c.paired, adjusted[place, m]) for m, c in row.comparisons.items()})
        for place, row in enumerate(rows)
    ]
    return judged, n_tested


def _verdict(row: Row, paired: PairedDifference, p_holm: float) -> Comparison:
    """A difference in words. More is better for every metric that a suite measures."""
    if not paired.per_seed:
        return Comparison(paired, p_holm, NO_SEED if row.scores else NO_SCORE)
    if not paired.has_interval:
        same = IDENTICAL if not any(paired.per_seed.values()) else NO_SPREAD
        return Comparison(paired, p_holm, ONE_SEED if len(paired.per_seed) == 1 else same)
    if p_holm < 1 - CONFIDENCE:
        return Comparison(paired, p_holm, BETTER if paired.mean > 0 else WORSE)
    return Comparison(paired, p_holm, SAME, "" if paired.low <= 0 <= paired.high else NOT_AFTER_HOLM)


def _cost(arms: Arms, cells: Sequence[CellResult]) -> Cost:
    mine = [cell for cell in cells if cell.arms == arms]
    done = [cell for cell in mine if cell.state == DONE]
    known = [cell.cost for cell in done if cell.cost is not None]
    spent = [cell.cost for cell in mine if cell.cost is not None]
    return Cost(
        arms=arms,
        n_done=len(done),
        steps=tuple(sorted({cell.steps for cell in done})),
        device=", ".join(dict.fromkeys(cell.device for cell in mine if cell.device)),
        seconds_per_cell=fmean(known) if known else math.nan,
        seconds_of_all=math.fsum(spent) if spent else math.nan,
    )
