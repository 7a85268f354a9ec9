"""Arrays that all processes of a machine share: written once beside an intake folder, memory-mapped by everyone who needs them.

Five million images need a place in the shards, a row and a view each. As `.npy` files in OUT/.cache these pages exist once,
whether the workers are forked or spawned, and a process that maps them reads nothing until it looks. The cache holds no
identifier, is never needed (without it the arrays are computed again) and may be deleted at any time. Used by the shard
reader, the study data set and the near-duplicate search.
"""

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

logger = logging.getLogger("vet_extensions")

CACHE_NAME = ".cache"
MIN_BYTES = 2**20
"""Smaller sets of arrays are kept in memory: nothing is won by sharing them, and a small folder stays as it was."""


def cache_key(*parts: object) -> str:
    """16 hexadecimal digits that stand for what the arrays were made from."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]


def mapped_arrays(
    root: Path, kind: str, *, key: str, make: Callable[[], Mapping[str, np.ndarray]], min_bytes: int = MIN_BYTES
) -> dict[str, np.ndarray]:
    """The arrays that `make` returns, from OUT/.cache/<kind>-<key> if they are there, read-only.

    They are written whole under a temporary name and renamed, so that two processes may start at once. Where nothing can be
    written (a read-only folder, a full disk) they are ordinary arrays of this process, which forked workers share and
    spawned workers make again.
    """
    folder = Path(root) / CACHE_NAME / f"{kind}-{key}"
    found = _load(folder)
    if found is not None:
        return found
    arrays = {name: np.ascontiguousarray(array) for name, array in make().items()}
    if sum(array.nbytes for array in arrays.values()) < min_bytes:
        return arrays
    try:
        _save(folder, arrays)
    except OSError as error:
        logger.debug("The cache of %s was not written by this process: %s", kind, error.strerror)
    found = _load(folder)  # perhaps another process was faster
    if found is None:
        logger.info("The cache of %s cannot be written; each process keeps its own copy.", kind)
    return arrays if found is None else found


def _load(folder: Path) -> dict[str, np.ndarray] | None:
    """None if it is not there, or not whole."""
    try:
        names = (folder / "names").read_text(encoding="utf-8").split()
        return {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}
    except (OSError, ValueError, EOFError):
        return None


def _save(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    folder.parent.mkdir(exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}.", suffix=".tmp"))
    try:
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array, allow_pickle=False)
        (temporary / "names").write_text("\n".join(arrays), encoding="utf-8")
        temporary.chmod(0o755)
        if folder.exists() and _load(folder) is None:  # damaged: a whole one takes its place
            shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
