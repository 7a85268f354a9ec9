"""Logging set-up and metric meters, with the official names, files and line layout."""

from dinov2.logging.helpers import MetricLogger, SmoothedValue
from dinov2.logging.setup import setup_logging

__all__ = ["MetricLogger", "SmoothedValue", "setup_logging"]
