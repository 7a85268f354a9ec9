"""Where torch computes, from the name in a configuration or on a command line."""

import torch

from dinov2.utils.errors import UserError


def resolve_device(name: str, *, key: str = "train.device") -> torch.device:
    """`auto` is the first CUDA device, else the CPU; any other name is taken as torch does.

    key: the configuration key or option that holds the name, for messages. Raises `UserError` for a device that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"{key} is '{name}', which torch does not know. Allowed: auto, cpu, cuda, cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"{key} is '{name}', but torch sees no CUDA device. Use auto or cpu.")
    return device
