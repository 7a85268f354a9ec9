"""Trained backbones in formats that others load, each loaded again and compared with its source before it counts."""
