"""The output folder of a run: whose it is, and how an old run in it is treated. Called by the train loop."""

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TextIO

import yaml
from omegaconf import DictConfig, OmegaConf

from dinov2.utils.errors import UserError
from dinov2.utils.stop import SupersededError

logger = logging.getLogger("dinov2")

MAX_FRUITLESS_STARTS = 5
"""Starts of a SLURM job in a row without a new checkpoint, after which it is not started again."""

_LOCK = ".lock"
_WORKERS_LEAVE_WITHIN_S = 20.0  # torch's workers look for their parent every 5 s

MAY_DIFFER = (
    "train.output_dir",
    "train.num_workers",
    "train.device",
    "train.cpu_threads",
    "train.checkpoints_to_keep",
    "train.checkpoint_period_iterations",
    "train.checkpoint_in_background",
    "train.tensorboard",
    "train.peak_tflops",
    "train.on_nonfinite",
    "train.read_losses_every",
    "train.max_nonfinite_steps",
    # Another number of processes may divide the same total batch; a different total changes optim.lr, which is compared.
    "train.batch_size_per_gpu",
    "train.gradient_accumulation_steps",
    "train.log_period_iterations",
    "evaluation.eval_period_iterations",
    "evaluation.probe_period_iterations",
    "evaluation.probe_train_dataset",
    "evaluation.probe_val_dataset",
    "evaluation.probe_k",
)
"""Keys that may change between two starts of the same run, because no weight depends on them."""


def claim_output_dir(cfg: DictConfig) -> None:
    """Raise `UserError` when the output folder holds a run of another configuration, naming the keys that differ."""
    path = Path(cfg.train.output_dir) / "config.yaml"
    if not path.is_file():
        return
    before = _flat(OmegaConf.create(yaml.safe_load(path.read_text())))
    now = _flat(cfg)
    different = [k for k in sorted({*before, *now}) if before.get(k) != now.get(k) and k not in MAY_DIFFER]
    if different:
        shown = [f"{k}: {before.get(k, 'not set')} there, {now.get(k, 'not set')} now" for k in different[:8]]
        more = f"; and {len(different) - 8} more" if len(different) > 8 else ""
        raise UserError(
            f"The output folder {path.parent} already holds a different run. {'; '.join(shown)}{more}. "
            "Give another --output-dir, or the configuration of that run to continue it."
        )


@dataclass(frozen=True)
class Claim:
    """Who trains in a folder, as its lock file says.

    process, host: where; job, attempt: the SLURM job and which start of it, as `dinov2.distributed.launch.Launch` says.
    checkpoint: the newest one when it came, -1 for none; fruitless: how many starts of the job before it, in a row, left none.
    """

    process: int
    host: str
    job: str = ""
    attempt: int = 0
    checkpoint: int = -1
    fruitless: int = 0

    def __str__(self) -> str:
        job = f" of job {self.job} (start {self.attempt})" if self.job else ""
        return f"process {self.process}{job} on {self.host}"

    def supersedes(self, other: "Claim | None") -> bool:
        """Whether this is a later start of the same job."""
        return other is not None and bool(self.job) and self.job == other.job and self.attempt > other.attempt


_claims: dict[Path, Claim] = {}
"""What this process holds, by folder."""


