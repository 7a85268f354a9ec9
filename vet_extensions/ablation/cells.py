"""One run of an ablation (`Cell`), what is known of it (`CellResult`), and how the cells of a folder are read back.

A cell is known by the hash of everything that decides its numbers; `DIR/cells/<first 12 digits>/` is its folder, and
`DIR/cells.json` lists the cells of the plan in its order. Written by `vetdino ablate`; the table reads `read_cells`.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vet_extensions.ablation.plan import Arms
from vet_extensions.errors import UserError
from vet_extensions.evaluation.results import RESULTS_FILE, Result, read_results

WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"
STATES = (WAITING, RUNNING, DONE, FAILED)
HASH_DIGITS = 12
INDEX_FILE, CELLS_FOLDER = "cells.json", "cells"
CELL_FILE, CONFIG_FILE, SUITE_FILE, STATE_FILE = "cell.json", "config.yaml", "suite.yaml", "state.json"
"""Of a cell's folder: what its hash was made of, its training configuration, how it is judged, how far it is."""
EVALUATION_FOLDER = "evaluation"


@dataclass(frozen=True)
class Cell:
    """One arm of every axis with one seed.

    hash: of all that decides the cell's numbers; processes: that train together; steps: of optimisation, to its end.
    """

    hash: str
    arms: Arms
    seed: int
    processes: int = 1
    steps: int = 0

    @property
    def name(self) -> str:
        """The name of the cell's folder."""
        return self.hash[:HASH_DIGITS]

    @property
    def title(self) -> str:
        """The cell in words: `routing=multi_view ibot=on seed=0`."""
        return " ".join([*(f"{axis}={arm}" for axis, arm in self.arms.items()), f"seed={self.seed}"])


@dataclass(frozen=True)
class CellResult:
    """What is known of a cell.

    state: waiting, running, done or failed. results: all rows of its evaluation, controls too; none before it is done.
    cost: device-seconds of all attempts, training and evaluation (processes x wall seconds), None where unknown; device: cuda or
    cpu. steps: optimisation steps that are done. why: the end of the log of a failed cell.
    """

    hash: str
    arms: Arms
    seed: int
    state: str = WAITING
    results: list[Result] = field(default_factory=list)
    cost: float | None = None
    device: str = ""
    steps: int = 0
    why: str = ""

    def score(self, metric: str) -> Result | None:
        """The cell's own row for protocol/level/group/metric, with its interval over patients; None where there is none."""
        own = (row for row in self.results if row.kind == "score" and row.iteration is not None)
        return next((row for row in own if f"{row.protocol}/{row.level}/{row.group}/{row.metric}" == metric), None)


def cell_folder(folder: Path, cell: Cell | CellResult) -> Path:
    """Where a cell of the ablation in `folder` lies."""
    return folder / CELLS_FOLDER / cell.hash[:HASH_DIGITS]


def write_index(folder: Path, cells: Iterable[Cell]) -> None:
    """Write the list of the plan's cells."""
    write_json(folder / INDEX_FILE, [asdict(cell) for cell in cells])


def read_index(folder: Path) -> list[Cell]:
    """The plan's cells in its order; raises `UserError` where `folder` holds no ablation."""
    path = folder / INDEX_FILE
    if not path.is_file():
        raise UserError(
            f"The folder '{folder.name}' holds no ablation. Give the --out of a `vetdino ablate` that was started before."
        )
    return [Cell(**row) for row in json.loads(path.read_text(encoding="utf-8"))]


def read_cells(folder: str | Path) -> list[CellResult]:
    """What the files of an ablation's folder say of every cell of its plan, in the plan's order.

    Files alone cannot tell a cell that runs from one whose machine is gone: `vet_extensions.ablation.status` asks the queue.
    """
    folder = Path(folder)
    return [_read_cell(folder, cell) for cell in read_index(folder)]


def _read_cell(folder: Path, cell: Cell) -> CellResult:
    place = cell_folder(folder, cell)
    stored = read_json(place / STATE_FILE)
    state = stored.get("state", WAITING)
    results = place / EVALUATION_FOLDER / RESULTS_FILE
    return CellResult(
        hash=cell.hash,
        arms=cell.arms,
        seed=cell.seed,
        state=state,
        results=read_results(results) if state == DONE else [],
        cost=stored.get("cost"),
        device=stored.get("device", ""),
        steps=stored.get("steps", 0),
        why=stored.get("why", ""),
    )


def write_json(path: Path, content: Mapping[str, Any] | list[Any]) -> None:
    """Write a JSON file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none yet."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
