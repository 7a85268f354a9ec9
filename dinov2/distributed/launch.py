"""How this process was started: by torchrun, by a SLURM step, or alone. The only file that reads environment variables.

Order: a complete set of torchrun variables wins (torchrun may itself run inside a SLURM job); then a SLURM step of several
tasks; else the process is alone. A batch script or an interactive shell inside a job is no step of several tasks, so that a
program typed there runs alone.
"""

import os
import random
import re
from dataclasses import dataclass

from dinov2.utils.errors import UserError

_TORCHRUN = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK")
_TORCHRUN_ONLY = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_PORTS = (20_000, 60_000)
_OF_THE_SITE = ("SLURM_CONF", "SLURM_CONF_SERVER", "SUBMITIT_PREEMPT_SIGNAL")


@dataclass(frozen=True)
class Launch:
    """Place of this process among those started together. master: where they meet; attempt: restarts by torchrun so far."""

    launcher: str
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    master_addr: str = ""
    master_port: int = 0
    attempt: int = 0


def find_launch() -> Launch:
    """Read the launcher's variables; raises `UserError` when they contradict themselves or are incomplete."""
    if any(name in os.environ for name in _TORCHRUN_ONLY):
        return _torchrun()
    if _number("SLURM_STEP_NUM_TASKS", 1) > 1:
        return _slurm()
    return Launch(launcher="none")


def announce(launch: Launch) -> None:
    """Give torch the meeting point and the ranks under the names that it reads."""
    for name, value in zip(
        _TORCHRUN,
        (launch.master_addr, launch.master_port, launch.rank, launch.world_size, launch.local_rank),
        strict=True,
    ):
        os.environ[name] = str(value)


def withdraw() -> None:
    """Take back what `announce` gave."""
    for name in _TORCHRUN:
        os.environ.pop(name, None)


def site_variables() -> dict[str, str]:
    """Variables that a submission from within a job keeps, though they are named like the job's own: where SLURM's
    configuration lies, and the signal that warns a job of its end."""
    return {name: os.environ[name] for name in _OF_THE_SITE if name in os.environ}


def visible_devices() -> str | None:
    """The GPUs that the user chose by CUDA_VISIBLE_DEVICES; None where there is no such choice."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def first_host(node_list: str) -> str:
    """The first machine of a SLURM node list such as `rack[07-09,12],gpu5`."""
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\]([^,\[]*))?", node_list)
    if match is None:
        raise UserError(f"The node list '{node_list}' names no machine. Set MASTER_ADDR to the first one's address.")
    prefix, number, suffix = match.groups(default="")
    return f"{prefix}{number}{suffix}"


def _torchrun() -> Launch:
    missing = [name for name in _TORCHRUN if name not in os.environ]
    if missing:
        found = [name for name in _TORCHRUN if name in os.environ]
        raise UserError(
            f"The environment has {', '.join(found)} but not {', '.join(missing)}. Start with torchrun, which sets all of them, "
            f"or unset {', '.join(n for n in _TORCHRUN_ONLY if n in found)} to run in one process."
        )
    launch = Launch(
        launcher="torchrun",
        rank=_number("RANK"),
        world_size=_number("WORLD_SIZE"),
        local_rank=_number("LOCAL_RANK"),
        local_world_size=_number("LOCAL_WORLD_SIZE", 1),
        master_addr=os.environ["MASTER_ADDR"],
        master_port=_number("MASTER_PORT"),
        attempt=_number("TORCHELASTIC_RESTART_COUNT", 0),
    )
    if not 0 <= launch.rank < launch.world_size:
        raise UserError(f"RANK is {launch.rank} and WORLD_SIZE {launch.world_size}. RANK must lie below WORLD_SIZE.")
    return launch


def _slurm() -> Launch:
    job, step = _number("SLURM_JOB_ID"), _number("SLURM_STEP_ID", 0)
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST", "")
    attempt = _number("SLURM_RESTART_COUNT", 0)
    # Every task must guess the same free port without asking. A new one at every attempt: the last may still be in use.
    default_port = random.Random(f"{job}.{step}.{attempt}").randint(*_PORTS)
    return Launch(
        launcher="slurm",
        rank=_number("SLURM_PROCID"),
        world_size=_number("SLURM_STEP_NUM_TASKS"),
        local_rank=_number("SLURM_LOCALID"),
        local_world_size=_tasks_on_node(os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1"), _number("SLURM_NODEID", 0)),
        master_addr=os.environ.get("MASTER_ADDR") or first_host(nodes),
        master_port=_number("MASTER_PORT", default_port),
        attempt=attempt,
    )


def _tasks_on_node(tasks_per_node: str, node: int) -> int:
    """Entry `node` of a SLURM count list such as `4(x2),3`, which stands for 4, 4, 3."""
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks_per_node):
        counts += [int(count)] * int(times or 1)
    return counts[node] if node < len(counts) else 1


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.strip().isdigit():
        raise UserError(f"The environment variable {name} is {text!r}; a whole number is expected. Check the launcher.")
    return int(text)
