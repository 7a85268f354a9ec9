"""What a training run left behind, for the rooms that judge or export it: its teacher checkpoints and its configuration."""

import re
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from dinov2.data.transforms import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from dinov2.utils.errors import UserError


def list_checkpoints(run_dir: str | Path) -> list[tuple[int, Path]]:
    """(iteration, path) of every `eval/training_<iteration>/teacher_checkpoint.pth` of a run, in order of iteration."""
    found = []
    for path in Path(run_dir).glob("eval/training_*/teacher_checkpoint.pth"):
        iteration = iteration_of(path)
        if iteration is not None:
            found.append((iteration, path))
    return sorted(found)


def iteration_of(checkpoint: Path) -> int | None:
    """The iteration in the name of a checkpoint's folder; None if it has none."""
    match = re.fullmatch(r"training_(\d+)", checkpoint.parent.name)
    return int(match.group(1)) if match else None


def find_checkpoint(run_dir_or_checkpoint: str | Path) -> tuple[Path, Path | None]:
    """(checkpoint, config.yaml) of a run folder (its newest teacher checkpoint) or of one given checkpoint file.

    A checkpoint's config.yaml is looked for beside it, then in the run folder above `eval/training_<iteration>/`; None where
    there is none. Raises `UserError` where there is no checkpoint.
    """
    given = Path(run_dir_or_checkpoint)
    if given.is_dir():
        checkpoints = list_checkpoints(given)
        if not checkpoints:
            raise UserError(
                f"'{given.name}' holds no eval/training_<iteration>/teacher_checkpoint.pth. Give the output folder of a "
                "training run that has reached evaluation.eval_period_iterations, or a checkpoint file."
            )
        checkpoint, places = checkpoints[-1][1], [given]
    elif given.is_file():
        checkpoint, places = given, [given.parent, *given.resolve().parents[2:3]]
    else:
        raise UserError(
            f"'{given.name}' does not exist. Give the output folder of a training run, or a checkpoint file."
        )
    return checkpoint, next((p / "config.yaml" for p in places if (p / "config.yaml").is_file()), None)


def read_config(path: Path, *, sections: tuple[str, ...] = ("student", "crops")) -> DictConfig:
    """A run's config.yaml; raises `UserError` where it is not one or lacks one of the `sections` that the caller reads."""
    try:
        config = OmegaConf.load(path)
    except Exception as error:
        raise UserError(
            f"'{path.name}' is no readable YAML ({type(error).__name__}). Give the config.yaml of a run."
        ) from error
    if not isinstance(config, DictConfig) or any(section not in config for section in sections):
        raise UserError(
            f"'{path.name}' lacks the sections {' and '.join(sections)}. Give the config.yaml that a training run wrote."
        )
    return config


def find_run(run_dir_or_checkpoint: str | Path) -> tuple[Path, DictConfig]:
    """(checkpoint, configuration), as `find_checkpoint`; raises `UserError` where the configuration is missing too."""
    checkpoint, config_path = find_checkpoint(run_dir_or_checkpoint)
    if config_path is None:
        raise UserError(
            f"There is no config.yaml for '{checkpoint.name}'. It tells how to build the model: put the run's config.yaml "
            "beside the checkpoint, or give the run folder."
        )
    return checkpoint, read_config(config_path)


def preprocessing_of(config: DictConfig | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) that a run normalised its crops with; ImageNet's, as official, where the configuration does not say."""
    section = (config.get("augmentation") if config is not None else None) or {}
    mean, std = section.get("mean", IMAGENET_DEFAULT_MEAN), section.get("std", IMAGENET_DEFAULT_STD)
    return tuple(float(v) for v in mean), tuple(float(v) for v in std)
