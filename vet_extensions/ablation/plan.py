"""What an ablation compares (`Plan`, a YAML file): axes with their arms, seeds, the fixed budget, how it is judged.

`vetdino ablate` reads the file and makes cells of it (`vet_extensions.ablation.cells`); the table reads it for its headings.
Options stay as written: a placeholder such as `{data}` is filled in only where a cell is started, so that no path of a
machine becomes part of the plan.
"""

import difflib
import itertools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vet_extensions.errors import UserError
from vet_extensions.evaluation.metrics import METRICS
from vet_extensions.evaluation.suite_config import GROUPS, LEVELS, PROTOCOLS, SuiteConfig, load_suite

FULL, ONE_AT_A_TIME = "full", "one_at_a_time"
DESIGNS = (FULL, ONE_AT_A_TIME)
KEYS = ("name", "question", "base", "options", "axes", "design", "baseline", "seeds", "evaluation", "metrics")
REQUIRED = ("name", "question", "base", "axes", "baseline", "seeds", "evaluation", "metrics")
DATASET = "dataset."
"""Options under this name are keys of the data set string, not of the training configuration."""

Arms = Mapping[str, str]
"""Axis -> the arm taken on it."""


@dataclass(frozen=True)
class Plan:
    """One ablation.

    base, evaluation: files of the training configuration and of the suite. options: for all cells, by dotted key; axes: axis ->
    arm -> options. baseline: the arm of every axis that the others are compared with. metrics: columns of the table, each
    protocol/level/group/metric.
    """

    name: str
    question: str
    base: Path
    options: Mapping[str, Any]
    axes: Mapping[str, Mapping[str, Mapping[str, Any]]]
    design: str
    baseline: Arms
    seeds: tuple[int, ...]
    evaluation: Path
    metrics: tuple[str, ...]

    def combinations(self) -> list[Arms]:
        """The arms of every cell, without seeds, in the file's order; `one_at_a_time` begins with the baseline."""
        if self.design == FULL:
            return [
                dict(zip(self.axes, arms, strict=True)) for arms in itertools.product(*map(list, self.axes.values()))
            ]
        others = [
            {**self.baseline, axis: arm}
            for axis, arms in self.axes.items()
            for arm in arms
            if arm != self.baseline[axis]
        ]
        return [dict(self.baseline), *others]

    def options_of(self, arms: Arms) -> dict[str, Any]:
        """Dotted key -> value of one cell: those for all cells, then those of its arms."""
        merged = dict(self.options)
        for axis, arm in arms.items():
            merged.update(self.axes[axis][arm])
        return merged

    def suite(self) -> SuiteConfig:
        """How every cell is judged."""
        return load_suite(self.evaluation)


def read_plan(path: str | Path) -> Plan:
    """The plan in a YAML file; raises `UserError` with everything that is wrong with it, unknown keys with the nearest known."""
    path = Path(path)
    given = _read(path)
    problems = [
        f"Unknown key '{key}' in {path.name}.{_guess(key, KEYS)} Known: {', '.join(KEYS)}."
        for key in given
        if key not in KEYS
    ]
    problems += [f"{path.name} lacks the key '{key}'." for key in REQUIRED if key not in given]
    if problems:
        raise UserError("\n".join(problems))
    plan = Plan(
        name=str(given["name"]),
        question=" ".join(str(given["question"]).split()),
        base=path.parent / str(given["base"]),
        options=_flat(given.get("options") or {}),
        axes=_axes(given["axes"], problems),
        design=str(given.get("design", FULL)),
        baseline=_words(given["baseline"]),
        seeds=tuple(given["seeds"]) if isinstance(given["seeds"], list) else (),
        evaluation=path.parent / str(given["evaluation"]),
        metrics=tuple(map(str, given["metrics"])) if isinstance(given["metrics"], list) else (),
    )
    problems += _problems(plan)
    if problems:
        raise UserError("\n".join(f"{path.name}: {problem}" for problem in problems))
    return plan


def copy_plan(path: Path, to: Path) -> None:
    """Copy a plan with the two files that it names, beside each other, so that they can be read without the first ones."""
    given = _read(path)
    for key, name in (("base", "base.yaml"), ("evaluation", "evaluation.yaml")):
        source = path.parent / str(given[key])
        if source.resolve() != (to.parent / name).resolve():
            shutil.copyfile(source, to.parent / name)
        given[key] = name
    partial = to.with_name(f".{to.name}.partial")
    OmegaConf.save(OmegaConf.create(given), partial)
    partial.replace(to)


