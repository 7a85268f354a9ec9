"""Training a backbone on labels, end to end or in few of its parameters, and scoring it: `tune`. The suite calls it.

One model a learning rate is trained from the same start. The validation split alone chooses the epoch of each (and, through
`Candidates`, the rate); the test split is scored once, by the chosen epoch. A training that was interrupted goes on from its
last whole epoch and ends, on a CPU, in the same bits; a finished one is read from its file.

Shape legend: n images, L labels or classes, G learning rates.
"""

import logging
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vet_extensions.errors import UserError
from vet_extensions.evaluation.cohort import MULTICLASS, LabelledImages
from vet_extensions.evaluation.embedding import Backbone
from vet_extensions.evaluation.features import OnProgress
from vet_extensions.evaluation.metrics import AUROC, label_metrics, macro
from vet_extensions.evaluation.probes import Candidates
from vet_extensions.evaluation.tuning_checks import ParameterWatch
from vet_extensions.evaluation.tuning_config import TuningConfig
from vet_extensions.evaluation.tuning_data import (
    TuningImages,
    batches_of,
    epoch_batches,
    n_batches,
    rows_of,
    scored_batches,
)
from vet_extensions.evaluation.tuning_files import (
    Finished,
    TuningFacts,
    random_state,
    read_state,
    restore_random_state,
    seeded,
    write_state,
)
from vet_extensions.evaluation.tuning_job import Job
from vet_extensions.evaluation.tuning_methods import adapt, n_parameters
from vet_extensions.evaluation.tuning_model import (
    TunedClassifier,
    base_rates,
    class_log_odds,
    known_loss,
    make_optimizer,
    rate_share,
)
from vet_extensions.schema import Split

logger = logging.getLogger("vet_extensions")


@dataclass(frozen=True)
class Tuned:
    """Scores of the validation and test images for every learning rate, and the facts of each. memory_of: what
    `TuningFacts.peak_memory_bytes` measures, "cuda" or "process"."""

    candidates: Candidates
    facts: tuple[TuningFacts, ...]
    memory_of: str

    def row(self, place: int) -> dict[str, list[float]]:
        """The facts of one learning rate, as a result's configuration holds them."""
        facts = asdict(self.facts[place])
        del facts["learning_rate"]
        facts[f"peak_{self.memory_of}_bytes"] = facts.pop("peak_memory_bytes")
        return {name: [value] for name, value in facts.items()}


