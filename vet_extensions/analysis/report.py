"""`report.html`: what was trained, how, and what was measured, on one self-contained page. Called by `vetdino demo`.

`write_report` turns `ReportInputs` into one HTML file with its pictures inside: no script, no font, no address outside the
file. The page reports intervals and says "no difference shown" where an interval holds 0; it never names a winner.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vet_extensions.analysis import curves as figures
from vet_extensions.analysis.curves import RunCurves
from vet_extensions.analysis.learning import COLLAPSE_SHARE, LEARNED, describe_learning, learning_row
from vet_extensions.analysis.pages import is_number, number, page_environment, readable
from vet_extensions.analysis.pictures import Picture, contact_sheet, crop_panel, data_uri, interval_bars, picture
from vet_extensions.errors import UserError

MAX_BYTES = 8_000_000
"""A report of this size or more is refused: it should travel by e-mail."""

_PICTURE_PX = (256, 192, 128, 96)


@dataclass(frozen=True)
class CropPanel:
    """The crops of one study as the networks of one arm see them.

    routing_rows: the routing as lines of text, as printed at the start of the run.
    crops: (label, image) pairs; a label is for example "student global 0 / view A".
    """

    arm: str
    routing_rows: Sequence[str]
    crops: Sequence[tuple[str, np.ndarray]]


@dataclass(frozen=True)
class PicturePanel:
    """Pictures of what one arm learned (attention maps or patch components): (label, image) pairs and what they show."""

    arm: str
    caption: str
    pictures: Sequence[tuple[str, np.ndarray]]


@dataclass(frozen=True)
class ReportInputs:
    """Everything the page shows. A part that is empty is left out.

    intake_summary, environment: nested mappings of plain values, shown as tables (`environment` for example: versions, cores,
    seconds per stage). sample_studies: (view names, grey images) per study.
    results: rows as in `results.jsonl` with arm, seed, level, group, protocol, metric, value, low, high, and where they are known
    n_seeds, n_images, n_patients. comparisons: rows with a, b (arms), difference (a - b), low, high, and what identifies the
    measurement (level, group, ...). `headline` chooses the rows shown openly by equality of fields; the rest can be unfolded.
    controls: the arms that were not pre-trained ("random_init#2" counts as "random_init").
    knn_control: k-NN score of the untrained network on the very images of the k-NN curves, drawn into their figure.
    export_parity: rows of any fields, one per exported checkpoint.
    """

    title: str
    intake_summary: Mapping[str, Any] = field(default_factory=dict)
    sample_studies: Sequence[tuple[Sequence[str], Sequence[np.ndarray]]] = ()
    crop_panels: Sequence[CropPanel] = ()
    curves: Sequence[RunCurves] = ()
    results: Sequence[Mapping[str, Any]] = ()
    comparisons: Sequence[Mapping[str, Any]] = ()
    export_parity: Sequence[Mapping[str, Any]] = ()
    attention: Sequence[PicturePanel] = ()
    components: Sequence[PicturePanel] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    headline: Mapping[str, Any] = field(default_factory=lambda: {"group": "gross", "metric": "macro_auroc"})
    controls: Sequence[str] = ("random_init", "raw_pixels", "metadata", "shuffled_labels", "cca", "cca_shuffled")
    knn_control: float | None = None
    interval: str = "95 % bootstrap interval over patients"
    measured_on: str = "patients that neither pre-training nor the fitting of a probe has seen"


def write_report(inputs: ReportInputs, path: Path) -> Path:
    """Write the page to `path` (whole or not at all) and return it.

    Pictures are made smaller until the file is below `MAX_BYTES`; raises `UserError` where even small ones are too many.
    """
    template = page_environment().get_template("report.html")
    for longest_px in _PICTURE_PX:
        content = template.render(_page(inputs, longest_px=longest_px)).encode("utf-8")
        if len(content) < MAX_BYTES:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(path.name + ".partial")
            partial.write_bytes(content)
            partial.replace(path)
            return path
    raise UserError(
        f"The report would hold {len(content):,} bytes even with pictures of {_PICTURE_PX[-1]} pixels; "
        f"less than {MAX_BYTES:,} are allowed. Give fewer sample studies or panels."
    )


def describe_difference(row: Mapping[str, Any]) -> str:
    """What the interval of a difference (a - b) allows to say, in one sentence; never more than was measured."""
    low, high = row.get("low"), row.get("high")
    if not (is_number(low) and is_number(high)):
        return "No interval was computed: nothing can be said about a difference."
    if low <= 0 <= high:
        return "No difference shown: the interval contains 0."
    side = "higher" if low > 0 else "lower"
    return f"{row['a']} measured {side} than {row['b']} in this test set; the interval does not contain 0."


def _page(inputs: ReportInputs, *, longest_px: int) -> dict[str, Any]:
    """The template's variables."""
    headline = _chosen(inputs.results, inputs.headline)
    return {
        "title": inputs.title,
        "interval": inputs.interval,
        "measured_on": inputs.measured_on,
        "notes": list(inputs.notes),
        "summary": list(_summary(inputs, n_headline=len(headline))),
        "intake": list(_flatten(inputs.intake_summary)),
        "environment": list(_flatten(inputs.environment)),
        "studies": contact_sheet(inputs.sample_studies, longest_px=longest_px),
        "crop_panels": [_crops(panel, longest_px=longest_px) for panel in inputs.crop_panels],
        "figures": _figures(inputs) if inputs.curves else [],
        "learning": [learning_row(run) for run in inputs.curves],
        "collapse_share": COLLAPSE_SHARE,
        "headline": " · ".join(f"{name} {readable(value)}" for name, value in inputs.headline.items()),
        "headline_groups": _result_groups(inputs, headline),
        "all_groups": _result_groups(inputs, inputs.results),
        "headline_comparisons": _comparisons(_chosen(inputs.comparisons, inputs.headline)),
        "all_comparisons": _comparisons(inputs.comparisons),
        "export": {"columns": _columns(inputs.export_parity), "rows": list(inputs.export_parity)},
        "picture_sections": [
            ("attention", "Where the CLS token looks", _panels(inputs.attention, "Attention map", longest_px)),
            (
                "components",
                "Principal components of patch features",
                _panels(inputs.components, "Patch components", longest_px),
            ),
        ],
    }


