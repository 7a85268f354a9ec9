"""What can be asked of the protocols that judge bags of slices: their names and settings. The suite's configuration holds it.

Nothing here trains, so that a suite can be checked before anything is computed; `pooling` does what is asked.
"""

from dataclasses import dataclass

from vet_extensions.errors import UserError

POOL_MEAN, POOL_MAX = "pool_mean", "pool_max"
POOL_ATTENTION, ABMIL, POOL_TRANSFORMER = "pool_attention", "abmil", "pool_transformer"
FIXED_POOLINGS = {POOL_MEAN: "mean", POOL_MAX: "max"}
"""Protocols that pool features before a linear probe -> how."""
LEARNED_POOLINGS = (POOL_ATTENTION, ABMIL, POOL_TRANSFORMER)
POOLING_PROTOCOLS = (*FIXED_POOLINGS, *LEARNED_POOLINGS)
POOLING_LEVEL = "study"
"""The level of a suite whose cases are bags."""

POSITIONS = ("relative", "none")


@dataclass(frozen=True)
class PoolingConfig:
    """How the learned poolings are trained, all alike; batch_size: bags.

    learning_rates: peaks of AdamW's rate, among which the validation split chooses. dropout: of what stands for the bag, and
    inside the transformer. width: inside the gate of `abmil` and of the transformer. n_layers, n_heads, positions: of the
    transformer; positions "none" where a study's images have no order, as radiographs. max_slices: evenly spaced ones of a
    longer bag are all that the learned poolings see of it; the mean and the maximum see all.
    """

    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    epochs: int = 20
    batch_size: int = 16
    weight_decay: float = 0.05
    dropout: float = 0.1
    width: int = 128
    n_layers: int = 2
    n_heads: int = 4
    positions: str = "relative"
    max_slices: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = [f"{name} is {getattr(self, name)}; it must be {rule}" for name, rule in self._broken_rules()]
        if wrong:
            raise UserError(f"Bags cannot be pooled as asked: {'; '.join(wrong)}.")

    def _broken_rules(self) -> list[tuple[str, str]]:
        """(key, what is allowed) of every value that is not allowed."""
        counts = ("epochs", "batch_size", "width", "n_layers", "n_heads", "max_slices")
        rules = {
            "learning_rates": (min(self.learning_rates, default=0) > 0, "numbers above 0"),
            **{name: (getattr(self, name) >= 1, "a whole number from 1 up") for name in counts},
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "dropout": (0 <= self.dropout < 1, "from 0 to below 1"),
            "positions": (self.positions in POSITIONS, " or ".join(POSITIONS)),
            "seed": (self.seed >= 0, "0 or more"),
        }
        if self.n_heads >= 1 and (self.width % 2 or self.width % self.n_heads):
            rules["width"] = (False, f"even, and a multiple of n_heads ({self.n_heads})")
        return [(name, rule) for name, (is_kept, rule) in rules.items() if not is_kept]
