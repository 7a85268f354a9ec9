"""Checkpoints of a linear probe in its output folder, with the official file names; used by `dinov2.eval.linear`.

    running_checkpoint_linear_eval.pth     after every epoch, overwritten
    model_0024999.pth, model_final.pth     every few epochs, and the end
    last_checkpoint                        name of the newest one

The main process writes; all processes read. Each file holds `model` (keys `classifiers_dict.<head>.linear.{weight,bias}`),
`optimizer`, `scheduler`, `iteration` (the last finished step, from 0), and `probe`: what was trained on what, so that the heads
of another backbone are never taken for those of this one.
"""

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dinov2 import distributed
from dinov2.eval.linear_heads import remove_ddp_wrapper
from dinov2.utils.errors import UserError
from dinov2.utils.utils import read_checkpoint

logger = logging.getLogger("dinov2")

LAST = "last_checkpoint"


class ProbeCheckpointer:
    """Saves and resumes the heads, the optimiser and the schedule of one probe."""

    def __init__(
        self,
        folder: str | Path,
        *,
        heads: nn.Module,
        optimizer: Optimizer,
        scheduler: LRScheduler,
        probe: Mapping[str, str | int] | None = None,
    ) -> None:
        """probe: facts that a checkpoint must agree with to be resumed; None, and a file without any, agree with all."""
        self.folder = Path(folder)
        self._parts = {"model": remove_ddp_wrapper(heads), "optimizer": optimizer, "scheduler": scheduler}
        self._probe = dict(probe or {})

    def save(self, name: str, *, iteration: int) -> Path:
        """Write `<name>.pth` after `iteration` and make it the last checkpoint; an interruption leaves the old file whole.

        All processes call it, and go on when it is written.
        """
        path = self.folder / f"{name}.pth"
        if distributed.is_main_process():
            self._write(path, iteration=iteration)
        distributed.barrier()
        return path

    def _write(self, path: Path, *, iteration: int) -> None:
        state = {key: part.state_dict() for key, part in self._parts.items()}
        temporary = self.folder / f".{path.name}.partial"
        with temporary.open("wb") as file:
            torch.save({**state, "iteration": iteration, "probe": self._probe}, file)
            _to_disk(file)
        temporary.replace(path)
        pointer = self.folder / f".{LAST}.partial"
        with pointer.open("w", encoding="utf-8") as file:
            file.write(path.name)
            _to_disk(file)
        pointer.replace(self.folder / LAST)
        logger.info("saved %s after iteration %d", path.name, iteration)

    def resume_or_load(self, path: str | Path | None, *, resume: bool) -> int:
        """Load the folder's last checkpoint if `resume` and there is one, else the file `path`, if given; the next iteration.

        A file without `iteration` starts the training at 0 with its heads. Raises `UserError` for heads that do not fit.
        """
        last = self.folder / LAST
        if resume and last.is_file():
            path = self.folder / Path(last.read_text(encoding="utf-8").strip()).name
        # The main process's answer, for a shared folder may show the others an older one.
        path = distributed.broadcast_object(path)
        if not path:
            return 0
        state = read_checkpoint(path)
        self._check(state, name=Path(path).name)
        try:
            for key, part in self._parts.items():
                if key in state:
                    part.load_state_dict(state[key])
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(
                f"The checkpoint {Path(path).name} has other heads than this evaluation trains: {str(error).splitlines()[0]} "
                "Give the same learning rates, batch size and data set, another --output-dir, or --no-resume to begin anew."
            ) from error
        distributed.barrier()  # nobody writes before all have read
        iteration = int(state.get("iteration", -1))
        logger.info("loaded %s, iteration %d", Path(path).name, iteration)
        return iteration + 1

    def _check(self, state: Mapping[str, Any], *, name: str) -> None:
        if "model" not in state:
            raise UserError(f"{name} holds no 'model'. Wanted: a checkpoint that a linear evaluation wrote.")
        found = state.get("probe", {})
        differing = [key for key, value in self._probe.items() if key in found and found[key] != value]
        if differing:
            raise UserError(
                f"The checkpoint {name} belongs to another linear evaluation: it differs in {', '.join(differing)}. Give the "
                "options and weights it was made with, another --output-dir, or --no-resume to begin anew in this one."
            )


def fingerprint(model: nn.Module) -> str:
    """Sixteen hexadecimal digits that depend on every weight of a model and on nothing else."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
