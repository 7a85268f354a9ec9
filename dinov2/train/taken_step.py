"""The numbers of a step that was taken, on their device until someone reads them. Made by the trainer, judged by the guard.

To read them the host waits for the device, which then has nothing queued. Hence `train.read_losses_every`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dinov2 import distributed


@dataclass(frozen=True)
class TakenStep:
    """names: of `numbers`, [names], which are joined over all processes. own: this process's part of them, before the joining.

    losses: the names that sum to the loss; judged: those that must be finite, losses and gradient norms. sample_indices: what
    the step was computed from in this process, places in the data set.
    """

    iteration: int
    names: tuple[str, ...]
    numbers: Tensor
    own: Mapping[str, Tensor]
    losses: tuple[str, ...]
    judged: tuple[str, ...]
    sample_indices: tuple[int | Tensor, ...]

    @classmethod
    def join(
        cls,
        iteration: int,
        own: Mapping[str, Tensor],
        norms: Mapping[str, Tensor],
        *,
        losses: Sequence[str],
        judge_norms: bool,
        batches: Sequence[Mapping[str, Any]],
    ) -> "TakenStep":
        """The means of `own` over all processes, and the norms, which all of them know; one exchange, no wait for the device."""
        means = torch.stack([value.float() for value in own.values()])
        distributed.all_reduce_sum(means)
        means /= distributed.get_global_size()
        return cls(
            iteration=iteration,
            names=(*own, *norms),
            numbers=torch.cat([means, *(value.float().reshape(1) for value in norms.values())]),
            own=own,
            losses=tuple(losses),
            judged=(*losses, *norms) if judge_norms else tuple(losses),
            sample_indices=tuple(i for batch in batches for i in batch.get("sample_indices", ())),
        )

    def read(self) -> dict[str, float]:
        """Wait for the device and take the numbers from it; `total_loss` first."""
        values = dict(zip(self.names, self.numbers.tolist(), strict=True))
        return {"total_loss": sum(values[name] for name in self.losses), **values}
