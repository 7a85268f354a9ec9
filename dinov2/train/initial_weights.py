"""What a training starts from, when not from random weights. Called once, before the teacher is made a copy of the student.

`student.pretrained_weights` gives the backbone, `student.heads_from` the heads, and `MODEL.WEIGHTS` the whole model of an
official training file. All are strict: a training that starts with some weights still random says so only by its poor result.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dinov2.utils.errors import UserError
from dinov2.utils.weight_files import read_checkpoint
from dinov2.utils.weight_layouts import find_heads, read_level
from dinov2.utils.weights import LoadReport, load_backbone_weights, refuse_non_finite

logger = logging.getLogger("dinov2")

_SECTIONS = {"dino_head": "dino", "ibot_head": "ibot"}
_CENTRES = ("dino_loss.center", "ibot_patch_loss.center")
_TEACHER_FILE = "eval/training_<iteration>/teacher_checkpoint.pth"


def load_student_backbone(backbone: nn.Module, path: str | Path) -> LoadReport:
    """Load `student.pretrained_weights`: a hub file, teacher checkpoint, Hugging Face folder, timm file or training file.

    Of a training file the teacher's backbone is taken: it is the one that evaluation scores, and the teacher of the new
    training starts as a copy of it. Register tokens that the file lacks stay new. Raises `UserError`, as
    `dinov2.utils.weights.load_backbone_weights` does.
    """
    return load_backbone_weights(backbone, path, checkpoint_key="teacher", is_start_of_training=True)


def load_heads(student: nn.ModuleDict, path: str | Path) -> LoadReport:
    """Load `student.heads_from`: the DINO head and, where the model has one, the iBOT head of a file with heads.

    student: `dino_head` and perhaps `ibot_head` beside the backbone, which is left alone. path: a teacher checkpoint or a
    training file, whose teacher's heads are taken. Every head of the model must be there with its shapes; raises `UserError`
    otherwise. A head of the file that the model lacks is not used, which the report says.
    """
    theirs = find_heads(read_checkpoint(path), source=path)
    ours: dict[str, nn.Module] = {name: head for name, head in student.items() if name in _SECTIONS}
    if not theirs:
        raise UserError(
            f"student.heads_from='{path}' holds no head. Files of released models, of Hugging Face and of timm hold the "
            f"backbone alone: leave student.heads_from empty, or give a {_TEACHER_FILE}."
        )
    if lacking := [name for name in ours if name not in theirs]:
        raise UserError(
            f"student.heads_from='{path}' holds {' and '.join(theirs)}, but the model also has {' and '.join(lacking)}. A file "
            "of a training whose two losses share one head fits a model that does too: set ibot.separate_head=false."
        )
    for name, head in ours.items():
        _refuse_other_head(name, theirs[name], head.state_dict(), source=path)
    for name, head in ours.items():
        head.load_state_dict(theirs[name])
    unused = tuple(f"{name}.{key}" for name, state in theirs.items() if name not in ours for key in state)
    notes = ()
    if unused:
        notes = (
            "The model has no iBOT head of its own (ibot.separate_head, ibot.loss_weight), so the file's is not used",
        )
    report = LoadReport(tuple(f"{name}.{key}" for name in ours for key in theirs[name]), (), unused, notes)
    logger.info("Heads of %s loaded: %s", path, report)
    return report


def load_whole_model(model: nn.Module, path: str | Path) -> int:
    """Load `MODEL.WEIGHTS`: student, teacher, heads and loss centres of a training file; returns the iteration to start at.

    model: has the official names, `student.*`, `teacher.*`, `dino_loss.center`, `ibot_patch_loss.center`. path: a file
    {"model": ..., "iteration": ...} of one process, its blocks flat or chunked. The iteration is the stored one plus 1, and 0
    where none is stored; optimizer state is not read, as in the official code. Raises `UserError` unless everything but the
    centres is there.
    """
    content = read_checkpoint(path)
    level = content.get("model")
    if not isinstance(level, Mapping) or not any(re.search(r"(?:^|\.)student\.", str(name)) for name in level):
        raise UserError(
            f"MODEL.WEIGHTS='{path}' is no training file: it holds {', '.join(map(str, list(content)[:4])) or 'nothing'}, not "
            "a 'model' with student and teacher. To start from a teacher checkpoint or a released file, set "
            "student.pretrained_weights (the backbone) and student.heads_from (the heads, if it has them) instead."
        )
    state = {name.removeprefix("module."): value for name, value in read_level(level, source=path).items()}
    state = _in_layout_of(model, state)
    own = model.state_dict()
    _refuse_other_model(state, own, source=path)
    refuse_non_finite(state, source=path)
    model.load_state_dict(state, strict=False)
    report = LoadReport(
        matched=tuple(name for name in own if name in state),
        missing=tuple(name for name in own if name not in state),
        unexpected=tuple(name for name in state if name not in own),
    )
    start = _start_iteration(content.get("iteration"), source=path)
    logger.info("Whole model of %s loaded: %s. The training starts at iteration %d", path, report, start)
    return start


def _refuse_other_head(
    name: str, theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], *, source: str | Path
) -> None:
    """All differences of a head in shape, named by configuration key."""
    differing = [
        f"{key} {_shape(theirs, key)} in the file, {_shape(ours, key)} in the model"
        for key in (*ours, *(key for key in theirs if key not in ours))
        if _shape(theirs, key) != _shape(ours, key)
    ]
    if differing:
        in_file, in_model = (_head_settings(_SECTIONS[name], state) for state in (theirs, ours))
        settings = [f"{k}={in_file[k]} (now {in_model[k]})" for k in in_file if in_file[k] != in_model[k]]
        cure = (
            f"To use it, set {', '.join(settings)}." if settings else "Give a file whose heads have the model's shapes."
        )
        raise UserError(
            f"The {name} of student.heads_from='{source}' has another shape: {'; '.join(differing[:4])}. {cure}"
        )
    refuse_non_finite({f"{name}.{key}": value for key, value in theirs.items()}, source=source)


def _head_settings(section: str, state: Mapping[str, Tensor]) -> dict[str, int]:
    """The configuration that gives a head of these shapes; the backbone's width last."""
    layers = [value for key, value in state.items() if re.fullmatch(r"mlp(?:\.\d+)?\.weight", key) and value.ndim == 2]
    settings: dict[str, int] = {}
    if (prototypes := state.get("last_layer.weight_v")) is not None:
        settings[f"{section}.head_n_prototypes"], settings[f"{section}.head_bottleneck_dim"] = prototypes.shape
    if len(layers) > 1:
        settings[f"{section}.head_hidden_dim"] = layers[0].shape[0]
    settings[f"{section}.head_nlayers"] = len(layers)
    if layers:
        settings["the width of student.arch"] = layers[0].shape[1]
    return settings


