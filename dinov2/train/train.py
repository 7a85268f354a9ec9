"""The train loop: `python -m dinov2.train.train --config-file F --output-dir D [key=value ...]`, alone, by torchrun or SLURM."""

import argparse
import contextlib
import logging
import sys
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from dinov2 import distributed
from dinov2.distributed.launch import find_launch
from dinov2.fsdp import full_tensor
from dinov2.train.batches import make_batches
from dinov2.train.checkpoint import Checkpointer
from dinov2.train.guard import NonFiniteLossError
from dinov2.train.precision import autocast_dtype
from dinov2.train.run_folder import (
    claim_output_dir,
    expect_ownership,
    keep_total_batch,
    set_aside_checkpoints,
    sole_owner,
)
from dinov2.train.run_log import METRICS_FILE, RunLog
from dinov2.train.schedules import apply_optim_scheduler, build_schedulers
from dinov2.train.ssl_meta_arch import SSLMetaArch
from dinov2.train.trainer import Batch, Trainer, build_optimizer
from dinov2.utils.config import get_cfg_from_args, setup, write_config
from dinov2.utils.device import cpu_threads, resolve_device
from dinov2.utils.errors import UserError
from dinov2.utils.stop import StopRequested, StopRequests, SupersededError, stop_requests

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


def do_test(cfg: DictConfig, model: SSLMetaArch, iteration: int | str) -> Path:
    """Write `eval/<iteration>/teacher_checkpoint.pth`: {"teacher": state dict}, float32, official keys.

    All processes call it, for each holds a part of a sharded teacher; the main one writes.
    """
    folder = Path(cfg.train.output_dir) / "eval" / str(iteration)
    path = folder / "teacher_checkpoint.pth"
    state = OrderedDict()
    for name, value in model.teacher.state_dict().items():
        whole = full_tensor(value)
        if distributed.is_main_process():
            state[name] = whole.cpu()
    if distributed.is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / ".teacher_checkpoint.partial"
        torch.save({"teacher": state}, temporary)
        expect_ownership(Path(cfg.train.output_dir))
        temporary.replace(path)
    return path


def do_train(cfg: DictConfig, model: SSLMetaArch, resume: bool = False) -> dict[str, float]:
    """Train to `optim.epochs`; returns the global average of every displayed value."""
    model.train()
    model.prepare_for_distributed_training()
    output = Path(cfg.train.output_dir)
    checkpointer = Checkpointer(
        output / "checkpoints", keep=cfg.train.checkpoints_to_keep, in_background=cfg.train.checkpoint_in_background
    )
    trainer = Trainer(cfg, model, last_good=checkpointer.describe_newest)
    stored = checkpointer.find_newest() if resume else None
    start = model.first_iteration
    samples_seen = start * trainer.samples_per_step
    if stored is not None:
        trainer.load_tensors(stored)
        start, samples_seen = stored.iteration + 1, stored.facts["samples_seen"]
        logger.info("resuming after iteration %d, %d samples", stored.iteration, samples_seen)
    else:
        logger.info("no checkpoint yet: starting at iteration %d", start)
    dtype = autocast_dtype(cfg, model.device) or torch.float32
    batches = make_batches(cfg, model.router.layout, start_iteration=start, samples_seen=samples_seen, dtype=dtype)
    trainer.guard.describe_sample = batches.describe_sample
    if start >= trainer.max_iteration:
        logger.info("training has already reached iteration %d; nothing to do", trainer.max_iteration)
        return {}
    if distributed.is_main_process():
        _drop_metrics_after(output / METRICS_FILE, start)
    log = RunLog(cfg, trainer, start=start)
    if stored is not None:
        log.metrics.load_state((stored.read_own() or {}).get("meters", {}))
        trainer.load_random_states(stored)
    try:
        with contextlib.ExitStack() as stack:
            stop = stack.enter_context(stop_requests())  # until the last checkpoint is written
            stack.callback(log.close)
            stack.callback(checkpointer.wait)
            _steps(cfg, trainer, checkpointer, batches, log, start, stop)
    except Exception as error:
        newest = checkpointer.describe_newest()
        said = str(error) if newest in str(error) else f"{str(error).rstrip('. ')}. {newest}"
        logger.error("the run broke off: %s: %s", type(error).__name__, said)
        raise
    log.metrics.synchronize_between_processes()
    return {name: meter.global_avg for name, meter in log.metrics.meters.items()}


