"""Checkpoint folders that are either whole or not there; used by the train loop.

    checkpoints/0000499/state.pth     everything an exact resume needs: model, optimizer, scaler, loss centres, RNG states
    checkpoints/0000499/meta.json     what it is, in words; size and SHA-256 of state.pth

A folder is written under a temporary name, flushed to disk and renamed. On start the newest folder whose hash holds is used;
a damaged one is named in the log and the one before it taken.
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dinov2.utils.files import file_sha256

logger = logging.getLogger("dinov2")

FORMAT_VERSION = 1
_STATE, _META = "state.pth", "meta.json"


class Checkpointer:
    """Saves and finds the checkpoints of one run."""

    def __init__(self, folder: str | Path, *, keep: int = 3) -> None:
        """folder: `<output_dir>/checkpoints`; keep: how many of the newest ones stay."""
        self.folder = Path(folder)
        self.keep = max(keep, 1)

    def save(self, state: Mapping[str, Any], *, iteration: int, facts: Mapping[str, Any] | None = None) -> Path:
        """Write the state after `iteration` (0-based index of the last finished step); older ones beyond `keep` go.

        facts: readable entries for meta.json. The state may hold tensors and plain Python values only, so that it can be
        loaded with `weights_only=True`.
        """
        final = self.folder / f"{iteration:07d}"
        temporary = self.folder / f".{iteration:07d}.partial"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        torch.save(dict(state), temporary / _STATE)
        meta = {
            "format_version": FORMAT_VERSION,
            "iteration": iteration,
            "size_bytes": (temporary / _STATE).stat().st_size,
            "sha256": file_sha256(temporary / _STATE),
            **(facts or {}),
        }
        (temporary / _META).write_text(json.dumps(meta, indent=2) + "\n")
        for name in (_STATE, _META):
            _flush(temporary / name)
        if final.exists():
            shutil.rmtree(final)  # an earlier run of the same step; its replacement is whole and flushed
        temporary.rename(final)
        _flush(self.folder)
        for old in self.iterations()[: -self.keep]:
            shutil.rmtree(self.folder / f"{old:07d}")
        return final

    def iterations(self) -> list[int]:
        """Iterations of all finished checkpoint folders, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if p.is_dir() and p.name.isdigit())

    def load_newest(self, map_location: torch.device | str = "cpu") -> dict[str, Any] | None:
        """The state of the newest whole checkpoint with its `iteration`, or None when there is none."""
        for iteration in reversed(self.iterations()):
            folder = self.folder / f"{iteration:07d}"
            fault = self.fault(folder)
            if fault is None:
                state = torch.load(folder / _STATE, map_location=map_location, weights_only=True)
                return {**state, "iteration": iteration}
            logger.warning("checkpoint %s is not usable (%s); trying the one before it", folder.name, fault)
        return None

    @staticmethod
    def fault(folder: Path) -> str | None:
        """What is wrong with a checkpoint folder, or None. torch.load itself does not notice flipped bits."""
        try:
            meta = json.loads((folder / _META).read_text())
            size, digest, version = meta["size_bytes"], meta["sha256"], meta["format_version"]
            if version != FORMAT_VERSION:
                return f"format version {version}, this code reads {FORMAT_VERSION}"
            found = (folder / _STATE).stat().st_size
        except (OSError, ValueError, KeyError) as error:
            return f"{_META} or {_STATE} is missing or unreadable: {type(error).__name__}"
        if found != size:
            return f"{_STATE} has {found} bytes, {size} were written"
        if file_sha256(folder / _STATE) != digest:
            return f"the SHA-256 of {_STATE} differs from the one written"
        return None


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
