"""A learned gain per channel on a residual branch, small at first. Source: CaiT, Touvron et al., arXiv 2103.17239."""

import torch
from torch import Tensor, nn


class LayerScale(nn.Module):
    """Multiply the last dimension by `gamma` [dim]."""

    def __init__(
        self,
        dim: int,
        init_values: float = 1e-5,
        inplace: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.inplace = inplace
        self.init_values = init_values
        self.gamma = nn.Parameter(torch.empty(dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill `gamma` with the first value; also what a model built on the meta device calls once it has memory."""
        nn.init.constant_(self.gamma, self.init_values)

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(self.gamma) if self.inplace else x * self.gamma
