"""What stands behind a score: calibration, subgroup gaps and shortcuts of every backbone, as rows of audit.jsonl.

The suite calls an `Auditor` with each subject's features and predictions; the leaderboard reads the rows. Calibration is judged
at every level over all labels, subgroups at the image level, shortcuts from the features of backbones and of controls that have
pixels or weights.
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vet_extensions.errors import UserError
from vet_extensions.evaluation.calibration import Calibration, calibrate
from vet_extensions.evaluation.cohort import LabelledImages
from vet_extensions.evaluation.metrics import AUROC, BALANCED_ACCURACY
from vet_extensions.evaluation.predictions import Scorer
from vet_extensions.evaluation.results import metric_name
from vet_extensions.evaluation.scoring import Predictions
from vet_extensions.evaluation.shortcuts import read_facts
from vet_extensions.evaluation.statistics import Estimate, PatientBootstrap
from vet_extensions.evaluation.subgroups import Subgroup, subgroup_gaps

AUDIT_FILE = "audit.jsonl"
CALIBRATION, SUBGROUP, SHORTCUT = "calibration", "subgroup", "shortcut"
_NO_ESTIMATE = Estimate(math.nan, math.nan, math.nan, 0, ())


@dataclass(frozen=True)
class AuditRow:
    """One finding about one subject. kind: calibration, subgroup or shortcut; about: the fact and its value, where it is of one.

    value, low, high: NaN where it was not judged. details: what else belongs to it, plain values.
    """

    kind: str
    arm: str
    seed: int | None
    checkpoint_hash: str
    data: str
    level: str
    group: str
    protocol: str
    about: str
    metric: str
    value: float
    low: float
    high: float
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> tuple[Any, ...]:
        """What makes a later row replace an earlier one."""
        return tuple(getattr(self, f.name) for f in fields(self) if f.name not in ("value", "low", "high", "details"))


class Auditor:
    """Collects the rows of one suite run in `rows`."""

    def __init__(self, images: LabelledImages, *, bootstrap: PatientBootstrap, confidence: float) -> None:
        self.images, self.bootstrap, self.confidence = images, bootstrap, confidence
        self.rows: list[AuditRow] = []

    def look_at_features(self, scorer: Scorer, features: NDArray[np.floating]) -> None:
        """The shortcut meter on image features [n_images, D]."""
        cohort, facts = self.images.cohort, self.images.facts
        for reading in read_facts(features, cohort, facts, bootstrap=self.bootstrap, confidence=self.confidence):
            details = {"chance": reading.chance, "values": list(reading.values), "n_images": reading.n_images}
            row = _row(SHORTCUT, scorer, ("image", "", ""), reading.fact, BALANCED_ACCURACY, reading.balanced_accuracy)
            self.rows.append(_with(row, details))

    def look_at_predictions(self, scorer: Scorer, predictions: Predictions) -> None:
        """Calibration, and subgroups of images."""
        if predictions.group != "all":
            return
        place = (predictions.level, predictions.group, predictions.protocol)
        calibration = calibrate(predictions, bootstrap=self.bootstrap, confidence=self.confidence)
        if calibration is not None:
            self.rows += _calibration_rows(calibration, scorer, place)
        if predictions.level == "image":
            gaps = subgroup_gaps(predictions, self.images.facts, bootstrap=self.bootstrap, confidence=self.confidence)
            self.rows += [_subgroup_row(subgroup, scorer, place) for subgroup in gaps]


def append_audit(path: Path, rows: Iterable[AuditRow]) -> None:
    """Append rows to a JSON-lines file; numbers that are not finite become null. What it holds already is not written again."""
    known = {row.identity: _line(row) for row in read_audit(path)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(line for row in rows if (line := _line(row)) != known.get(row.identity)))


def read_audit(path: Path) -> list[AuditRow]:
    """The rows, of repeated ones the last; none where there is no file. Raises `UserError` for a line that is no row."""
    if not path.is_file():
        return []
    rows = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            given = json.loads(line)
            numbers = {name: math.nan if given[name] is None else given[name] for name in ("value", "low", "high")}
            row = AuditRow(**{**given, **numbers})
        except (ValueError, TypeError, KeyError):
            raise UserError(
                f"{path.name}, line {number}: no audit row. Delete the line, or evaluate into a new folder."
            ) from None
        rows[row.identity] = row
    return list(rows.values())


def _calibration_rows(found: Calibration, scorer: Scorer, place: tuple[str, str, str]) -> Iterator[AuditRow]:
    brier = _row(CALIBRATION, scorer, place, "", "macro_brier", found.brier)
    yield _with(brier, {"scaled": found.scaled_brier.value, "temperature": found.temperature})
    ece = _row(CALIBRATION, scorer, place, "", "macro_ece", Estimate(found.ece, math.nan, math.nan, 0, ()))
    curve = [[b.n, b.predicted, b.observed] for b in found.curve]
    yield _with(
        ece,
        {
            "scaled": found.scaled_ece,
            "temperature": found.temperature,
            "bins": f"{found.n_bins} of equal mass",
            "curve": curve,
        },
    )
    yield _row(CALIBRATION, scorer, place, "", "macro_ece_beyond_chance", found.ece_beyond_chance)


def _subgroup_row(subgroup: Subgroup, scorer: Scorer, place: tuple[str, str, str]) -> AuditRow:
    about = f"{subgroup.fact}: {subgroup.value}"
    row = _row(SUBGROUP, scorer, place, about, metric_name(AUROC), subgroup.score or _NO_ESTIMATE)
    details: dict[str, Any] = {"n_images": subgroup.n_rows, "n_patients": subgroup.n_patients}
    if subgroup.gap is None or subgroup.rest is None:
        return _with(row, details | {"not_judged": subgroup.reason})
    gap = {"gap": subgroup.gap.value, "gap_low": subgroup.gap.low, "gap_high": subgroup.gap.high}
    more = {"rest": subgroup.rest.value, "n_labels": subgroup.gap.n_labels, "p": subgroup.p, "p_holm": subgroup.p_holm}
    return _with(row, details | gap | more)


def _row(
    kind: str, scorer: Scorer, place: tuple[str, str, str], about: str, metric: str, estimate: Estimate
) -> AuditRow:
    of = (scorer.arm, scorer.seed, scorer.checkpoint_hash, scorer.data)
    return AuditRow(kind, *of, *place, about, metric, estimate.value, estimate.low, estimate.high)


def _with(row: AuditRow, details: dict[str, Any]) -> AuditRow:
    row.details.update(details)
    return row


def _line(row: AuditRow) -> str:
    return json.dumps(_plain(asdict(row)), allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