def _summary(inputs: ReportInputs, *, n_headline: int) -> Iterator[str]:
    """Sentences that say what was done, from the inputs alone."""
    arms = list(dict.fromkeys(run.arm for run in inputs.curves))
    if arms:
        seeds = ", ".join(f"{arm}: {sum(run.arm == arm for run in inputs.curves)}" for arm in arms)
        yield f"Pre-training arms and the seeds run of each: {seeds}. Every seed is shown; none was chosen."
    if n_headline:
        yield (
            f"The headline table has {n_headline} measurements of frozen features, with the {inputs.interval}; "
            "controls that were never pre-trained stand beside them."
        )
    compared = _chosen(inputs.comparisons, inputs.headline)
    if compared:
        shown = sum("does not contain 0" in describe_difference(row) for row in compared)
        yield f"Headline differences between arms: {len(compared)} compared, {shown} with an interval that does not contain 0."
    checked = [run for run in inputs.curves if run.n_prototypes and not math.isnan(run.final("teacher_entropy"))]
    if checked:
        learned = sum(describe_learning(run).startswith(LEARNED) for run in checked)
        yield (
            f"Learning check: {learned} of {len(checked)} runs end with a teacher entropy clearly below ln K and a student "
            "loss below that of a uniform guess."
        )


def _figures(inputs: ReportInputs) -> list[Picture]:
    """Curves as pictures; a component loss appears only where it was logged."""
    runs, names = inputs.curves, "; ".join(run.label for run in inputs.curves)
    drawn = [
        ("Total loss", figures.loss_figure(runs)),
        ("Teacher entropy; the dotted line is ln K, a uniform answer", figures.entropy_figure(runs)),
    ]
    if any(run.knn for run in runs):
        drawn.append(("k-NN during pre-training", figures.knn_figure(runs, control=inputs.knn_control)))
    for name in ("dino_global_crops_loss", "dino_local_crops_loss", "koleo_loss", "ibot_loss"):
        if any(name in run.metrics for run in runs):
            drawn.append((readable(name).capitalize(), figures.loss_figure(runs, name=name)))
    return [
        Picture(
            label=label,
            alt=f"Line chart over iterations: {label}. Runs: {names}.",
            uri=data_uri(svg, mime="image/svg+xml"),
            width=640,
            height=360,
        )
        for label, svg in drawn
    ]


