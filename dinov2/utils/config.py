"""From command line to resolved configuration, and the set-up of a run; called by training and evaluation entry points.

configuration = packaged defaults <- `--config-file` <- `key=value` options. Unknown keys are refused, all of them at once.
"""

import difflib
import logging
import math
import os
import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dinov2 import distributed
from dinov2.configs import dinov2_default_config
from dinov2.logging import setup_logging
from dinov2.utils.errors import UserError
from dinov2.utils.plugins import load_plugins
from dinov2.utils.utils import fix_random_seeds, get_sha

logger = logging.getLogger("dinov2")

OPEN_SECTIONS = ("augmentation", "routing")
"""Sections whose further keys belong to the object that `name` selects, which checks them with `registry.checked_options`."""


class ConfigError(UserError):
    """A configuration that cannot be used; the message lists every mistake found."""


def apply_scaling_rules_to_cfg(cfg: DictConfig) -> DictConfig:
    """Fill in `optim.lr` from `optim.base_lr` and the total batch: base_lr * sqrt(batch / 1024)."""
    if cfg.optim.scaling_rule != "sqrt_wrt_1024":
        raise ConfigError(
            f"optim.scaling_rule is '{cfg.optim.scaling_rule}'; the only rule is 'sqrt_wrt_1024'. "
            "To set the learning rate itself, give optim.base_lr = wanted * sqrt(1024 / total batch)."
        )
    total_batch = cfg.train.batch_size_per_gpu * cfg.train.gradient_accumulation_steps * distributed.get_global_size()
    cfg.optim.lr = cfg.optim.base_lr * math.sqrt(total_batch / 1024.0)
    return cfg


def write_config(cfg: DictConfig, output_dir: str | Path, name: str = "config.yaml") -> str:
    """Write the configuration as YAML into `output_dir`; returns the path."""
    path = Path(output_dir) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    OmegaConf.save(config=cfg, f=temporary)
    temporary.replace(path)
    return str(path)


def get_cfg_from_args(args: Namespace) -> DictConfig:
    """The merged configuration of a command line (`config_file`, `opts`, `output_dir`); checks every key first.

    Raises `ConfigError` with all unknown keys and unreadable values, in the file's order.
    """
    default = dinov2_default_config.copy()
    problems: list[str] = []
    layers: list[DictConfig] = []
    if args.config_file:
        text = _read_text(Path(args.config_file))
        layers.append(_parse(text, origin=str(args.config_file)))
        problems += unknown_keys(layers[-1], default, origin=str(args.config_file), text=text)
    options = [o for o in (args.opts or []) if o]
    bad = [o for o in options if "=" not in o]
    problems += [f"'{o}' is not of the form key=value." for o in bad]
    command_line = OmegaConf.from_dotlist([o for o in options if o not in bad])
    problems += unknown_keys(command_line, default, origin="the command line")
    if problems:
        raise ConfigError("\n".join(problems))
    if args.output_dir:
        layers.append(command_line)
        command_line = OmegaConf.create({"train": {"output_dir": str(Path(args.output_dir).resolve())}})
    try:
        merged = OmegaConf.merge(default, *layers, command_line)
    except OmegaConfBaseException as error:
        raise ConfigError(f"The configuration cannot be merged: {error}") from error
    assert isinstance(merged, DictConfig)
    _check_types(merged, default)
    return merged


def unknown_keys(given: DictConfig, known: DictConfig, *, origin: str, text: str = "", at: str = "") -> list[str]:
    """One sentence for every key of `given` that `known` lacks: where it stands, the nearest real key, the allowed ones."""
    problems: list[str] = []
    for key in given:
        path = f"{at}.{key}" if at else str(key)
        if key not in known:
            if at in OPEN_SECTIONS:
                continue
            line = _line_of(str(key), text)
            near = difflib.get_close_matches(str(key), [str(k) for k in known], n=1)
            where = f"{origin}:{line}" if line else origin
            guess = f" Did you mean '{f'{at}.' if at else ''}{near[0]}'?" if near else ""
            under = f"Keys under '{at}'" if at else "Top-level keys"
            problems.append(f"Unknown key '{path}' in {where}.{guess} {under}: {', '.join(sorted(map(str, known)))}.")
        elif isinstance(known[key], DictConfig) and isinstance(given[key], DictConfig):
            problems += unknown_keys(given[key], known[key], origin=origin, text=text, at=path)
        elif isinstance(known[key], DictConfig) and given[key] is not None:
            problems.append(f"'{path}' in {origin} is a section, got the value {given[key]!r}.")
    return problems


def default_setup(args: Namespace) -> None:
    """Logging to the output folder, random seeds, and the code's state in the log."""
    seed = getattr(args, "seed", None) or 0
    setup_logging(output=args.output_dir or None, level=logging.INFO)
    fix_random_seeds(seed + distributed.get_global_rank())
    logger.info("code: %s", get_sha())


def setup(args: Namespace, *, before_writing: Callable[[DictConfig], None] | None = None) -> DictConfig:
    """Everything before the first step: configuration, process group, plugins, scaling rule, output folder, logging, seeds.

    before_writing: called with the resolved configuration before anything is written, to refuse a folder for example.
    """
    cfg = get_cfg_from_args(args)
    distributed.ensure()
    load_plugins(cfg.plugins)
    apply_scaling_rules_to_cfg(cfg)
    args.seed = cfg.train.seed
    args.output_dir = os.fspath(Path(cfg.train.output_dir).resolve())
    if before_writing is not None:
        before_writing(cfg)
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    default_setup(args)
    return cfg


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The configuration file {path} cannot be read: {error}. Give the path of a YAML file."
        ) from error


def _parse(text: str, *, origin: str) -> DictConfig:
    try:
        # OmegaConf's own loader, because PyYAML takes 1e-3 for a word.
        config = OmegaConf.create(text) if text.strip() else OmegaConf.create({})
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{origin} is not valid YAML: {error}") from error
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{origin} must hold a mapping of keys to values, got a {type(config).__name__}.")
    # Interpolations such as ${oc.env:NAME} would copy the environment into config.yaml: refused, not resolved.
    if "${" in text:
        raise ConfigError(f"{origin} holds '${{...}}'. Interpolation is not supported; write the value itself.")
    return config


def _line_of(key: str, text: str) -> int:
    match = re.search(rf"(?m)(?:^|[{{,\s]){re.escape(key)}\s*:", text)
    return text.count("\n", 0, match.start() + 1) + 1 if match else 0


def _check_types(merged: DictConfig, default: DictConfig, at: str = "") -> None:
    """A number where a list belongs, or a word where a number belongs, is named here and not deep in the training."""
    for key, wanted in default.items():
        got, path = merged[key], f"{at}{key}"
        if isinstance(wanted, DictConfig):
            _check_types(got, wanted, f"{path}.")
        elif got is not None and not _fits(got, wanted):
            shown = OmegaConf.to_container(got) if isinstance(got, (DictConfig, ListConfig)) else got
            raise ConfigError(f"'{path}' is {shown!r}; a value like {_plain(wanted)!r} is expected.")


def _fits(got: Any, wanted: Any) -> bool:
    if isinstance(wanted, ListConfig):
        return isinstance(got, ListConfig)
    if isinstance(wanted, bool):
        return isinstance(got, bool)
    if isinstance(wanted, (int, float)):
        return isinstance(got, (int, float)) and not isinstance(got, bool)
    return isinstance(got, str)


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if isinstance(value, (DictConfig, ListConfig)) else value
