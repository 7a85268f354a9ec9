"""Shared by all tests: finds tests/factories.py, keeps torch to one thread, gives every test the same random numbers."""

import os
import random
import signal
import sys
from pathlib import Path

import pytest

# Before any test module imports torch, which reads it once: tiny tensors lose more to the hand-over than they gain.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))


def pytest_configure() -> None:
    """A job that was started in the background, or by nohup, has SIGINT ignored, and so would every process that tests start and
    interrupt."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """A test that does not seed what it draws must not pass or fail by luck, or by the tests before it."""
    random.seed(0)
    if "torch" in sys.modules:  # tests of the rooms without torch must not pay for it
        sys.modules["torch"].manual_seed(0)
