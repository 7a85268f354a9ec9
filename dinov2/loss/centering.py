"""The running centre that keeps teacher targets from collapsing onto one prototype. Base of both prototype losses.

`update_center` starts the sum over processes without waiting; the next `softmax_center_teacher` waits for it and moves the
centre, so a step's logits are centred by the steps before it. Source: DINO (arXiv 2104.14294), section 3.1.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinov2 import distributed


class CenteredLoss(nn.Module):
    """Holds the buffer `center` and its pending update. Subclasses say what a batch contributes (`_batch_sum`)."""

    center: Tensor

    def __init__(self, center: Tensor, *, student_temp: float, center_momentum: float) -> None:
        super().__init__()
        self.student_temp = student_temp
        self.center_momentum = center_momentum
        self.register_buffer("center", center)
        self.updated = True
        self.reduce_handle: Any = None
        self.len_teacher_output: int | None = None
        self.async_batch_center: Tensor | None = None
        # A checkpoint taken between steps would otherwise lose the last step's update.
        self.register_state_dict_pre_hook(_apply_pending_update)

    @torch.no_grad()
    def softmax_center_teacher(self, teacher_output: Tensor, teacher_temp: float) -> Tensor:
        """Logits to probabilities of the same shape, after any pending update of the centre."""
        self.apply_center_update()
        return F.softmax((teacher_output - self.center) / teacher_temp, dim=-1)

    @torch.no_grad()
    def update_center(self, teacher_output: Tensor) -> None:
        """Start moving the centre towards the mean of these logits."""
        self.reduce_center_update(teacher_output)

    @torch.no_grad()
    def reduce_center_update(self, teacher_output: Tensor) -> None:
        """Start the sum over processes; `apply_center_update` finishes it."""
        self.updated = False
        self.len_teacher_output = len(teacher_output)
        self.async_batch_center = self._batch_sum(teacher_output)
        self.reduce_handle = None
        if distributed.get_global_size() > 1:
            self.reduce_handle = torch.distributed.all_reduce(self.async_batch_center, async_op=True)

    @torch.no_grad()
    def apply_center_update(self) -> None:
        """Wait for the pending sum, if there is one, and move the centre."""
        if self.updated:
            return
        if self.reduce_handle is not None:
            self.reduce_handle.wait()
        assert self.async_batch_center is not None, "an update is pending"
        assert self.len_teacher_output is not None, "an update is pending"
        n_rows = self.len_teacher_output * distributed.get_global_size()
        batch_center = self.async_batch_center / n_rows
        self.center = self.center * self.center_momentum + batch_center * (1 - self.center_momentum)
        self.updated = True

    def _batch_sum(self, teacher_output: Tensor) -> Tensor:
        """Sum over the first dimension, shaped like `center`, fp32."""
        raise NotImplementedError


def _apply_pending_update(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    assert isinstance(module, CenteredLoss), f"hook of CenteredLoss on {type(module).__name__}"
    module.apply_center_update()
