"""Event files that TensorBoard reads, written without the name of the machine or the number of the process.

Called by the train loop. The stock writers put both into the file's name; here it is
`events.out.tfevents.<seconds since 1970>.<count>`, and what is inside is only steps, times, tags and values.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dinov2 import distributed

_PREFIX = "events.out.tfevents."
_FORMAT = "brain.Event:2"
"""The version of the event format, which every file has to open with."""


class TensorBoardWriter:
    """Appends scalars and texts to an event file of its own in `folder`; on processes other than the main one, does nothing.

    Every call reaches the file before it returns, so that a kill loses nothing. Use as a context manager, or call `close`.
    """

    def __init__(self, folder: str | Path, *, start_iteration: int = 0) -> None:
        """start_iteration: the first step that this process will do. What earlier files hold of it and of later steps is marked
        as void, because a run that was killed between two checkpoints does those steps again.
        """
        self._file = None
        if not distributed.is_main_process():
            return
        from tensorboard.compat.proto.event_pb2 import (
            SessionLog,
        )  # half a second to import: not for the other processes
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._file = _next_path(folder).open("xb")
        self._records = RecordWriter(self._file)
        self._write(step=0, file_version=_FORMAT)
        # In the first file too: one of TensorBoard's two loaders takes the first mark of a folder for no restart.
        self._write(step=start_iteration, session_log=SessionLog(status=SessionLog.START))

    def add_scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """One point for each name, at this step; names with a slash are grouped by what stands before it."""
        if self._file is None or not values:
            return
        from tensorboard.compat.proto.summary_pb2 import Summary

        points = [Summary.Value(tag=name, simple_value=float(value)) for name, value in values.items()]
        self._write(step=iteration, summary=Summary(value=points))

    def add_text(self, tag: str, text: str, *, iteration: int = 0) -> None:
        """A text under TensorBoard's tab TEXT, where it is read as Markdown."""
        if self._file is None:
            return
        from tensorboard.plugins.text.summary import text_pb

        self._write(step=iteration, summary=text_pb(tag, text))

    def close(self) -> None:
        """Close the file; later calls of the other methods do nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> "TensorBoardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, **event: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), **event).SerializeToString())
        self._records.flush()


def _next_path(folder: Path) -> Path:
    """TensorBoard reads the files of a folder in the order of their names: the new one comes last, whatever the clock says."""
    stamps = [path.name.removeprefix(_PREFIX).split(".") for path in folder.glob(f"{_PREFIX}*")]
    latest = max((int(stamp[0]) for stamp in stamps if stamp[0].isdigit()), default=0)
    return folder / f"{_PREFIX}{max(int(time.time()), latest):010d}.{len(stamps):06d}"
