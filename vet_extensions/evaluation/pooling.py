"""Classification of volumes from the frozen features of their slices, and of studies from those of their images.

`protocols` calls `pooling_probe`: the mean or the maximum of a bag's features with a linear probe, or a pooling that is learned
with its classifier (`pooling_heads`). `fit_pooling` gives a trained one, which also tells which slices it looked at.

Shape legend: n slices, m bags, B bags of a batch, S slices of the longest, D feature width, L labels or classes, G candidates.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vet_extensions.errors import UserError
from vet_extensions.evaluation.bags import PADDING, Bags
from vet_extensions.evaluation.cohort import MULTICLASS, MULTILABEL
from vet_extensions.evaluation.logistic import linear_probe
from vet_extensions.evaluation.metrics import AUROC, is_known, label_metrics, macro
from vet_extensions.evaluation.pooling_config import (
    ABMIL,
    FIXED_POOLINGS,
    LEARNED_POOLINGS,
    POOL_ATTENTION,
    POOLING_PROTOCOLS,
    PoolingConfig,
)
from vet_extensions.evaluation.pooling_heads import GatedAttention, PoolingHead, QueryAttention, SliceTransformer
from vet_extensions.evaluation.probes import Candidates, ProbeData
from vet_extensions.evaluation.tuning_files import seeded
from vet_extensions.evaluation.tuning_model import base_rates, class_log_odds, known_loss, rate_share

logger = logging.getLogger("vet_extensions")

_WARMUP_SHARE = 0.1
_CLIP_NORM = 1.0
_MIN_RATE = 1e-3
"""Rarest label whose log-odds training begins with."""


def pooling_probe(
    bank: Bags,
    *,
    val: Bags,
    test: Bags,
    how: str,
    config: PoolingConfig,
    task: str = MULTILABEL,
    c_grid: Sequence[float],
    max_iterations: int = 100,
) -> Candidates:
    """Scores (log-odds) of the validation and test bags by one of `POOLING_PROTOCOLS`.

    "pool_mean" and "pool_max": a linear probe for every C of c_grid; the others: one training for every learning rate, each with
    the epoch that is best on the validation bags.
    """
    if how not in POOLING_PROTOCOLS:
        raise UserError(f"There is no pooling '{how}'. Poolings: {', '.join(POOLING_PROTOCOLS)}.")
    if how in FIXED_POOLINGS:
        data = [ProbeData(bags.pooled(FIXED_POOLINGS[how]), bags.labels) for bags in (bank, val, test)]
        return linear_probe(data[0], val=data[1], test=data[2], c_grid=c_grid, max_iterations=max_iterations)
    models = [
        fit_pooling(bank, val=val, how=how, config=config, task=task, learning_rate=rate)
        for rate in config.learning_rates
    ]
    val_scores, test_scores = (np.stack([model.scores(bags) for model in models]) for bags in (val, test))
    return Candidates("learning_rate", config.learning_rates, val_scores, test_scores, are_logits=True)


@dataclass(frozen=True)
class PoolingModel:
    """A trained pooling. epoch: the chosen one, counted from 1; has_model: [L], False where the bank lacks a positive or a
    negative."""

    head: PoolingHead
    config: PoolingConfig
    task: str
    epoch: int
    has_model: NDArray[np.bool_]

    def scores(self, bags: Bags) -> NDArray[np.float32]:
        """Log-odds of each label, or of each class against all others, [m, L]; NaN columns have no model."""
        scores = _scores(self.head, bags, config=self.config, task=self.task)
        scores[:, ~self.has_model] = np.nan
        return scores

    def attention(self, bags: Bags) -> NDArray[np.float32]:
        """How much each slice weighs in its bag, [n], in the order of `bags.features`; the weights of a bag sum to 1.

        0 for slices beyond max_slices. Where the head looked is not by itself why it decided so; of the transformer it is the
        attention of the class token in the last layer alone.
        """
        weights = np.zeros(len(bags.features), dtype=np.float32)
        with torch.inference_mode():
            for _, rows in _scored_batches(bags, self.config):
                features, is_slice = _load(bags, rows)
                weights[rows[rows != PADDING]] = self.head.eval().attention(features, is_slice)[is_slice].numpy()
        return weights


def fit_pooling(
    bank: Bags,
    *,
    val: Bags,
    how: str,
    config: PoolingConfig | None = None,
    task: str = MULTILABEL,
    learning_rate: float = 1e-3,
) -> PoolingModel:
    """Train one of `LEARNED_POOLINGS` on the bank's bags; the features stay as they are. Deterministic in the seed, on a CPU.

    The weights of the epoch with the highest macro AUROC over all labels of the validation bags count, of equals the first; the
    last epoch's where no label of those has both a positive and a negative. Features are standardised by the bank's slices.
    Labels that are not 0 or 1 have no loss. Torch's generator is left as it was found.
    Raises `UserError` where there is nothing to train on or choose by, and for a loss that is not finite.
    """
    config = config or PoolingConfig()
    if how not in LEARNED_POOLINGS:
        raise UserError(f"There is no learned pooling '{how}'. Learned poolings: {', '.join(LEARNED_POOLINGS)}.")
    usable = _usable(bank, val, task=task)
    if bank.lengths.max() > config.max_slices:
        n_longer = int((bank.lengths > config.max_slices).sum())
        logger.warning("%d of %d bags are longer than %d slices and thinned", n_longer, len(bank), config.max_slices)
    with seeded(config.seed, torch.device("cpu")):
        head = _make_head(bank, how=how, config=config, task=task)
        epoch = _train(
            head, bank, val=val, usable=usable, config=config, task=task, learning_rate=learning_rate, how=how
        )
    has_model = (bank.labels == 1).any(axis=0) & (bank.labels == 0).any(axis=0)
    return PoolingModel(head.eval(), config, task, epoch, has_model)


def _usable(bank: Bags, val: Bags, *, task: str) -> NDArray[np.intp]:
    """The bank's bags with a known label; what cannot be trained on is refused."""
    if not len(val):
        raise UserError(
            "There are no validation bags to choose the epoch and the learning rate by. Give the split 'val' some studies, or "
            "use pool_mean or pool_max with a single C."
        )
    if task == MULTICLASS:
        n_wrong = int(((bank.labels == 1).sum(axis=1) != 1).sum())
        if n_wrong:
            raise UserError(
                f"{n_wrong} of {len(bank)} training bags have no class, or several; a bag of a multi-class task has one. "
                "Leave them out, or make the data set's task multi-label."
            )
    usable = np.flatnonzero(is_known(bank.labels).any(axis=1))
    if not len(usable):
        raise UserError(f"None of the {len(bank)} training bags has a known label (0 or 1). Give labels to train on.")
    return usable


