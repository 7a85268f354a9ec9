"""Shared by all tests: makes tests/factories.py importable and keeps torch, here and in child processes, to one thread."""

import os
import sys
from pathlib import Path

# Before any test module imports torch, which reads it once: tiny tensors lose more to the hand-over than they gain.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))
