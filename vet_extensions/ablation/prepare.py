"""From a plan to cells on disk: resolve and hash every cell, check what can be checked, write the ablation's folder.

Called by `vetdino ablate` before anything runs, at every call: what is there already stays.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dinov2.data.loaders import make_dataset
from dinov2.data.registry import build_augmentation
from dinov2.loss.routing import build_router
from dinov2.utils.plugins import load_plugins
from vet_extensions.ablation.cells import (
    CELL_FILE,
    CONFIG_FILE,
    SUITE_FILE,
    Cell,
    cell_folder,
    write_index,
    write_json,
)
from vet_extensions.ablation.configuration import DATA, fill, filled_options, resolve
from vet_extensions.ablation.identity import cell_hash, code_hash
from vet_extensions.ablation.plan import Plan, copy_plan, read_plan
from vet_extensions.errors import UserError
from vet_extensions.evaluation.cohort import open_archive

PLAN_FILE = "plan.yaml"


@dataclass(frozen=True)
class Prepared:
    """A cell and how to start it. config: its training configuration, placeholders unfilled; options: what fills them."""

    cell: Cell
    config: DictConfig
    options: tuple[str, ...]
    facts: Mapping[str, Any]
    """What a start compares, and what a reader of cell.json may want to know."""


def prepare(plan: Plan, *, data: Path, processes: int, values: Mapping[str, str]) -> list[Prepared]:
    """Every cell of a plan, in its order.

    data: the intake folder; processes: that train one cell together; values: of the plan's placeholders. Raises `UserError` for
    options that cannot be, for data that nothing can be judged with, and for two cells that would be the same run.
    """
    values = {**values, DATA: str(data.resolve())}
    suite, content = plan.suite(), open_archive(data).content_hash  # refused now, if there is nothing to judge with
    prepared: dict[str, Prepared] = {}
    codes: dict[tuple[str, ...], str] = {}
    configs = [(arms, resolve(plan, arms)) for arms in plan.combinations()]
    for arms, config in configs:
        _check(config, values, origin=arms)
    for seed in plan.seeds:
        for arms, config in configs:
            config = config.copy()
            config.train.seed = seed
            plugins = tuple(config.plugins)
            code = codes.setdefault(plugins, code_hash(plugins))
            digest, training = (
                cell_hash(config, processes=processes, suite=judged, data=content, code=code, values=values)
                for judged in (suite, None)
            )
            steps = int(config.optim.epochs * config.train.OFFICIAL_EPOCH_LENGTH)
            cell = Cell(digest, arms, seed, processes, steps)
            if digest in prepared:
                raise UserError(
                    f"'{prepared[digest].cell.title}' and '{cell.title}' are the same run: their options come to the same "
                    "configuration. Give each arm an option that the others lack."
                )
            facts = {"plugins": plugins, "code": code, "data": content, "training": training}
            prepared[digest] = Prepared(cell, config, tuple(filled_options(config, values)), facts)
    return list(prepared.values())


def check_folder(folder: Path, plan: Plan) -> None:
    """Raise `UserError` where something else than this ablation lies in the folder."""
    if (folder / PLAN_FILE).is_file():
        there = read_plan(folder / PLAN_FILE).name
        if there != plan.name:
            raise UserError(
                f"The folder '{folder.name}' holds the ablation '{there}', not '{plan.name}'. Give another --out."
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"'{folder.name}' holds something else than an ablation. Give a new folder as --out.")


def write_folder(folder: Path, plan_file: Path, cells: Sequence[Prepared]) -> None:
    """Make the ablation's folder, or bring it up to date with its plan; folders of cells that are there stay as they are."""
    plan = read_plan(plan_file)
    folder.mkdir(parents=True, exist_ok=True)
    copy_plan(plan_file, folder / PLAN_FILE)  # first, for it marks the folder as an ablation's
    for one in cells:
        place = cell_folder(folder, one.cell)
        if (place / CELL_FILE).is_file():
            continue
        place.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(one.config, place / CONFIG_FILE)
        OmegaConf.save(OmegaConf.create(asdict(plan.suite())), place / SUITE_FILE)
        write_json(place / CELL_FILE, {**asdict(one.cell), **one.facts})
    write_index(folder, [one.cell for one in cells])


def _check(config: DictConfig, values: Mapping[str, str], *, origin: Mapping[str, str]) -> None:
    """Make what is cheap to make, so that a wrong option is told now and not after hours in a queue."""
    try:
        load_plugins(config.plugins)
        router = build_router(config.routing, config.crops.local_crops_number)
        build_augmentation(config, router.layout)
        make_dataset(dataset_str=fill(config.train.dataset_path, values))
        for key in ("student.pretrained_weights", "student.heads_from"):
            path = fill(OmegaConf.select(config, key), values)
            if path and not Path(path).exists():
                raise UserError(f"{key} names what does not exist: {path}")
    except UserError as error:
        arms = ", ".join(f"{axis}: {arm}" for axis, arm in origin.items())
        raise UserError(f"The arms {arms} cannot run. {error}") from error
