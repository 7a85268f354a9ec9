"""What a running training says of itself: log lines, `training_metrics.json`, TensorBoard, warnings of collapse, held-out probes.

Called by `do_train`, after every step and in every process; only the main one writes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dinov2.logging import MetricLogger, SmoothedValue
from dinov2.logging.tensorboard import TensorBoardWriter
from dinov2.train.collapse import build_collapse_watch
from dinov2.train.precision import autocast_dtype
from dinov2.train.probe import build_probe
from dinov2.train.throughput import Throughput, peak_flops_of, step_flops
from dinov2.train.trainer import Trainer

METRICS_FILE = "training_metrics.json"


class RunLog:
    """The meters of a run and everything that looks at them."""

    def __init__(self, cfg: DictConfig, trainer: Trainer, *, start: int) -> None:
        """start: the first iteration of this process. Raises `UserError` for a probe that cannot be made."""
        self._cfg = cfg
        self._trainer = trainer
        output = Path(cfg.train.output_dir)
        self._probe = build_probe(cfg)
        limit = min(self._probe.n_val_images, trainer.model.embed_dim) if self._probe is not None else None
        self._watch = build_collapse_watch(cfg, trainer.model.router, rankme_limit=limit)
        self._throughput: Throughput | None = None
        self._last_recorded = -1
        self._times: list[tuple[float, float]] = []
        self._board = (
            TensorBoardWriter(output / "tensorboard", start_iteration=start) if cfg.train.tensorboard else None
        )
        self.metrics = MetricLogger(
            delimiter="  ",
            output_file=output / METRICS_FILE,
            after_step=self._speed,
            sink=self._board.add_scalars if self._board is not None else None,
        )
        if self._probe is not None:
            for name in ("rankme", "knn_top1"):  # measured now and then: the newest value, not a median of old ones
                self.metrics.add_meter(name, SmoothedValue(window_size=1, fmt="{value:.2f}"))
        if self._board is not None:
            self._board.add_text("configuration", f"```yaml\n{OmegaConf.to_yaml(cfg)}```", iteration=start)
            self._board.add_text("loss routing", f"```\n{trainer.model.router.describe()}\n```", iteration=start)

    def start(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """Take note of what a step is made of; to be called before the first one."""
        self._throughput = self._throughput or self._measure_from(batches[0])

    def is_due(self, iteration: int) -> bool:
        """Whether the values of this step are wanted at once: for a line or a probe."""
        is_last = iteration == self._trainer.max_iteration - 1
        return iteration % self._cfg.train.log_period_iterations == 0 or is_last or self._probes_at(iteration)

    def record(self, iteration: int, values: Mapping[str, float] | None) -> None:
        """Take note of a step by what was read of it, `Trainer.take_values`."""
        schedules = self._trainer.schedules
        self.metrics.update(
            lr=schedules.lr[iteration],
            wd=schedules.wd[iteration],
            mom=schedules.momentum[iteration],
            last_layer_lr=schedules.last_layer_lr[iteration],
            current_batch_size=self._cfg.train.batch_size_per_gpu,
            **(values or {}),
        )
        probed: dict[str, float] = {}
        if self._probe is not None and self._probes_at(iteration):
            probed = self._probe(self._trainer.model.teacher["backbone"])
            self.metrics.update(**probed)
        self._watch.update(iteration, {**(values or {}), **probed})
        self._last_recorded = iteration

    def _probes_at(self, iteration: int) -> bool:
        return self._probe is not None and (iteration + 1) % self._cfg.evaluation.probe_period_iterations == 0

    def _measure_from(self, batch: Mapping[str, Any]) -> Throughput:
        device = self._trainer.model.device
        flops = step_flops(self._cfg, batch)
        return Throughput(
            images_per_step=self._trainer.samples_per_step,
            flops_per_step=flops * self._trainer.n_accumulated if flops is not None else None,
            peak_flops=peak_flops_of(
                device, autocast_dtype(self._cfg, device), override_tflops=self._cfg.train.peak_tflops
            ),
            device=device,
        )

    def _speed(self, iteration: int, iter_time_s: float, data_time_s: float) -> dict[str, float]:
        """A step that nobody waited for has no time of its own: those since the last one that was read share theirs."""
        assert self._throughput is not None, "a step was started"
        self._times.append((iter_time_s, data_time_s))
        if iteration != self._last_recorded:
            return {}
        iter_time_s, data_time_s = (fmean(times) for times in zip(*self._times, strict=True))
        self._times.clear()
        return self._throughput.update(iter_time_s, data_time_s)

    def close(self) -> None:
        """Close what is open."""
        if self._board is not None:
            self._board.close()
