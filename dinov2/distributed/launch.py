"""How this process was started: by torchrun, by a SLURM step, or alone. The only file that reads environment variables.

Order: a complete set of torchrun variables wins (torchrun may itself run inside a SLURM job); then a SLURM step of several
tasks; else the process is alone. What is typed in an interactive shell inside a job (`salloc`, `srun --pty bash`) runs alone,
and so does what a batch script starts without `srun`.
"""

import itertools
import os
import random
import re
import subprocess
import sys
from dataclasses import dataclass

from dinov2.utils.errors import UserError

_TORCHRUN = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK")
_TORCHRUN_ONLY = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_PORTS = (20_000, 32_767)
"""Below those that Linux gives to outgoing connections, of which one might be in use."""
_OF_THE_SITE = ("SLURM_CONF", "SLURM_CONF_SERVER", "SUBMITIT_PREEMPT_SIGNAL")


@dataclass(frozen=True)
class Launch:
    """Place of this process among those started together.

    master: where they meet. job: number of the SLURM job that this process belongs to, empty outside of one; restarts: how often
    SLURM has started that job anew. attempt: grows with every restart, by SLURM or by torchrun.
    """

    launcher: str
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    master_addr: str = ""
    master_port: int = 0
    job: str = ""
    restarts: int = 0
    attempt: int = 0


def find_launch() -> Launch:
    """Read the launcher's variables; raises `UserError` when they contradict themselves or are incomplete."""
    is_typed = _is_typed()
    job = "" if is_typed else os.environ.get("SLURM_JOB_ID", "")
    restarts = 0 if is_typed else _number("SLURM_RESTART_COUNT", 0)
    if any(name in os.environ for name in _TORCHRUN_ONLY):
        return _torchrun(job, restarts)
    if not is_typed and _number("SLURM_STEP_NUM_TASKS", 1) > 1:
        return _slurm(job, restarts)
    return Launch(launcher="none", job=job, restarts=restarts, attempt=restarts)


def _is_typed() -> bool:
    """Whether a person started this process from a shell that a SLURM job runs.

    Such a shell has the variables of its step, which may have several tasks; but it has a terminal, which no other step has.
    """
    return sys.stdin is not None and sys.stdin.isatty() and os.environ.get("SLURM_TASK_PID") != str(os.getpid())


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


def host_names(node_list: str) -> list[str]:
    """The machines of a SLURM node list such as `rack[07-09,12],gpu5` or `r[1-2]n[01-03]-ib`.

    `scontrol` expands it, which is the authority; without it, as in some containers, we do. Raises `UserError` for what is no
    list of machines.
    """
    try:
        said = subprocess.run(
            ["scontrol", "show", "hostnames", node_list], capture_output=True, text=True, timeout=60, check=True
        )
        names = said.stdout.split()
    except (OSError, subprocess.SubprocessError):
        names = expand_node_list(node_list)
    if not names:
        raise UserError(f"The node list '{node_list}' names no machine. Set MASTER_ADDR to the first one's address.")
    return names


def expand_node_list(node_list: str) -> list[str]:
    """The same without SLURM's help; an empty list for what cannot be read."""
    group = r"(?:[^,\[\]\s]|\[\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*\])+"
    if not re.fullmatch(rf"{group}(?:,{group})*", node_list):
        return []
    names = []
    for part in re.findall(group, node_list):
        # Text and brackets take turns.
        choices = [_numbers(piece) if i % 2 else [piece] for i, piece in enumerate(re.split(r"\[([^\]]*)\]", part))]
        names += ["".join(choice) for choice in itertools.product(*choices)]
    return names


def _numbers(ranges: str) -> list[str]:
    """`07-09,12` -> 07, 08, 09, 12."""
    numbers = []
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", ranges):
        numbers += [f"{number:0{len(first)}d}" for number in range(int(first), int(last or first) + 1)]
    return numbers


def _torchrun(job: str, restarts: int) -> Launch:
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
        job=job,
        restarts=restarts,
        attempt=_attempt(restarts),
    )
    if not 0 <= launch.rank < launch.world_size:
        raise UserError(f"RANK is {launch.rank} and WORLD_SIZE {launch.world_size}. RANK must lie below WORLD_SIZE.")
    return launch


def _attempt(restarts: int) -> int:
    """torchrun, if it is one, counts anew in every start of a job."""
    if "TORCHELASTIC_RESTART_COUNT" not in os.environ:
        return restarts
    return 1000 * restarts + _number("TORCHELASTIC_RESTART_COUNT")


def _slurm(job: str, restarts: int) -> Launch:
    step = _number("SLURM_STEP_ID", 0)
    # Every task must guess the same free port without asking. A new one for every start: the last one may still be in use.
    default_port = random.Random(f"{job}.{step}.{restarts}").randint(*_PORTS)
    return Launch(
        launcher="slurm",
        rank=_number("SLURM_PROCID"),
        world_size=_number("SLURM_STEP_NUM_TASKS"),
        local_rank=_number("SLURM_LOCALID"),
        local_world_size=_tasks_on_node(os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1"), _number("SLURM_NODEID", 0)),
        master_addr=os.environ.get("MASTER_ADDR") or _first_machine(),
        master_port=_number("MASTER_PORT", default_port),
        job=job,
        restarts=restarts,
        attempt=restarts,
    )


def _first_machine() -> str:
    if _number("SLURM_STEP_NUM_NODES", 0) == 1:
        return "127.0.0.1"  # the machine's own name need not resolve, in a container for example
    return host_names(os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST", ""))[0]


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
