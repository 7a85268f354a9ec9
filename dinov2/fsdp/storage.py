"""A folder of named tensors that is either whole or not there, whatever kills the writing; called by the checkpointers.

    <folder>/__0_0.distcp, ..., .metadata    the tensors, by torch.distributed.checkpoint: any number of processes can read them
    <folder>/rank_0.pth, ...                 what belongs to one process (random states)
    <folder>/meta.json                       what it is, in words, and the size and SHA-256 of every other file

Everything is written under a temporary name, flushed to disk, and renamed. torch itself notices neither a flipped bit nor a
hostile pickle: a folder is read only after its hashes held, and nothing but tensors and plain values is unpickled.
"""

import hashlib
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from dinov2 import distributed
from dinov2.utils.errors import UserError
from dinov2.utils.files import file_sha256

FORMAT_VERSION = 2
META = "meta.json"

_SAFE_NAMES = {
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath"},
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "_MEM_FORMAT_ENCODING",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
    },
}
"""What the list of tensors is made of. Whole modules would let a pickle reach what they import."""


class TensorFolder:
    """Writes and reads one folder. With several processes every method is called by all of them, unless it says otherwise."""

    def __init__(
        self,
        folder: str | Path,
        *,
        group: dist.ProcessGroup | None = None,
        before_naming: Callable[[], None] = lambda: None,
    ) -> None:
        """
        group: the processes' own channel, for writing beside a training that uses the default one. before_naming: called by the
            main process when all is written; what it raises keeps the folder from getting its name.
        """
        self.folder = Path(folder)
        self._group = group
        self._before_naming = before_naming
        self._alone = distributed.get_global_size() == 1
        self._rank = distributed.get_global_rank()

    @property
    def _partial(self) -> Path:
        return self.folder.with_name(f".{self.folder.name}.partial")

    def prepare(self) -> None:
        """Make room for writing: what an interrupted attempt left goes away."""
        self._together(self._make_partial)

    def _make_partial(self) -> None:
        if self._rank == 0:
            shutil.rmtree(self._partial, ignore_errors=True)
            self._partial.mkdir(parents=True)

    def write_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """The tensors, each process its shards; of tensors that all hold, each a part."""
        _expect_one_process()
        dcp.save(dict(tensors), storage_writer=self._writer(), process_group=self._group, no_dist=self._alone)

    def start_writing_tensors(self, tensors: Mapping[str, Tensor]) -> Future[Any]:
        """The same from a copy in main memory, in a thread of its own; needs a group of its own among several processes."""
        _expect_one_process()
        written: Any = dcp.async_save(
            dict(tensors), storage_writer=self._writer(), process_group=self._group, no_dist=self._alone
        )
        return written

    def _writer(self) -> dcp.FileSystemWriter:
        return dcp.FileSystemWriter(self._partial, sync_files=True)

    def finish(self, own: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Write this process's own values and the hashes of everything, and give the folder its name.

        own: tensors and plain values, loadable with `weights_only=True`. facts: readable entries of meta.json.
        """
        everyones = self._together(lambda: self._write_own(own))
        self._together(lambda: self._name_the_folder(facts, everyones))

    def _write_own(self, own: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Returns size and hash of every file that this process wrote."""
        torch.save(dict(own), self._partial / f"rank_{self._rank}.pth")
        mine = [self._partial / f"rank_{self._rank}.pth", *self._partial.glob(f"__{self._rank}_*.distcp")]
        if self._rank == 0:
            mine.append(self._partial / ".metadata")
        files = {}
        for path in mine:
            flush(path)
            files[path.name] = {"size_bytes": path.stat().st_size, "sha256": file_sha256(path)}
        return files

    def _name_the_folder(self, facts: Mapping[str, Any], everyones: list[dict[str, Any]]) -> None:
        if self._rank != 0:
            return
        meta = {
            "format_version": FORMAT_VERSION,
            **facts,
            "world_size": len(everyones),
            "files": {name: fact for part in everyones for name, fact in sorted(part.items())},
        }
        meta["sha256"] = _digest(meta)
        (self._partial / META).write_text(json.dumps(meta, indent=2) + "\n")
        flush(self._partial / META)
        flush(self._partial)
        self._before_naming()
        if self.folder.exists():
            shutil.rmtree(self.folder)  # an earlier run of the same step; its replacement is whole and flushed
        self._partial.rename(self.folder)
        flush(self.folder.parent)

    def fault(self) -> str | None:
        """What is wrong with the folder, or None; the processes share the hashing of its files and get the same answer."""
        faults = [fault for fault in self._gathered(self._own_fault()) if fault]
        return faults[0] if faults else None

    def _own_fault(self) -> str | None:
        try:
            meta = read_meta(self.folder)
            version = meta["format_version"]
            if version != FORMAT_VERSION:
                return f"format version {version}, this code reads {FORMAT_VERSION}"
            if meta["sha256"] != _digest(meta):
                return f"the SHA-256 of {META} differs from the one written"
            files = meta["files"]
            for number, (name, wanted) in enumerate(sorted(files.items())):
                path = self.folder / Path(name).name
                if not path.is_file():
                    return f"{name} is missing"
                if path.stat().st_size != wanted["size_bytes"]:
                    return f"{name} has {path.stat().st_size} bytes, {wanted['size_bytes']} were written"
                if number % distributed.get_global_size() == self._rank and file_sha256(path) != wanted["sha256"]:
                    return f"the SHA-256 of {name} differs from the one written"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{META} is missing or unreadable: {type(error).__name__}"
        return None

    def names(self) -> list[str]:
        """Names of the stored tensors."""
        return list(_SafeReader(self.folder).read_metadata().state_dict_metadata)

    def read_tensors(self, into: Mapping[str, Tensor]) -> None:
        """Fill tensors, sharded or not, with the stored ones of their names; raises `UserError` where names or shapes differ."""
        stored = _SafeReader(self.folder).read_metadata().state_dict_metadata
        missing = [name for name in into if name not in stored]
        wrong = [
            f"{name} {tuple(stored[name].size)} for {tuple(tensor.shape)}"  # pyright: ignore[reportAttributeAccessIssue]
            for name, tensor in into.items()
            if name in stored and stored[name].size != tensor.shape  # pyright: ignore[reportAttributeAccessIssue]
        ]
        if missing or wrong:
            raise UserError(
                f"The checkpoint {self.folder.name} is of another model: {len(missing)} of {len(into)} tensors are missing "
                f"({', '.join(missing[:3]) or 'none'}), {len(wrong)} have another shape ({'; '.join(wrong[:3]) or 'none'}). "
                "Use the configuration that the run was started with, or another output folder."
            )
        _expect_one_process()
        dcp.load(dict(into), storage_reader=_SafeReader(self.folder), process_group=self._group, no_dist=self._alone)

    def read_own(self) -> dict[str, Any] | None:
        """What this process wrote of its own; None where no process had its rank."""
        path = self.folder / f"rank_{self._rank}.pth"
        return torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else None

    def _together(self, function: Callable[[], Any]) -> list[Any]:
        """The results of all processes; where one cannot write, all get the OSError, and none waits for it."""
        result, fault = None, ""
        try:
            result = function()
        except (OSError, RuntimeError) as error:
            fault = f"{type(error).__name__}: {error}"
        everyones = self._gathered((result, fault))
        for rank, (_, its_fault) in enumerate(everyones):
            if its_fault:
                raise OSError(f"process {rank}: {its_fault}")
        return [its_result for its_result, _ in everyones]

    def _gathered(self, value: Any) -> list[Any]:
        if self._alone:
            return [value]
        values: list[Any] = [None] * distributed.get_global_size()
        dist.all_gather_object(values, value, group=self._group)
        return values


class _SafeReader(dcp.FileSystemReader):
    """Reads the list of tensors without running what a hostile one would make pickle run, and refuses anything but tensors.

    torch itself would unpickle the list, and any entry of it that is no tensor, without a check.
    """

    def read_metadata(self, *_args: Any, **_kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata = _MetadataUnpickler(file).load()
        if getattr(metadata, "storage_meta", None) is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or name in _SAFE_NAMES.get(module, ()):
            return super().find_class(module, name)
        raise UserError(
            f"The checkpoint's list of tensors asks for {module}.{name}, which no checkpoint of ours holds. It was not read."
        )


def read_meta(folder: Path) -> dict[str, Any]:
    """The readable facts of a folder; raises OSError or ValueError where there are none."""
    return json.loads((folder / META).read_text())


def _digest(meta: Mapping[str, Any]) -> str:
    """SHA-256 over the facts of meta.json but the digest itself."""
    text = json.dumps({key: value for key, value in meta.items() if key != "sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _expect_one_process() -> None:
    """torch warns that it takes a run without a process group for one process, which is what it is. Its threads warn too."""
    warnings.filterwarnings("ignore", message=".*torch.distributed is disabled")


def flush(path: Path) -> None:
    """Make sure that a file or the entries of a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
