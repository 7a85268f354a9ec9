"""Features with labels that follow from them, for the tests of probes."""

import numpy as np


def bank_and_queries(
    *, n_bank: int = 120, n_queries: int = 15, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bank features [n_bank, 6], bank labels [n_bank, 3] without unknowns, queries [n_queries, 6]."""
    generator = np.random.default_rng(seed)
    bank = generator.normal(size=(n_bank, 6)).astype(np.float32)
    labels = (bank[:, :3] + generator.normal(size=(n_bank, 3)) > 0.5).astype(np.int8)
    return bank, labels, generator.normal(size=(n_queries, 6)).astype(np.float32)
