"""The checkpoints of a run: `checkpoints/<iteration>/`, each whole or not there; used by the train loop.

A folder holds everything that an exact resume needs, and its tensors can be read by any number of processes (layout and
guarantees: `dinov2.fsdp.storage`). On start the newest folder whose hashes hold is used; a damaged one is named in the log
and the one before it taken.
"""

import logging
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from dinov2 import distributed
from dinov2.fsdp.storage import TensorFolder, read_meta
from dinov2.train.run_folder import expect_ownership
from dinov2.utils.errors import UserError

logger = logging.getLogger("dinov2")


@dataclass(frozen=True)
class TrainingState:
    """What a checkpoint holds.

    tensors: by name, those that all processes share or have shards of; own: of this process (random states), tensors and plain
    values; facts: readable entries of meta.json.
    """

    tensors: Mapping[str, Tensor]
    own: Mapping[str, Any]
    facts: Mapping[str, Any]


class Checkpointer:
    """Saves and finds the checkpoints of one run. All processes of the run call every method."""

    def __init__(self, folder: str | Path, *, keep: int = 3, in_background: bool = False) -> None:
        """folder: `<output_dir>/checkpoints`; keep: how many of the newest ones stay.

        in_background: `save` returns as soon as the state is copied to main memory; files are written beside the training.
        """
        self.folder = Path(folder)
        self.keep = max(keep, 1)
        self._writing: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._in_background = in_background
        # On the default group the writer's collectives would mix with those of the training.
        own_group = in_background and distributed.get_global_size() > 1
        self._group: Any = dist.new_group(backend="gloo") if own_group else None

    def save(self, state: TrainingState, *, iteration: int) -> Path:
        """Write the state after `iteration` (0-based index of the last finished step); older ones beyond `keep` go."""
        self.wait()
        expect_ownership(self.folder.parent)
        folder = TensorFolder(
            self.folder / f"{iteration:07d}",
            group=self._group,
            before_naming=lambda: expect_ownership(self.folder.parent),
        )
        facts = {"iteration": iteration, **state.facts}
        with self._explained(folder):
            folder.prepare()
            if not self._in_background:
                folder.write_tensors(state.tensors)
                self._finish(folder, state.own, facts)
                return folder.folder
            written = folder.start_writing_tensors(state.tensors)

        def finish() -> None:
            try:
                with self._explained(folder):
                    written.result()
                    self._finish(folder, state.own, facts)
            except BaseException as error:  # raised again by wait(), in the training's own thread
                self._failure = error

        self._writing = threading.Thread(target=finish, name="checkpoint")
        self._writing.start()
        return folder.folder

    def _finish(self, folder: TensorFolder, own: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        folder.finish(own, facts)
        if not distributed.is_main_process():
            return
        # Damaged folders after this one must not push out the good ones before it.
        finished = [i for i in self.iterations() if i <= facts["iteration"]]
        for old in finished[: -self.keep]:
            shutil.rmtree(self.folder / f"{old:07d}")
        for left_by_a_kill in self.folder.glob(".*.partial"):
            shutil.rmtree(left_by_a_kill)

    @contextmanager
    def _explained(self, folder: TensorFolder) -> Iterator[None]:
        """A full disk or a folder that cannot be written, as a sentence that says what is left and what to do."""
        try:
            yield
        except (OSError, RuntimeError, CheckpointException) as error:
            raise UserError(
                f"The checkpoint {folder.folder.name} could not be written: {_first_cause(error)}. See that the disk of "
                f"{self.folder} has room and can be written to. {self.describe_newest()}"
            ) from error

    def wait(self) -> None:
        """Return when nothing is being written any more; raises what went wrong while writing."""
        if self._writing is not None:
            self._writing.join()
            self._writing = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def iterations(self) -> list[int]:
        """Iterations of all finished checkpoint folders, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if p.is_dir() and p.name.isdigit())

    def describe_newest(self) -> str:
        """A sentence for messages: which checkpoint a run would go on from."""
        iterations = self.iterations()
        if not iterations:
            return "There is no checkpoint yet."
        return f"The last good checkpoint is {self.folder.name}/{iterations[-1]:07d}; the same command goes on from it."

    def find_newest(self) -> "StoredCheckpoint | None":
        """The newest whole checkpoint, or None when there is none yet; damaged ones are named in the log.

        Raises `UserError` when there are checkpoints and all are damaged: the run must not start from the beginning unasked.
        """
        faults = []
        for iteration in reversed(distributed.broadcast_object(self.iterations())):
            folder = TensorFolder(self.folder / f"{iteration:07d}")
            fault = folder.fault()
            if fault is None:
                return StoredCheckpoint(folder)
            logger.warning("checkpoint %s is not usable (%s); trying the one before it", folder.folder.name, fault)
            faults.append(f"{folder.folder.name}: {fault}")
        if faults:
            raise UserError(
                f"No checkpoint in {self.folder} is usable. {'; '.join(faults)}. Put a whole one there from a copy, or start "
                "anew with --no-resume, which sets these aside."
            )
        return None


def _first_cause(error: BaseException) -> str:
    """What went wrong in one process, in a line.

    torch gathers the failures of all with their tracebacks, and its writer covers the error of the disk by one of its own.
    """
    while isinstance(error, CheckpointException) and error.failures:
        failure: Any = next(iter(error.failures.values()))
        error = failure[0]
    chain = [error]
    while (below := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(below)
    shown = next((link for link in chain if isinstance(link, OSError)), error)
    return f"{type(shown).__name__}: {shown}"


class StoredCheckpoint:
    """A whole checkpoint on disk."""

    def __init__(self, folder: TensorFolder) -> None:
        self._folder = folder
        self.facts: dict[str, Any] = read_meta(folder.folder)
        self.iteration: int = self.facts["iteration"]

    @property
    def name(self) -> str:
        return self._folder.folder.name

    def names(self) -> list[str]:
        """Names of the stored tensors."""
        return self._folder.names()

    def read_tensors(self, into: Mapping[str, Tensor]) -> None:
        """Fill these tensors with the stored ones of the same names; raises `UserError` where names or shapes differ."""
        self._folder.read_tensors(into)

    def read_own(self) -> dict[str, Any] | None:
        """What the process of this rank wrote of its own; None when the run had another number of processes."""
        if self.facts["world_size"] != distributed.get_global_size():
            return None
        return self._folder.read_own()
