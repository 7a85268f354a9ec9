"""What an evaluation asks (`SuiteConfig`, a YAML file) and what it answers (`Result`, a line of results.jsonl).

The suite reads the one and writes the other; the report, the ablation table and the command line read the answers.

kind "score": one checkpoint (or control) of one seed. kind "mean": the mean over the seeds of an arm (`n_seeds`; also for a
single one, so that a table needs only these). kind "difference": `arm` minus `baseline`, paired over patients, each the mean
over the seeds they share; an interval that contains 0 is the result "no difference".
"""

import difflib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vet_extensions.errors import UserError
from vet_extensions.evaluation.linear_grid import LEARNING_RATES
from vet_extensions.evaluation.metrics import METRICS
from vet_extensions.evaluation.statistics import Estimate, LabelSamples
from vet_extensions.evaluation.tuning_config import TUNED_PROTOCOLS, TuningConfig

RESULTS_SCHEMA_VERSION = 1
RESULTS_FILE = "results.jsonl"

PROTOCOLS = ("knn", "linear", "ml_knn", "linear_grid", "few_shot", "label_share", "retrieval", *TUNED_PROTOCOLS)
PROTOCOL_NAMES = {
    "knn": "k-NN",
    "linear": "linear probe",
    "ml_knn": "ML-kNN",
    "linear_grid": "grid of linear heads",
    "few_shot": "few-shot",
    "label_share": "share of the labels",
    "finetune": "fine-tuned end to end",
    "lora": "LoRA",
    "dora": "DoRA",
    "bitfit": "BitFit",
    "ia3": "IA3",
    "vpt": "visual prompts",
    "last_k": "last blocks tuned",
    "norm": "norms tuned",
}
"""What pages call a protocol; the others go by their own names."""
LEVELS = ("image", "lateral", "frontal", "cross_view", "study", "study_mean", "study_max")
GROUPS = ("gross", "all")
CONTROLS = ("random_init", "raw_pixels", "metadata", "shuffled_labels", "cca")


@dataclass(frozen=True)
class KnnConfig:
    """ks: neighbours that vote; of several, each level and group takes the one that is best on the validation split."""

    ks: tuple[int, ...] = (20,)
    temperature: float = 0.07


@dataclass(frozen=True)
class LinearConfig:
    """c_grid: inverse strengths of the L2 penalty, chosen on the validation split."""

    c_grid: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    max_iterations: int = 100


@dataclass(frozen=True)
class LinearGridConfig:
    """Heads trained by SGD side by side, one for each learning rate (for a batch of 256); chosen on the validation split."""

    learning_rates: tuple[float, ...] = LEARNING_RATES
    epochs: int = 10
    batch_size: int = 128
    seed: int = 0


@dataclass(frozen=True)
class FewShotConfig:
    """Curves over labels: patients a label (few_shot), shares of the training patients (label_share), each of n_draws draws; c:
    inverse strength of the penalty, given because validation labels would be labels too."""

    shots: tuple[int, ...] = (1, 2, 4, 8, 16)
    shares: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    n_draws: int = 10
    seed: int = 0
    c: float = 0.1


@dataclass(frozen=True)
class BootstrapConfig:
    """Resamples of the test patients; `confidence` of the percentile interval."""

    n_resamples: int = 1000
    seed: int = 0
    confidence: float = 0.95


