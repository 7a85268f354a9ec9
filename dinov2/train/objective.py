"""What student and teacher hand to the losses of DINO and iBOT, and these losses of a batch. Called by `SSLMetaArch`.

Shape legend: S student global crops, L local crops, T teacher crops, B samples, M masked patches, C bottleneck channels,
K prototypes, D embedding width. Rows of the networks are crop-major [crops * B, ...], those of the losses sample-major.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from dinov2.loss.centering import CenteredLoss
from dinov2.loss.prototype_loss import (
    CentredTargets,
    LossTerm,
    StoredTargets,
    TargetEntropies,
    prototype_losses,
)
from dinov2.loss.routing import LossRouting


class TeacherTargets(NamedTuple):
    """cls: of [B, T] rows; patches: of [M, 1] rows, the masked patches, None without iBOT."""

    cls: CentredTargets | StoredTargets
    patches: CentredTargets | StoredTargets | None


class StudentOutputs(NamedTuple):
    """What the losses compare with the targets, and for KoLeo the backbone's own cls tokens.

    cls: [B, L + S, C] bottlenecks, local crops first; patches: [M, 1, C'] or None; weight: [K, C] prototypes of the dino_head,
    patch_weight: [K', C'] those of the patches, the same tensor where the head is shared. global_tokens: [S, B, D].
    """

    cls: Tensor
    patches: Tensor | None
    weight: Tensor
    patch_weight: Tensor
    global_tokens: Tensor


class BatchLosses(NamedTuple):
    """total: the sum of the scaled terms. dino: [B, L + S], ibot: [M, 1]: each row's share, detached, None without the term.

    entropies: of the teacher's class-token targets, None without DINO.
    """

    total: Tensor
    dino: Tensor | None
    ibot: Tensor | None
    entropies: TargetEntropies | None


def by_sample(rows: Tensor, n_crops: int) -> Tensor:
    """Crop-major rows [n * B, C] -> [B, n, C]."""
    return rows.unflatten(0, (n_crops, -1)).transpose(0, 1)


def centred_targets(
    loss: CenteredLoss, bottleneck: Tensor, weight: Tensor, *, n_crops: int, temp: float
) -> CentredTargets:
    """The targets of crop-major teacher rows [n * B, C], centred by the steps before, towards which the centre starts to move."""
    loss.apply_center_update()
    targets = CentredTargets(by_sample(bottleneck, n_crops), weight, loss.center, temp)
    loss.update_center_from_factors(bottleneck, weight)
    return targets


def dino_term(student: StudentOutputs, targets: TeacherTargets, routing: LossRouting, *, scale: float) -> LossTerm:
    """Each class token against the targets that the routing pairs it with, a mean over the samples."""
    n_samples = len(student.cls)
    weights = torch.cat([routing.dino_local, routing.dino_global]).expand(-1, -1, n_samples)  # [L + S, T, B]
    return LossTerm(student.cls, targets.cls, weights.permute(2, 0, 1) / n_samples, scale=scale, diagnose=True)


def ibot_term(
    student: StudentOutputs, targets: TeacherTargets, masks_weight: Tensor, *, n_images: int, scale: float
) -> LossTerm:
    """Each masked patch against its target, a mean over `n_images` crops, those without a mask included.

    masks_weight: [M], 1 / (masked patches of the row's crop).
    """
    assert student.patches is not None, "iBOT was asked for"
    assert targets.patches is not None, "iBOT was asked for"
    return LossTerm(student.patches, targets.patches, (masks_weight / n_images).view(-1, 1, 1), scale=scale)


def batch_losses(
    terms: Mapping[str, LossTerm], student: StudentOutputs, *, student_temp: float, dtype: torch.dtype
) -> BatchLosses:
    """The terms called "dino" and "ibot", as far as there are; those of one head are walked together, for one gradient."""
    if student.patch_weight is student.weight:
        heads = [(student.weight, list(terms))] if terms else []
    else:
        heads = [(student.weight if name == "dino" else student.patch_weight, [name]) for name in terms]
    total = student.global_tokens.new_zeros((), dtype=torch.float32)
    per_row: dict[str, Tensor] = {}
    entropies = None
    for weight, names in heads:
        found = prototype_losses(weight, [terms[name] for name in names], student_temp=student_temp, dtype=dtype)
        total = total + found.total
        per_row.update(zip(names, found.per_row, strict=True))
        entropies = entropies or found.entropies
    return BatchLosses(total, per_row.get("dino"), per_row.get("ibot"), entropies)
