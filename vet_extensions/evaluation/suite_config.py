"""What an evaluation asks: `SuiteConfig`, a YAML file. Commands and the ablation room load it, protocols read their part."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vet_extensions.errors import UserError
from vet_extensions.evaluation.linear_grid import LEARNING_RATES
from vet_extensions.evaluation.pooling_config import POOLING_PROTOCOLS, PoolingConfig
from vet_extensions.evaluation.tuning_config import TUNED_PROTOCOLS, TuningConfig

PROTOCOLS = (
    "knn",
    "linear",
    "ml_knn",
    "linear_grid",
    "few_shot",
    "label_share",
    "resolution",
    "retrieval",
    *POOLING_PROTOCOLS,
    *TUNED_PROTOCOLS,
)
PROTOCOL_NAMES = {
    "knn": "k-NN",
    "linear": "linear probe",
    "ml_knn": "ML-kNN",
    "linear_grid": "grid of linear heads",
    "few_shot": "few-shot, patients a label:",
    "label_share": "share of the labels:",
    "resolution": "linear probe, pixels a side:",
    "segment": "decoder",
    "pool_mean": "mean of the slices",
    "pool_max": "maximum of the slices",
    "pool_attention": "attention over slices",
    "abmil": "gated attention (ABMIL)",
    "pool_transformer": "transformer over slices",
    "finetune": "fine-tuned end to end",
    "lora": "LoRA",
    "dora": "DoRA",
    "bitfit": "BitFit",
    "ia3": "IA3",
    "vpt": "visual prompts",
    "last_k": "last blocks tuned",
    "norm": "norms tuned",
}
"""What pages call a protocol, a curve before its point (`few_shot_4`); the others go by their own names."""
LEVELS = ("image", "lateral", "frontal", "cross_view", "study", "study_mean", "study_max")
GROUPS = ("gross", "all")
CONTROLS = ("random_init", "raw_pixels", "metadata", "shuffled_labels", "cca")


@dataclass(frozen=True)
class KnnConfig:
    """ks: neighbours that vote; of several, each level and group takes the one that is best on the validation split."""

    ks: tuple[int, ...] = (20,)
    temperature: float = 0.07


@dataclass(frozen=True)
class LinearConfig:
    """c_grid: inverse strengths of the L2 penalty, chosen on the validation split."""

    c_grid: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    max_iterations: int = 100


@dataclass(frozen=True)
class LinearGridConfig:
    """Heads trained by SGD side by side, one for each learning rate (for a batch of 256) and input: class tokens of the last
    block or of the last n_blocks, with or without the mean patch; chosen on the validation split."""

    n_blocks: int = 4
    learning_rates: tuple[float, ...] = LEARNING_RATES
    epochs: int = 10
    batch_size: int = 128
    seed: int = 0


@dataclass(frozen=True)
class FewShotConfig:
    """Curves over labels: patients a label (few_shot), shares of the training patients (label_share), each of n_draws draws; c:
    inverse strength of the penalty, given because validation labels would be labels too."""

    shots: tuple[int, ...] = (1, 2, 4, 8, 16)
    shares: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    n_draws: int = 10
    seed: int = 0
    c: float = 0.1


@dataclass(frozen=True)
class ResolutionConfig:
    """Linear probes on features of the images at each of these sides, to the nearest multiple of a backbone's patch size."""

    sizes_px: tuple[int, ...] = (112, 224, 448)


@dataclass(frozen=True)
class BootstrapConfig:
    """Resamples of the test patients; `confidence` of the percentile interval."""

    n_resamples: int = 1000
    seed: int = 0
    confidence: float = 0.95


