"""The table's two charts of a metric: the scores of every run, and the differences to the baseline. Called by the page.

Drawn narrow, so that the letters can still be read where a telephone shows the chart at a part of its size.
"""

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vet_extensions.ablation.table import AXIS, AblationTable, Row
from vet_extensions.analysis.curves import PALETTE, encode
from vet_extensions.analysis.pictures import Picture, data_uri

_WIDTH_IN, _FRAME_IN, _ROW_IN, _LINE_IN = 4.8, 1.0, 0.36, 0.19
_PX_PER_IN = 100
_LABEL_LETTERS = 24
_DOTS_BELOW = 0.2
"""Dots stand a little below their interval, so that neither hides the other."""
_GREY = "#555555"
_LINES = (":", "--", "-.", (0, (5, 1, 1, 1, 1, 1)))


def charts(table: AblationTable, metric: str, *, title: str) -> list[Picture]:
    """The charts of one metric; without a score none, without a difference the first alone."""
    scored = [row for row in table.combinations if metric in row.scores]
    compared = [
        row
        for row in [*table.axes, *table.combinations]
        if metric in row.comparisons and row.comparisons[metric].paired.per_seed
    ]
    drawn = []
    if scored:
        controls = [row for row in table.controls if metric in row.scores]
        label = "Scores: a dot a run, a bar the mean over seeds" + ("; lines: controls" if controls else "")
        drawn.append(_picture(_scores(scored, controls, metric), label, f"{title}. {label}. {_names(scored)}."))
    if compared:
        label = "Differences to the baseline: a dot a seed, the mean with its 95 % t-interval over seeds"
        drawn.append(_picture(_differences(compared, metric), label, f"{title}. {label}. {_names(compared)}."))
    return drawn


def _scores(rows: Sequence[Row], controls: Sequence[Row], metric: str) -> Figure:
    figure, axes = _frame(rows)
    for place, row in enumerate(rows):
        score = row.scores[metric]
        colour = _GREY if row.is_baseline else PALETTE[0]
        axes.plot(list(score.per_seed.values()), [place] * len(score.per_seed), "o", color=colour, alpha=0.65, ms=5)
        axes.plot([score.mean] * 2, [place - 0.28, place + 0.28], color=colour, linewidth=2.2)
    for control, line in zip(controls, _LINES, strict=False):
        axes.axvline(control.scores[metric].mean, color=PALETTE[1], linewidth=1.2, linestyle=line, label=control.label)
    if controls:
        figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    axes.set_xlabel(metric.split("/")[-1].replace("_", " ").replace("auroc", "AUROC"), fontsize=9)
    return figure


def _differences(rows: Sequence[Row], metric: str) -> Figure:
    figure, axes = _frame(rows)
    axes.axvline(0.0, color=_GREY, linewidth=1.0)
    for place, row in enumerate(rows):
        paired = row.comparisons[metric].paired
        places = [place + _DOTS_BELOW] * len(paired.per_seed)
        axes.plot(list(paired.per_seed.values()), places, "o", color=PALETTE[0], alpha=0.5, ms=4)
        if paired.has_interval:
            axes.plot([paired.low, paired.high], [place] * 2, color=PALETTE[0], linewidth=1.6, marker="|", ms=8)
            axes.plot(paired.mean, place, "D", color=PALETTE[0], ms=6)
    n_averaged = sum(row.kind == AXIS for row in rows)
    if n_averaged:
        axes.axhline(n_averaged - 0.5, color=_GREY, linewidth=0.8, linestyle=":")
    axes.set_xlabel("difference to the baseline", fontsize=9)
    return figure


def _frame(rows: Sequence[Row]) -> tuple[Figure, Axes]:
    """An empty chart with a place for each row, the first on top."""
    labels = [_wrapped(f"{row.label} (baseline)" if row.is_baseline else row.label) for row in rows]
    row_in = max(_ROW_IN, _LINE_IN * (1 + max(label.count("\n") for label in labels)))
    figure = Figure(figsize=(_WIDTH_IN, _FRAME_IN + row_in * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_yticks(range(len(rows)), labels, fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="x", labelsize=9)
    axes.locator_params(axis="x", nbins=5)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _wrapped(label: str) -> str:
    """A long label over several lines, broken between axes first."""
    parts = [label] if len(label) <= _LABEL_LETTERS else label.split(", ")
    return ",\n".join(textwrap.fill(part, _LABEL_LETTERS) for part in parts)


def _picture(figure: Figure, label: str, alt: str) -> Picture:
    width, height = (round(_PX_PER_IN * inches) for inches in figure.get_size_inches())
    uri = data_uri(encode(figure, "svg"), mime="image/svg+xml")
    return Picture(label=label, alt=alt, uri=uri, width=width, height=height)


def _names(rows: Sequence[Row]) -> str:
    return "From top: " + "; ".join(row.label for row in rows)
