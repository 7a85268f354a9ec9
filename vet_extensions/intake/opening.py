"""One item of a source, opened for a reader that does not trust it: its size is bounded, and every failure becomes a reason code.

`header` and `image` open each item with `opened` in the workers; `open_dicom` and `raster` read from what it gives.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from vet_extensions.intake.files import NotRegularError
from vet_extensions.intake.refusal import Refusal
from vet_extensions.intake.sources.base import Source
from vet_extensions.schema import RejectionCode as Code

_LONG_READ_BYTES = 2**16
"""Longer reads are compared with the file's end first; for short ones the look would cost more than the memory."""


class BoundedFile:
    """Reserves room only for bytes that are there: an element may announce 4 GiB in a file of a few bytes."""

    def __init__(self, file: BinaryIO, n_bytes: int) -> None:
        self.seek, self.tell = file.seek, file.tell
        self._read, self._n_bytes = file.read, n_bytes

    def read(self, size: int = -1, /) -> bytes:
        if size is not None and size > _LONG_READ_BYTES:
            size = min(size, max(0, self._n_bytes - self.tell()))
        return self._read(size)


@contextmanager
def opened(source: Source, key: str, *, max_bytes: int) -> Iterator[BoundedFile]:
    """The item's bytes. Errors that reading them raises inside the block are taken in too. Errors: Refusal."""
    try:
        with source.open(key) as file:
            n_bytes = file.seek(0, os.SEEK_END)
            if n_bytes > max_bytes:
                raise Refusal(Code.TOO_LARGE, f"the file has {n_bytes:,} bytes; at most {max_bytes:,} are read")
            file.seek(0)
            yield BoundedFile(file, n_bytes)
    except NotRegularError:
        raise Refusal(Code.NOT_A_REGULAR_FILE, "a link, pipe, socket or device") from None
    except FileNotFoundError:
        raise Refusal(Code.FILE_MISSING, "it was listed and is not there any more") from None
    except OSError as error:
        # The error's own text holds the path; its class does not.
        raise Refusal(Code.UNREADABLE, f"the file could not be read ({type(error).__name__})") from None
