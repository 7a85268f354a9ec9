"""A plan of an ablation on disk, small enough to train in a test, and the folder of one whose cells need no training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from vet_extensions.ablation.cells import Cell, cell_folder, write_index
from vet_extensions.ablation.prepare import Prepared
from vet_extensions.ablation.state import Attempt, take

ROOT = Path(__file__).parents[1]

SUITE = {
    "levels": ["image", "study"],
    "groups": ["all"],
    "controls": [],
    "linear": {"c_grid": [0.01]},
    "bootstrap": {"n_resamples": 20},
}

PLAN: dict[str, Any] = {
    "name": "small",
    "question": "Do two views help?",
    "base": str(ROOT / "configs" / "debug" / "tiny.yaml"),
    "options": {"optim.epochs": 2, "optim.warmup_epochs": 1, "train.cpu_threads": 1},
    "axes": {
        "routing": {"single_view": {"routing.name": "same_image"}, "multi_view": {}},
        "ibot": {"on": {}, "off": {"ibot.loss_weight": 0}},
    },
    "baseline": {"routing": "single_view", "ibot": "on"},
    "seeds": [0, 1],
    "evaluation": "suite.yaml",
    "metrics": ["knn/study/all/macro_auroc"],
}


def write_plan(folder: Path, **changes: Any) -> Path:
    """A plan with its suite; a change of None leaves a key out."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "suite.yaml").write_text(yaml.safe_dump(SUITE))
    path = folder / "small.yaml"
    content = {key: value for key, value in (PLAN | changes).items() if value is not None}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def make_ablation(folder: Path, *, seeds: int = 3) -> list[Cell]:
    """The folder of an ablation of one arm, of which nothing has run."""
    cells = [Cell(hash=f"{seed:064x}"[::-1], arms={"routing": "a"}, seed=seed, steps=10) for seed in range(seeds)]
    write_index(folder, cells)
    for cell in cells:
        cell_folder(folder, cell).mkdir(parents=True)
    return cells


def take_cell(folder: Path, cell: Cell, owner: Mapping[str, Any]) -> Attempt:
    """As the process of a cell does at its start; it must be free."""
    attempt = try_to_take(folder, cell, owner)
    assert attempt is not None
    return attempt


def try_to_take(folder: Path, cell: Cell, owner: Mapping[str, Any]) -> Attempt | None:
    """The same, whether it is free or not."""
    return take(cell_folder(folder, cell), owner=owner, log=f"cells/{cell.name}/log.txt")


def prepared(cell: Cell, *options: str) -> Prepared:
    """A cell with the options of its start, and no configuration."""
    return Prepared(cell, OmegaConf.create(), options, facts={})
