"""Training and k-NN curves as figures. Reads `training_metrics.json` of runs; called by the report and `vetdino analyze`.

Figures are drawn with matplotlib's object interface: no pyplot, no display, no state shared between calls. Arms differ in
colour, seeds in line style; the colours keep apart for readers without full colour vision (Okabe and Ito, 2008).
"""

import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vet_extensions.errors import UserError

ImageFormat = Literal["png", "svg"]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINE_STYLES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
_MARKERS = "osD^vPX"


@dataclass(frozen=True)
class RunCurves:
    """What one pre-training run logged.

    metrics: field name -> values [n], all as long as `metrics["iteration"]`, NaN where a line had no such field.
    knn: (iteration, value) pairs, measured on the validation split.
    n_prototypes: K of the DINO head (None: unknown, no ln K is drawn or compared).
    """

    arm: str
    seed: int
    metrics: dict[str, np.ndarray] = field(default_factory=dict)
    knn: tuple[tuple[int, float], ...] = ()
    n_prototypes: int | None = None

    @property
    def label(self) -> str:
        return f"{self.arm}, seed {self.seed}"

    def final(self, name: str, *, share: float = 0.1) -> float:
        """Mean of a metric over the last `share` of its logged values (at least one); NaN if it was never logged."""
        values = self.metrics.get(name, np.empty(0))
        values = values[np.isfinite(values)]
        return float(values[-max(1, round(share * len(values))) :].mean()) if len(values) else math.nan


def read_training_metrics(path: Path) -> dict[str, np.ndarray]:
    """`training_metrics.json` (JSON lines) -> field -> float64 [n], ordered by iteration.

    A resumed run logs some iterations twice: the later line counts. A last line cut short by a kill is skipped. Raises
    `UserError` for a file that is missing, broken elsewhere, or without a single iteration.
    """
    if not path.is_file():
        raise UserError(f"No training metrics at {path.name}: give the training_metrics.json of a run's output folder.")
    rows: dict[int, dict[str, float]] = {}
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows[int(row["iteration"])] = {k: float(v) for k, v in row.items() if isinstance(v, int | float)}
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise UserError(
                f"{path.name}, line {number} is not a JSON object with an 'iteration'. Each line of training metrics is one; "
                "restore the file or delete the line."
            ) from error
    if not rows:
        raise UserError(f"{path.name} holds no iteration yet: the run was stopped before its first log line.")
    names = sorted({name for row in rows.values() for name in row})
    return {n: np.array([rows[i].get(n, math.nan) for i in sorted(rows)], dtype=np.float64) for n in names}


def loss_figure(runs: Sequence[RunCurves], *, name: str = "total_loss", image_format: ImageFormat = "svg") -> bytes:
    """One loss of every run against the iteration, encoded."""
    return _curve_figure(runs, _logged(name), ylabel=f"{_readable(name)} (nats)", image_format=image_format)


def entropy_figure(runs: Sequence[RunCurves], *, image_format: ImageFormat = "svg") -> bytes:
    """Entropy of the teacher's targets against the iteration, with a line at ln K: an arm that stays there has collapsed."""

    def draw_uniform(axes: Axes) -> None:
        for k in sorted({run.n_prototypes for run in runs if run.n_prototypes}):
            axes.axhline(math.log(k), color="#555555", linewidth=1.0, linestyle=(0, (1, 1)))
            axes.annotate(
                f"ln {k} = {math.log(k):.2f} (uniform)",
                xy=(1.0, math.log(k)),
                xycoords=("axes fraction", "data"),
                xytext=(-4, 3),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color="#333333",
            )

    return _curve_figure(
        runs,
        _logged("teacher_entropy"),
        ylabel="teacher entropy (nats)",
        image_format=image_format,
        decorate=draw_uniform,
    )


def knn_figure(
    runs: Sequence[RunCurves],
    *,
    ylabel: str = "k-NN macro AUROC (validation)",
    control: float | None = None,
    image_format: ImageFormat = "svg",
) -> bytes:
    """k-NN score of every run against the iteration; `control` draws the random-initialisation score as a line."""

    def draw_control(axes: Axes) -> None:
        if control is not None:
            axes.axhline(control, color="#555555", linewidth=1.0, linestyle=(0, (1, 1)), label="random initialisation")

    def knn(run: RunCurves) -> tuple[np.ndarray, np.ndarray]:
        pairs = np.array(sorted(run.knn), dtype=np.float64).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    return _curve_figure(runs, knn, ylabel=ylabel, image_format=image_format, decorate=draw_control, has_markers=True)


def _logged(name: str) -> Callable[[RunCurves], tuple[np.ndarray, np.ndarray]]:
    def values(run: RunCurves) -> tuple[np.ndarray, np.ndarray]:
        y = run.metrics.get(name, np.empty(0))
        x = run.metrics.get("iteration", np.empty(0))[: len(y)]
        return x[np.isfinite(y)], y[np.isfinite(y)]

    return values


def _readable(name: str) -> str:
    return name.replace("_", " ")


def _curve_figure(
    runs: Sequence[RunCurves],
    values: Callable[[RunCurves], tuple[np.ndarray, np.ndarray]],
    *,
    ylabel: str,
    image_format: ImageFormat,
    decorate: Callable[[Axes], None] | None = None,
    has_markers: bool = False,
) -> bytes:
    """Draw one line per run that has values; a figure without any says so in words."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    arms = list(dict.fromkeys(run.arm for run in runs))
    seeds = sorted({run.seed for run in runs})
    has_lines = False
    for run in runs:
        x, y = values(run)
        if not len(x):
            continue
        has_lines = True
        arm, seed = arms.index(run.arm), seeds.index(run.seed)
        axes.plot(
            x,
            y,
            label=run.label,
            color=PALETTE[arm % len(PALETTE)],
            linestyle=_LINE_STYLES[seed % len(_LINE_STYLES)],
            marker=_MARKERS[arm % len(_MARKERS)] if has_markers else None,
            markersize=4,
            linewidth=1.4,
        )
    axes.set_xlabel("iteration (optimiser steps)")
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if has_lines:
        if decorate is not None:
            decorate(axes)
        axes.legend(fontsize=8, frameon=False)
    else:
        axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", va="center", color="#555555")
    return encode(figure, image_format)


def encode(figure: Figure, image_format: ImageFormat) -> bytes:
    """The figure as bytes that depend on its content alone (no date, no random identifiers)."""
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if image_format == "svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "vetdino"}):
        figure.savefig(buffer, format=image_format, dpi=150, metadata=metadata)
    return buffer.getvalue()
