"""Stochastic depth per sample: a residual branch is dropped whole. Source: Huang et al., arXiv 1603.09382."""

from torch import Tensor, nn


def drop_path(x: Tensor, drop_prob: float = 0.0, training: bool = False) -> Tensor:
    """Zero each sample (first dimension) with probability `drop_prob` and divide the others by the probability of staying."""
    if drop_prob == 0.0 or not training:
        return x
    keep_prob = 1 - drop_prob
    keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep_prob)
    if keep_prob > 0.0:
        keep.div_(keep_prob)
    return x * keep


class DropPath(nn.Module):
    """`drop_path` as a module; drops only while training."""

    def __init__(self, drop_prob: float | None = None) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        return drop_path(x, self.drop_prob or 0.0, self.training)
