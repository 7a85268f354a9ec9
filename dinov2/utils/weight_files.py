"""Reading weights from disk: files of torch.save, .safetensors files and Hugging Face folders. No code in a file ever runs.

Called by everything that loads weights. Which network the tensors belong to is decided in `weight_layouts`, from their names.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import URLError
from urllib.parse import urlparse

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import safe_globals

from dinov2.utils.errors import UserError

_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")


def read_checkpoint(path_or_url: str | Path) -> dict[str, Any]:
    """The dictionary in a weights file or a Hugging Face folder, on the CPU; only tensors, arrays and plain values are read.

    Raises `UserError` when it is absent, unreadable, unsafe to read, one process's slice, or not a dictionary.
    """
    location = str(path_or_url)
    if urlparse(location).scheme in ("http", "https"):
        content = _load(location, lambda: _fetch(location))
    elif Path(location).is_dir():
        content = _read_folder(Path(location))
    else:
        content = _read_file(Path(location))
    if not isinstance(content, Mapping):
        raise UserError(f"'{location}' holds a {type(content).__name__}. Wanted: a dictionary of named tensors.")
    return dict(content)


def folder_settings(path_or_url: str | Path) -> dict[str, Any]:
    """The config.json of a Hugging Face DINOv2 folder: what names and shapes of tensors cannot tell. Empty for anything else.

    Raises `UserError` for the folder of another kind of model, or a config.json that is none.
    """
    path = Path(path_or_url) / "config.json"
    if not path.is_file():
        return {}
    settings = _read_json(path)
    kind = str(settings.get("model_type", "dinov2"))
    if not kind.startswith("dinov2"):
        raise UserError(
            f"'{path_or_url}' is the folder of a '{kind}' model. Allowed: dinov2 and dinov2_with_registers, whose networks "
            "this package has."
        )
    return settings


def refuse_slice(location: str | Path) -> NoReturn:
    """Raise the `UserError` for a file that one of several processes wrote for itself."""
    raise UserError(
        f"'{location}' is one process's slice of a sharded training checkpoint (FSDP, LOCAL_STATE_DICT): its tensors are cut "
        "into pieces and cannot be read alone. Give the whole weights of the same run instead: "
        "eval/training_<iteration>/teacher_checkpoint.pth."
    )


def _read_file(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        reason = "" if isinstance(error, FileNotFoundError) else f" ({error.strerror})"
        raise UserError(
            f"No weights file '{path}'{reason}. Give the path of a file or of a Hugging Face folder, or an http(s) address."
        ) from None
    if _is_safetensors(path, start):
        return _read_safetensors(path)
    return _load(str(path), lambda: _unpickle(path))


def _is_safetensors(path: Path, start: bytes) -> bool:
    """Such a file begins with eight bytes for the length of its JSON header; torch's begin with PK or 0x80."""
    return start[8:] == b"{" or (path.suffix == ".safetensors" and start[:2] != b"PK")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"'{path}' is no readable weights file ({error}). Wanted: a whole .safetensors file. It may have been cut off: "
            "copy it again."
        ) from error


def _load(location: str, load: Callable[[], Any]) -> Any:
    """What torch reads; its errors become sentences."""
    try:
        with safe_globals(_numpy_globals()):
            return load()
    except URLError as error:
        raise UserError(
            f"Could not fetch '{location}' ({error.reason}). Download the file where there is a network and give its path."
        ) from error
    except Exception as error:  # damaged or hostile bytes make the reader raise nearly anything
        refused = re.search(r"GLOBAL ([\w.]+) was not an allowed", str(error))
        if refused and refused[1].startswith("torch.distributed._shard"):
            refuse_slice(location)
        if refused:
            raise UserError(
                f"'{location}' is no readable weights file: it holds a Python object of type {refused[1]}, and reading such "
                "objects can run code. Wanted: tensors, arrays, numbers and text. Where you trust the file, write its weights "
                "anew: torch.save({'model': torch.load(path, weights_only=False)['model']}, new_path)."
            ) from error
        lines = str(error).strip().splitlines()
        raise UserError(
            f"'{location}' is no readable weights file ({lines[0] if lines else type(error).__name__}). Wanted: a file that "
            "torch.save wrote, holding only tensors, arrays, numbers and text, or a .safetensors file. It may have been cut "
            "off: copy it again, or use an earlier one."
        ) from error


def _unpickle(path: Path) -> Any:
    with path.open("rb") as file:  # given the path, torch would go by the name's ending
        return torch.load(file, map_location="cpu", weights_only=True)


def _fetch(url: str) -> Any:
    return torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True)


def _numpy_globals() -> list[Any]:
    """What arrays and numbers of numpy are pickled with: official training files hold the learning rate as such a number.

    The module was `numpy.core` before numpy 2. None of these can run code of the file.
    """
    rebuild = {"scalar": np.float64(0).__reduce__()[0], "_reconstruct": np.zeros(0).__reduce__()[0]}
    functions = [
        (function, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name, function in rebuild.items()
    ]
    kinds = {type(np.dtype(code)) for code in "?bhilqBHILQefdFDSU"}
    return [*functions, np.ndarray, np.dtype, *kinds]


def _read_folder(folder: Path) -> dict[str, Any]:
    """The tensors of a Hugging Face folder, in one file or in several with an index."""
    for name in _FOLDER_FILES:
        if (folder / name).is_file():
            return _read_file(folder / name)
        if (folder / f"{name}.index.json").is_file():
            return _read_shards(folder / f"{name}.index.json")
    if any((folder / name).exists() for name in ("eval", "checkpoints", ".metadata", "meta.json", "config.yaml")):
        raise UserError(
            f"'{folder}' is a folder of a training run, not of weights. Give one of its files: "
            "eval/training_<iteration>/teacher_checkpoint.pth."
        )
    raise UserError(
        f"The folder '{folder}' holds no weights. Wanted: a Hugging Face folder, with {' or '.join(_FOLDER_FILES)}, whole or "
        "with an .index.json."
    )


def _read_shards(index: Path) -> dict[str, Any]:
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"'{index}' has no weight_map, which says in which file each tensor is. Copy the folder again.")
    content: dict[str, Any] = {}
    for name in sorted(set(weight_map.values())):
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"'{index}' names '{name}'. Allowed: names of files in the same folder.")
        content |= _read_file(index.parent / name)
    lacking = [name for name in weight_map if name not in content]
    if lacking:
        raise UserError(
            f"{len(lacking)} tensors that '{index}' lists are not in its files, the first {lacking[0]}. "
            "Copy the folder again."
        )
    return content


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read as JSON ({error}). Copy the folder again.") from error
    if not isinstance(content, dict):
        raise UserError(f"'{path}' holds a {type(content).__name__}, not an object. Copy the folder again.")
    return content
