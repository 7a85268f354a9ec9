"""One run in one process: model, optimizer and schedules, and the step that ties them. Called by `do_train`.

A step is schedules -> forward and backward (of each accumulated batch) -> clip each sub-module -> check -> optimizer ->
teacher; the official order, except that the official code checks after the weights have changed. The check waits for the device:
a step may be taken unread, and is then checked when the next one is read.
"""

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from dinov2 import distributed
from dinov2.fsdp import full_tensor
from dinov2.train.checkpoint import StoredCheckpoint, TrainingState
from dinov2.train.guard import NonFiniteGuard
from dinov2.train.schedules import Schedules, apply_optim_scheduler, build_schedulers
from dinov2.train.ssl_meta_arch import SSLMetaArch
from dinov2.train.state import empty_optimizer_state, random_states, set_random_states, training_tensors
from dinov2.train.taken_step import TakenStep
from dinov2.utils.errors import UserError

logger = logging.getLogger("dinov2")

Batch = Mapping[str, Any]

_CLIP_EPS = 1e-6
"""What torch adds to the norm when it clips."""


def build_optimizer(cfg: DictConfig, params_groups: list[dict[str, Any]]) -> torch.optim.AdamW:
    """AdamW; learning rate and weight decay are written into the groups at every step."""
    return torch.optim.AdamW(params_groups, betas=(cfg.optim.adamw_beta1, cfg.optim.adamw_beta2))


def clip_gradients(module: nn.Module, *, max_norm: float) -> Tensor:
    """Scale the module's gradients down to a norm of `max_norm` where theirs is larger; returns their norm before that, 0-d.

    As `torch.nn.utils.clip_grad_norm_`, but on the CPU gradients that are short enough are not multiplied by 1. Another device
    would have to be waited for to know.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    whole = full_tensor(norm)
    if whole.device.type != "cpu" or not whole + _CLIP_EPS <= max_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return whole


class Trainer:
    """Takes steps, and gives or takes everything that the next step depends on."""

    def __init__(self, cfg: DictConfig, model: SSLMetaArch, *, last_good: Callable[[], str] = str) -> None:
        """model: on its device, after `prepare_for_distributed_training`. last_good: names the newest checkpoint, for errors."""
        self.cfg = cfg
        self.model = model
        self.optimizer = build_optimizer(cfg, model.get_params_groups())
        self.schedules: Schedules = build_schedulers(cfg)
        self.max_iteration: int = cfg.optim.epochs * cfg.train.OFFICIAL_EPOCH_LENGTH
        self.n_accumulated: int = cfg.train.gradient_accumulation_steps
        if cfg.train.read_losses_every < 1:
            raise UserError(
                f"train.read_losses_every is {cfg.train.read_losses_every}; a whole number from 1 up is expected."
            )
        self.guard = NonFiniteGuard(cfg)
        self._last_good = last_good
        self._unread: deque[TakenStep] = deque()
        self._values: list[tuple[int, dict[str, float] | None]] = []

    @property
    def samples_per_step(self) -> int:
        """Of all processes together."""
        return self.cfg.train.batch_size_per_gpu * self.n_accumulated * distributed.get_global_size()

    def train_step(self, batches: Sequence[Batch], iteration: int, *, read: bool = True) -> None:
        """One optimisation step; `take_values` then has what was read of it.

        batches: as many as `train.gradient_accumulation_steps`. read: judge this step, before the weights change, and all that
        were not read yet. Raises `NonFiniteLossError` as `NonFiniteGuard` says.
        """
        schedules = self.schedules
        apply_optim_scheduler(
            self.optimizer, schedules.lr[iteration], schedules.wd[iteration], schedules.last_layer_lr[iteration]
        )
        self.optimizer.zero_grad(set_to_none=True)
        per_batch, losses = [], {}
        for number, batch in enumerate(batches, start=1):
            losses = self.model.forward_backward(
                batch,
                teacher_temp=schedules.teacher_temp[iteration],
                n_accumulated=len(batches),
                is_last=number == len(batches),
            )
            per_batch.append({**losses, **self.model.diagnostics})
        own = {name: torch.stack([values[name] for values in per_batch]).mean() for name in per_batch[0]}
        taken = TakenStep.join(
            iteration,
            own,
            self._clip(),
            losses=list(losses),
            # the scaler looks after overflowing gradients itself: that is how it finds its scale
            judge_norms=self.model.fp16_scaler is None,
            batches=batches,
        )
        if read:
            self.read()
            if not self._accept(taken, weights_changed=False):
                self.model.discard_step()
                return
        else:
            self._unread.append(taken)
        self._step()
        self.model.update_teacher(schedules.momentum[iteration])

    def read(self) -> None:
        """Read and judge the steps that were taken unread. Raises `NonFiniteLossError`; the weights are then lost."""
        while self._unread:
            self._accept(self._unread.popleft(), weights_changed=True)

    def take_values(self) -> list[tuple[int, dict[str, float] | None]]:
        """The steps read since the last call: iteration, and losses and diagnostics over all batches and processes; None for a
        step left out."""
        values, self._values = self._values, []
        return values

    def _accept(self, taken: TakenStep, *, weights_changed: bool) -> bool:
        values = taken.read()
        accepted = self.guard.accepts(taken, values, self._last_good, weights_changed=weights_changed)
        self._values.append((taken.iteration, values if accepted else None))
        return accepted

    def _clip(self) -> dict[str, Tensor]:
        """Clip each student sub-module on its own, as official; gradient norms before that, none without clipping."""
        scaler = self.model.fp16_scaler
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        if not self.cfg.optim.clip_grad:
            return {}
        return {
            f"grad_norm_{name}": clip_gradients(module, max_norm=self.cfg.optim.clip_grad)
            for name, module in self.model.student.items()
        }

    def _step(self) -> None:
        scaler = self.model.fp16_scaler
        if scaler is not None:
            scaler.step(self.optimizer)
            scaler.update()
        else:
            self.optimizer.step()

    def state(self, iteration: int, *, meters: Mapping[str, list[float]] | None = None) -> TrainingState:
        """Everything that the step after `iteration` depends on besides configuration and data set.

        All steps must have been read. meters: of the log, whose lines are medians over several steps.
        """
        assert not self._unread, "nothing may be saved that nobody has judged"
        scaler = self.model.fp16_scaler
        return TrainingState(
            tensors=training_tensors(self.model, self.model.student, self.optimizer),
            own={"random_states": random_states(), "meters": dict(meters or {})},
            facts={
                "samples_seen": (iteration + 1) * self.samples_per_step,
                "samples_per_step": self.samples_per_step,
                "scaler": scaler.state_dict() if scaler is not None else {},
                "torch": torch.__version__,
            },
        )

    def load_tensors(self, stored: StoredCheckpoint) -> None:
        """Weights, centres and optimizer, whatever the number of processes that wrote them; and the scaler."""
        wanted = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        wanted |= empty_optimizer_state(stored.names(), self.model.student, self.optimizer)
        stored.read_tensors(wanted)
        if self.model.fp16_scaler is not None and stored.facts["scaler"]:
            self.model.fp16_scaler.load_state_dict(stored.facts["scaler"])

    def load_random_states(self, stored: StoredCheckpoint) -> None:
        """To be called last before the first step, for building things draws from the generators."""
        own = stored.read_own()
        if own is not None:
            set_random_states(own["random_states"])
            return
        logger.warning(
            "the checkpoint was written by %d processes and this run has %d: weights, optimizer and data position go on, the "
            "random numbers of stochastic depth start anew",
            stored.facts["world_size"],
            distributed.get_global_size(),
        )
