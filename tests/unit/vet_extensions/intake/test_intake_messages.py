"""The error stream while a decoder runs: caught, read for damage, and given back."""

import os
from pathlib import Path

import pytest

from vet_extensions.intake.messages import catch_messages, tell_of_damage

OPEN_FILES = Path("/proc/self/fd")


def test_what_native_code_writes_is_caught_and_the_stream_given_back(capfd: pytest.CaptureFixture[str]) -> None:
    with catch_messages() as heard:
        os.write(2, b"inside")
        assert heard() == b"inside"
    os.write(2, b"outside")
    assert capfd.readouterr().err == "outside"


def test_the_stream_is_given_back_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    n_open = len(list(OPEN_FILES.iterdir()))
    with pytest.raises(ValueError, match="bad"), catch_messages():
        raise ValueError("bad")
    os.write(2, b"outside")
    assert capfd.readouterr().err == "outside"
    assert len(list(OPEN_FILES.iterdir())) == n_open


@pytest.mark.parametrize(
    ("message", "is_damage"),
    [
        (b"Corrupt JPEG data: bad Huffman code\n", True),
        (b"something else\nCorrupt JPEG data: premature end of data segment\n", True),
        (b"Corrupt JPEG data: 12 extraneous bytes before marker 0xd9\n", False),
        (b"", False),
    ],
)
def test_only_lost_pixels_are_damage(message: bytes, is_damage: bool) -> None:
    assert tell_of_damage(message) is is_damage
