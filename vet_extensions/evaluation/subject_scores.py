"""All scores of one subject (`SubjectScores`), and their place on disk, so that nothing is scored twice (`ScoreStore`).

`judge` makes and keeps them: a suite that was interrupted goes on with the next subject, and a suite that is run again reads what
it found. `scores/<key>.npz` is written once a subject's predictions are; it names them with their checksums, and does not count
where one is missing or was changed. Any file may be deleted at any time.
"""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from dinov2.utils.files import file_sha256
from vet_extensions.evaluation.audit import AuditRow
from vet_extensions.evaluation.features import short_hash
from vet_extensions.evaluation.results import Measured, Measurement, Result
from vet_extensions.evaluation.statistics import LabelSamples
from vet_extensions.evaluation.whole_files import whole_file

_LIBRARIES = ("numpy", "scipy", "scikit-learn", "torch")
"""What scores are computed with: another release may give other last digits."""


@dataclass(frozen=True)
class SubjectScores:
    """What one subject came to. shuffled: rows of the control of shuffled labels, made from the first subject's features;
    predictions: file below the evaluation's folder -> SHA-256."""

    measured: dict[Measurement, Measured]
    audit: list[AuditRow]
    shuffled: list[Result] = field(default_factory=list)
    predictions: dict[str, str] = field(default_factory=dict)


class ScoreStore:
    """The scores of an evaluation's folder, by all that decides them."""

    def __init__(self, out_dir: Path) -> None:
        self._out_dir = out_dir

    def read(self, key: Mapping[str, Any]) -> SubjectScores | None:
        """The scores that were kept under a key; None where there are none, or a file of predictions is not as it was."""
        try:
            with self._path(key).open("rb") as file, np.load(file) as stored:
                about = json.loads(str(stored["about"]))
                measured = {
                    tuple(one.pop("measurement")): Measured(
                        samples=LabelSamples(stored[f"{place}.values"], stored[f"{place}.samples"]), **one
                    )
                    for place, one in enumerate(about["measured"])
                }
            if any(file_sha256(self._out_dir / name) != digest for name, digest in about["predictions"].items()):
                return None
        except (OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile):
            return None
        return SubjectScores(
            measured=measured,
            audit=[AuditRow(**row) for row in about["audit"]],
            shuffled=[Result.from_row(row) for row in about["shuffled"]],
            predictions=about["predictions"],
        )

    def write(self, key: Mapping[str, Any], scores: SubjectScores) -> None:
        """Keep scores under a key."""
        arrays: dict[str, Any] = {}
        measured = []
        for place, (measurement, one) in enumerate(scores.measured.items()):
            arrays |= {f"{place}.values": one.samples.values, f"{place}.samples": one.samples.samples}
            facts = {name: getattr(one, name) for name in ("labels", "n_images", "n_patients", "chosen", "config")}
            measured.append({"measurement": measurement, **facts})
        about = {
            "measured": measured,
            "audit": [asdict(row) for row in scores.audit],
            "shuffled": [row.to_row() for row in scores.shuffled],
            "predictions": scores.predictions,
        }
        with whole_file(self._path(key)) as partial, partial.open("wb") as file:
            np.savez(file, about=np.array(json.dumps(about)), **arrays)

    def _path(self, key: Mapping[str, Any]) -> Path:
        return self._out_dir / "scores" / f"{short_hash(key)}.npz"


@cache
def scoring_code() -> str:
    """A hash of what turns features into scores: the sources of this room, and the releases of the libraries below it."""
    room = Path(__file__).parent
    digest = hashlib.sha256(" ".join(f"{name} {version(name)}" for name in _LIBRARIES).encode())
    for file in sorted(room.rglob("*.py")):
        digest.update(f"{file.relative_to(room).as_posix()} {file_sha256(file)}\n".encode())
    return digest.hexdigest()
