"""Watching the logged values of a run for collapse: outputs that no longer depend on the image. Called by the train loop.

Nothing here changes a run. K prototypes, ln K nats: the entropy of a uniform answer over them, and the cross-entropy of a student
that answers uniformly whatever the teacher says.
"""

import logging
import math
from collections import deque
from collections.abc import Mapping

from omegaconf import DictConfig

from dinov2.loss.routing import CropSlots, LossRouter

logger = logging.getLogger("dinov2")

AT_LN_K = 0.99
"""A loss or an entropy above this share of ln K counts as being at ln K."""
ON_ONE_PROTOTYPE = 0.05
"""Targets whose mean over the batch has less than this share of ln K of entropy: (nearly) all mass on one prototype."""
SAME_ANSWER_NATS = 0.05
"""Entropy of the mean target minus mean entropy of the targets; less means that every crop gets the same target."""
LEAST_BATCH = 4
"""With fewer images in a batch, equal targets say nothing about collapse."""
KOLEO_NATS = 8.0
"""Minus the mean log distance to the nearest neighbour; above it the class tokens of a batch differ by less than 0.0004."""
RANKME_FALL = 0.5
"""Share of the run's best RankMe below which it counts as falling."""
RANKME_LOW = 0.1
"""Share of the greatest possible RankMe below which it counts as low."""