@dataclass(frozen=True)
class SuiteConfig:
    """What to measure. image_size_px None: the global crop size of each run; controls: see `evaluation.controls`."""

    image_size_px: int | None = None
    batch_size: int = 64
    tokens: str = "cls"
    protocols: tuple[str, ...] = PROTOCOLS[:2]
    levels: tuple[str, ...] = LEVELS[:5]
    groups: tuple[str, ...] = GROUPS
    controls: tuple[str, ...] = CONTROLS[:4]
    knn: KnnConfig = field(default_factory=KnnConfig)
    linear: LinearConfig = field(default_factory=LinearConfig)
    linear_grid: LinearGridConfig = field(default_factory=LinearGridConfig)
    few_shot: FewShotConfig = field(default_factory=FewShotConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    bootstrap: BootstrapConfig = field(default_factory=BootstrapConfig)

    def __post_init__(self) -> None:
        allowed = {"protocols": PROTOCOLS, "levels": LEVELS, "groups": GROUPS, "controls": CONTROLS}
        unknown = [
            f"'{value}' in {name} (allowed: {', '.join(values)})"
            for name, values in allowed.items()
            for value in getattr(self, name)
            if value not in values
        ]
        if unknown:
            raise UserError(f"The suite names what does not exist: {'; '.join(unknown)}.")


def load_suite(source: "SuiteConfig | Mapping[str, Any] | str | Path") -> SuiteConfig:
    """A suite from a YAML file, a mapping, or as it is. Keys that are left out keep their defaults.

    Raises `UserError` with all unknown keys, each with the nearest known one.
    """
    if isinstance(source, SuiteConfig):
        return source
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.is_file():
            raise UserError(
                f"The suite '{path.name}' does not exist. Give a YAML file such as configs/evaluation/quick.yaml."
            )
        try:
            source = OmegaConf.to_container(OmegaConf.load(path), resolve=True)  # type: ignore[assignment]
        except Exception as error:
            raise UserError(f"The suite '{path.name}' is no readable YAML: {error}") from error
    if not isinstance(source, Mapping):
        raise UserError(f"A suite is a table of keys, got {type(source).__name__}. See configs/evaluation/quick.yaml.")
    problems: list[str] = []
    values = _section(source, SuiteConfig(), problems=problems)
    if problems:
        raise UserError("\n".join(problems))
    return SuiteConfig(**values)


def _section(given: Mapping[Any, Any], default: Any, *, problems: list[str], at: str = "") -> dict[str, Any]:
    """The given values in the types of the default's fields; what is wrong is added to `problems`."""
    known = {f.name: getattr(default, f.name) for f in fields(default)}
    values: dict[str, Any] = {}
    for key, value in given.items():
        name = f"{at}{key}"
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            guess = f" Did you mean '{at}{near[0]}'?" if near else ""
            problems.append(f"Unknown key '{name}' in the suite.{guess} Known: {', '.join(known)}.")
        elif is_dataclass(known[key]):
            if isinstance(value, Mapping):
                nested = _section(value, known[key], problems=problems, at=f"{name}.")
                values[key] = type(known[key])(**nested) if not problems else known[key]
            else:
                problems.append(f"'{name}' is a section, got {value!r}.")
        else:
            values[key] = _value(value, known[key], name=name, problems=problems)
    return values


def _value(value: Any, default: Any, *, name: str, problems: list[str]) -> Any:
    """One value, as a tuple where the default is one; numbers may be written as 1 or 1.0 or 1e-3."""
    items = value if isinstance(default, tuple) else [value]
    example = default[0] if isinstance(default, tuple) else default
    if not isinstance(items, list | tuple) or (not len(items) and name != "controls"):
        problems.append(f"'{name}' must be a list such as [{', '.join(map(str, default))}], got {value!r}.")
        return default
    if example is None:
        fits = [item is None or type(item) is int for item in items]
    else:
        fits = [type(item) in ((int, float) if isinstance(example, float) else (type(example),)) for item in items]
    if not all(fits):
        kind = (
            "a whole number or null"
            if example is None
            else {int: "whole numbers", float: "numbers", str: "text"}[type(example)]
        )
        problems.append(f"'{name}' must hold {kind}, got {value!r}.")
        return default
    items = [float(item) if isinstance(example, float) else item for item in items]
    return tuple(items) if isinstance(default, tuple) else items[0]


Measurement = tuple[str, str, str, str]
"""(level, group, protocol, metric)."""


@dataclass(frozen=True)
class Measured:
    """One measurement of one subject, with the resamples that its interval and its comparisons need.

    chosen: the hyper-parameter, one value a fold; config: what else decided the number, the same for all subjects.
    """

    samples: LabelSamples
    labels: tuple[str, ...]
    n_images: int
    n_patients: int
    chosen: dict[str, list[float]]
    config: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """One measurement; a row of results.jsonl.

    level: image, lateral, frontal, cross_view or study. group: the findings averaged over. protocol: knn or linear.
    metric: macro_auroc or macro_average_precision. value, low, high: the estimate and its percentile interval over patients, NaN
    where nothing could be measured. n_images: rows scored (studies, on the study level). n_labels: findings in the average;
    skipped_labels: findings of the group that the test images could not measure.
    config: everything else that decides the number: probe settings, preprocessing, bootstrap, hashes.
    """

    kind: str
    arm: str
    level: str
    group: str
    protocol: str
    metric: str
    value: float
    low: float
    high: float
    n_images: int
    n_patients: int
    n_labels: int
    n_skipped_labels: int
    skipped_labels: tuple[str, ...] = ()
    baseline: str | None = None
    seed: int | None = None
    n_seeds: int = 1
    iteration: int | None = None
    checkpoint_hash: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    schema_version: int = RESULTS_SCHEMA_VERSION

    def to_row(self) -> dict[str, Any]:
        """The JSON object; numbers that are not finite become null."""
        row = asdict(self)
        for name in ("value", "low", "high"):
            row[name] = row[name] if math.isfinite(row[name]) else None
        return row

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Result":
        """The inverse of `to_row`."""
        row = dict(row)
        for name in ("value", "low", "high"):
            row[name] = math.nan if row[name] is None else row[name]
        row["skipped_labels"] = tuple(row["skipped_labels"])
        return cls(**row)

    @property
    def identity(self) -> tuple[Any, ...]:
        """What makes two rows the same measurement, so that the later one replaces the earlier."""
        names = (
            "kind",
            "arm",
            "baseline",
            "seed",
            "iteration",
            "level",
            "group",
            "protocol",
            "metric",
            "checkpoint_hash",
        )
        return tuple(getattr(self, name) for name in names)


def metric_name(metric: str) -> str:
    """The name in a row: "macro_auroc" for the mean over labels of "auroc"; accuracies keep theirs."""
    return f"macro_{metric}" if metric in METRICS else metric


def result_row(kind: str, arm: str, measurement: Measurement, measured: Measured, estimate: Estimate) -> Result:
    """The row of one estimate; what belongs to single seeds and checkpoints is left to the caller."""
    level, group, protocol, metric = measurement
    return Result(
        kind=kind,
        arm=arm,
        level=level,
        group=group,
        protocol=protocol,
        metric=metric_name(metric),
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        n_images=measured.n_images,
        n_patients=measured.n_patients,
        n_labels=estimate.n_labels,
        n_skipped_labels=len(estimate.skipped),
        skipped_labels=tuple(measured.labels[column] for column in estimate.skipped),
        config=measured.config,
    )


def append_results(path: Path, results: Iterable[Result]) -> None:
    """Append rows to a JSON-lines file in one write, so that a reader or a second writer never sees half a batch."""
    lines = "".join(json.dumps(result.to_row(), allow_nan=False) + "\n" for result in results).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        written = os.write(descriptor, lines)
        assert written == len(lines), "a short write would leave half a row"
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_results(path: Path, *, newest_only: bool = True) -> list[Result]:
    """The rows of a results.jsonl in their order; with `newest_only`, of repeated measurements the last one stands.

    Raises `UserError` for a line that is no result, or of another schema version.
    """
    known = {f.name for f in fields(Result)}
    results: list[Result] = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path.name}, line {number}: not JSON. Delete the line, or evaluate into a new folder."
            ) from error
        version = row.get("schema_version") if isinstance(row, dict) else None
        if version != RESULTS_SCHEMA_VERSION or set(row) != known:
            raise UserError(
                f"{path.name}, line {number}: schema version {version}, this release reads {RESULTS_SCHEMA_VERSION}. "
                "Evaluate into a new folder."
            )
        results.append(Result.from_row(row))
    if not newest_only:
        return results
    return list({result.identity: result for result in results}.values())