def _crops(panel: CropPanel, *, longest_px: int) -> dict[str, Any]:
    labels, images = [label for label, _ in panel.crops], [image for _, image in panel.crops]
    return {
        "arm": panel.arm,
        "routing": "\n".join(panel.routing_rows),
        "pictures": crop_panel(images, labels, arm=panel.arm, longest_px=min(longest_px, 160)),
    }


def _panels(panels: Sequence[PicturePanel], kind: str, longest_px: int) -> list[dict[str, Any]]:
    return [
        {
            "arm": panel.arm,
            "caption": panel.caption,
            "pictures": [
                picture(image, label=label, alt=f"{kind} of arm {panel.arm}: {label}", longest_px=longest_px)
                for label, image in panel.pictures
            ],
        }
        for panel in panels
    ]


def _result_groups(inputs: ReportInputs, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Result rows under one heading per measurement, arms in order of appearance and controls last."""
    groups: dict[str, list[dict[str, Any]]] = {}
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    bars = interval_bars([_interval(row) for row in rows])
    for row, bar in zip(rows, bars, strict=True):
        is_control = row["arm"].split("#")[0] in inputs.controls
        shown = {**row, "bar": bar, "is_control": is_control, "seeds": _seeds(row)}
        groups.setdefault(_measurement(row) + _extent(row), []).append(shown)
    for members in groups.values():
        members.sort(key=lambda row: (row["is_control"], arms.index(row["arm"]), row["seeds"]))
    return [{"measured": name, "rows": members} for name, members in groups.items()]


def _interval(row: Mapping[str, Any]) -> tuple[float, float, float] | None:
    low, value, high = row.get("low"), row.get("value"), row.get("high")
    return (low, value, high) if is_number(low) and is_number(value) and is_number(high) else None


def _seeds(row: Mapping[str, Any]) -> str:
    """The seed of a row, or of how many seeds it is the mean."""
    if row.get("kind") == "mean" and row.get("n_seeds", 1) > 1:
        return f"mean of {row['n_seeds']}"
    return number(row.get("seed"))


def _extent(row: Mapping[str, Any]) -> str:
    """On how much a row was measured, where that is known."""
    if not (row.get("n_images") and row.get("n_patients")):
        return ""
    unit = "studies" if row.get("level") == "study" else "images"
    return f" ({row['n_images']:,} {unit} of {row['n_patients']:,} patients)"


def _chosen(rows: Sequence[Mapping[str, Any]], headline: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows that have the headline's values; a field that a row does not have does not count against it."""
    return [row for row in rows if all(row.get(name, value) == value for name, value in headline.items())]


def _comparisons(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "measured": _measurement(row), "reading": describe_difference(row)} for row in rows]


def _measurement(row: Mapping[str, Any]) -> str:
    """What a row measured, in words: the metric, the protocol, the level, the group of findings."""
    parts = [readable(row[name]) for name in ("metric", "protocol") if row.get(name)]
    parts += [f"{name} {readable(row[name])}" for name in ("level", "group") if row.get(name)]
    return ", ".join(parts)


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _flatten(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) rows of a nested mapping; a nested name is written "outer: inner"."""
    for name, value in mapping.items():
        label = prefix + readable(name)
        if isinstance(value, Mapping):
            yield from _flatten(value, prefix=f"{label}: ")
        else:
            yield label, value
