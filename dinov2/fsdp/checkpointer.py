"""`FSDPCheckpointer` with the official interface, for code written against it; our own loop uses `dinov2.train.checkpoint`."""

import logging
from pathlib import Path
from typing import Any

from torch import nn

from dinov2 import distributed
from dinov2.fsdp.storage import TensorFolder
from dinov2.utils.errors import UserError

logger = logging.getLogger("dinov2")


def rankstr() -> str:
    """`rank_<global rank>`."""
    return f"rank_{distributed.get_global_rank()}"


class FSDPCheckpointer:
    """Saves and loads a model and objects with `state_dict`, as folders that any number of processes can read.

    Interface of the official class (a subclass of fvcore's Checkpointer); the files are those of `dinov2.fsdp.storage` instead
    of one pickle a process. All processes call every method.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, save_to_disk: bool | None = None, **checkpointables: Any
    ) -> None:
        """checkpointables: further objects whose `state_dict()` holds plain values and unsharded tensors, by name."""
        self.model = model
        self.save_dir = save_dir
        self.save_to_disk = True if save_to_disk is None else save_to_disk
        self.checkpointables = dict(checkpointables)

    def save(self, name: str, **kwargs: Any) -> None:
        """Write the folder `<save_dir>/<name>` and make it the last checkpoint. kwargs: further plain values to keep."""
        if not self.save_dir or not self.save_to_disk:
            return
        folder = TensorFolder(Path(self.save_dir) / name)
        folder.prepare()
        folder.write_tensors(self.model.state_dict())
        parts = {key: part.state_dict() for key, part in self.checkpointables.items()}
        folder.finish({"checkpointables": parts, "values": kwargs}, facts={})
        self.tag_last_checkpoint(name)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Read a folder into the model and the checkpointables (all of them unless named); returns the further values.

        An empty path loads nothing. Raises `UserError` for a damaged folder and for one of another model.
        """
        if not path:
            return {}
        folder = TensorFolder(path)
        fault = folder.fault()
        if fault is not None:
            raise UserError(f"The checkpoint {folder.folder.name} is not usable: {fault}. Use the one before it.")
        folder.read_tensors(self.model.state_dict())
        own = folder.read_own()
        if own is None:
            logger.warning("%s was written by fewer processes: only the model is loaded", folder.folder.name)
            return {}
        for key in self.checkpointables if checkpointables is None else checkpointables:
            self.checkpointables[key].load_state_dict(own["checkpointables"][key])
        return own["values"]

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """`load` the last checkpoint if there is one and `resume` asks for it, else `path`, model only."""
        if resume and self.has_checkpoint():
            return self.load(self.get_checkpoint_file())
        return self.load(path, checkpointables=[])

    def has_checkpoint(self) -> bool:
        """Whether a last checkpoint is noted."""
        return self._note().is_file()

    def get_checkpoint_file(self) -> str:
        """Path of the last checkpoint; empty where none is noted."""
        return str(Path(self.save_dir) / self._note().read_text().strip()) if self.has_checkpoint() else ""

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Note which checkpoint is the last one."""
        if distributed.is_main_process():
            self._note().write_text(last_filename_basename)
        distributed.barrier()

    def _note(self) -> Path:
        return Path(self.save_dir) / "last_checkpoint"
