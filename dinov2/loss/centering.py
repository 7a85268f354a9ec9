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
    """Holds the buffer `center` and its pending update. Subclasses may say what a batch contributes (`_contribution`)."""

    center: Tensor

    def __init__(self, center: Tensor, *, student_temp: float, center_momentum: float) -> None:
        super().__init__()
        self.student_temp = student_temp
        self.center_momentum = center_momentum
        self.register_buffer("center", center)
        self.accumulating = False
        """While true, batches are added up in this process; the first batch after it moves the centre by their joint mean."""
        self._accumulated: Tensor | None = None
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
    def update_center_from_factors(self, bottleneck: Tensor, weight: Tensor) -> None:
        """The same for the logits bottleneck weight^T, [R, C] and [K, C], which are not computed: the mean is linear."""
        n_rows = len(bottleneck)
        with torch.autocast(bottleneck.device.type, enabled=False):
            total = torch.mv(weight.float(), bottleneck.sum(0, dtype=torch.float32))  # [K]
        self._start_update(*self._contribution(total, n_rows))

    @torch.no_grad()
    def reduce_center_update(self, teacher_output: Tensor) -> None:
        """Start the sum over processes; `apply_center_update` finishes it."""
        rows = teacher_output.flatten(0, -2)
        self._start_update(*self._contribution(rows.sum(0, dtype=torch.float32), len(rows)))

    def _start_update(self, batch_sum: Tensor, n_rows: int) -> None:
        # The sum and, behind it, how many rows it is of: processes may hold different numbers of rows.
        batch = torch.cat([batch_sum.flatten(), self.center.new_full((1,), float(n_rows))])
        if self._accumulated is not None:
            batch += self._accumulated
        if self.accumulating:
            self._accumulated = batch
            return
        self._accumulated = None
        self.updated = False
        self.len_teacher_output = n_rows
        self.async_batch_center = batch  # [K + 1]
        self.reduce_handle = None
        if distributed.get_global_size() > 1:
            self.reduce_handle = torch.distributed.all_reduce(batch, async_op=True)

    @torch.no_grad()
    def apply_center_update(self) -> None:
        """Wait for the pending sum, if there is one, and move the centre."""
        if self.updated:
            return
        if self.reduce_handle is not None:
            self.reduce_handle.wait()
        assert self.async_batch_center is not None, "an update is pending"
        batch_sum, n_rows = self.async_batch_center[:-1].view_as(self.center), self.async_batch_center[-1]
        # Not one row in any process: nothing to move towards.
        batch_center = torch.where(n_rows > 0, batch_sum / n_rows, self.center)
        self.center = self.center * self.center_momentum + batch_center * (1 - self.center_momentum)
        self.updated = True

    def discard_center_update(self) -> None:
        """Forget what has been gathered since the last step, for a step that is left out."""
        if self.reduce_handle is not None and not self.updated:
            self.reduce_handle.wait()
        self.updated, self._accumulated = True, None

    def _contribution(self, total: Tensor, n_rows: int) -> tuple[Tensor, int]:
        """From the sum of a batch's logits, [K] fp32, and its rows: what is summed over processes, and counts as how many."""
        return total, n_rows


def _apply_pending_update(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    assert isinstance(module, CenteredLoss), f"hook of CenteredLoss on {type(module).__name__}"
    module.apply_center_update()
