"""What the tests do on the cluster: submit by the real command lines, look at jobs, wait for something to become true."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from killing import ROOT

TRAIN = ROOT / "dinov2" / "run" / "train" / "train.py"
PATIENCE_S = 240.0
"""For what should take seconds, on a busy machine."""


def submit(launcher: Path, *arguments: str | Path) -> str:
    """Submit by a launcher's command line; the job's number."""
    said = succeed(sys.executable, launcher, *arguments)
    found = re.search(r"\bjob (\d+)", said)
    assert found is not None, said
    return found.group(1)


def succeed(*command: str | Path) -> str:
    """Run a command that must succeed; everything that it says.

    Jobs get its environment: they may use a thread each, and find the modules of this folder.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [str(part) for part in command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, f"{command[0]} ... ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def facts(job: str) -> Mapping[str, str]:
    """What SLURM knows of a job: JobState, Restarts, NodeList, Reason, ..."""
    said = succeed("scontrol", "--oneliner", "show", "job", job)
    return {key: value for key, _, value in (word.partition("=") for word in said.split())}


def state(job: str) -> str:
    """PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, ..."""
    return facts(job)["JobState"]


def nodes_of(job: str) -> list[str]:
    """The nodes that a job runs on."""
    return succeed("scontrol", "show", "hostnames", facts(job)["NodeList"]).split()


def wait_until(condition: Callable[[], bool], what: str, *, patience_s: float = PATIENCE_S) -> None:
    """Ask again and again; an error that names what did not come true."""
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {patience_s:.0f} s in vain for {what}")
        time.sleep(0.2)


def wait_for_state(job: str, *wanted: str, patience_s: float = PATIENCE_S) -> Mapping[str, str]:
    """Until a job is in one of the states; its facts. Raises where it has ended in another one."""
    ends = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL"} - set(wanted)

    def reached() -> bool:
        now = state(job)
        assert now not in ends, f"job {job} is {now}, not {' or '.join(wanted)}: {facts(job)}"
        return now in wanted

    wait_until(reached, f"job {job} to be {' or '.join(wanted)}", patience_s=patience_s)
    return facts(job)
