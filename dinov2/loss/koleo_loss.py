"""KoLeo: spreads the class tokens of a batch apart, against collapse. Called by the training room.

Source: Sablayrolles et al., arXiv 1806.03198 (the Kozachenko-Leonenko entropy estimator). Shape legend: B samples, D channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinov2 import distributed


class KoLeoLoss(nn.Module):
    """Minus the mean log distance of each normalised row to its nearest neighbour, officially within this process's batch."""

    def __init__(self, *, cast_to_fp32: bool = False, over_all_processes: bool = False) -> None:
        """cast_to_fp32: compute in fp32. Off is official: in half precision two equal rows then give an infinite loss.

        over_all_processes: search the neighbours among the rows of all processes, which must hold equally many.
        """
        super().__init__()
        self.pdist = nn.PairwiseDistance(2, eps=1e-8)
        self.cast_to_fp32 = cast_to_fp32
        self.over_all_processes = over_all_processes

    @torch.no_grad()
    def pairwise_NNs_inner(self, x: Tensor) -> Tensor:
        """[B, D] rows of length 1 -> [B] int64, the nearest other row. A single row is its own."""
        return _nearest_other(x, x, first_own=0)

    def forward(self, student_output: Tensor, eps: float = 1e-8) -> Tensor:
        """[B, D] -> a scalar, 0-d."""
        with torch.autocast(student_output.device.type, enabled=False):
            if self.cast_to_fp32:
                student_output = student_output.float()
            student_output = F.normalize(student_output, eps=eps, p=2, dim=-1)
            if self.over_all_processes:
                candidates = distributed.all_gather_with_gradient(student_output)
                first_own = distributed.get_global_rank() * len(student_output)
                neighbours = candidates[_nearest_other(student_output, candidates, first_own=first_own)]
            else:
                neighbours = student_output[self.pairwise_NNs_inner(student_output)]
            distances = self.pdist(student_output, neighbours)
            return -torch.log(distances + eps).mean()


@torch.no_grad()
def _nearest_other(x: Tensor, candidates: Tensor, *, first_own: int) -> Tensor:
    """[B, D] and [C, D], rows of length 1 -> [B] int64 into the candidates, among which row i of x stands at first_own + i."""
    similarity = x @ candidates.T
    similarity[:, first_own : first_own + len(x)].fill_diagonal_(-1)
    return similarity.argmax(dim=1)
