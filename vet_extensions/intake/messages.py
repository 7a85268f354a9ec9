"""What native decoders write to the error stream: kept off the user's terminal, and read for what they do not say otherwise.

`decode` wraps each call of a decoder. libjpeg paints over damage inside a stream and returns a picture; only a message tells.
Other messages, a Rust panic's stack for one, would flood a terminal and may quote a file.
"""

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LONGEST_BYTES = 2**16

_DAMAGE = re.compile(
    rb"Corrupt JPEG data: (bad Huffman code|premature end|found marker)|Premature end of JPEG|Invalid JPEG file structure"
)
"""libjpeg's warnings of lost pixels (its jerror.h). Others, as of surplus bytes before a marker, are harmless."""


@contextmanager
def catch_messages() -> Iterator[Callable[[], bytes]]:
    """Inside, file descriptor 2 leads to a nameless file. Gives a function that returns what was written there so far.

    The whole process is meant, so that other threads' messages are caught too for this while.
    """
    with tempfile.TemporaryFile() as caught:
        sys.stderr.flush()
        terminal = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            yield lambda: os.pread(caught.fileno(), _LONGEST_BYTES, 0)
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def tell_of_damage(messages: bytes) -> bool:
    """Whether a decoder said that it made up pixels."""
    return _DAMAGE.search(messages) is not None