class CollapseWatch:
    """Turns the displayed values of the steps into warnings, one for each episode of a symptom.

    A symptom counts once it held in nearly all of the last `patience` iterations, and may be warned of again after it has
    gone. Losses and uniform targets are judged only after `warm_up` iterations, since every run starts there.
    """

    def __init__(
        self,
        *,
        n_prototypes: int,
        patience: int = 200,
        warm_up: int = 0,
        dino_weight: float = 1.0,
        ibot_n_prototypes: int | None = None,
        ibot_weight: float = 0.25,
        koleo_weight: float = 0.1,
        batch_size: int = LEAST_BATCH,
        rankme_limit: float | None = None,
    ) -> None:
        """
        dino_weight: sum of the routing's cell weights of a sample, so that the displayed global and local losses add up to
            `dino_weight` times the mean cross-entropy of a pair of crops.
        ibot_n_prototypes: of the head that patches go through; as `n_prototypes` unless given. ibot_weight: the displayed iBOT
            loss is this times the mean cross-entropy of a masked patch: half the share of crops that get a mask.
        koleo_weight: `dino.koleo_loss_weight`, which is inside the displayed KoLeo loss.
        batch_size: images in the batch of one process.
        rankme_limit: the greatest value that RankMe can take, min(images of the probe, embedding width); None: only its fall
            is watched.
        """
        self._ln_k = math.log(n_prototypes)
        self._ln_k_patches = math.log(ibot_n_prototypes or n_prototypes)
        self._warm_up = warm_up
        self._dino_weight, self._ibot_weight, self._koleo_weight = dino_weight, ibot_weight, koleo_weight
        self._batch_size = batch_size
        self._rankme_limit, self._best_rankme = rankme_limit, 0.0
        at_once = ("koleo_infinite", "rankme_low", "rankme_fell")
        patient = ("loss_at_ln_k", "patches_at_ln_k", "uniform_targets", "one_prototype", "same_answer", "koleo_high")
        self._episodes = {name: _Episode(patience) for name in patient} | {name: _Episode(0) for name in at_once}

    def update(self, iteration: int, values: Mapping[str, float]) -> list[str]:
        """The warnings that begin with this step, logged too; one sentence what is seen, what it means and what to change.

        values: displayed losses and diagnostics of the step, averaged over processes, under their logged names; what is
        missing or NaN is not judged. Need not be called for every iteration.
        """
        seen = self._always(values)
        if iteration >= self._warm_up:
            seen |= self._after_warm_up(values)
        began = [text for name, text in seen.items() if self._episodes[name].begins(iteration, held=bool(text))]
        warnings = [f"Iteration {iteration}: {text}" for text in began]
        for warning in warnings:
            logger.warning(warning)
        return warnings

    def _always(self, values: Mapping[str, float]) -> dict[str, str]:
        """Symptom -> its sentence, empty if it does not hold; those that no healthy run shows even at its start."""
        seen = {}
        if _has(values, "teacher_marginal_entropy") and self._batch_size >= LEAST_BATCH:
            share = values["teacher_marginal_entropy"] / self._ln_k
            text = (
                f"all images of a batch get the same one-hot target (entropy of the mean target {share:.1%} of ln K): the "
                "teacher has collapsed onto one prototype. Set train.centering=sinkhorn_knopp, or raise teacher.teacher_temp "
                "and teacher.warmup_teacher_temp, or lower optim.base_lr."
            )
            seen["one_prototype"] = text if share < ON_ONE_PROTOTYPE else ""
        if "koleo_loss" in values:
            text = (
                "the KoLeo loss is not finite: two images of a batch have the same class token. Either images occur twice in "
                "the data, or the backbone has collapsed. Set dino.koleo_in_fp32=true, remove duplicates, or set "
                "dino.koleo_loss_weight=0 for batches of a few images."
            )
            seen["koleo_infinite"] = "" if math.isfinite(values["koleo_loss"]) else text
        return seen

    def _after_warm_up(self, values: Mapping[str, float]) -> dict[str, str]:
        """As `_always`, of symptoms that every run shows until its learning rate has risen."""
        return {**self._losses(values), **self._targets(values), **self._tokens(values), **self._rankme(values)}

    def _losses(self, values: Mapping[str, float]) -> dict[str, str]:
        seen = {}
        terms = [values[name] for name in ("dino_global_crops_loss", "dino_local_crops_loss") if _has(values, name)]
        if terms and self._dino_weight > 0:
            share = sum(terms) / self._dino_weight / self._ln_k
            text = (
                f"the DINO loss is at {share:.1%} of ln K, no better than a uniform guess: the student does not learn from the "
                "teacher. Lower optim.base_lr, give a larger total batch (train.gradient_accumulation_steps), fewer "
                "prototypes (dino.head_n_prototypes) or a lower teacher.teacher_temp; configs/pretrain/small_batch.yaml "
                "shows such settings."
            )
            seen["loss_at_ln_k"] = text if share >= AT_LN_K else ""
        if _has(values, "ibot_loss") and self._ibot_weight > 0:
            share = values["ibot_loss"] / self._ibot_weight / self._ln_k_patches
            text = (
                f"the iBOT loss is at {share:.1%} of ln K, no better than a uniform guess: masked patches are not predicted. "
                "Lower optim.base_lr or ibot.mask_ratio_min_max, give fewer prototypes, or set ibot.separate_head=true."
            )
            seen["patches_at_ln_k"] = text if share >= AT_LN_K else ""
        return seen

    def _targets(self, values: Mapping[str, float]) -> dict[str, str]:
        if not _has(values, "teacher_entropy"):
            return {}
        entropy = values["teacher_entropy"]
        share = entropy / self._ln_k
        text = (
            f"the teacher's targets are uniform (entropy {share:.1%} of ln K): it says nothing about any image, which is "
            "collapse. Lower teacher.teacher_temp or optim.base_lr, or raise dino.koleo_loss_weight, and start anew or from a "
            "checkpoint before this began."
        )
        seen = {"uniform_targets": text if share >= AT_LN_K else ""}
        if _has(values, "teacher_marginal_entropy") and self._batch_size >= LEAST_BATCH:
            marginal = values["teacher_marginal_entropy"]
            text = (
                f"every image gets the same target (entropy of the mean target {marginal:.3f} nats, of single targets "
                f"{entropy:.3f}): the teacher does not look at the image, which is collapse whatever the loss does. Lower "
                "optim.base_lr, raise teacher.momentum_teacher or dino.koleo_loss_weight, or set "
                "train.centering=sinkhorn_knopp."
            )
            has_own_warning = share >= AT_LN_K or marginal < ON_ONE_PROTOTYPE * self._ln_k
            seen["same_answer"] = text if marginal - entropy < SAME_ANSWER_NATS and not has_own_warning else ""
        return seen

    def _tokens(self, values: Mapping[str, float]) -> dict[str, str]:
        if not _has(values, "koleo_loss") or self._koleo_weight <= 0:
            return {}
        nats = values["koleo_loss"] / self._koleo_weight
        text = (
            f"the class tokens of a batch lie on top of each other (KoLeo {nats:.1f} nats, the nearest neighbour at "
            f"{math.exp(-nats):.0e}): the backbone gives nearly the same embedding for every image. Lower optim.base_lr, raise "
            "dino.koleo_loss_weight, and look for duplicate or empty images."
        )
        return {"koleo_high": text if nats > KOLEO_NATS else ""}

    def _rankme(self, values: Mapping[str, float]) -> dict[str, str]:
        if not _has(values, "rankme"):
            return {}
        value, best = values["rankme"], self._best_rankme
        self._best_rankme = max(value, best)
        text = (
            f"RankMe on held-out images fell to {value:.1f} from {best:.1f}: the embeddings use ever fewer dimensions. Lower "
            "optim.base_lr, raise dino.koleo_loss_weight or lower optim.weight_decay_end, and evaluate the checkpoint of the "
            "best value."
        )
        seen = {"rankme_fell": text if value < RANKME_FALL * best else ""}
        if self._rankme_limit:
            text = (
                f"RankMe on held-out images is {value:.1f} of at most {self._rankme_limit:.0f}: the embeddings lie in a few "
                "dimensions. Give it time if it rises; else raise dino.koleo_loss_weight or lower optim.base_lr."
            )
            seen["rankme_low"] = text if value < RANKME_LOW * self._rankme_limit else ""
        return seen