@dataclass(frozen=True)
class SuiteConfig:
    """What to measure. image_size_px None: the global crop size of each run; controls: see `evaluation.controls`; refit: once
    validation has chosen, the probe that is scored is fitted anew on train and val (k-NN, linear probe and grid)."""

    image_size_px: int | None = None
    batch_size: int = 64
    tokens: str = "cls"
    protocols: tuple[str, ...] = PROTOCOLS[:2]
    levels: tuple[str, ...] = LEVELS[:5]
    groups: tuple[str, ...] = GROUPS
    controls: tuple[str, ...] = CONTROLS[:4]
    knn: KnnConfig = field(default_factory=KnnConfig)
    linear: LinearConfig = field(default_factory=LinearConfig)
    linear_grid: LinearGridConfig = field(default_factory=LinearGridConfig)
    refit: bool = False
    few_shot: FewShotConfig = field(default_factory=FewShotConfig)
    resolution: ResolutionConfig = field(default_factory=ResolutionConfig)
    pooling: PoolingConfig = field(default_factory=PoolingConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    bootstrap: BootstrapConfig = field(default_factory=BootstrapConfig)

    def __post_init__(self) -> None:
        allowed = {"protocols": PROTOCOLS, "levels": LEVELS, "groups": GROUPS, "controls": CONTROLS}
        unknown = [
            f"'{value}' in {name} (allowed: {', '.join(values)})"
            for name, values in allowed.items()
            for value in getattr(self, name)
            if value not in values
        ]
        if unknown:
            raise UserError(f"The suite names what does not exist: {'; '.join(unknown)}.")


def load_suite(source: "SuiteConfig | Mapping[str, Any] | str | Path") -> SuiteConfig:
    """A suite from a YAML file, a mapping, or as it is. Keys that are left out keep their defaults.

    Raises `UserError` with all unknown keys, each with the nearest known one.
    """
    if isinstance(source, SuiteConfig):
        return source
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise UserError(f"The suite '{path.name}' {what}. Give a YAML file such as configs/evaluation/quick.yaml.")
        try:
            source = OmegaConf.to_container(OmegaConf.load(path), resolve=True)  # type: ignore[assignment]
        except Exception as error:
            raise UserError(f"The suite '{path.name}' is no readable YAML: {error}") from error
    if not isinstance(source, Mapping):
        raise UserError(f"A suite is a table of keys, got {type(source).__name__}. See configs/evaluation/quick.yaml.")
    problems: list[str] = []
    values = _section(source, SuiteConfig(), problems=problems)
    if problems:
        raise UserError("\n".join(problems))
    return SuiteConfig(**values)


def _section(given: Mapping[Any, Any], default: Any, *, problems: list[str], at: str = "") -> dict[str, Any]:
    """The given values in the types of the default's fields; what is wrong is added to `problems`."""
    known = {f.name: getattr(default, f.name) for f in fields(default)}
    values: dict[str, Any] = {}
    for key, value in given.items():
        name = f"{at}{key}"
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            guess = f" Did you mean '{at}{near[0]}'?" if near else ""
            problems.append(f"Unknown key '{name}' in the suite.{guess} Known: {', '.join(known)}.")
        elif is_dataclass(known[key]):
            if isinstance(value, Mapping):
                nested = _section(value, known[key], problems=problems, at=f"{name}.")
                values[key] = type(known[key])(**nested) if not problems else known[key]
            else:
                problems.append(f"'{name}' is a section, got {value!r}.")
        else:
            values[key] = _value(value, known[key], name=name, problems=problems)
    return values


def _value(value: Any, default: Any, *, name: str, problems: list[str]) -> Any:
    """One value, as a tuple where the default is one; numbers may be written as 1 or 1.0 or 1e-3."""
    items = value if isinstance(default, tuple) else [value]
    example = default[0] if isinstance(default, tuple) else default
    if not isinstance(items, list | tuple) or (not len(items) and name != "controls"):
        problems.append(f"'{name}' must be a list such as [{', '.join(map(str, default))}], got {value!r}.")
        return default
    if example is None:
        fits = [item is None or type(item) is int for item in items]
    else:
        fits = [type(item) in ((int, float) if isinstance(example, float) else (type(example),)) for item in items]
    if not all(fits):
        kind = (
            "a whole number or null"
            if example is None
            else {int: "whole numbers", float: "numbers", str: "text", bool: "true or false"}[type(example)]
        )
        problems.append(f"'{name}' must hold {kind}, got {value!r}.")
        return default
    items = [float(item) if isinstance(example, float) else item for item in items]
    return tuple(items) if isinstance(default, tuple) else items[0]
