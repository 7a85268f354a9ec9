"""The demo: phantom archive -> intake -> two pre-training arms -> evaluation -> export -> report."""

from vet_extensions.demo.run import run_demo

__all__ = ["run_demo"]
