"""leaderboard.html: everything that an evaluation's folder holds on one page, with what limits it.

`vetdino evaluate` writes it at its end, from results.jsonl, audit.jsonl and the predictions. Scorers of a table that share a
letter are not distinguishable; controls and leaks stand in the same rows as the scores. The page loads nothing and sends nothing.
"""

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment

from dinov2.utils.files import file_sha256
from vet_extensions.errors import UserError
from vet_extensions.evaluation.audit import AUDIT_FILE, CALIBRATION, SHORTCUT, SUBGROUP, AuditRow, read_audit
from vet_extensions.evaluation.chance import SHUFFLED_LABELS
from vet_extensions.evaluation.compare import SAME, Comparison, Difference, Standing, compare_evaluations
from vet_extensions.evaluation.features import short_hash
from vet_extensions.evaluation.leaderboard_rows import LOWER_IS_BETTER, rest_of, standings_of
from vet_extensions.evaluation.predictions import FOLDER as PREDICTIONS
from vet_extensions.evaluation.results import RESULTS_FILE, Result, read_results
from vet_extensions.evaluation.statistics import Estimate
from vet_extensions.evaluation.subject_scores import scoring_code
from vet_extensions.evaluation.suite_config import PROTOCOL_NAMES, PROTOCOLS
from vet_extensions.evaluation.whole_files import whole_file

PAGE = "leaderboard.html"
TEMPLATES = Path(__file__).with_name("templates")

_HIGHEST_TEMPERATURE = 20.0
"""Where the search for a temperature ends: what is found there is no more than that the scores say nothing."""

_METRICS = {
    "macro_auroc": "macro AUROC",
    "macro_average_precision": "macro average precision",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "case_dice": "Dice, case by case",
    "pooled_dice": "Dice of all pixels pooled",
    "surface_dice": "surface Dice",
    "hd95_mm": "HD95 in mm (lower is better)",
    "median_rank": "median rank (lower is better)",
}
_LEVELS = {
    "image": "Images",
    "lateral": "Lateral images",
    "frontal": "Frontal images",
    "cross_view": "One view searched by the other",
    "study": "Studies, features pooled",
    "study_mean": "Studies, mean of their images’ scores",
    "study_max": "Studies, highest of their images’ scores",
    "volume": "Volumes, slices put together",
}


