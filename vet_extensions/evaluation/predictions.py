"""The scores of every case in Parquet, so that two results can be compared, calibrated or looked at long after they were made.

The suite writes one file a subject and measurement, `predictions/<subject>/<level>.<group>.<protocol>.parquet`: a row a case and
fold with its split, ids as in the manifest, `label.<name>` (1, 0, -1 uncertain, null missing) and `score.<name>`. `compare` and
the leaderboard read them. The file's metadata say whose scores they are.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vet_extensions.errors import UserError
from vet_extensions.evaluation.scoring import Predictions
from vet_extensions.evaluation.whole_files import whole_file

FOLDER = "predictions"
_KEY = b"vetdino.predictions"
_MISSING = -128


@dataclass(frozen=True)
class Scorer:
    """Whose scores a file holds. is_control: never trained; data: content hash of what was judged; task: of its labels."""

    arm: str
    seed: int | None
    checkpoint_hash: str
    is_control: bool
    data: str
    task: str
    leak: str = ""

    @property
    def folder(self) -> str:
        """A name for its files: the same for the same scorer."""
        parts = [self.arm, "" if self.seed is None else f"seed{self.seed}", self.checkpoint_hash]
        return re.sub(r"[^\w.+#-]", "_", "-".join(part for part in parts if part))


@dataclass(frozen=True)
class PredictionsFile:
    """One file without its rows: `read` gets them."""

    path: Path
    scorer: Scorer
    level: str
    group: str
    protocol: str
    are_logits: bool

    @property
    def measurement(self) -> tuple[str, str, str]:
        return self.level, self.group, self.protocol

    def read(self) -> Predictions:
        """The rows; `rows` counts them as they lie in the file."""
        table = pq.read_table(self.path)
        names = tuple(n.removeprefix("label.") for n in table.column_names if n.startswith("label."))
        labels = [pc.fill_null(table[f"label.{name}"], pa.scalar(_MISSING, pa.int8())).to_numpy() for name in names]
        patient_ids = table["patient_id"].to_numpy().astype(str)
        return Predictions(
            level=self.level,
            group=self.group,
            protocol=self.protocol,
            label_names=names,
            are_logits=self.are_logits,
            fold=table["fold"].to_numpy(),
            rows=np.arange(len(table)),
            split=table["split"].to_numpy().astype(str),
            case_ids=table["case_id"].to_numpy().astype(str),
            patient_ids=patient_ids,
            patient_codes=np.unique(patient_ids, return_inverse=True)[1],
            labels=np.stack(labels, axis=1),
            scores=np.stack([table[f"score.{name}"].to_numpy() for name in names], axis=1),
        )


def write_predictions(folder: Path, scorer: Scorer, predictions: Predictions) -> Path:
    """Write one measurement below `folder` (an evaluation's), whole or not at all; an earlier file of the same is replaced."""
    columns: dict[str, Any] = {
        "case_id": predictions.case_ids.tolist(),
        "patient_id": predictions.patient_ids.tolist(),
        "split": predictions.split.tolist(),
        "fold": predictions.fold.astype(np.int8),
    }
    for column, name in enumerate(predictions.label_names):
        values = predictions.labels[:, column].astype(np.int8)
        columns[f"label.{name}"] = pa.array(values, mask=values == _MISSING)
        columns[f"score.{name}"] = predictions.scores[:, column].astype(np.float32)
    about = {"level": predictions.level, "group": predictions.group, "protocol": predictions.protocol}
    about |= {"are_logits": predictions.are_logits, "scorer": asdict(scorer)}
    table = pa.table(columns).replace_schema_metadata({_KEY: json.dumps(about).encode()})
    name = f"{predictions.level}.{predictions.group}.{predictions.protocol}.parquet"
    path = folder / FOLDER / scorer.folder / name
    with whole_file(path) as partial:
        pq.write_table(table, partial)
    return path


def list_predictions(folder: Path) -> list[PredictionsFile]:
    """The files of an evaluation, by path. Raises `UserError` where there are none, or one cannot be read."""
    found = list(_files(folder))
    if not found:
        raise UserError(
            f"'{folder.name}' holds no predictions. Give the folder that `vetdino evaluate --out` wrote; results of earlier "
            "releases have none: evaluate once more."
        )
    return found


def _files(folder: Path) -> Iterator[PredictionsFile]:
    for path in sorted((folder / FOLDER).glob("*/*.parquet")):
        try:
            metadata = pq.read_schema(path).metadata or {}
            about = json.loads(metadata[_KEY])
            scorer = Scorer(**about.pop("scorer"))
        except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
            raise UserError(
                f"'{path.parent.name}/{path.name}' is no file of predictions ({type(error).__name__}). Delete it, or "
                "evaluate again."
            ) from None
        yield PredictionsFile(path=path, scorer=scorer, **about)
