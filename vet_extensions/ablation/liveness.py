"""Who still works on a cell: asks SLURM's queue for jobs, and the system for processes of this machine.

An owner is what a cell's state file says of the process that took the cell: `{"job": "12_3"}`, or `{"pid", "host", "began"}`.
Called by the cells themselves, by `vetdino ablate` and by the job that writes the table.
"""

import logging
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinov2.distributed.launch import visible_devices

logger = logging.getLogger("vet_extensions")

Owner = Mapping[str, Any]
PENDING = "PENDING"
_TIMEOUT_S = 60
_BEGAN = 19
"""Of /proc/PID/stat behind the program's name: when the process began, in clock ticks. A number is given to others later."""


@dataclass(frozen=True)
class QueuedJob:
    """A job that has not ended. id: `12`, or `12_3` for an element of an array; state: PENDING, RUNNING, COMPLETING, ..."""

    id: str
    name: str
    state: str


class Queue:
    """The user's jobs at one moment. is_known: False where SLURM did not answer, so that nothing is taken for ended."""

    def __init__(self, jobs: Mapping[str, QueuedJob], *, is_known: bool = True) -> None:
        self.jobs, self.is_known = jobs, is_known

    @classmethod
    def ask(cls) -> "Queue":
        """SLURM's answer; on a machine without SLURM there are no jobs, and those of elsewhere are unknown."""
        if shutil.which("squeue") is None:
            return cls({}, is_known=False)
        command = ["squeue", "--me", "--noheader", "--array", "--format=%i|%j|%T"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
        except (subprocess.SubprocessError, OSError) as error:
            logger.info("SLURM does not tell its queue (%s); no job is taken for ended", type(error).__name__)
            return cls({}, is_known=False)
        jobs = [QueuedJob(*line.split("|")) for line in answer.stdout.splitlines() if line.count("|") == 2]
        return cls({job.id: job for job in jobs})

    def lives(self, owner: Owner) -> bool:
        """Whether an owner may still work; True where that cannot be known."""
        if "job" in owner:
            return not self.is_known or owner["job"] in self.jobs
        return owner.get("host") != socket.gethostname() or _began(owner.get("pid", 0)) == owner.get("began")

    def is_pending(self, job: str) -> bool:
        """Whether a job waits in the queue, for the first time or again."""
        return job in self.jobs and self.jobs[job].state == PENDING


def owner_process(pid: int) -> Owner:
    """A process of this machine as an owner; devices: the GPUs that it was given."""
    return {"pid": pid, "host": socket.gethostname(), "began": _began(pid), "devices": visible_devices()}


def how_it_ended(job: str) -> str:
    """What SLURM remembers of a job's end, such as `OUT_OF_MEMORY`; empty where it has forgotten."""
    if shutil.which("scontrol") is None:
        return ""
    command = ["scontrol", "--oneliner", "show", "job", job]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (subprocess.SubprocessError, OSError):
        return ""
    words = {key: value for key, _, value in (word.partition("=") for word in answer.stdout.split())}
    return " ".join(words[key] for key in ("JobState", "Reason") if words.get(key, "None") != "None")


def _began(pid: int) -> str | None:
    """When a process began; None where it is gone, a zombie too."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state[0] in "ZX" else state[_BEGAN]
