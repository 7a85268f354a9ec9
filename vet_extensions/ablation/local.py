"""Cells on this machine: a process (or a torchrun) each, some at a time. Called by `vetdino ablate` where there is no SLURM.

Each is in a session of its own: whoever started them may be killed, and they go on. The next call waits for those too.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dinov2.distributed.launch import visible_devices
from vet_extensions.ablation.cells import CELLS_FOLDER, RUNNING, STATE_FILE, WAITING, cell_folder, read_json
from vet_extensions.ablation.liveness import Queue
from vet_extensions.ablation.prepare import Prepared
from vet_extensions.ablation.run import LOG_FILE, STOPPED
from vet_extensions.ablation.state import fail_unstarted, tail
from vet_extensions.ablation.status import look, steps_of

POLL_S = 0.5
OnProgress = Callable[[int, int], None]


def run_local(
    folder: Path, cells: Sequence[Prepared], *, data: Path, jobs: int | None, on_progress: OnProgress
) -> None:
    """Run cells, `jobs` at a time with those that run already, and wait for all of them.

    jobs: by default one for each share of the GPUs. on_progress is called with (steps done, steps in all) of the whole plan.
    An interruption lets the processes that this call has started save and leave.
    """
    gpus, waiting = _gpus(), list(cells)
    own: dict[str, _Own] = {}
    try:
        while True:
            for name in [name for name, one in own.items() if one.process.poll() is not None]:
                _note_end(folder, name, own.pop(name).process.returncode)
            statuses = look(folder, queue=Queue({}, is_known=False))
            running = {status.cell.name for status in statuses if status.state == RUNNING}
            on_progress(*steps_of(statuses))
            if not waiting and not running and not own:
                return
            while waiting and len(running | own.keys()) < (jobs or max(1, len(gpus) // waiting[0].cell.processes)):
                one = waiting.pop(0)
                used = [gpu for name in running | own.keys() for gpu in _devices_of(folder, name, own)]
                own[one.cell.name] = _start(folder, one, data, _free(gpus, used, one.cell.processes))
            time.sleep(POLL_S)
    finally:
        for one in own.values():
            one.process.terminate()
        for one in own.values():
            one.process.wait()


def command(folder: Path, one: Prepared, data: Path) -> list[str]:
    """The command line of a cell's process."""
    processes = one.cell.processes
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    program = [
        "-m",
        "vet_extensions.ablation.run",
        str(folder),
        one.cell.name,
        "--data",
        str(data),
        "--options",
        *one.options,
    ]
    return [sys.executable, *(several if processes > 1 else ["-u"]), *program]


@dataclass(frozen=True)
class _Own:
    """A process that this call has started, and the GPUs that it may use."""

    process: "subprocess.Popen[bytes]"
    devices: tuple[str, ...]


def _start(folder: Path, one: Prepared, data: Path, devices: tuple[str, ...]) -> _Own:
    place = cell_folder(folder, one.cell)
    limited = ["env", f"CUDA_VISIBLE_DEVICES={','.join(devices)}"] if devices else []
    with (place / LOG_FILE).open("ab") as log:
        arguments = [*limited, *command(folder, one, data)]
        process = subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    return _Own(process, devices)


def _note_end(folder: Path, name: str, code: int) -> None:
    """A process that ended before it took its cell has left no word but its log."""
    place = folder / CELLS_FOLDER / name
    if code not in (0, STOPPED) and read_json(place / STATE_FILE).get("state", WAITING) == WAITING:
        fail_unstarted(place, f"Its process ended with exit code {code}. The end of its log:\n{tail(place / LOG_FILE)}")


def _gpus() -> list[str]:
    """The GPUs that this machine offers, by the names that CUDA_VISIBLE_DEVICES takes."""
    chosen = visible_devices()
    return list(map(str, range(torch.cuda.device_count()))) if chosen is None else [g for g in chosen.split(",") if g]


def _devices_of(folder: Path, name: str, own: Mapping[str, _Own]) -> Sequence[str]:
    if name in own:
        return own[name].devices
    owner = read_json(folder / CELLS_FOLDER / name / STATE_FILE).get("owner", {})
    return (owner.get("devices") or "").split(",")


def _free(gpus: Sequence[str], used: Sequence[str], n: int) -> tuple[str, ...]:
    """The n GPUs that the fewest cells use; none where there is none."""
    return tuple(sorted(gpus, key=lambda gpu: (used.count(gpu), gpus.index(gpu)))[:n])
