"""The train loop: `python -m dinov2.train.train --config-file F --output-dir D [key=value ...]`.

A step is schedules -> forward and backward -> clip each sub-module -> check -> optimizer -> teacher; the official order.
"""

import argparse
import logging
import math
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from dinov2 import distributed
from dinov2.logging import MetricLogger
from dinov2.train.batches import make_batches
from dinov2.train.checkpoint import Checkpointer
from dinov2.train.precision import autocast_dtype
from dinov2.train.run_folder import claim_output_dir, set_aside_checkpoints, sole_owner
from dinov2.train.schedules import Schedules, apply_optim_scheduler, build_schedulers
from dinov2.train.ssl_meta_arch import SSLMetaArch
from dinov2.utils.config import setup, write_config
from dinov2.utils.device import cpu_threads, resolve_device
from dinov2.utils.errors import UserError

logger = logging.getLogger("dinov2")

__all__ = [
    "apply_optim_scheduler",
    "build_optimizer",
    "build_schedulers",
    "do_test",
    "do_train",
    "get_args_parser",
    "main",
]


def get_args_parser(add_help: bool = True) -> argparse.ArgumentParser:
    """The official command line."""
    parser = argparse.ArgumentParser("DINOv2 training", add_help=add_help)
    parser.add_argument("--config-file", default="", metavar="FILE", help="YAML laid over the packaged defaults")
    parser.add_argument(
        "--no-resume", action="store_true", help="start from the beginning; old checkpoints are set aside"
    )
    parser.add_argument("--eval-only", action="store_true", help="write the teacher of the newest checkpoint and stop")
    parser.add_argument("--eval", type=str, default="", help="kept for compatibility; not used")
    parser.add_argument("--output-dir", "--output_dir", default="", type=str, help="where logs and checkpoints go")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a user error")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, default=None, help="key=value pairs, for example optim.epochs=10"
    )
    return parser


def build_optimizer(cfg: DictConfig, params_groups: list[dict[str, Any]]) -> torch.optim.AdamW:
    """AdamW; learning rate and weight decay are written into the groups at every step."""
    return torch.optim.AdamW(params_groups, betas=(cfg.optim.adamw_beta1, cfg.optim.adamw_beta2))


