"""An ablation's table as files: `table.html` to look at, `table.md` to paste, `table.csv` and `cells.csv` to count on with.

`vetdino ablate` calls `write_tables` at the end of its runs and whenever it is asked. `table.csv` holds no cost and no hash, so
that two runs of one plan that gave the same numbers give the same bytes.
"""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vet_extensions.ablation import wording
from vet_extensions.ablation.figures import charts
from vet_extensions.ablation.table import CONTROL, AblationTable, Row
from vet_extensions.analysis.pages import page_environment

HTML, MARKDOWN, CSV, CELLS_CSV = "table.html", "table.md", "table.csv", "cells.csv"
_TEMPLATES = Path(__file__).with_name("templates")
_STATISTICS = (
    *("n_seeds", "n_planned", "mean", "sd", "patients_low", "patients_high"),
    *("n_pairs", "difference", "low", "high", "p", "p_holm", "verdict"),
)


def write_tables(table: AblationTable, out_dir: Path) -> Path:
    """Write the four files, each whole or not at all; returns the page."""
    out_dir.mkdir(parents=True, exist_ok=True)
    environment = page_environment(_TEMPLATES)
    variables = _page(table)
    contents = {
        CSV: _csv(_statistics(table)),
        CELLS_CSV: _csv(_cells(table)),
        MARKDOWN: environment.overlay(autoescape=False).get_template("ablation.md").render(variables),
        HTML: environment.get_template("ablation.html").render(variables),
    }
    for name, content in contents.items():
        partial = out_dir / f".{name}.partial"
        partial.write_text(content, encoding="utf-8", newline="")
        partial.replace(out_dir / name)
    return out_dir / HTML


def _page(table: AblationTable) -> dict[str, Any]:
    """The variables of both templates."""
    plan = table.plan
    return {
        "name": plan.name,
        "question": plan.question,
        "summary": list(wording.summary(table)),
        "axes": list(plan.axes),
        "headings": wording.HEADINGS,
        "metrics": [_metric(table, metric) for metric in plan.metrics],
        "reading": wording.reading(table),
        "fixed_facts": wording.fixed_facts(plan),
        "axis_lines": wording.axis_lines(plan),
        "cost_headings": wording.COST_HEADINGS,
        "costs": [(wording.arms_of(cost.arms, plan), wording.cost_line(cost)) for cost in table.costs],
        "total_cost": wording.total_cost(table),
        "run_headings": [*wording.RUN_HEADINGS, *map(wording.metric_title, plan.metrics)],
        "runs": [
            (wording.arms_of(cell.arms, plan), [str(cell.seed), cell.state, *wording.run_values(cell, plan.metrics)])
            for cell in table.cells
        ],
        "n_missing": len(table.missing),
    }


def _metric(table: AblationTable, metric: str) -> dict[str, Any]:
    title, extent = wording.metric_title(metric), wording.extent(table, metric)
    combinations = "Every combination of arms" if table.axes else "The arms"
    parts = [
        ("One axis at a time, each arm averaged over the arms of the other axes", table.axes),
        (f"{combinations}, and the controls of the baseline’s runs", [*table.combinations, *table.controls]),
    ]
    return {
        "title": title,
        "extent": extent,
        "tables": [(caption, wording.lines(rows, table.plan, metric)) for caption, rows in parts if rows],
        "charts": charts(table, metric, title=title),
    }


def _statistics(table: AblationTable) -> Iterable[Sequence[Any]]:
    """Rows of table.csv: one a row of the table and metric."""
    axes = list(table.plan.axes)
    yield ["kind", *axes, "control", "metric", "is_baseline", *_STATISTICS]
    for row in table.rows:
        for metric in table.plan.metrics:
            arms = ["" if row.kind == CONTROL else row.arms.get(axis, wording.ALL_ARMS) for axis in axes]
            control = row.label if row.kind == CONTROL else ""
            yield [row.kind, *arms, control, metric, int(row.is_baseline), *_numbers(row, metric)]


def _numbers(row: Row, metric: str) -> list[Any]:
    score, comparison = row.scores.get(metric), row.comparisons.get(metric)
    scores: list[Any] = [0, row.n_planned, *[math.nan] * 4]
    if score is not None:
        scores = [len(score.per_seed), row.n_planned, score.mean, score.sd, score.low, score.high]
    if comparison is None:
        return [*scores, *[""] * 7]
    paired = comparison.paired
    differences = [paired.mean, paired.low, paired.high, paired.p, comparison.p_holm]
    return [*scores, len(paired.per_seed), *differences, wording.verdict(comparison)]


def _cells(table: AblationTable) -> Iterable[Sequence[Any]]:
    """Rows of cells.csv: one a run, with what it cost."""
    plan = table.plan
    yield ["hash", *plan.axes, "seed", "state", *plan.metrics, "steps", "device", "device_seconds"]
    for cell in table.cells:
        scores = [math.nan if (row := cell.score(metric)) is None else row.value for metric in plan.metrics]
        cost = math.nan if cell.cost is None else cell.cost
        arms = wording.arms_of(cell.arms, plan)
        yield [cell.hash, *arms, cell.seed, cell.state, *scores, cell.steps, cell.device, cost]


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    """Comma-separated text; floats with six decimals, nothing where there is no number."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for row in rows:
        writer.writerow([_cell(value) for value in row])
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return f"{value:.6f}" if math.isfinite(value) else ""
