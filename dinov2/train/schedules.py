"""The five schedules of a run, computed once: learning rate, weight decay, momentum, teacher temperature, last-layer rate."""

from dataclasses import dataclass

from omegaconf import DictConfig
from torch.optim import Optimizer

from dinov2.utils.utils import CosineScheduler


@dataclass(frozen=True)
class Schedules:
    """Values per iteration; an index past the end gives the final value. Lengths are in units of OFFICIAL_EPOCH_LENGTH."""

    lr: CosineScheduler
    wd: CosineScheduler
    momentum: CosineScheduler
    teacher_temp: CosineScheduler
    last_layer_lr: CosineScheduler


def build_schedulers(cfg: DictConfig) -> Schedules:
    """The official schedules: cosine with linear warm-up; the last layer's rate is 0 while it is frozen."""
    epoch = cfg.train.OFFICIAL_EPOCH_LENGTH
    total = cfg.optim.epochs * epoch

    def cosine(start: float, end: float, *, warmup: int = 0) -> CosineScheduler:
        return CosineScheduler(base_value=start, final_value=end, total_iters=total, warmup_iters=warmup)

    warmup = cfg.optim.warmup_epochs * epoch
    lr, last_layer_lr = (cosine(cfg.optim.lr, cfg.optim.min_lr, warmup=warmup) for _ in range(2))
    last_layer_lr.schedule[: cfg.optim.freeze_last_layer_epochs * epoch] = 0
    temp_warmup = cfg.teacher.warmup_teacher_temp_epochs * epoch
    return Schedules(
        lr=lr,
        wd=cosine(cfg.optim.weight_decay, cfg.optim.weight_decay_end),
        momentum=cosine(cfg.teacher.momentum_teacher, cfg.teacher.final_momentum_teacher),
        teacher_temp=CosineScheduler(
            base_value=cfg.teacher.teacher_temp,
            final_value=cfg.teacher.teacher_temp,
            total_iters=temp_warmup,
            warmup_iters=temp_warmup,
            start_warmup_value=cfg.teacher.warmup_teacher_temp,
        ),
        last_layer_lr=last_layer_lr,
    )


def apply_optim_scheduler(optimizer: Optimizer, lr: float, wd: float, last_layer_lr: float) -> None:
    """Write this step's learning rate and weight decay into every parameter group, times the group's multipliers."""
    for group in optimizer.param_groups:
        rate = last_layer_lr if group["is_last_layer"] else lr
        # Plain floats: the schedules are numpy's, and a checkpoint that holds numpy scalars cannot be loaded weights-only.
        group["lr"] = float(rate * group["lr_multiplier"])
        group["weight_decay"] = float(wd * group["wd_multiplier"])
