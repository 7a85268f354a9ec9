"""Stops a training, or leaves a step out, when a loss or a gradient is no finite number; called by the trainer."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from omegaconf import DictConfig

from dinov2 import distributed
from dinov2.train.taken_step import TakenStep
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
        if self._skips and cfg.train.read_losses_every > 1:
            raise UserError(
                f"train.on_nonfinite=skip leaves a step out before it changes the weights, and with train.read_losses_every="
                f"{cfg.train.read_losses_every} most steps are taken unread. Set one of them to its default (stop, 1)."
            )
        self._most_in_a_row = cfg.train.max_nonfinite_steps
        self.describe_sample: Callable[[int], str] = str
        """Index in the data set -> what a user may read of that sample."""
        self.skipped_in_a_row = 0
        self.n_skipped = 0

    def accepts(
        self,
        taken: TakenStep,
        values: Mapping[str, float],
        last_good: Callable[[], str],
        *,
        weights_changed: bool = False,
    ) -> bool:
        """Whether the step may be taken. All processes get the same `values`, and so the same answer.

        values: what was read of the step; last_good: names the checkpoint to go back to. weights_changed: it was taken before
        anyone looked, so that nothing can be left out any more. Raises `NonFiniteLossError` when the step must not be taken and
        the run does not go on without it.
        """
        broken = [name for name in taken.judged if not math.isfinite(values[name])]
        if not broken:
            self.skipped_in_a_row = 0
            return True
        where = self._where(taken)
        if self._skips and self.skipped_in_a_row < self._most_in_a_row:
            self.skipped_in_a_row += 1
            self.n_skipped += 1
            logger.warning(
                "iteration %d left out (%d in a row, %d so far): not finite: %s. %s",
                taken.iteration,
                self.skipped_in_a_row,
                self.n_skipped,
                ", ".join(broken),
                where,
            )
            return False
        in_a_row = f" {self.skipped_in_a_row} steps before it were left out." if self.skipped_in_a_row else ""
        weights = (
            "It was read some steps later (train.read_losses_every), so that the weights in memory are lost; none of them was "
            "saved."
            if weights_changed
            else "The weights were not changed."
        )
        raise NonFiniteLossError(
            f"Not finite at iteration {taken.iteration}: {', '.join(broken)}. {weights}{in_a_row} {where} "
            f"{last_good()} Causes seen: too high a learning rate for the batch (optim.base_lr), float16 "
            "(compute_precision: bf16 or fp32), duplicate images (dino.koleo_in_fp32=true), large logits "
            "(train.sinkhorn_subtract_max=true). train.on_nonfinite=skip leaves such steps out."
        )

    def _where(self, taken: TakenStep) -> str:
        """Which process had which broken losses, and the samples it had them from."""
        terms = [name for name, value in taken.own.items() if not bool(torch.isfinite(value))]
        sentences = []
        gathered = distributed.all_gather_objects((terms, self._shown([int(i) for i in taken.sample_indices])))
        for rank, (its_terms, samples) in enumerate(gathered):
            if its_terms:
                sentences.append(f"Process {rank}: {', '.join(its_terms)}, from the samples {samples}.")
        return " ".join(sentences) or "Every process's own losses are finite: the gradients overflowed."

    def _shown(self, indices: Sequence[int]) -> str:
        if not indices:
            return "of an unnumbered batch"
        more = f" and {len(indices) - _N_SHOWN} more" if len(indices) > _N_SHOWN else ""
        return ", ".join(self.describe_sample(i) for i in indices[:_N_SHOWN]) + more
