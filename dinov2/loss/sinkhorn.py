"""Sinkhorn-Knopp: teacher logits to targets that use every prototype equally. Called by both prototype losses.

Source: SwAV (arXiv 2006.09882), section 3.1. Works with and without a process group; rows are spread over the processes.
Shape legend: R rows of this process, K prototypes, G groups.
"""

import torch
from torch import Tensor

from dinov2 import distributed

# With the columns' maxima taken off, scores are cut here, so that no row or column can underflow to a sum of 0.
_LOWEST_SCORE = -80.0


@torch.no_grad()
def sinkhorn_knopp(
    logits: Tensor,
    *,
    temp: float,
    n_iterations: int = 3,
    groups: Tensor | None = None,
    subtract_max: bool = False,
) -> Tensor:
    """Targets [R, K] fp32 whose rows sum to 1 and whose columns are nearly balanced, after `n_iterations` rounds.

    logits: [R, K]
    groups: [R] int64 in 0..G-1; the rows of each group are then balanced on their own, as if they came alone.
    subtract_max: first take its largest value off each prototype's column, which changes nothing in exact arithmetic. The
        official code does not, and overflows once logit / temp passes 88 (heads without L2 normalisation).

    The official code also divides by the total, by K and by the number of rows; those factors cancel and are left out.
    """
    assert n_iterations >= 1, f"at least one round is needed, got {n_iterations}"
    over_rows = _ColumnReduction(groups, logits)
    scores = logits.float() / temp
    if subtract_max:
        scores = (scores - over_rows.max(scores)).clamp_min_(_LOWEST_SCORE)
    q = scores.exp_()  # [R, K]
    for _ in range(n_iterations):
        q /= over_rows.sum(q)  # every prototype gets the same mass ...
        q /= q.sum(1, keepdim=True)  # ... and every row
    return q


class _ColumnReduction:
    """Reductions of columns over the rows of all processes, by group; shaped to meet the rows they came from."""

    def __init__(self, groups: Tensor | None, rows: Tensor) -> None:
        self._groups = groups
        self._n_groups = 1
        if groups is not None:
            assert groups.shape == rows.shape[:1], f"one group per row: {tuple(groups.shape)} for {tuple(rows.shape)}"
            highest = groups.max() if groups.numel() else groups.new_tensor(0)
            _max_over_processes(highest)
            self._n_groups = 1 + int(highest)

    def sum(self, values: Tensor) -> Tensor:
        """[R, K] -> [1, K], or with groups [R, K]: the sums of each row's group."""
        if self._groups is None:
            sums = values.sum(0, keepdim=True)
        else:
            sums = values.new_zeros(self._n_groups, values.shape[1]).index_add_(0, self._groups, values)
        distributed.all_reduce_sum(sums)
        return sums if self._groups is None else sums[self._groups]

    def max(self, values: Tensor) -> Tensor:
        """[R, K] -> [1, K], or with groups [R, K]."""
        lowest = torch.finfo(values.dtype).min
        groups = self._groups if self._groups is not None else torch.zeros_like(values[:, 0], dtype=torch.int64)
        highest = values.new_full((self._n_groups, values.shape[1]), lowest)
        highest.scatter_reduce_(0, groups[:, None].expand_as(values), values, "amax")
        _max_over_processes(highest)
        return highest if self._groups is None else highest[self._groups]


def _max_over_processes(tensor: Tensor) -> None:
    """Largest value over all processes, in place; nothing to do in a single process."""
    if distributed.get_global_size() > 1:
        torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
