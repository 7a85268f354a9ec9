"""What a training leaves on disk: its state after every epoch, and in the end its scores. `finetune` calls it.

Every file appears under its name when it is whole. Any of them may be deleted at any time: what is missing is trained again.
"""

import contextlib
import json
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vet_extensions.evaluation.whole_files import whole_file


@dataclass(frozen=True)
class TuningFacts:
    """What one training cost and came to.

    epoch: the chosen one, counted from 1. train_loss: mean over its pass, each batch before its step. n_trainable: numbers
    trained inside the backbone, n_head: in the head, n_total: of backbone, adapters and head, frozen ones included. wall_s: of
    training and scoring, over all interruptions. peak_memory_bytes: of the CUDA device; on a CPU, of the whole process so far.
    """

    learning_rate: float
    epoch: int
    train_loss: float
    n_trainable: int
    n_head: int
    n_total: int
    wall_s: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Finished:
    """A training that is over. val: [n_val, L], test: [n_test, L] log-odds."""

    val: NDArray[np.float32]
    test: NDArray[np.float32]
    facts: TuningFacts

    def write(self, path: Path) -> None:
        """Keep it as .npz."""
        facts = json.dumps(asdict(self.facts))
        with whole_file(path) as partial, partial.open("wb") as file:
            np.savez(file, val=self.val, test=self.test, facts=np.array(facts))

    @classmethod
    def read(cls, path: Path) -> "Finished | None":
        """The kept one, None where there is none or it cannot be read."""
        unreadable = (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile)
        with contextlib.suppress(*unreadable), path.open("rb") as file, np.load(file) as stored:
            return cls(stored["val"], stored["test"], TuningFacts(**json.loads(str(stored["facts"]))))
        return None


def write_state(path: Path, state: dict[str, Any]) -> None:
    """A training's state, in tensors and plain values."""
    with whole_file(path) as partial:
        torch.save(state, partial)


def read_state(path: Path) -> dict[str, Any] | None:
    """The inverse of `write_state`, on the CPU; None where there is none or it was cut off."""
    with contextlib.suppress(OSError, RuntimeError, EOFError, zipfile.BadZipFile):
        return torch.load(path, map_location="cpu", weights_only=True)
    return None


def random_state(device: torch.device) -> dict[str, Any]:
    """Where torch's generators stand."""
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """The inverse of `random_state`."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """torch's generators start from a seed inside the block, and are afterwards where they were before it."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
