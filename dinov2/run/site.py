"""The site file: one cluster's defaults for the options of a submission; called by `dinov2.run.options`.

`slurm/site.yaml` of the checkout is shipped with every key explained and commented out. A user at a new cluster edits that
file, or points `--site` to another, and every launcher follows.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dinov2.utils.errors import UserError

NAME = Path("slurm", "site.yaml")


def find_site_file(given: str | None) -> Path | None:
    """The file that was given, else `slurm/site.yaml` of the current folder, else that of the checkout, else none."""
    if given:
        return Path(given)
    checkout = Path(__file__).resolve().parents[2]
    return next((path for folder in (Path.cwd(), checkout) if (path := folder / NAME).is_file()), None)


def read_site_file(path: Path, *, known: Mapping[str, type]) -> dict[str, Any]:
    """The file's values, by option.

    known: the options it may hold, and the type of each one's value (int, str, list of lines, or dict of sbatch's options).
    Raises `UserError` with all mistakes of the file at once.
    """
    try:
        # Every value as it is written: YAML's own types make 7200 of the time 2:00:00.
        content = yaml.load(path.read_text(), yaml.BaseLoader) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"The site file {path} cannot be read: {error}. slurm/README.md shows one.") from error
    if not isinstance(content, dict):
        raise UserError(f"The site file {path} holds a {type(content).__name__}; 'option: value' lines are expected.")
    values = {str(key).replace("-", "_"): value for key, value in content.items() if value != ""}
    problems = [problem for key, value in values.items() if (problem := _problem(key, value, known))]
    if problems:
        raise UserError(f"The site file {path} cannot be used.\n" + "\n".join(problems))
    return {key: _typed(value, known[key]) for key, value in values.items()}


def _problem(key: str, value: Any, known: Mapping[str, type]) -> str | None:
    """What is wrong with an entry, if anything."""
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        guess = f" Did you mean '{near[0]}'?" if near else ""
        return (
            f"Unknown key '{key}'.{guess} Keys: {', '.join(sorted(known))}. Any other option of sbatch: under 'slurm'."
        )
    wanted = known[key]
    if wanted in (list, dict):
        parts = value.values() if isinstance(value, dict) else value
        is_right = isinstance(value, wanted) and all(isinstance(part, str) for part in parts)
    else:
        is_right = isinstance(value, str) and (wanted is str or value.lstrip("-").isdigit())
    if is_right:
        return None
    example = {int: "8", str: "gpu", list: "[module load cuda, export A=1]", dict: '{gres: "gpu:a100:8"}'}[wanted]
    return f"'{key}' is {value!r}; a value like {example} is expected."


def _typed(value: Any, wanted: type) -> Any:
    if wanted is dict:
        return {key: {"true": True, "false": False}.get(part, part) for key, part in value.items()}
    return int(value) if wanted is int else value
