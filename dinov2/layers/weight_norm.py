"""A weight-normalised linear layer with the state-dict keys of the released heads. Called by `DINOHead`.

torch.nn.utils.weight_norm warns that it will go, and its successor renames the keys; this keeps `weight_g` and `weight_v`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WeightNormLinear(nn.Module):
    """Linear layer without bias whose row k is g[k] * v[k] / |v[k]|. Source: Salimans and Kingma, arXiv 1602.07868.

    `weight_v` [out, in] starts as `nn.Linear`'s weight, `weight_g` [out, 1] at 1: rows start with length 1.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight_g = nn.Parameter(torch.empty(out_features, 1))
        self.weight_v = nn.Parameter(torch.empty(out_features, in_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.weight_v, a=math.sqrt(5))  # what nn.Linear does
        nn.init.ones_(self.weight_g)

    @property
    def weight(self) -> Tensor:
        """The normalised weight [out, in], by the fused kernel that torch's own parametrisation calls."""
        return torch._weight_norm(self.weight_v, self.weight_g, 0)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return F.linear(x, self.weight)
