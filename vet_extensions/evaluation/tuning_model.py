"""A backbone with a linear head, its loss, and its optimizer: what `finetune` trains.

Shape legend: B images, D feature width, L labels or classes.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dinov2.utils.param_groups import fuse_params_groups, get_params_groups_with_decay
from vet_extensions.evaluation.cohort import MULTICLASS
from vet_extensions.evaluation.tuning_config import BASE_LEARNING_RATES, FINETUNE, TuningConfig
from vet_extensions.evaluation.tuning_methods import Adapted, last_features

HEAD = "head."
_HEAD_STD = 0.01
_NOT_DECAYED = ("prompts", "lora_magnitude_vector", "ia3_l")
"""Factors and tokens for which 0 is no neutral value. LoRA's A and B do decay, towards the backbone as it was."""


class TunedClassifier(nn.Module):
    """Images [B, 3, H, W] -> logits [B, L] of a linear head on the class token (and, if asked, the mean patch token)."""

    def __init__(
        self, adapted: Adapted, *, embed_dim: int, n_blocks: int, base_rates: Tensor, task: str, tokens: str = "cls"
    ) -> None:
        """base_rates: [L], how common each label is, in which the head begins; its weights are drawn from torch's generator."""
        super().__init__()
        self.backbone, self._read = adapted.model, adapted.read
        self._n_blocks, self._tokens = n_blocks, tokens
        self.head = nn.Linear(embed_dim * (1 if tokens == "cls" else 2), len(base_rates))
        nn.init.normal_(self.head.weight, std=_HEAD_STD)
        rates = base_rates.clamp(1e-3, 1 - 1e-3)
        with torch.no_grad():
            self.head.bias.copy_(rates.log() if task == MULTICLASS else torch.logit(rates))

    def forward(self, images: Tensor) -> Tensor:
        features = last_features(self.backbone, self._read, images, n_blocks=self._n_blocks, tokens=self._tokens)
        return self.head(features)

    def train(self, mode: bool = True) -> "TunedClassifier":
        """As any module's, but batch statistics stay those of pre-training: batches here are small, and nothing else that is
        frozen may drift either."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self


def known_loss(logits: Tensor, labels: Tensor, *, task: str) -> tuple[Tensor, Tensor]:
    """(sum of the losses of what is known, how many these are).

    logits: [B, L]; labels: [B, L] int8. Multi-label: binary cross-entropy of every label that is 0 or 1; missing and uncertain
    ones count for nothing. Multi-class: cross-entropy of the rows with exactly one class.
    """
    positive = (labels == 1).to(logits.dtype)
    if task == MULTICLASS:
        known = positive.sum(dim=1) == 1
        losses = -(F.log_softmax(logits, dim=1) * positive).sum(dim=1)
    else:
        known = (labels == 0) | (labels == 1)
        losses = F.binary_cross_entropy_with_logits(logits, positive, reduction="none")
    return torch.where(known, losses, 0.0).sum(), known.sum()


def class_log_odds(logits: Tensor) -> Tensor:
    """Log-odds [B, L] of each class against all others, which can be compared between images; their sigmoid is the softmax."""
    is_self = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
    others = logits[:, None, :].masked_fill(is_self, -math.inf)  # [B, L, L]
    return logits - others.logsumexp(dim=2)


def base_rates(labels: NDArray[Any]) -> Tensor:
    """[L]: share of positives among the known values of labels [n, L]; a half where none is known."""
    stated = torch.from_numpy(labels)
    n_known = ((stated == 0) | (stated == 1)).sum(dim=0)
    return torch.where(n_known > 0, (stated == 1).sum(dim=0) / n_known.clamp(min=1), 0.5)


def make_optimizer(
    classifier: TunedClassifier, *, method: str, factor: float, config: TuningConfig
) -> torch.optim.AdamW:
    """AdamW with a `peak_lr` in every group: the head's own; in the backbone the method's, less from block to block for
    finetune, where the backbone's blocks are called so."""
    decay = config.layer_decay if method == FINETUNE and hasattr(classifier.backbone, "blocks") else 1.0
    groups = get_params_groups_with_decay(classifier, lr_decay_rate=decay)
    for group in groups:
        group["is_head"] = group["name"].startswith(HEAD)
        if any(part in group["name"] for part in _NOT_DECAYED):
            group["wd_multiplier"] = 0.0
    rate = factor * BASE_LEARNING_RATES[method]
    fused = [
        {
            "params": group["params"],
            "weight_decay": config.weight_decay * group["wd_multiplier"],
            "peak_lr": config.head_learning_rate if group["is_head"] else rate * group["lr_multiplier"],
        }
        for group in fuse_params_groups(groups, keys=("lr_multiplier", "wd_multiplier", "is_head"))
    ]
    return torch.optim.AdamW(fused, lr=rate)


def rate_share(step: int, *, n_steps: int, warmup_share: float) -> float:
    """Share of the peak rate at a step: up in a straight line, never from 0, then down half a cosine towards 0."""
    n_warm = round(warmup_share * n_steps)
    if step < n_warm:
        return (step + 1) / n_warm
    return 0.5 * (1 + math.cos(math.pi * (step - n_warm) / (n_steps - n_warm)))
