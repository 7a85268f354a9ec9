"""What the rest of the code asks about the process group: ranks, sizes, and sums that do nothing in a single process.

The only file that reads the launcher's environment variables.
"""

import os

import torch
import torch.distributed as dist


def is_enabled() -> bool:
    """Whether a process group exists."""
    return dist.is_available() and dist.is_initialized()


def get_global_size() -> int:
    """Number of processes; 1 without a process group."""
    return dist.get_world_size() if is_enabled() else 1


def get_global_rank() -> int:
    """Rank of this process; 0 without a process group."""
    return dist.get_rank() if is_enabled() else 0


def get_local_rank() -> int:
    """Rank of this process on its machine; 0 without a process group."""
    return int(os.environ.get("LOCAL_RANK", "0")) if is_enabled() else 0


def get_local_size() -> int:
    """Number of processes on this machine; 1 without a process group."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if is_enabled() else 1


def is_main_process() -> bool:
    """Whether this process writes the logs and files that exist once per run."""
    return get_global_rank() == 0


def launched_world_size() -> int:
    """How many processes the launcher (torchrun or SLURM step) started, 1 when there is none."""
    for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 1


def all_reduce_sum(tensor: torch.Tensor) -> None:
    """Sum over all processes, in place; nothing to do in a single process."""
    if get_global_size() > 1:
        dist.all_reduce(tensor)