def build_collapse_watch(cfg: DictConfig, router: LossRouter, *, rankme_limit: float | None = None) -> CollapseWatch:
    """The watch that fits a configuration and its routing; `rankme_limit` as `CollapseWatch` takes it.

    Warm-up is that of the learning rate; the patience is half an OFFICIAL_EPOCH_LENGTH, at least 50 iterations.
    """
    epoch = cfg.train.OFFICIAL_EPOCH_LENGTH
    routing = router(CropSlots.of_layout(router.layout, 1))
    n_crops = router.layout.n_shared * cfg.train.batch_size_per_gpu
    n_masked = int(n_crops * cfg.ibot.mask_sample_probability)
    return CollapseWatch(
        n_prototypes=cfg.dino.head_n_prototypes,
        patience=max(epoch // 2, 50),
        warm_up=cfg.optim.warmup_epochs * epoch,
        dino_weight=float(routing.dino_global.sum() + routing.dino_local.sum()),
        ibot_n_prototypes=cfg.ibot.head_n_prototypes if cfg.ibot.separate_head else None,
        ibot_weight=0.5 * n_masked / max(n_crops, 1),
        koleo_weight=cfg.dino.koleo_loss_weight,
        batch_size=cfg.train.batch_size_per_gpu,
        rankme_limit=rankme_limit,
    )


def _has(values: Mapping[str, float], name: str) -> bool:
    return name in values and math.isfinite(values[name])


class _Episode:
    """One symptom over time: it begins when it held in nearly all recent steps, and ends when it held in less than half."""

    _LEAST_VALUES, _BEGINS, _ENDS = 5, 0.9, 0.5

    def __init__(self, patience: int) -> None:
        """patience: iterations that the symptom must have been followed for; 0: a single value is enough."""
        self._patience = patience
        self._least_values = self._LEAST_VALUES if patience else 1
        self._recent: deque[tuple[int, bool]] = deque()
        self._followed_since: int | None = None
        self._n_held = 0
        self._active = False

    def begins(self, iteration: int, *, held: bool) -> bool:
        """Add what a step showed; true when that begins an episode."""
        if self._followed_since is None:
            self._followed_since = iteration
        self._recent.append((iteration, held))
        self._n_held += held
        while len(self._recent) > self._least_values and self._recent[0][0] <= iteration - self._patience:
            self._n_held -= self._recent.popleft()[1]
        share = self._n_held / len(self._recent)
        if self._active:
            self._active = share >= self._ENDS
            return False
        is_known = iteration - self._followed_since + 1 >= self._patience and len(self._recent) >= self._least_values
        self._active = held and is_known and share >= self._BEGINS
        return self._active