def tune(
    backbone: Backbone,
    images: LabelledImages,
    *,
    method: str,
    config: TuningConfig | None = None,
    image_size_px: int | None = None,
    tokens: str = "cls",
    device: torch.device | str = "cpu",
    folder: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Tuned:
    """Train with `method` (one of `TUNED_PROTOCOLS`) and score; val: [G, n_val, L] and test: [G, n_test, L] log-odds.

    image_size_px: where the config does not say; None for the backbone's own. folder: where trainings are kept, None to keep
    nothing. on_progress counts training images. A label that the training images do not show both present and absent has NaN
    for scores. The backbone itself is not changed.
    Raises `UserError` where there is nothing to train on, the method does not fit the backbone, or the loss is not finite;
    `NotTrainedAsIntended` where the wrong parameters were trained.
    """
    config = config or TuningConfig()
    factors, n_images = config.learning_rate_factors, len(rows_of(images, Split.TRAIN)) * config.epochs
    report = on_progress or (lambda done, total: None)
    total, finished = len(factors) * n_images, []
    for place, factor in enumerate(factors):
        size_px = config.image_size_px or image_size_px or backbone.image_size_px
        job = Job(backbone, images, method, factor, config, size_px, tokens, torch.device(device))
        before = place * n_images
        kept = None if folder is None else Finished.read(folder / f"{job.key}.npz")
        training = Training(job, folder=folder)
        finished.append(kept or training.finish(lambda done, before=before: report(before + done, total)))
        report(before + n_images, total)
    candidates = Candidates(
        "learning_rate",
        tuple(one.facts.learning_rate for one in finished),
        np.stack([one.val for one in finished]),
        np.stack([one.test for one in finished]),
        are_logits=True,
    )
    memory_of = "cuda" if torch.device(device).type == "cuda" else "process"
    return Tuned(candidates, tuple(one.facts for one in finished), memory_of)


@dataclass
class _Course:
    """How far a training is; all of it goes into its checkpoint. best: tuned weights of the best epoch so far."""

    epoch: int = 0
    best_epoch: int = 0
    best_value: float = float("nan")
    best_loss: float = float("nan")
    best: dict[str, Tensor] = field(default_factory=dict)
    wall_s: float = 0.0
    peak_memory_bytes: int = 0


class Training:
    """One job in progress."""

    def __init__(self, job: Job, *, folder: Path | None) -> None:
        self.job, self._folder, self._course = job, folder, _Course()
        images, config = job.images, job.config
        self._train, self._val, self._test = (rows_of(images, split) for split in (Split.TRAIN, Split.VAL, Split.TEST))
        self._n_epoch_steps = n_batches(self._train, config.batch_size)
        self._pixels = TuningImages(images.reader, image_size_px=job.image_size_px, seed=config.seed)
        self._labels = torch.from_numpy(np.ascontiguousarray(images.cohort.labels)).to(job.device)

    def finish(self, on_progress: Callable[[int], None]) -> Finished:
        """Train to the end from wherever it stands, and score; the result is kept."""
        job = self.job
        with seeded(job.config.seed, job.device):
            self._set_up()
            self._resume()
            while self._course.epoch < job.config.epochs:
                with self._on_the_clock():
                    self._choose(self._train_epoch(on_progress))
                self._save()
            self.watch.check_changes()
            with self._on_the_clock():
                self.classifier.load_state_dict(self._course.best, strict=False)
                val, test = self._scores(self._val), self._scores(self._test)
        finished = Finished(val, test, self._facts())
        if self._folder is not None:
            finished.write(self._folder / f"{job.key}.npz")
            self._state_file.unlink(missing_ok=True)
        return finished

    def _set_up(self) -> None:
        job, images = self.job, self.job.images
        backbone, labels = job.backbone, images.cohort.labels[self._train]
        adapted = adapt(backbone, job.method, job.config, image_size_px=job.image_size_px, tokens=job.tokens)
        classifier = TunedClassifier(
            adapted,
            embed_dim=backbone.embed_dim,
            n_blocks=backbone.n_blocks,
            base_rates=base_rates(labels),
            task=images.task,
            tokens=job.tokens,
        )
        self.classifier = classifier.to(job.device)
        self.optimizer = make_optimizer(classifier, method=job.method, factor=job.factor, config=job.config)
        self._in_backbone = [f"backbone.{name}" for name in sorted(adapted.trainable)]
        self._tuned = [*self._in_backbone, "head.weight", "head.bias"]
        optimised = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.watch = ParameterWatch(classifier, intended=frozenset(self._tuned), optimised=optimised)

    def _train_epoch(self, on_progress: Callable[[int], None]) -> float:
        """One pass; returns its mean loss."""
        job, config, epoch = self.job, self.job.config, self._course.epoch
        is_varied = config.augmentation != "none"
        batches = epoch_batches(
            self._train, epoch=epoch, batch_size=config.batch_size, seed=config.seed, is_varied=is_varied
        )
        self.classifier.train()
        total, n_known, n_done = torch.zeros((), device=job.device), torch.zeros((), device=job.device), 0
        for place, (rows, pixels) in enumerate(
            batches_of(self._pixels, batches, mean=job.backbone.mean, std=job.backbone.std, device=job.device)
        ):
            step_loss, step_known = self._step(pixels, self._labels[rows], step=epoch * self._n_epoch_steps + place)
            total, n_known, n_done = total + step_loss, n_known + step_known, n_done + len(rows)
            on_progress(epoch * len(self._train) + n_done)
        loss = float(total / n_known)
        if not np.isfinite(loss):
            raise UserError(
                f"The training loss of {job.method} is not finite in epoch {epoch + 1} at learning rate {job.learning_rate:g}. "
                "Give smaller tuning.learning_rate_factors, or tuning.precision: fp32."
            )
        return loss

    def _step(self, pixels: Tensor, labels: Tensor, *, step: int) -> tuple[Tensor, Tensor]:
        """One optimisation step; returns the sum of the losses and how many there are."""
        config, n_steps = self.job.config, self.job.config.epochs * self._n_epoch_steps
        share = rate_share(step, n_steps=n_steps, warmup_share=config.warmup_share)
        for group in self.optimizer.param_groups:
            group["lr"] = share * group["peak_lr"]
        total, n_known = known_loss(self._logits(pixels), labels, task=self.job.images.task)
        self.optimizer.zero_grad(set_to_none=True)
        (total / n_known).backward()
        self.watch.after_backward(is_last=step == n_steps - 1)
        nn.utils.clip_grad_norm_(
            [p for group in self.optimizer.param_groups for p in group["params"]], config.clip_norm
        )
        self.optimizer.step()
        return total.detach(), n_known

    def _logits(self, pixels: Tensor) -> Tensor:
        dtype = self.job.amp_dtype
        with torch.autocast(self.job.device.type, dtype=dtype, enabled=dtype is not None):
            return self.classifier(pixels).float()

    def _scores(self, rows: NDArray[np.integer]) -> NDArray[np.float32]:
        """Log-odds [n, L] of each label, or each class against all others, of rows."""
        job, parts = self.job, []
        self.classifier.eval()
        batches = scored_batches(rows, batch_size=job.config.batch_size)
        with torch.inference_mode():
            for _, pixels in batches_of(
                self._pixels, batches, mean=job.backbone.mean, std=job.backbone.std, device=job.device
            ):
                logits = self._logits(pixels)
                parts.append((class_log_odds(logits) if job.images.task == MULTICLASS else logits).cpu())
        labels = job.images.cohort.labels[self._train]
        scores = torch.cat(parts).numpy() if parts else np.empty((0, labels.shape[1]), dtype=np.float32)
        scores[:, ~((labels == 1).any(axis=0) & (labels == 0).any(axis=0))] = np.nan
        return scores

    def _choose(self, loss: float) -> None:
        """Keep this epoch's weights if they are the best on the validation split so far; the last ones where it cannot tell."""
        course = self._course
        course.epoch += 1
        values = label_metrics(self._scores(self._val), labels=self.job.images.cohort.labels[self._val])[AUROC][:, 0]
        value = macro(values)[0]
        if np.isnan(course.best_value) or value > course.best_value:
            state = self.classifier.state_dict()
            course.best = {name: state[name].detach().cpu().clone() for name in self._tuned}
            course.best_epoch, course.best_value, course.best_loss = course.epoch, value, loss
        logger.info("%s, epoch %d: loss %.4f, validation AUROC %.4f", self.job.method, course.epoch, loss, value)

    def _facts(self) -> TuningFacts:
        course, n_head = self._course, sum(p.numel() for p in self.classifier.head.parameters())
        return TuningFacts(
            learning_rate=self.job.learning_rate,
            epoch=course.best_epoch,
            train_loss=course.best_loss,
            n_trainable=n_parameters(self.classifier, self._in_backbone),
            n_head=n_head,
            n_total=sum(p.numel() for p in self.classifier.parameters()),
            wall_s=round(course.wall_s, 3),
            peak_memory_bytes=course.peak_memory_bytes,
        )

    @property
    def _state_file(self) -> Path:
        assert self._folder is not None
        return self._folder / f"{self.job.key}.pt"

    def _save(self) -> None:
        if self._folder is None:
            return
        state = self.classifier.state_dict()
        whole = {
            "course": asdict(self._course),
            "tuned": {name: state[name] for name in self._tuned},
            "optimizer": self.optimizer.state_dict(),
            "watch": self.watch.state(),
            "random": random_state(self.job.device),
        }
        write_state(self._state_file, whole)

    def _resume(self) -> None:
        state = None if self._folder is None else read_state(self._state_file)
        if state is None:
            return
        self._course = _Course(**state["course"])
        self.classifier.load_state_dict(state["tuned"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.watch.resume(state["watch"])
        restore_random_state(state["random"], self.job.device)
        logger.info("%s goes on after epoch %d", self.job.method, self._course.epoch)

    @contextmanager
    def _on_the_clock(self) -> Iterator[None]:
        """Adds what happens inside to the time and the peak of memory that the training took."""
        course, device, start = self._course, self.job.device, time.monotonic()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        yield
        course.wall_s += time.monotonic() - start
        on_cuda = device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(device) if on_cuda else _peak_of_process()
        course.peak_memory_bytes = max(course.peak_memory_bytes, peak)


def _peak_of_process() -> int:
    """Bytes; Linux counts in kilobytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
