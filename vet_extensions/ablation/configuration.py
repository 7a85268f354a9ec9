"""The training configuration of one cell: the plan's base, the options of its arms; and the placeholders in it.

`resolve` keeps placeholders as they are, so that a cell's configuration names no path of a machine; `filled_options` gives
what a start lays over it. Called by `vetdino ablate`, before anything runs: an option that cannot be is told then.
"""

import json
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dinov2.configs import dinov2_default_config
from dinov2.utils.config import get_cfg_from_args, unknown_keys
from vet_extensions.ablation.plan import DATASET, Arms, Plan
from vet_extensions.errors import UserError

DATA = "data"
DEFAULT_DATASET = f"VetStudies:root={{{DATA}}}"
_DATASET_PATH = "train.dataset_path"
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_OF_THE_CELL = {
    "train.seed": "'seeds' of the plan decides it",
    "train.output_dir": "every cell has its own folder",
}


def resolve(plan: Plan, arms: Arms) -> DictConfig:
    """Every key of a cell's training configuration but its seed, placeholders unfilled; `UserError` for what cannot be."""
    options = plan.options_of(arms)
    _check_keys(plan)
    dataset = {key.removeprefix(DATASET): value for key, value in options.items() if key.startswith(DATASET)}
    training = {key: value for key, value in options.items() if not key.startswith(DATASET)}
    path = str(training.get(_DATASET_PATH, DEFAULT_DATASET))
    training[_DATASET_PATH] = ":".join([path, *(f"{key}={value}" for key, value in dataset.items())])
    return get_cfg_from_args(Namespace(config_file=str(plan.base), opts=_dotlist(training), output_dir=""))


def fill(text: str, values: Mapping[str, str]) -> str:
    """A text with its placeholders filled; raises `UserError` for one that has no value."""
    missing = [name for name in _PLACEHOLDER.findall(text) if name not in values]
    if missing:
        raise UserError(f"The plan needs a value for {{{missing[0]}}}. Give it with: --set {missing[0]}=VALUE")
    return _PLACEHOLDER.sub(lambda match: values[match[1]], text)


def filled_options(config: DictConfig, values: Mapping[str, str]) -> list[str]:
    """`key=value` options that lay the placeholders' values over a cell's configuration."""
    return _dotlist({key: fill(text, values) for key, text in texts(config) if _PLACEHOLDER.search(text)})


def texts(config: Mapping[Any, Any], at: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, value) of every text of a configuration outside lists."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from texts(value, f"{at}{key}.")
        elif isinstance(value, str):
            yield f"{at}{key}", value


def _dotlist(options: Mapping[str, Any]) -> list[str]:
    """As `get_cfg_from_args` reads them: JSON is YAML that no quote or colon of a value breaks."""
    return [f"{key}={json.dumps(value)}" for key, value in options.items()]


def _check_keys(plan: Plan) -> None:
    origins = {"'options'": plan.options}
    origins |= {f"axis '{axis}', arm '{arm}'": o for axis, arms in plan.axes.items() for arm, o in arms.items()}
    problems: list[str] = []
    for origin, options in origins.items():
        given = OmegaConf.create()
        for key, value in options.items():
            if key in _OF_THE_CELL:
                problems.append(f"'{key}' in {origin} cannot be set: {_OF_THE_CELL[key]}.")
            elif not key.startswith(DATASET):
                OmegaConf.update(given, key, value, force_add=True)
        problems += unknown_keys(given, dinov2_default_config, origin=origin)
    if problems:
        raise UserError("\n".join(f"{plan.name}: {problem}" for problem in problems))
