"""Where torch computes, from the name in a configuration or on a command line."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dinov2.utils.errors import UserError


def resolve_device(name: str, *, key: str = "train.device") -> torch.device:
    """`auto` is this process's CUDA device, else the CPU; any other name is taken as torch does.

    key: the configuration key or option that holds the name, for messages. Raises `UserError` for a device that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"{key} is '{name}', which torch does not know. Allowed: auto, cpu, cuda, cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"{key} is '{name}', but torch sees no CUDA device. Use auto or cpu.")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device


@contextmanager
def cpu_threads(n_threads: int) -> Iterator[None]:
    """Let torch compute on this many CPU threads inside the block; 0 leaves its own choice.

    Put back afterwards, because the last bits of a result depend on it.
    """
    before = torch.get_num_threads()
    if n_threads > 0:
        torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
