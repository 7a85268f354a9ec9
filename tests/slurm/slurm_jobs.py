"""What the tests do on the cluster: submit by the real command lines, look at jobs, wait for something to become true."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from killing import ROOT

SITE = Path(__file__).with_name("site.yaml")
VETDINO = Path(sys.executable).with_name("vetdino")
TRAIN = ROOT / "dinov2" / "run" / "train" / "train.py"
PATIENCE_S = 240.0
"""For what should take seconds, on a busy machine."""


def submit(launcher: Path, *arguments: str | Path) -> str:
    """Submit by a launcher's command line; the job's number."""
    return job_numbers(succeed(sys.executable, launcher, "--site", SITE, *arguments))[0]


def job_numbers(said: str) -> list[str]:
    """The jobs that a command tells of having submitted, in its order."""
    found = list(dict.fromkeys(re.findall(r"\bjob (\d+)", said, flags=re.IGNORECASE)))
    assert found, said
    return found


def succeed(*command: str | Path) -> str:
    """Run a command that must succeed; everything that it says."""
    done = subprocess.run(
        command, env=job_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, f"{command[0]} ... ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def job_environment() -> dict[str, str]:
    """For commands that submit, whose jobs inherit it: they may use a thread each, and find the modules of this folder."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}


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
