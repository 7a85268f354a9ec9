"""The output folder of a run: whose it is, and how an old run in it is treated."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import yaml
from omegaconf import DictConfig, OmegaConf

from dinov2.utils.errors import UserError

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


@contextmanager
def sole_owner(output_dir: Path) -> Iterator[None]:
    """Hold the run folder for this process; raises `UserError` when another one trains in it, naming its process number.

    The lock is the operating system's: it goes with the process, however that ends.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    with (output_dir / _LOCK).open("a+") as lock:
        if not _take_from_the_dead(lock):
            owner = _owner(lock) or "unknown"
            raise UserError(
                f"Process {owner} is already training in {output_dir}. Two runs in one folder would overwrite each other: wait "
                f"for it, stop it (kill {owner}), or give another --output-dir."
            )
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        try:
            yield
        finally:
            # Closing the file is not enough while a loader worker still has it open.
            fcntl.flock(lock, fcntl.LOCK_UN)


def is_free(output_dir: Path) -> bool:
    """Whether no process trains in the folder at this moment."""
    path = output_dir / _LOCK
    if not path.is_file():
        return True
    with path.open("a+") as lock:
        return _take(lock)


def _take_from_the_dead(lock: TextIO) -> bool:
    """Take the lock, waiting a little when its owner is gone: data-loader workers inherit it and notice a kill seconds later."""
    deadline = time.monotonic() + _WORKERS_LEAVE_WITHIN_S
    while not _take(lock):
        if _lives(_owner(lock)) or time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _owner(lock: TextIO) -> str:
    lock.seek(0)
    return lock.read().strip()


def _lives(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
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
