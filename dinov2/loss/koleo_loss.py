"""KoLeo: spreads the class tokens of a batch apart, against collapse. Called by the training room.

Source: Sablayrolles et al., arXiv 1806.03198 (the Kozachenko-Leonenko entropy estimator). Shape legend: B samples, D channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KoLeoLoss(nn.Module):
    """Minus the mean log distance of each normalised row to its nearest neighbour within this process's batch."""

    def __init__(self, *, cast_to_fp32: bool = False) -> None:
        """cast_to_fp32: compute in fp32. Off is official: in half precision two equal rows then give an infinite loss."""
        super().__init__()
        self.pdist = nn.PairwiseDistance(2, eps=1e-8)
        self.cast_to_fp32 = cast_to_fp32

    @torch.no_grad()
    def pairwise_NNs_inner(self, x: Tensor) -> Tensor:
        """[B, D] rows of length 1 -> [B] int64, the nearest other row. A single row is its own."""
        similarity = x @ x.T
        similarity.fill_diagonal_(-1)
        return similarity.argmax(dim=1)

    def forward(self, student_output: Tensor, eps: float = 1e-8) -> Tensor:
        """[B, D] -> a scalar, 0-d."""
        with torch.autocast(student_output.device.type, enabled=False):
            if self.cast_to_fp32:
                student_output = student_output.float()
            student_output = F.normalize(student_output, eps=eps, p=2, dim=-1)
            neighbours = student_output[self.pairwise_NNs_inner(student_output)]
            distances = self.pdist(student_output, neighbours)
            return -torch.log(distances + eps).mean()