def _make_head(bank: Bags, *, how: str, config: PoolingConfig, task: str) -> PoolingHead:
    """An untrained head, which knows the mean and spread of the features and how common the labels are."""
    variance, mean = torch.var_mean(torch.as_tensor(bank.features, dtype=torch.float32), dim=0, correction=0)
    scale = torch.where(variance > 1e-24, variance.sqrt(), 1.0)  # a constant feature stays 0
    rates = base_rates(bank.labels).clamp(_MIN_RATE, 1 - _MIN_RATE)
    bias = rates.log() if task == MULTICLASS else torch.logit(rates)
    if how == POOL_ATTENTION:
        return QueryAttention(mean, scale=scale, bias=bias, dropout=config.dropout)
    if how == ABMIL:
        return GatedAttention(mean, scale=scale, bias=bias, dropout=config.dropout, width=config.width)
    return SliceTransformer(
        mean,
        scale=scale,
        bias=bias,
        dropout=config.dropout,
        width=config.width,
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        has_positions=config.positions == "relative",
    )


def _train(
    head: PoolingHead,
    bank: Bags,
    *,
    val: Bags,
    usable: NDArray[np.intp],
    config: PoolingConfig,
    task: str,
    learning_rate: float,
    how: str,
) -> int:
    """Leaves the best epoch's weights in the head; returns its number."""
    optimizer = _make_optimizer(head, config)
    order = torch.Generator().manual_seed(config.seed)
    n_steps, step = config.epochs * -(-len(usable) // config.batch_size), 0
    best_epoch, best_value, best = 0, float("nan"), {}
    for epoch in range(1, config.epochs + 1):
        head.train()
        total, n_known = torch.zeros(()), torch.zeros(())
        for at in torch.randperm(len(usable), generator=order).split(config.batch_size):
            rate = learning_rate * rate_share(step, n_steps=n_steps, warmup_share=_WARMUP_SHARE)
            for group in optimizer.param_groups:
                group["lr"] = rate
            step_loss, step_known = _step(head, bank, usable[at.numpy()], optimizer=optimizer, config=config, task=task)
            total, n_known, step = total + step_loss, n_known + step_known, step + 1
        loss = float(total / n_known)
        if not np.isfinite(loss):
            raise UserError(
                f"The training loss of {how} is not finite in epoch {epoch} at learning rate {learning_rate:g}. Give smaller "
                "pooling.learning_rates."
            )
        scores = _scores(head, val, config=config, task=task)
        value = macro(label_metrics(scores, labels=val.labels)[AUROC][:, 0])[0]
        if np.isnan(best_value) or value > best_value:
            best_epoch, best_value = epoch, value
            best = {name: tensor.clone() for name, tensor in head.state_dict().items()}
        logger.debug("%s, epoch %d: loss %.4f, validation AUROC %.4f", how, epoch, loss, value)
    head.load_state_dict(best)
    logger.info(
        "%s, rate %g: epoch %d of %d, validation AUROC %.4f", how, learning_rate, best_epoch, config.epochs, best_value
    )
    return best_epoch


def _step(
    head: PoolingHead,
    bank: Bags,
    bags: NDArray[np.intp],
    *,
    optimizer: torch.optim.Optimizer,
    config: PoolingConfig,
    task: str,
) -> tuple[Tensor, Tensor]:
    """One optimisation step; returns the sum of the losses and how many there are."""
    logits = head(*_load(bank, bank.row_table(bags, max_slices=config.max_slices)))
    total, n_known = known_loss(logits, torch.from_numpy(bank.labels[bags]), task=task)
    optimizer.zero_grad(set_to_none=True)
    (total / n_known).backward()
    torch.nn.utils.clip_grad_norm_(head.parameters(), _CLIP_NORM)
    optimizer.step()
    return total.detach(), n_known


def _make_optimizer(head: PoolingHead, config: PoolingConfig) -> torch.optim.AdamW:
    """AdamW; matrices decay, vectors (biases, norms, the query, the class token) do not."""
    matrices = [p for p in head.parameters() if p.ndim > 1]
    vectors = [p for p in head.parameters() if p.ndim == 1]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    )


def _scores(head: PoolingHead, bags: Bags, *, config: PoolingConfig, task: str) -> NDArray[np.float32]:
    """Log-odds [m, L]."""
    scores = np.empty(bags.labels.shape, dtype=np.float32)
    head.eval()
    with torch.inference_mode():
        for at, rows in _scored_batches(bags, config):
            logits = head(*_load(bags, rows))
            scores[at] = (class_log_odds(logits) if task == MULTICLASS else logits).numpy()
    return scores


def _scored_batches(bags: Bags, config: PoolingConfig) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """(bags [B], their rows [B, S]), those of like length together, so that little is padded."""
    order = np.argsort(bags.lengths, kind="stable")
    for start in range(0, len(order), config.batch_size):
        at = order[start : start + config.batch_size]
        yield at, bags.row_table(at, max_slices=config.max_slices)


def _load(bags: Bags, rows: NDArray[np.intp]) -> tuple[Tensor, Tensor]:
    """Features [B, S, D] float32 of a table of rows, and where there are slices, [B, S]. Padding holds some bag's slice."""
    return torch.as_tensor(bags.features[rows], dtype=torch.float32), torch.from_numpy(rows != PADDING)
