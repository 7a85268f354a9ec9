"""The DINO loss: cross-entropy between the prototype distributions of class tokens. Called by the training room.

Shape legend: S student crops, T teacher crops, B samples, K prototypes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dinov2.loss.centering import CenteredLoss
from dinov2.loss.sinkhorn import sinkhorn_knopp


def cross_entropy_matrix(student: Tensor, teacher: Tensor, *, student_temp: float = 0.1) -> Tensor:
    """Cross-entropy of every student crop against every teacher crop, in fp32 also under autocast.

    student: [S, B, K] prototype logits        teacher: [T, B, K] probabilities
    returns: [S, T, B], entry (s, t, b) = -sum_k teacher[t, b, k] * log_softmax(student[s, b] / student_temp)[k]
    Source: DINO (arXiv 2104.14294), eq. 2; which entries count, and how much, is the routing's business.
    """
    with torch.autocast(student.device.type, enabled=False):
        log_p = F.log_softmax(student.float() / student_temp, dim=-1)
        return -torch.einsum("sbk,tbk->stb", log_p, teacher.float())


class DINOLoss(CenteredLoss):
    """Official class-token loss and the two ways to turn teacher logits into targets."""

    def __init__(
        self,
        out_dim: int,
        student_temp: float = 0.1,
        center_momentum: float = 0.9,
        *,
        sinkhorn_subtract_max: bool = False,
    ) -> None:
        """out_dim: prototypes. sinkhorn_subtract_max: see `sinkhorn_knopp`; off is the official arithmetic."""
        super().__init__(torch.zeros(1, out_dim), student_temp=student_temp, center_momentum=center_momentum)
        self.sinkhorn_subtract_max = sinkhorn_subtract_max

    def forward(
        self, student_output_list: Sequence[Tensor], teacher_out_softmaxed_centered_list: Sequence[Tensor]
    ) -> Tensor:
        """Sum over all (student, teacher) pairs of the batch mean of the cross-entropy; [B, K] each, not divided by pairs."""
        # The loss is linear in the targets: their sum over teacher crops gives the sum of the pairs.
        targets = torch.stack(list(teacher_out_softmaxed_centered_list)).sum(0, keepdim=True)
        terms = [
            cross_entropy_matrix(student.unsqueeze(0), targets, student_temp=self.student_temp).mean()
            for student in student_output_list
        ]
        return torch.stack(terms).sum()

    @torch.no_grad()
    def sinkhorn_knopp_teacher(
        self, teacher_output: Tensor, teacher_temp: float, n_iterations: int = 3, groups: Tensor | None = None
    ) -> Tensor:
        """[B, K] logits -> [B, K] targets. With `groups` [B] int64 in 0..G-1, the rows of each group are balanced apart."""
        return sinkhorn_knopp(
            teacher_output,
            temp=teacher_temp,
            n_iterations=n_iterations,
            groups=groups,
            subtract_max=self.sinkhorn_subtract_max,
        )
