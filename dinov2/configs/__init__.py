"""The packaged YAML configurations: the full set of keys with its defaults, and the official overrides."""

from functools import cache
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from dinov2.utils.errors import UserError

_FOLDER = Path(__file__).parent


def load_config(config_name: str) -> DictConfig:
    """The packaged configuration `config_name`, without `.yaml`; may name a sub-folder ("train/vitl14")."""
    path = _FOLDER / f"{config_name}.yaml"
    if not path.is_file():
        known = sorted(str(p.relative_to(_FOLDER).with_suffix("")) for p in _FOLDER.rglob("*.yaml"))
        raise UserError(f"No packaged configuration '{config_name}'. Known: {', '.join(known)}.")
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig), "a packaged configuration is a mapping"
    return config


@cache
def _default() -> DictConfig:
    return load_config("ssl_default_config")


def load_and_merge_config(config_name: str) -> DictConfig:
    """The defaults with the packaged configuration `config_name` laid over them."""
    merged = OmegaConf.merge(_default(), load_config(config_name))
    assert isinstance(merged, DictConfig)
    return merged


def __getattr__(name: str) -> DictConfig:
    # `dinov2_default_config` is an official module attribute; reading it on demand keeps importing free of file access.
    if name == "dinov2_default_config":
        return _default().copy()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
