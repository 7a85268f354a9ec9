"""What decides a cell's numbers, as one hash: configuration, number of processes, suite, data, code.

Two cells of one hash are the same experiment, so that one that is done is never run again. A path decides nothing: the data
counts by its manifest's content hash, a file of weights by its bytes.
"""

import hashlib
import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dinov2.utils.files import file_sha256
from vet_extensions.ablation.configuration import DATA, fill
from vet_extensions.evaluation.suite_config import SuiteConfig

NO_NUMBER_DEPENDS_ON = (
    "train.output_dir",
    "train.num_workers",
    "train.checkpoints_to_keep",
    "train.checkpoint_period_iterations",
    "train.checkpoint_in_background",
    "train.saveckp_freq",
    "train.tensorboard",
    "train.peak_tflops",
    "train.log_period_iterations",
    "train.read_losses_every",
    "evaluation.probe_period_iterations",
    "evaluation.probe_train_dataset",
    "evaluation.probe_val_dataset",
    "evaluation.probe_k",
)
"""Keys of a training configuration that may change without making another cell."""

SOURCES = (
    *("dinov2/configs", "dinov2/data", "dinov2/distributed", "dinov2/eval", "dinov2/fsdp", "dinov2/layers"),
    *("dinov2/logging", "dinov2/loss", "dinov2/models", "dinov2/train", "dinov2/utils"),
    *("vet_extensions/data", "vet_extensions/evaluation", "vet_extensions/manifest", "vet_extensions/routing"),
    *("vet_extensions/shards", "vet_extensions/schema.py", "vet_extensions/errors.py", "vet_extensions/__init__.py"),
)
"""What training and evaluation are made of, below the folder that holds both packages."""

_ROOT = Path(__file__).resolve().parents[2]


def cell_hash(
    config: DictConfig,
    *,
    processes: int,
    suite: SuiteConfig | None,
    data: str,
    code: str,
    values: Mapping[str, str],
) -> str:
    """SHA-256 of a cell, 64 hexadecimal digits. data, code: hashes of both; values: of the placeholders.

    suite None: of its training alone, which cells share that are judged in different ways.
    """
    plain: Any = OmegaConf.to_container(config)
    for key in NO_NUMBER_DEPENDS_ON:
        section, _, name = key.partition(".")
        plain[section].pop(name, None)
    identity = {
        "config": _by_content(plain, values),
        "processes": processes,
        "suite": None if suite is None else asdict(suite),
        "data": data,
        "code": code,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def code_hash(plugins: Sequence[str] = ()) -> str:
    """SHA-256 of the source files that training and evaluation are made of, and of the users' own plugins."""
    digest = hashlib.sha256()
    own = {Path(source).parts[0] for source in SOURCES}
    for place in SOURCES:
        _add_sources(digest, _ROOT / place, called=place)
    for plugin in sorted(plugins):
        if plugin.partition(".")[0] not in own:
            found = importlib.util.find_spec(plugin)
            places: Iterable[str] = () if found is None else found.submodule_search_locations or [str(found.origin)]
            for place in places:
                _add_sources(digest, Path(place), called=plugin)
    return digest.hexdigest()


def _add_sources(digest: Any, place: Path, *, called: str) -> None:
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.suffix in (".py", ".yaml"))
    for file in files:
        digest.update(f"{called}/{file.relative_to(place).as_posix()} {file_sha256(file)}\n".encode())


def _by_content(value: Any, values: Mapping[str, str]) -> Any:
    """The configuration with what files hold in place of their paths; the data's folder keeps its placeholder."""
    if isinstance(value, Mapping):
        return {key: _by_content(inner, values) for key, inner in value.items()}
    if not isinstance(value, str):
        return value
    text = fill(value, {**values, DATA: f"{{{DATA}}}"})
    path = Path(text)
    if "/" not in text or not path.exists():
        return text
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    held = "".join(f"{file.relative_to(path).as_posix()} {file_sha256(file)}\n" for file in files)
    return f"content {hashlib.sha256(held.encode()).hexdigest()}"
