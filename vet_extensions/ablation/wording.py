"""The table's numbers as text: the same lines and sentences for the Markdown file and the page, which call it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vet_extensions.ablation.cells import DONE, CellResult
from vet_extensions.ablation.plan import FULL, Arms, Plan
from vet_extensions.ablation.table import BASELINE, BETTER, CONTROL, WORSE, AblationTable, Comparison, Cost, Row
from vet_extensions.evaluation.suite_config import PROTOCOL_NAMES

NOTHING = "–"
ALL_ARMS = "all"
_METRICS = {"macro_auroc": "Macro AUROC", "macro_average_precision": "Macro average precision"}


@dataclass(frozen=True)
class Line:
    """One row of the table for one metric, ready to print. arms: one text per axis; a control's name stands in the first."""

    arms: Sequence[str]
    seeds: str
    mean: str
    sd: str
    patients: str
    difference: str
    interval: str
    verdict: str
    is_baseline: bool
    is_control: bool


HEADINGS = ("Seeds", "Mean", "SD over seeds", "Interval over patients", "Difference", "95 % over seeds", "Verdict")


def metric_title(metric: str) -> str:
    """`knn/study/gross/macro_auroc` in words."""
    protocol, level, group, name = metric.split("/")
    level = level.replace("_", " ")
    return f"{_METRICS.get(name, name)}, {PROTOCOL_NAMES.get(protocol, protocol)}, {level} level, {group} findings"


def extent(table: AblationTable, metric: str) -> str:
    """On how much a metric was measured; empty before a cell is done."""
    row = next((row for cell in table.cells if (row := cell.score(metric)) is not None), None)
    if row is None:
        return ""
    unit = "studies" if row.level == "study" else "images"
    return f"{row.n_images:,} {unit} of {row.n_patients:,} test patients"


def lines(rows: Sequence[Row], plan: Plan, metric: str) -> list[Line]:
    """Rows for one metric; controls that were not measured with it are left out."""
    return [_line(row, plan, metric) for row in rows if row.kind != CONTROL or metric in row.scores]


def _line(row: Row, plan: Plan, metric: str) -> Line:
    score, comparison = row.scores.get(metric), row.comparisons.get(metric)
    arms = [row.arms.get(axis, ALL_ARMS) for axis in plan.axes]
    if row.kind == CONTROL:
        arms = [row.label] + [NOTHING] * (len(plan.axes) - 1)
    return Line(
        arms=arms,
        seeds=_seeds(row, n_seeds=len(score.per_seed) if score else 0),
        mean=fixed(score.mean) if score else NOTHING,
        sd=fixed(score.sd, digits=4) if score else NOTHING,
        patients=span(score.low, score.high) if score else NOTHING,
        difference=_difference(comparison, n_planned=row.n_planned) if comparison else NOTHING,
        interval=span(comparison.paired.low, comparison.paired.high, is_signed=True) if comparison else NOTHING,
        verdict=verdict(comparison) if comparison else BASELINE if row.is_baseline else CONTROL,
        is_baseline=row.is_baseline,
        is_control=row.kind == CONTROL,
    )


def _seeds(row: Row, *, n_seeds: int) -> str:
    """How many seeds a score rests on, and what is the matter with the others."""
    if row.kind == CONTROL:
        return str(n_seeds)
    missing = ", ".join(f"seed {seed} {state}" for seed, state in row.missing.items())
    return f"{n_seeds} of {row.n_planned}" + (f" ({missing})" if missing else "")


def _difference(comparison: Comparison, *, n_planned: int) -> str:
    """A difference; over how many seeds where both arms do not have all."""
    n_pairs = len(comparison.paired.per_seed)
    return signed(comparison.paired.mean) + (f" ({plural(n_pairs, 'seed')})" if 0 < n_pairs < n_planned else "")


def verdict(comparison: Comparison) -> str:
    """The verdict, with the reason where it is more careful than the interval."""
    return f"{comparison.verdict} ({comparison.note})" if comparison.note else comparison.verdict


def summary(table: AblationTable) -> Iterator[str]:
    """What is done, and what came out of each metric, in a sentence each."""
    n_done, n_cells = sum(cell.state == DONE for cell in table.cells), len(table.cells)
    if n_done == n_cells:
        yield f"{plural(n_cells, 'run')}, all done."
    else:
        yield (
            f"{n_done} of {n_cells} runs are done. The table counts only these; what is missing is listed under “Runs”, "
            "and the numbers may still change."
        )
    if not table.has_equal_budgets:
        yield "The runs did not all take the same number of steps: see “Cost”. Differences are then not due to the arms alone."
    rows = table.axes or table.combinations
    averaged = ", averaged over the other axes," if table.axes else ""
    for metric in table.plan.metrics:
        verdicts = [row.comparisons[metric].verdict for row in rows if metric in row.comparisons]
        words = [f"{verdicts.count(word)} “{word}”" for word in dict.fromkeys([BETTER, WORSE, *verdicts])]
        yield f"{metric_title(metric)}: {plural(len(verdicts), 'arm')}{averaged} compared with the baseline: {', '.join(words)}."


