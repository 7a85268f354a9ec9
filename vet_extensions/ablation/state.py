"""The state of a cell, kept in `state.json` of its folder and nowhere else, so that no kill of anybody loses it.

A process takes the cell (`take`) and gets an `Attempt`, whose token stands in the file from then on. Whoever's token no longer
stands there was superseded, and writes nothing: after the failure of a node, old processes live on for a while.
"""

import contextlib
import fcntl
import json
import logging
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vet_extensions.ablation.cells import DONE, FAILED, RUNNING, STATE_FILE, WAITING, read_json, write_json
from vet_extensions.ablation.liveness import Owner, Queue, how_it_ended

logger = logging.getLogger("vet_extensions")

METRICS_FILE = "run/training_metrics.json"
TAIL_LINES = 12
_TAIL_BYTES = 64 * 1024
_LOCK = ".state.lock"


@dataclass(frozen=True)
class Attempt:
    """One process group's work on a cell, from its start to its end. since: seconds of the epoch; spent: wall seconds before."""

    place: Path
    token: str
    since: float
    spent: float

    def finish(self, *, processes: int, device: str, earlier: float = 0.0) -> bool:
        """Say that the cell is done, and what it cost; False for a superseded attempt.

        earlier: device-seconds of what was taken over from another cell.
        """
        return self._publish(state=DONE, why="", cost=earlier + self._seconds() * processes, device=device)

    def fail(self, why: str) -> bool:
        """Say why it failed; of several processes of the attempt the first one is heard."""
        return self._publish(state=FAILED, why=why, spent=self._seconds())

    def stop(self) -> bool:
        """Say that it was asked to leave, and that it goes on another time."""
        return self._publish(state=WAITING, spent=self._seconds())

    def is_current(self) -> bool:
        """Whether nobody has taken the cell since."""
        return read_json(self.place / STATE_FILE).get("token") == self.token

    def _seconds(self) -> float:
        return round(self.spent + time.time() - self.since, 1)

    def _publish(self, **changes: Any) -> bool:
        with _locked(self.place):
            stored = read_json(self.place / STATE_FILE)
            if stored.get("token") != self.token or stored["state"] != RUNNING:
                return False
            write_json(self.place / STATE_FILE, {**stored, **changes, "steps": steps_done(self.place)})
            return True


def take(place: Path, *, owner: Owner, log: str) -> Attempt | None:
    """Take a cell, to begin it or to go on with it; None where it is done, or where somebody else works on it.

    log: where this attempt's output goes, relative to the ablation's folder.
    """
    with _locked(place):
        stored = read_json(place / STATE_FILE)
        if stored.get("state") == DONE:
            logger.info("this cell is done; nothing to do")
            return None
        before = stored.get("owner", {})
        is_other = before != owner and not ("job" in owner and before.get("job") == owner["job"])
        if stored.get("state") == RUNNING and is_other and Queue.ask().lives(before):
            logger.info("this cell is being worked on by %s; nothing to do", owner_in_words(before))
            return None
        spent = stored.get("spent", 0.0)
        if stored.get("state") == RUNNING:  # its last attempt was cut off
            spent += max(0.0, _last_sign(place) - stored["since"])
        attempt = Attempt(place, token=uuid.uuid4().hex, since=time.time(), spent=spent)
        stored = {"state": RUNNING, "token": attempt.token, "owner": dict(owner), "since": attempt.since, "log": log}
        write_json(place / STATE_FILE, {**stored, "spent": spent, "steps": steps_done(place)})
        return attempt


def release(place: Path) -> None:
    """Make a failed cell a waiting one, for another try."""
    with _locked(place):
        stored = read_json(place / STATE_FILE)
        if stored.get("state") == FAILED:
            write_json(place / STATE_FILE, {**stored, "state": WAITING, "why": "", "since": time.time()})


def fail_unstarted(place: Path, why: str) -> dict[str, Any]:
    """Say of a waiting cell that what was to take it ended before; returns the cell's state."""
    with _locked(place):
        stored = read_json(place / STATE_FILE)
        if stored.get("state", WAITING) == WAITING:
            stored = {"since": time.time(), **stored, "state": FAILED, "why": why}
            write_json(place / STATE_FILE, stored)
        return stored


def settle(place: Path, queue: Queue) -> dict[str, Any]:
    """The state of a cell after a look at its owner: one that ended without a word has failed."""
    stored = read_json(place / STATE_FILE)
    if stored.get("state") != RUNNING or queue.lives(stored["owner"]):
        return stored
    with _locked(place):
        again = read_json(place / STATE_FILE)
        if again != stored:  # it had its say in the meantime
            return again
        owner = stored["owner"]
        ending = how_it_ended(owner["job"]) if "job" in owner else ""
        why = f"{owner_in_words(owner)} ended without a word{f': {ending}' if ending else ''}. The end of its log:\n"
        why += tail(place.parents[1] / stored["log"])
        spent = stored["spent"] + max(0.0, _last_sign(place) - stored["since"])
        settled = {**stored, "state": FAILED, "why": why, "spent": spent, "steps": steps_done(place)}
        write_json(place / STATE_FILE, settled)
        return settled


def owner_in_words(owner: Owner) -> str:
    """`job 12_3`, or `process 4711`."""
    return f"job {owner['job']}" if "job" in owner else f"process {owner.get('pid')} on {owner.get('host')}"


def steps_done(place: Path) -> int:
    """Optimisation steps of a cell that its log of metrics holds."""
    for line in reversed(_last_lines(place / METRICS_FILE)):
        with contextlib.suppress(ValueError, KeyError):  # a line that is just being written
            return int(json.loads(line)["iteration"]) + 1
    return 0


def tail(log: Path, n_lines: int = TAIL_LINES) -> str:
    """The last lines of a log that say something; of a job's errors, after the last of its output beside it."""
    logs = [log.with_suffix(".out"), log] if log.suffix == ".err" else [log]
    lines = [line for path in logs for line in _last_lines(path) if line.strip()]
    return "\n".join(lines[-n_lines:]) or "(there is no log)"


def _last_lines(path: Path) -> list[str]:
    """The lines at the end of a file, the first of them perhaps cut; none where there is no file."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return file.read().decode(errors="replace").splitlines()


def _last_sign(place: Path) -> float:
    """When a cell last wrote something: seconds of the epoch."""
    written = [path.stat().st_mtime for path in (place / METRICS_FILE, place / STATE_FILE) if path.is_file()]
    return max(written, default=0.0)


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Reading and writing of the state in one piece. Where the file system has no locks, tokens still keep old writers out."""
    place.mkdir(parents=True, exist_ok=True)
    with (place / _LOCK).open("a") as lock:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
