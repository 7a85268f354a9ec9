"""What an exact resume needs besides configuration and data: taken from a training, and given back to one. Called by the trainer.

Tensors go by the names of the parameters, so that any number of processes, sharded or not, can take them up.
"""

import logging
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dinov2.utils.errors import UserError

logger = logging.getLogger("dinov2")


def training_tensors(model: nn.Module, student: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """`model.<name>` for weights and centres, `optimizer.<parameter of the student>.<exp_avg, exp_avg_sq, step>`."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in student.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = value
    return tensors


def empty_optimizer_state(
    stored: Iterator[str] | list[str], student: nn.Module, optimizer: Optimizer
) -> dict[str, Tensor]:
    """Give the optimizer zeros where a checkpoint with these names has values; returns them by name, to be filled.

    A parameter that had no gradient yet has no state in the checkpoint, and gets none here.
    """
    parameters = dict(student.named_parameters())
    tensors = {}
    for name in stored:
        if not name.startswith("optimizer."):
            continue
        parameter_name, _, key = name.removeprefix("optimizer.").rpartition(".")
        if parameter_name not in parameters:
            raise UserError(
                f"The checkpoint holds optimizer state of '{parameter_name}', which this model has not. Use the configuration "
                "that the run was started with, or another output folder."
            )
        parameter = parameters[parameter_name]
        # AdamW counts steps on the CPU, in float32, whatever the parameter.
        value = torch.zeros(()) if key == "step" else torch.zeros_like(parameter, requires_grad=False)
        optimizer.state[parameter][key] = value
        tensors[name] = value
    return tensors


def random_states() -> dict[str, Any]:
    """The global generators of torch, numpy and Python, as tensors and plain values."""
    state: Any = np.random.get_state()  # noqa: NPY002 - augmentations may draw from it
    kind, keys, position, has_gauss, gauss = state
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, keys.tolist(), int(position), int(has_gauss), float(gauss)],
        "python": random.getstate(),
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    """The reverse of `random_states`. To be called last: building things draws from the generators."""
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    version, internal, gauss_next = states["python"]
    random.setstate((version, tuple(internal), gauss_next))
