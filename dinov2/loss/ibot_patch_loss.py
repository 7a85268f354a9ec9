"""The iBOT loss: cross-entropy between student and teacher on masked patch tokens. Called by the training room.

Shape legend: B images, N patches of an image, M masked patches of the batch, K prototypes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dinov2.loss.centering import CenteredLoss
from dinov2.loss.sinkhorn import sinkhorn_knopp


def lossfunc(t: Tensor, s: Tensor, temp: float) -> Tensor:
    """sum_k t * log_softmax(s / temp), [..., K] twice -> [...], fp32: the negated cross-entropy of logits s to targets t."""
    with torch.autocast(s.device.type, enabled=False):
        return torch.sum(t.float() * F.log_softmax(s.float() / temp, dim=-1), dim=-1)


class iBOTPatchLoss(CenteredLoss):
    """Official masked-patch loss. Source: iBOT (arXiv 2111.07832), eq. 3."""

    def __init__(
        self,
        patch_out_dim: int,
        student_temp: float = 0.1,
        center_momentum: float = 0.9,
        *,
        sinkhorn_subtract_max: bool = False,
        center_over_all_patches: bool = False,
    ) -> None:
        """patch_out_dim: prototypes. sinkhorn_subtract_max: see `sinkhorn_knopp`; off is the official arithmetic.

        center_over_all_patches: the centre follows the mean of all processes' masked patches. Off is official: the mean of
        the processes' means, in which a process with few masked patches weighs as much as one with many.
        """
        super().__init__(torch.zeros(1, 1, patch_out_dim), student_temp=student_temp, center_momentum=center_momentum)
        self.sinkhorn_subtract_max = sinkhorn_subtract_max
        self.center_over_all_patches = center_over_all_patches

    def forward(self, student_patch_tokens: Tensor, teacher_patch_tokens: Tensor, student_masks_flat: Tensor) -> Tensor:
        """Mean over images of the mean over their masked patches.

        student_patch_tokens: [B, N, K] logits   teacher_patch_tokens: [B, N, K] probabilities   student_masks_flat: [B, N] bool
        """
        loss = lossfunc(teacher_patch_tokens, student_patch_tokens, self.student_temp)  # [B, N]
        masks = student_masks_flat.float()
        per_image = torch.sum(loss * masks, dim=-1) / masks.sum(dim=-1).clamp(min=1.0)
        return -per_image.mean()

    def forward_masked(
        self,
        student_patch_tokens_masked: Tensor,
        teacher_patch_tokens_masked: Tensor,
        student_masks_flat: Tensor,
        n_masked_patches: int | None = None,
        masks_weight: Tensor | None = None,
    ) -> Tensor:
        """The same loss from the masked patches alone; images without a mask count in the mean, with a loss of 0.

        student_patch_tokens_masked: [M, K] logits, teacher's: [M, K] probabilities; rows beyond `n_masked_patches` are
        padding. student_masks_flat: [B, N] bool. masks_weight: [M], by default 1 / (masked patches of the row's image).
        """
        loss = lossfunc(teacher_patch_tokens_masked, student_patch_tokens_masked, self.student_temp)  # [M]
        if masks_weight is None:
            weight_of_image = 1 / student_masks_flat.sum(-1).clamp(min=1.0)
            masks_weight = weight_of_image.unsqueeze(-1).expand_as(student_masks_flat)[student_masks_flat]
        if n_masked_patches is not None:
            loss = loss[:n_masked_patches]
        return -(loss * masks_weight).sum() / student_masks_flat.shape[0]

    @torch.no_grad()
    def sinkhorn_knopp_teacher(
        self, teacher_output: Tensor, teacher_temp: float, n_masked_patches_tensor: Tensor, n_iterations: int = 3
    ) -> Tensor:
        """[M, K] logits -> [M, K] targets.

        n_masked_patches_tensor: the count of masked patches, as the official signature has it. It cancels out of the result
        (see `sinkhorn_knopp`), so that it is neither read nor summed over processes here.
        """
        return sinkhorn_knopp(
            teacher_output,
            temp=teacher_temp,
            n_iterations=n_iterations,
            subtract_max=self.sinkhorn_subtract_max,
        )

    def _contribution(self, total: Tensor, n_rows: int) -> tuple[Tensor, int]:
        """Officially the mean of the patches counts as one row, whatever their number. No patch pulls nowhere."""
        if self.center_over_all_patches:
            return total, n_rows
        return (total / n_rows if n_rows else self.center.flatten()), 1
