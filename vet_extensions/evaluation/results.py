"""What an evaluation answers: `Result`, a line of results.jsonl.

The suite writes them; the report, the ablation table and the command line read them.

kind "score": one checkpoint (or control) of one seed. kind "mean": the mean over the seeds of an arm (`n_seeds`; also for a
single one, so that a table needs only these). kind "difference": `arm` minus `baseline`, paired over patients, each the mean
over the seeds they share; an interval that contains 0 is the result "no difference".
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from vet_extensions.errors import UserError
from vet_extensions.evaluation.metrics import METRICS
from vet_extensions.evaluation.statistics import Estimate, LabelSamples

RESULTS_SCHEMA_VERSION = 1
RESULTS_FILE = "results.jsonl"

Measurement = tuple[str, str, str, str]
"""(level, group, protocol, metric)."""


@dataclass(frozen=True)
class Measured:
    """One measurement of one subject, with the resamples that its interval and its comparisons need.

    chosen: the hyper-parameters, one value a fold; config: what else decided the number, the same for all subjects.
    """

    samples: LabelSamples
    labels: tuple[str, ...]
    n_images: int
    n_patients: int
    chosen: Mapping[str, Sequence[float | str]]
    config: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """One measurement; a row of results.jsonl.

    level: what was scored, as `suite_config.LEVELS` names it; of segmentations image or volume. group: the labels averaged over.
    protocol, metric: how, and by what. value, low, high: the estimate and its percentile interval over patients, NaN
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
        row = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("value", "low", "high"):
            row[name] = row[name] if math.isfinite(row[name]) else None
        return row

    def to_line(self) -> str:
        """The line of a JSON-lines file."""
        return json.dumps(self.to_row(), allow_nan=False) + "\n"

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
    """Append rows to a JSON-lines file in one write, so that a reader or a second writer never sees half a batch.

    What the file holds already, to the last digit and as the newest of its measurement, is not written again.
    """
    known = {row.identity: row.to_line() for row in read_results(path)} if path.is_file() else {}
    new = [line for result in results if (line := result.to_line()) != known.get(result.identity)]
    lines = "".join(new).encode()
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
