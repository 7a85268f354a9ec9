"""Stops a training, or leaves a step out, when a loss or a gradient is no finite number; called before weights can change."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from dinov2 import distributed
from dinov2.utils.errors import UserError

logger = logging.getLogger("dinov2")

POLICIES = ("stop", "skip")
_N_SHOWN = 16


class NonFiniteLossError(FloatingPointError):
    """A loss or gradient was not finite and the run was told to stop; the message says where, and what helps."""


class NonFiniteGuard:
    """Judges each step by its losses and gradient norms."""

    def __init__(self, cfg: DictConfig) -> None:
        policy = cfg.train.on_nonfinite
        if policy not in POLICIES:
            raise UserError(f"train.on_nonfinite is '{policy}'. Allowed: {', '.join(POLICIES)}.")
        self._skips = policy == "skip"
        self._most_in_a_row = cfg.train.max_nonfinite_steps
        self.describe_sample: Callable[[int], str] = str
        """Index in the data set -> what a user may read of that sample."""
        self.skipped_in_a_row = 0
        self.n_skipped = 0

    def accepts(
        self,
        values: Mapping[str, float],
        own: Mapping[str, Tensor],
        batches: Sequence[Mapping[str, Any]],
        iteration: int,
        last_good: Callable[[], str],
    ) -> bool:
        """Whether the step may be taken. All processes must give the same `values`, and get the same answer.

        values: losses and gradient norms over all processes; own: this process's losses; batches: what it computed them from.
        last_good: names the checkpoint to go back to. Raises `NonFiniteLossError` when the step must not be taken and the
        run does not go on without it.
        """
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        if not broken:
            self.skipped_in_a_row = 0
            return True
        where = self._where(own, batches)
        if self._skips and self.skipped_in_a_row < self._most_in_a_row:
            self.skipped_in_a_row += 1
            self.n_skipped += 1
            logger.warning(
                "iteration %d left out (%d in a row, %d so far): not finite: %s. %s",
                iteration,
                self.skipped_in_a_row,
                self.n_skipped,
                ", ".join(broken),
                where,
            )
            return False
        in_a_row = f" {self.skipped_in_a_row} steps before it were left out." if self.skipped_in_a_row else ""
        raise NonFiniteLossError(
            f"Not finite at iteration {iteration}: {', '.join(broken)}. The weights were not changed.{in_a_row} {where} "
            f"{last_good()} Causes seen: too high a learning rate for the batch (optim.base_lr), float16 "
            "(compute_precision: bf16 or fp32), duplicate images (dino.koleo_in_fp32=true), large logits "
            "(train.sinkhorn_subtract_max=true). train.on_nonfinite=skip leaves such steps out."
        )

    def _where(self, own: Mapping[str, Tensor], batches: Sequence[Mapping[str, Any]]) -> str:
        """Which process had which broken losses, and the samples it had them from."""
        terms = [name for name, value in own.items() if not bool(torch.isfinite(value))]
        indices = [int(i) for batch in batches for i in batch.get("sample_indices", ())]
        sentences = []
        for rank, (its_terms, samples) in enumerate(distributed.all_gather_objects((terms, self._shown(indices)))):
            if its_terms:
                sentences.append(f"Process {rank}: {', '.join(its_terms)}, from the samples {samples}.")
        return " ".join(sentences) or "Every process's own losses are finite: the gradients overflowed."

    def _shown(self, indices: Sequence[int]) -> str:
        if not indices:
            return "of an unnumbered batch"
        more = f" and {len(indices) - _N_SHOWN} more" if len(indices) > _N_SHOWN else ""
        return ", ".join(self.describe_sample(i) for i in indices[:_N_SHOWN]) + more