def _read(path: Path) -> dict[Any, Any]:
    if not path.is_file():
        raise UserError(f"The plan '{path.name}' does not exist. Give a YAML file such as configs/ablation/debug.yaml.")
    try:
        given = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:
        raise UserError(f"The plan '{path.name}' is no readable YAML: {error}") from error
    if not isinstance(given, dict):
        raise UserError(f"A plan is a table of keys, got {type(given).__name__}. See configs/ablation/debug.yaml.")
    return given


def _axes(given: Any, problems: list[str]) -> dict[str, dict[str, dict[str, Any]]]:
    axes: dict[str, dict[str, dict[str, Any]]] = {}
    for axis, arms in given.items() if isinstance(given, Mapping) else ():
        if not isinstance(arms, Mapping) or len(arms) < 2:
            problems.append(
                f"Axis '{axis}' needs at least two arms such as {{a: {{}}, b: {{key: value}}}}, got {arms!r}."
            )
            continue
        wrong = [arm for arm, options in arms.items() if not isinstance(options, Mapping | None)]
        problems += [f"Arm '{_word(arm)}' of axis '{axis}' needs options such as {{key: value}}." for arm in wrong]
        axes[str(axis)] = {_word(arm): _flat(options or {}) for arm, options in arms.items() if arm not in wrong}
    if not axes and not problems:
        problems.append(f"'axes' must name at least one axis with its arms, got {given!r}.")
    return axes


def _flat(options: Mapping[Any, Any], at: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in options.items():
        name = f"{at}{key}"
        flat.update(_flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat


def _word(value: Any) -> str:
    """A name; YAML takes on and off for truth values."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _words(given: Any) -> dict[str, str]:
    return {str(axis): _word(arm) for axis, arm in given.items()} if isinstance(given, Mapping) else {}


def _guess(word: Any, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(word), known, n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def _problems(plan: Plan) -> Iterator[str]:
    if plan.design not in DESIGNS:
        yield f"'design' is '{plan.design}'.{_guess(plan.design, DESIGNS)} Allowed: {', '.join(DESIGNS)}."
    if not plan.name or not all(letter.isalnum() or letter in "_-" for letter in plan.name):
        yield f"'name' is '{plan.name}'; letters, digits, - and _ are allowed, because it becomes the name of jobs."
    if (
        not plan.seeds
        or len(set(plan.seeds)) < len(plan.seeds)
        or not all(type(s) is int and s >= 0 for s in plan.seeds)
    ):
        yield f"'seeds' must be a list of different whole numbers from 0 up, got {list(plan.seeds)}."
    for axis in dict.fromkeys([*plan.axes, *plan.baseline]):
        if axis not in plan.axes:
            yield f"'baseline' names the axis '{axis}'.{_guess(axis, list(plan.axes))} Axes: {', '.join(plan.axes)}."
        elif plan.baseline.get(axis) not in plan.axes[axis]:
            got, arms = plan.baseline.get(axis), list(plan.axes[axis])
            yield f"'baseline' needs one arm of axis '{axis}', got {got!r}.{_guess(got, arms)} Arms: {', '.join(arms)}."
    for what, file in (("base", plan.base), ("evaluation", plan.evaluation)):
        if not file.is_file():
            yield f"'{what}' names a file that does not exist: {file.name}. Its path is relative to the plan."
    if plan.evaluation.is_file():
        yield from _metric_problems(plan)


def _metric_problems(plan: Plan) -> Iterator[str]:
    suite = plan.suite()
    known = (PROTOCOLS, LEVELS, GROUPS, tuple(f"macro_{metric}" for metric in METRICS))
    measured = (suite.protocols, suite.levels, suite.groups, known[3])
    if not plan.metrics:
        yield "'metrics' must list the columns of the table, such as knn/study/gross/macro_auroc."
    for metric in plan.metrics:
        parts = metric.split("/")
        if len(parts) != len(known):
            yield f"Metric '{metric}' is not protocol/level/group/metric, such as knn/study/gross/macro_auroc."
            continue
        for part, allowed, present in zip(parts, known, measured, strict=True):
            if part not in allowed:
                yield f"Metric '{metric}' names '{part}'.{_guess(part, allowed)} Allowed: {', '.join(allowed)}."
            elif part not in present:
                yield f"Metric '{metric}': the suite {plan.evaluation.name} does not measure '{part}', only {', '.join(present)}."