class Trainer:
    """One run in one process: model, optimizer and schedules, and the step that ties them."""

    def __init__(self, cfg: DictConfig, model: SSLMetaArch) -> None:
        self.cfg = cfg
        self.model = model
        self.optimizer = build_optimizer(cfg, model.get_params_groups())
        self.schedules: Schedules = build_schedulers(cfg)
        self.max_iteration: int = cfg.optim.epochs * cfg.train.OFFICIAL_EPOCH_LENGTH

    def train_step(self, batch: dict[str, Any], iteration: int) -> dict[str, Tensor]:
        """One optimisation step; returns the displayed losses, still on the device."""
        schedules = self.schedules
        apply_optim_scheduler(
            self.optimizer, schedules.lr[iteration], schedules.wd[iteration], schedules.last_layer_lr[iteration]
        )
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.model.forward_backward(batch, teacher_temp=schedules.teacher_temp[iteration])
        self._clip_and_step(losses, iteration)
        self.model.update_teacher(schedules.momentum[iteration])
        return losses

    def _clip_and_step(self, losses: dict[str, Tensor], iteration: int) -> None:
        """Clip each student sub-module on its own, refuse non-finite losses before weights can change, and step."""
        scaler = self.model.fp16_scaler
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        if self.cfg.optim.clip_grad:
            for module in self.model.student.values():
                torch.nn.utils.clip_grad_norm_(module.parameters(), max_norm=self.cfg.optim.clip_grad)
        if not math.isfinite(float(sum(losses.values()))):
            broken = [name for name, value in losses.items() if not math.isfinite(float(value))]
            raise FloatingPointError(
                f"Non-finite loss at iteration {iteration}: {', '.join(broken)}. The weights were not changed. Causes seen: too "
                "high a learning rate for the batch size (optim.base_lr), float16 (compute_precision), duplicate images "
                "(dino.koleo_loss_weight)."
            )
        if scaler is not None:
            scaler.step(self.optimizer)
            scaler.update()
        else:
            self.optimizer.step()

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on besides the configuration and the data."""
        scaler = self.model.fp16_scaler
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
            "rng_torch": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """The reverse of `state`; the random states come last, since building things draws from them."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.model.fp16_scaler is not None and state["scaler"]:
            self.model.fp16_scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng_torch"].cpu())
        if torch.cuda.is_available() and len(state["rng_cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([s.cpu() for s in state["rng_cuda"]])


def do_test(cfg: DictConfig, model: SSLMetaArch, iteration: int | str) -> Path:
    """Write `eval/<iteration>/teacher_checkpoint.pth`: {"teacher": state dict}, float32, official keys."""
    folder = Path(cfg.train.output_dir) / "eval" / str(iteration)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "teacher_checkpoint.pth"
    temporary = folder / ".teacher_checkpoint.partial"
    torch.save({"teacher": model.teacher.state_dict()}, temporary)
    temporary.replace(path)
    return path


def do_train(cfg: DictConfig, model: SSLMetaArch, resume: bool = False) -> dict[str, float]:
    """Train to `optim.epochs`; returns the global average of every displayed value."""
    model.train()
    model.prepare_for_distributed_training()
    trainer = Trainer(cfg, model)
    output = Path(cfg.train.output_dir)
    checkpointer = Checkpointer(output / "checkpoints", keep=cfg.train.checkpoints_to_keep)
    start = 0
    if resume and (state := checkpointer.load_newest(model.device)) is not None:
        start = state["iteration"] + 1
        logger.info("resuming after iteration %d", state["iteration"])
    else:
        state = None
    dtype = autocast_dtype(cfg, model.device) or torch.float32
    batches = make_batches(cfg, model.router.layout, start_iteration=start, dtype=dtype)
    if state is not None:
        trainer.load_state(state)
    _drop_metrics_after(output / "training_metrics.json", start)

    period = cfg.train.checkpoint_period_iterations or 3 * cfg.train.OFFICIAL_EPOCH_LENGTH
    eval_period = cfg.evaluation.eval_period_iterations
    metrics = MetricLogger(delimiter="  ", output_file=output / "training_metrics.json")
    header, log_period = "Training", cfg.train.log_period_iterations
    if start >= trainer.max_iteration:
        logger.info("training has already reached iteration %d; nothing to do", trainer.max_iteration)
        return {}
    with stop_requests() as stop:
        iteration = start
        for batch in metrics.log_every(batches, log_period, header, trainer.max_iteration, start):
            losses = trainer.train_step(batch, iteration)
            _update_meters(metrics, trainer, losses, batch, iteration)
            is_last = iteration + 1 == trainer.max_iteration
            if eval_period > 0 and ((iteration + 1) % eval_period == 0 or is_last):
                do_test(cfg, model, f"training_{iteration}")
            if (iteration + 1) % period == 0 or is_last or stop.is_set():
                facts = {"torch": torch.__version__, "world_size": distributed.get_global_size()}
                checkpointer.save(trainer.state(), iteration=iteration, facts=facts)
            if stop.is_set() and not is_last:
                logger.info("stopped after iteration %d; the same command goes on from there", iteration)
                raise KeyboardInterrupt
            iteration += 1
    metrics.synchronize_between_processes()
    return {name: meter.global_avg for name, meter in metrics.meters.items()}


def _update_meters(
    metrics: MetricLogger, trainer: Trainer, losses: dict[str, Tensor], batch: dict[str, Any], iteration: int
) -> None:
    schedules = trainer.schedules
    metrics.update(
        lr=schedules.lr[iteration],
        wd=schedules.wd[iteration],
        mom=schedules.momentum[iteration],
        last_layer_lr=schedules.last_layer_lr[iteration],
        current_batch_size=trainer.cfg.train.batch_size_per_gpu,
        total_loss=float(sum(losses.values())),
        **losses,
        **trainer.model.diagnostics,
    )


def _drop_metrics_after(path: Path, start: int) -> None:
    """Lines of steps that a resumed run will do again, and a line cut by a kill, would otherwise stand twice or half."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        number = line.partition('"iteration": ')[2].partition(",")[0]
        if line.endswith("}") and number.isdigit() and int(number) < start:
            kept.append(line + "\n")
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    temporary.replace(path)


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that SIGINT or SIGTERM sets, so that the loop can save and leave between two steps.

    A second signal of the same kind acts at once. Outside the main thread, where handlers cannot be set, nothing changes.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def on_signal(number: Any, _frame: Any) -> None:
        logger.info("%s received: finishing this step, then saving", signal.Signals(number).name)
        stop.set()
        signal.signal(number, before[number])

    for number in numbers:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        for number in numbers:
            signal.signal(number, before[number])


def main(args: argparse.Namespace) -> dict[str, float]:
    """Set up and train, or with `--eval-only` write the teacher of the newest checkpoint."""
    if distributed.launched_world_size() > 1:
        raise UserError(
            f"This version trains in one process; the launcher started {distributed.launched_world_size()}. "
            "Start it without torchrun or with --nproc-per-node 1."
        )
    cfg = setup(args, before_writing=claim_output_dir)
    with sole_owner(Path(cfg.train.output_dir)), cpu_threads(cfg.train.cpu_threads):
        if args.no_resume:
            set_aside_checkpoints(Path(cfg.train.output_dir))
        write_config(cfg, cfg.train.output_dir)
        logger.info("configuration:\n%s", OmegaConf.to_yaml(cfg))
        model = SSLMetaArch(cfg).to(resolve_device(cfg.train.device))
        logger.info("loss routing:\n%s", model.router.describe())
        if args.eval_only:
            return _eval_only(cfg, model)
        return do_train(cfg, model, resume=not args.no_resume)


def _eval_only(cfg: DictConfig, model: SSLMetaArch) -> dict[str, float]:
    folder = Path(cfg.train.output_dir) / "checkpoints"
    state = Checkpointer(folder).load_newest()
    if state is None:
        raise UserError(f"--eval-only needs a checkpoint, and {folder} holds none. Train first.")
    model.load_state_dict(state["model"])
    logger.info("teacher written to %s", do_test(cfg, model, f"manual_{state['iteration']}"))
    return {}


def run(arguments: list[str] | None = None) -> int:
    """The command line with its exit status: 0 done, 2 a user's mistake, 130 stopped by a signal."""
    args = get_args_parser().parse_args(arguments)
    try:
        main(args)
    except UserError as error:
        if args.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(run())