@contextmanager
def sole_owner(output_dir: Path, *, job: str = "", attempt: int = 0) -> Iterator[None]:
    """Hold the run folder for this process; raises `UserError` when another one trains in it, naming its process number.

    The lock is the operating system's: it goes with the process, however that ends. Not every file system shares it between
    machines, and a machine that SLURM has given up may go on for a while: a later start of the same job takes the folder over
    and the earlier one notices (`expect_ownership`).
    Raises `SupersededError` in a start that comes late, and `UserError` in one whose `MAX_FRUITLESS_STARTS` predecessors all
    ended before the next checkpoint: it would go round for ever.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    claim = Claim(os.getpid(), socket.gethostname(), job, attempt, _newest_checkpoint(output_dir))
    with _locked(output_dir, claim) as lock:
        claim = _after(_read_claim(lock), claim, output_dir)
        lock.truncate(0)
        lock.write(_as_text(claim))
        lock.flush()
        _claims[output_dir.absolute()] = claim
        try:
            yield
        finally:
            _claims.pop(output_dir.absolute(), None)
            # Closing the file is not enough while a loader worker still has it open.
            fcntl.flock(lock, fcntl.LOCK_UN)


def expect_ownership(output_dir: Path) -> None:
    """Raise `SupersededError` when this process held the folder and a later start of the run has taken it over.

    To be called before anything is written there under its final name; costs the reading of one small file.
    """
    mine = _claims.get(output_dir.absolute())
    if mine is None:
        return
    try:
        with (output_dir / _LOCK).open() as lock:
            now = _read_claim(lock)
    except FileNotFoundError:
        return
    if now is not None and now != mine:
        raise SupersededError(f"{now} has taken over {output_dir.name}: {mine} leaves and writes nothing more")


def is_free(output_dir: Path) -> bool:
    """Whether no process trains in the folder at this moment."""
    path = output_dir / _LOCK
    if not path.is_file():
        return True
    with path.open("a+") as lock:
        return _take(lock)


@contextmanager
def _locked(output_dir: Path, claim: Claim) -> Iterator[TextIO]:
    """The lock file, locked. Waits a little when its owner is gone: loader workers inherit the lock and notice later."""
    path = output_dir / _LOCK
    deadline = time.monotonic() + _WORKERS_LEAVE_WITHIN_S
    while True:
        with path.open("a+") as lock:
            if _take(lock):
                if path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                    yield lock
                    return
                continue  # it was replaced meanwhile
            owner = _read_claim(lock)
            if owner is not None and claim.supersedes(owner):
                logger.warning("taking %s over from %s, which SLURM has given up", output_dir.name, owner)
                _replace(path, owner)
            elif _lives(owner) or time.monotonic() > deadline:
                raise UserError(_occupied(owner, output_dir))
            else:
                time.sleep(0.1)


def _replace(path: Path, owner: Claim) -> None:
    """Put a lock file that nobody holds in the place of one whose owner cannot be waited for."""
    fresh = path.with_name(f"{_LOCK}.{os.getpid()}")
    fresh.write_text(_as_text(owner))
    fresh.replace(path)


def _after(before: Claim | None, claim: Claim, output_dir: Path) -> Claim:
    """The claim as it follows on the last one; raises when it must not be made."""
    if before is None or before.job != claim.job or not claim.job:
        return claim
    if before.supersedes(claim):
        raise SupersededError(f"{before} has taken over {output_dir.name}: {claim} comes too late")
    if not claim.supersedes(before) or claim.checkpoint != before.checkpoint:
        return claim
    fruitless = before.fruitless + 1
    if fruitless >= MAX_FRUITLESS_STARTS:
        raise UserError(
            f"Job {claim.job} was started {fruitless} times in a row without a new checkpoint, and would go round for ever. See "
            "in its log why the starts ended. If their time was too short, give more (--timeout), or an earlier warning "
            "(--signal-delay); if machines failed, save more often (train.checkpoint_period_iterations). Then submit it again: "
            f"it goes on from {f'checkpoint {claim.checkpoint}' if claim.checkpoint >= 0 else 'the beginning'}."
        )
    return replace(claim, fruitless=fruitless)


def _newest_checkpoint(output_dir: Path) -> int:
    return max((int(path.name) for path in output_dir.glob("checkpoints/*") if path.name.isdigit()), default=-1)


def _as_text(claim: Claim) -> str:
    return json.dumps(asdict(claim)) + "\n"


def _read_claim(lock: TextIO) -> Claim | None:
    lock.seek(0)
    try:
        return Claim(**json.loads(lock.read()))
    except (ValueError, TypeError):  # nobody's yet, or of an older version
        return None


def _occupied(owner: Claim | None, output_dir: Path) -> str:
    who, way = "Another process", ""
    if owner is not None:
        is_here = owner.host == socket.gethostname()
        who = f"Process {owner.process}{'' if is_here else f' on {owner.host}'}"
        way = f" ({'' if is_here else f'on {owner.host}: '}kill {owner.process})"
    return (
        f"{who} is already training in {output_dir}. Two runs in one folder "
        f"would overwrite each other: wait for it, stop it{way}, or give another --output-dir."
    )


def _lives(owner: Claim | None) -> bool:
    """Whether a process of this machine lives. Of another machine's nothing is known here."""
    if owner is None or owner.host != socket.gethostname():
        return False
    try:
        os.kill(owner.process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, and is another user's
        return True
    return True


def _take(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def keep_total_batch(cfg: DictConfig, *, world_size: int) -> list[str]:
    """Options that let another number of processes take the samples a step of the run in the output folder.

    For a job that SLURM started anew on other nodes, whose command line nobody could change. Empty where nothing must change.
    Raises `UserError` when that many samples cannot be shared evenly.
    """
    path = Path(cfg.train.output_dir) / "config.yaml"
    before = yaml.safe_load(path.read_text())["optim"] if path.is_file() else {}
    if not before.get("base_lr"):
        return []
    total = round(1024 * (before["lr"] / before["base_lr"]) ** 2)  # the scaling rule, backwards
    batch, n_accumulated = cfg.train.batch_size_per_gpu, cfg.train.gradient_accumulation_steps
    if total == batch * n_accumulated * world_size:
        return []
    if total % world_size:
        raise UserError(
            f"The run in {path.parent} takes {total} samples a step, which {world_size} processes cannot share evenly. Start it "
            "with a number of processes that divides it."
        )
    own = total // world_size
    fitting = max(size for size in range(1, batch + 1) if own % size == 0)
    return [f"train.batch_size_per_gpu={fitting}", f"train.gradient_accumulation_steps={own // fitting}"]


def set_aside_checkpoints(output_dir: Path) -> None:
    """Rename `checkpoints` so that a run that starts anew cannot overwrite what an earlier one has earned."""
    folder = output_dir / "checkpoints"
    if not folder.is_dir():
        return
    n = 1
    while (aside := output_dir / f"checkpoints.before_{n}").exists():
        n += 1
    folder.rename(aside)


def _flat(config: object, at: str = "") -> dict[str, object]:
    if not isinstance(config, DictConfig):
        plain = OmegaConf.to_container(config) if OmegaConf.is_config(config) else config
        return {at: plain}
    flat: dict[str, object] = {}
    for key in config:
        flat.update(_flat(config[key], f"{at}.{key}" if at else str(key)))
    return flat