def write_leaderboard(
    folder: Path,
    environment: Environment,
    *,
    n_resamples: int = 1000,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the page of an evaluation's folder, whole or not at all, and return it; one made from the same files stays.

    environment: finds TEMPLATES and the style sheet that all pages share. Raises `UserError` where the folder holds no results.
    """
    if not (folder / RESULTS_FILE).is_file():
        raise UserError(f"'{folder.name}' holds no {RESULTS_FILE}. Give the folder that --out named.")
    about = _fingerprint(folder, n_resamples=n_resamples)
    with contextlib.suppress(FileNotFoundError):
        if f'content="{about}"' in (folder / PAGE).read_text(encoding="utf-8"):
            return folder / PAGE
    results, audit = read_results(folder / RESULTS_FILE), read_audit(folder / AUDIT_FILE)
    comparison = Comparison((), (), (), n_resamples, 0.95)
    if (folder / PREDICTIONS).is_dir():  # of segmentations there are none
        comparison = compare_evaluations(
            [folder],
            with_controls=True,
            with_labels=False,
            allow_single=True,
            n_resamples=n_resamples,
            on_progress=on_progress,
        )
    variables = page_variables(comparison, results=results, audit=audit)
    page = environment.get_template(PAGE).render(variables, made_from=about)
    with whole_file(folder / PAGE) as partial:
        partial.write_text(page, encoding="utf-8")
    return folder / PAGE


def _fingerprint(folder: Path, *, n_resamples: int) -> str:
    """A hash of all that a page is made from: while it stays, so does the page."""
    files = [folder / RESULTS_FILE, folder / AUDIT_FILE, *sorted((folder / PREDICTIONS).glob("*/*.parquet"))]
    held = {file.relative_to(folder).as_posix(): file_sha256(file) for file in files if file.is_file()}
    templates = [file_sha256(file) for file in sorted(TEMPLATES.glob("*.html"))]
    return short_hash({"files": held, "n_resamples": n_resamples, "code": scoring_code(), "templates": templates})


def page_variables(
    comparison: Comparison, *, results: Sequence[Result] = (), audit: Sequence[AuditRow] = ()
) -> dict[str, Any]:
    """What the template shows."""
    shuffled = [row for row in results if row.kind == "mean" and row.arm == SHUFFLED_LABELS]
    names = {standing.name for standing in comparison.standings}
    mine = [row for row in audit if row.arm in names]
    rest = rest_of(results, comparison.standings)
    standings = [*comparison.standings, *standings_of(rest)]
    return {
        "warnings": list(_warnings(standings, shuffled)),
        "summary": _summary(standings, n_pairs=len(comparison.macros)),
        "levels": _levels(standings, shuffled),
        "differences": [_difference(row) for row in comparison.macros if row.verdict != SAME],
        "paired": [_paired(row) for row in rest if row.kind == "difference"],
        "n_same": sum(row.verdict == SAME for row in comparison.macros),
        "calibration": list(_calibration(mine)),
        "subgroups": [_subgroup(row) for row in mine if row.kind == SUBGROUP],
        "shortcuts": [_shortcut(row) for row in mine if row.kind == SHORTCUT],
        "n_resamples": comparison.n_resamples,
        "percent": f"{100 * comparison.confidence:g}",
    }


def _warnings(standings: Sequence[Standing], shuffled: Sequence[Result]) -> Iterator[str]:
    for name, leak in dict.fromkeys((standing.name, standing.leak) for standing in standings):
        if "LEAK" in leak:
            yield f"{name} was pre-trained on test data, and this was allowed. {leak}."
    wrong = [row for row in shuffled if not row.config.get("is_at_chance", True)]
    if wrong:
        where = "; ".join(
            f"{_level(row.level)}, {row.group}, {_protocol(row.protocol)}: {row.value:.3f}" for row in wrong
        )
        yield (
            f"Shuffled labels are not at chance ({where}). What a probe was taught there is noise, so the scoring itself knows "
            "test labels: believe no row of these tables before that is understood."
        )


def _summary(standings: Sequence[Standing], *, n_pairs: int) -> str:
    names = dict.fromkeys(s.name for s in standings if not s.is_control)
    controls = dict.fromkeys(s.name for s in standings if s.is_control)
    beside = f" beside {len(controls)} controls ({', '.join(controls)})" if controls else ""
    return f"{len(names)} judged ({', '.join(names) or 'none'}){beside}; {n_pairs:,} pairs compared."


def _levels(standings: Sequence[Standing], shuffled: Sequence[Result]) -> list[dict[str, Any]]:
    """Levels in order, each with a table a group of labels and protocol."""
    tables: dict[str, dict[tuple[str, str], list[Standing]]] = defaultdict(lambda: defaultdict(list))
    for standing in standings:
        tables[standing.level][standing.group, standing.protocol].append(standing)
    levels = sorted(tables, key=lambda level: (list(_LEVELS).index(level) if level in _LEVELS else 99, level))
    return [
        {
            "title": _level(level),
            "tables": [
                {"caption": _caption(level, group, protocol, members), "rows": _rows(members, shuffled)}
                for (group, protocol), members in sorted(tables[level].items(), key=_place)
            ],
        }
        for level in levels
    ]


def _place(table: tuple[tuple[str, str], Any]) -> tuple[str, int, float]:
    """Groups of labels by name, protocols as a suite lists them, the points of a curve by their size."""
    (group, protocol), _ = table
    name, _, point = protocol.rpartition("_")
    if protocol in PROTOCOLS or name not in PROTOCOLS:
        name, point = protocol, "0"
    return group, PROTOCOLS.index(name) if name in PROTOCOLS else len(PROTOCOLS), float(point)


def _caption(level: str, group: str, protocol: str, members: Sequence[Standing]) -> str:
    findings = {"all": "all labels", "gross": "gross findings"}.get(group, group.replace("_", " "))
    one = members[0]
    return f"{_level(level)}: {_protocol(protocol)}, {findings}; {one.n_cases:,} test cases of {one.n_patients:,} patients."


def _rows(members: Sequence[Standing], shuffled: Sequence[Result]) -> list[dict[str, Any]]:
    """A row a scorer and metric, best first within a metric; shuffled labels last."""
    first = members[0]
    rows = [
        {
            "name": s.name,
            "metric": _metric(s.metric),
            "score": _fixed(s.estimate.value),
            "interval": _interval(s.estimate),
            "estimate": s.estimate,
            "letters": s.letters,
            "seeds": str(s.n_seeds),
            "leak": s.leak.partition(":")[0] if s.leak.startswith("none found") else s.leak,
            "is_leak": "LEAK" in s.leak,
            "is_control": s.is_control,
            "is_first": place == 0 or members[place - 1].metric != s.metric,
        }
        for place, s in enumerate(members)
    ]
    place = (first.level, first.group, first.protocol)
    for row in (row for row in shuffled if (row.level, row.group, row.protocol) == place):
        estimate = Estimate(row.value, row.low, row.high, row.n_labels, ())
        verdict = "at chance" if row.config.get("is_at_chance", True) else "NOT AT CHANCE"
        rows.append(
            {
                "name": f"{row.arm} ({verdict}; {row.config.get('interval', '')})",
                "metric": _metric(row.metric),
                "score": _fixed(row.value),
                "interval": _interval(estimate),
                "estimate": estimate,
                "letters": "",
                "seeds": "",
                "leak": "",
                "is_leak": False,
                "is_control": True,
                "is_first": False,
            }
        )
    for row in rows:
        row["bar"] = _bar(row["estimate"], [other["estimate"] for other in rows if other["metric"] == row["metric"]])
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    return sorted(rows, key=lambda row: metrics.index(row["metric"]))


def _bar(estimate: Estimate, family: Sequence[Estimate]) -> dict[str, float] | None:
    """Ends and value in percent of an axis that holds the intervals of its family; None without an interval."""
    ends = [end for e in family for end in (e.low, e.high) if math.isfinite(end)]
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)) or max(ends) <= min(ends):
        return None
    start, span = min(ends), max(ends) - min(ends)
    places = zip(("low", "value", "high"), (estimate.low, estimate.value, estimate.high), strict=True)
    return {name: round(100 * (end - start) / span, 2) for name, end in places}


def _difference(row: Difference) -> list[str]:
    interval = f"[{row.low:+.3f}, {row.high:+.3f}]"
    where = f"{_level(row.level)}, {row.group}, {_protocol(row.protocol)}"
    names = [row.first, row.second, where, _metric(row.metric)]
    return [*names, f"{row.value:+.3f}", interval, _p(row.p), _p(row.p_holm), row.verdict]


def _paired(row: Result) -> list[str]:
    """A difference that was measured with the scores; without p, as only its interval was kept."""
    where = f"{_level(row.level)}, {row.group}, {_protocol(row.protocol)}"
    verdict = "not distinguishable"
    if row.low > 0 or row.high < 0:
        verdict = "better" if (row.value > 0) != (row.metric in LOWER_IS_BETTER) else "worse"
    elif math.isnan(row.low):
        verdict = "not measured"
    interval = f"[{row.low:+.3f}, {row.high:+.3f}]"
    return [row.arm, row.baseline or "", where, _metric(row.metric), f"{row.value:+.3f}", interval, verdict]


def _calibration(audit: Sequence[AuditRow]) -> Iterator[dict[str, Any]]:
    """A row a subject, level and protocol: Brier score and error, before and after the temperature, and the curve's points."""
    found: dict[tuple[Any, ...], dict[str, AuditRow]] = defaultdict(dict)
    for row in audit:
        if row.kind == CALIBRATION:
            found[row.arm, row.seed, row.checkpoint_hash, row.level, row.protocol][row.metric] = row
    for (arm, seed, _, level, protocol), rows in found.items():
        brier, ece, beyond = (rows.get(f"macro_{name}") for name in ("brier", "ece", "ece_beyond_chance"))
        if brier is None or ece is None or beyond is None:
            continue
        temperature = _number(ece.details.get("temperature"))
        cells = [_of_seed(arm, seed), _level(level), _protocol(protocol)]
        cells += [_fixed(brier.value), _interval(brier), _fixed(_number(brier.details.get("scaled")))]
        cells += [
            _fixed(ece.value),
            _fixed(beyond.value),
            _interval(beyond),
            _fixed(_number(ece.details.get("scaled"))),
        ]
        yield {
            "cells": [*cells, "20 or more" if temperature > _HIGHEST_TEMPERATURE else _fixed(temperature)],
            "curve": [(round(100 * x, 1), round(100 * (1 - y), 1)) for _, x, y in ece.details.get("curve", ())],
        }


def _subgroup(row: AuditRow) -> dict[str, Any]:
    d = row.details
    cells = [
        _of_seed(row.arm, row.seed),
        _protocol(row.protocol),
        row.about,
        f"{d['n_images']:,}",
        f"{d['n_patients']:,}",
    ]
    if "not_judged" in d:
        return {"cells": cells, "not_judged": f"not judged: {d['not_judged']}"}
    gap = f"{d['gap']:+.3f} [{d['gap_low']:+.3f}, {d['gap_high']:+.3f}]"
    verdict = (
        SAME if _number(d["p_holm"]) >= 0.05 else ("better than the rest" if d["gap"] > 0 else "worse than the rest")
    )
    if math.isnan(_number(d["p_holm"])):
        verdict = "not tested"
    more = [_fixed(row.value), _interval(row), _fixed(_number(d["rest"])), gap, verdict]
    return {"cells": [*cells, *more], "not_judged": ""}


def _shortcut(row: AuditRow) -> list[str]:
    d = row.details
    can_read = "can be read" if row.low > d["chance"] else "not shown to be readable"
    values = f"{row.about} ({len(d['values'])} values)"
    return [_of_seed(row.arm, row.seed), values, _fixed(row.value), _interval(row), _fixed(d["chance"]), can_read]


def _of_seed(arm: str, seed: int | None) -> str:
    return arm if seed is None else f"{arm}, seed {seed}"


def _level(level: str) -> str:
    return _LEVELS.get(level, level)


def _protocol(protocol: str) -> str:
    whole = [name for name in PROTOCOL_NAMES if protocol.startswith(f"{name}_")]
    if protocol in PROTOCOL_NAMES or not whole:
        return PROTOCOL_NAMES.get(protocol, protocol)
    name = max(whole, key=len)
    return f"{PROTOCOL_NAMES[name]} {protocol.removeprefix(f'{name}_')}"


def _metric(metric: str) -> str:
    return _METRICS.get(metric, metric)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _fixed(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"


def _interval(estimate: Estimate | AuditRow) -> str:
    return f"[{estimate.low:.3f}, {estimate.high:.3f}]" if math.isfinite(estimate.low) else "–"


def _p(value: float) -> str:
    return "–" if math.isnan(value) else ("< 0.001" if value < 0.001 else f"{value:.3f}")