def reading(table: AblationTable) -> list[str]:
    """How the table is to be read, in sentences that hold for every ablation."""
    n = table.n_comparisons
    tested = (
        f"{plural(n, 'comparison')} could be tested, over all metrics" if n else "No comparison could be tested yet"
    )
    return [
        "A difference is taken seed by seed: a run minus the baseline’s run with the same seed, which shares its first weights "
        "and its order of data as far as the arms allow. Its 95 % interval is the t-interval of these differences. It says "
        "whether training anew would give the same difference on these very test patients.",
        "The interval over patients is another thing: it says how far a score would move with other test patients of the same "
        "kind. It is the mean of the seeds’ own bootstrap intervals, so that of the mean over seeds is this wide or narrower. "
        "A difference that is clear over seeds is not thereby clear over patients.",
        f"{tested}. A verdict is “better” or “worse” only where Holm’s correction over all comparisons of this page allows it: "
        "where no arm differs, the chance of one such word or more is below 5 %. “Not after the correction” marks an interval "
        "that leaves 0 out by itself: intervals are not corrected, and of twenty that should hold 0 one does not, on average.",
        "“Not distinguishable” is a result about these seeds and this budget, and no proof that arms are equal: the interval "
        "says how large a difference remains possible. More is better for every metric here.",
        "Nothing was chosen after seeing scores: every seed and every arm of the plan is listed. A run that failed is missing "
        "from the numbers, not zero in them.",
    ]


def axis_lines(plan: Plan) -> list[tuple[str, str, str]]:
    """(axis, arm, its options) of every arm; the baseline's is marked."""
    return [
        (
            axis,
            f"{arm} (baseline)" if arm == plan.baseline[axis] else arm,
            ", ".join(f"{key}={value}" for key, value in options.items()) or "as in the base configuration",
        )
        for axis, arms in plan.axes.items()
        for arm, options in arms.items()
    ]


def fixed_facts(plan: Plan) -> list[tuple[str, str]]:
    """(what, value) of what all runs share."""
    options = ", ".join(f"{key}={value}" for key, value in plan.options.items())
    every = "every combination of arms" if plan.design == FULL else "the baseline, and each other arm alone"
    return [
        ("Base configuration", f"{plan.base.name}, in the ablation’s folder"),
        ("Options of all runs", options or NOTHING),
        ("Runs", f"{every}: {len(plan.combinations())} x {len(plan.seeds)} seeds"),
        ("Seeds", ", ".join(map(str, plan.seeds))),
        ("Evaluation", f"{plan.evaluation.name}, in the ablation’s folder"),
    ]


COST_HEADINGS = ("Done", "Steps a run", "Device", "Device-hours a run", "Device-hours in all")


def cost_line(cost: Cost) -> tuple[str, ...]:
    """The values below `COST_HEADINGS`."""
    steps = " / ".join(f"{n:,}" for n in cost.steps) or NOTHING
    return (str(cost.n_done), steps, cost.device or NOTHING, _hours(cost.seconds_per_cell), _hours(cost.seconds_of_all))


def total_cost(table: AblationTable) -> str:
    """One sentence on the price of everything."""
    known = [cell.cost for cell in table.cells if cell.cost is not None]
    unknown = sum(cell.cost is None and cell.state == DONE for cell in table.cells)
    if not known:
        return "The cost is not known."
    more = f"; of {unknown} finished runs it is not known" if unknown else ""
    return f"{_hours(math.fsum(known))} device-hours in all, attempts that failed or were interrupted included{more}."


RUN_HEADINGS = ("Seed", "State")


def run_values(cell: CellResult, metrics: Sequence[str]) -> list[str]:
    """The scores of one run."""
    scores = [cell.score(metric) for metric in metrics]
    return [NOTHING if score is None else fixed(score.value) for score in scores]


def arms_of(arms: Arms, plan: Plan) -> list[str]:
    """One text per axis."""
    return [arms[axis] for axis in plan.axes]


def fixed(value: float, *, digits: int = 3) -> str:
    """A score: always as many decimals, so that columns can be compared by eye."""
    return f"{value:.{digits}f}" if math.isfinite(value) else NOTHING


def signed(value: float) -> str:
    """A difference, with its sign; four decimals, because differences between arms are small."""
    return f"{value:+.4f}".replace("-", "−") if math.isfinite(value) else NOTHING


def span(low: float, high: float, *, is_signed: bool = False) -> str:
    """An interval."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return NOTHING
    return f"{signed(low)} to {signed(high)}" if is_signed else f"{fixed(low)} to {fixed(high)}"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.3g}" if math.isfinite(seconds) else "unknown"


def plural(count: int, noun: str) -> str:
    """`1 run`, `3 runs`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