def _steps(
    cfg: DictConfig,
    trainer: Trainer,
    checkpointer: Checkpointer,
    batches: Iterable[Sequence[Batch]],
    log: RunLog,
    start: int,
    stop: StopRequests,
) -> None:
    """The steps from `start` to the last one, with what happens between them."""
    period = cfg.train.checkpoint_period_iterations or 3 * cfg.train.OFFICIAL_EPOCH_LENGTH
    eval_period = cfg.evaluation.eval_period_iterations
    read_every = cfg.train.read_losses_every
    last, stopping = trainer.max_iteration - 1, 0

    def record_read() -> None:
        for iteration, values in trainer.take_values():
            log.record(iteration, values)

    def read_all() -> None:
        """Nothing is written that nobody has judged."""
        trainer.read()
        record_read()

    def save_when_due(iteration: int) -> None:
        is_last = iteration == last
        if (iteration + 1) % period == 0 or is_last or stopping:
            read_all()
            checkpointer.save(trainer.state(iteration, meters=log.metrics.state()), iteration=iteration)
        if stopping and not is_last:
            checkpointer.wait()
            logger.info("stopped after iteration %d; the same command goes on from there", iteration)
            raise StopRequested(stopping)

    # Not in the loop's body: a kill between saving a step and writing its line would lose the line.
    log.metrics.between_steps = save_when_due
    steps = log.metrics.log_every(batches, cfg.train.log_period_iterations, "Training", last + 1, start)
    for iteration, step_batches in enumerate(steps, start):
        log.start(step_batches)
        trainer.train_step(step_batches, iteration, read=iteration % read_every == 0 or log.is_due(iteration))
        record_read()
        # Before the step's line is written, too: a start that a later one has superseded writes none.
        stopping = _asked_to_stop(stop, checkpointer.folder.parent)
        if eval_period > 0 and ((iteration + 1) % eval_period == 0 or iteration == last):
            read_all()
            do_test(cfg, trainer.model, f"training_{iteration}")


def _asked_to_stop(stop: StopRequests, output: Path) -> int:
    """The signal by which some process was asked to stop, 0 for none: they must leave together.

    All leave also when a later start of the run has taken the folder over.
    """
    taken_over = None
    try:
        expect_ownership(output)
    except SupersededError as error:
        taken_over = error
    asked = torch.tensor([stop.number, int(taken_over is not None)])
    distributed.all_reduce_max(asked)
    if asked[1]:
        raise taken_over or SupersededError("the main process has lost the output folder to a later start: leaving")
    return int(asked[0])


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


def main(args: argparse.Namespace) -> dict[str, float]:
    """Set up and train, or with `--eval-only` write the teacher of the newest checkpoint."""
    with distributed.session(), contextlib.ExitStack() as stack:
        launch = find_launch()
        other_batches: list[str] = []
        if launch.attempt > 0:  # a scheduler started the run anew: it goes on, perhaps on another number of processes
            other_batches = keep_total_batch(get_cfg_from_args(args), world_size=distributed.get_global_size())
            args = argparse.Namespace(
                **{**vars(args), "no_resume": False, "opts": [*(args.opts or []), *other_batches]}
            )
        cfg = setup(args, before_writing=claim_output_dir)
        output = Path(cfg.train.output_dir)
        distributed.on_main(lambda: stack.enter_context(sole_owner(output, job=launch.job, attempt=launch.attempt)))
        stack.enter_context(cpu_threads(cfg.train.cpu_threads))
        if args.no_resume:
            distributed.on_main(lambda: set_aside_checkpoints(output))
        distributed.on_main(lambda: write_config(cfg, output))
        if other_batches:
            logger.warning(
                "another number of processes than before, %d: %s keep the samples a step and their order; rounding and random "
                "numbers do change",
                *(distributed.get_global_size(), " and ".join(other_batches)),
            )
        logger.info("configuration:\n%s", OmegaConf.to_yaml(cfg))
        device = resolve_device(cfg.train.device)
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32, as official
        model = SSLMetaArch(cfg).to(device)
        logger.info("loss routing:\n%s", model.router.describe())
        if args.eval_only:
            return _eval_only(cfg, model)
        return do_train(cfg, model, resume=not args.no_resume)


def _eval_only(cfg: DictConfig, model: SSLMetaArch) -> dict[str, float]:
    folder = Path(cfg.train.output_dir) / "checkpoints"
    stored = Checkpointer(folder).find_newest()
    if stored is None:
        raise UserError(f"--eval-only needs a checkpoint, and {folder} holds none. Train first.")
    stored.read_tensors({f"model.{name}": value for name, value in model.state_dict().items()})
    logger.info("teacher written to %s", do_test(cfg, model, f"manual_{stored.iteration}"))
    return {}


def run(arguments: list[str] | None = None) -> int:
    """The command line with its exit status.

    0 done, 2 a user's mistake, 3 a loss that is not finite; stopped by a signal, 128 and its number: 130 by Ctrl-C, 140 by
    SIGUSR2, with which SLURM warns of a job's end.
    """
    args = get_args_parser().parse_args(arguments)
    try:
        main(args)
    except (UserError, NonFiniteLossError) as error:
        if args.debug:
            raise
        print(f"{distributed.process_label()}error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 3
    except StopRequested as stop:
        return 128 + stop.number
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(run())