def _in_layout_of(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Both backbones in the model's own block names and position grid; other names unchanged."""
    adapted = dict(state)
    for prefix in ("student.backbone.", "teacher.backbone."):
        adapt: Any = getattr(model.get_submodule(prefix.removesuffix(".")), "adapt_state_dict", None)
        if adapt is not None:
            below = {name.removeprefix(prefix): adapted.pop(name) for name in state if name.startswith(prefix)}
            adapted |= {prefix + name: value for name, value in adapt(below).items()}
    return adapted


def _refuse_other_model(state: Mapping[str, Tensor], own: Mapping[str, Tensor], *, source: str | Path) -> None:
    """Losses without a centre in the file begin a new one; anything else must agree, in names and shapes."""
    lacking = [name for name in own if name not in state and name not in _CENTRES]
    unused = [name for name in state if name not in own and name not in _CENTRES]
    shapes = [
        f"{name} {_shape(state, name)} for {_shape(own, name)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    parts = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (("names missing", lacking), ("names too many", unused), ("other shapes", shapes))
        if names
    ]
    if parts:
        raise UserError(
            f"MODEL.WEIGHTS='{source}' is the training of another model: {'; '.join(parts)}. Start with the configuration of "
            "that training (its config.yaml: the sections student, dino, ibot), or take only the backbone from the file: "
            "student.pretrained_weights."
        )


def _start_iteration(stored: Any, *, source: str | Path) -> int:
    if stored is None:
        return 0
    if isinstance(stored, bool) or not isinstance(stored, int) or stored < 0:
        raise UserError(f"'{source}' says iteration={stored!r}. Wanted: a whole number from 0. Give another file.")
    return stored + 1


def _shape(state: Mapping[str, Tensor], key: str) -> tuple[int, ...] | str:
    return tuple(state[key].shape) if key in state else "absent"
