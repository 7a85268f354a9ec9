"""The training step as a straightforward writing of the official arithmetic runs it: what `step.py` and the tests compare with.

PyTorch's own attention, samples picked and added back by index, every token through every block, logits of all rows, one
log-softmax for each student crop and one product for each pair of crops, AdamW with foreach, clipping and averaging in full.

Shape legend: S student global crops, L local crops, T teacher crops, B samples, M masked patches, K prototypes, C channels.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinov2.loss.prototype_loss import entropies_of
from dinov2.models.block_chunks import blocks_in_order
from dinov2.train.device_batch import masked_patches, slots_of, to_device
from dinov2.train.precision import autocast
from dinov2.train.ssl_meta_arch import SSLMetaArch


class PlainArch(SSLMetaArch):
    """`SSLMetaArch` for the official routing and centring, its step written plainly; same weights, same numbers."""

    def forward_backward(
        self, images: Mapping[str, Any], teacher_temp: float, *, n_accumulated: int = 1, is_last: bool = True
    ) -> dict[str, Tensor]:
        """As the original, for one process."""
        batch = to_device(images, self.device, mean=self._pixel_mean, std=self._pixel_std)
        batch_size = slots_of(batch, self.router.layout).student_globals.shape[1]
        with autocast(self.device, self._autocast_dtype):
            cls_targets, patch_targets = self._plain_targets(batch, teacher_temp)
            loss, displayed = self._plain_losses(batch, cls_targets, patch_targets, batch_size)
        self.diagnostics = entropies_of(cls_targets)._asdict()
        self.backprop_loss(loss / n_accumulated)
        return {name: value.detach() for name, value in displayed.items()}

    @torch.no_grad()
    def _plain_targets(self, batch: Mapping[str, Any], teacher_temp: float) -> tuple[Tensor, Tensor]:
        """[T, B, K] and [M, K]."""
        crops = batch["collated_global_crops"]
        (tokens,) = plain_backbone(self.teacher["backbone"], [crops], [None])
        cls = self.teacher["dino_head"](tokens[:, 0]).float()
        patches = self.teacher[self._patch_head](masked_patches(self._patches(tokens), batch)).float()
        cls_targets = self.dino_loss.softmax_center_teacher(cls, teacher_temp)
        self.dino_loss.update_center(cls)
        patch_targets = self.ibot_patch_loss.softmax_center_teacher(patches.unsqueeze(0), teacher_temp).squeeze(0)
        self.ibot_patch_loss.update_center(patches.unsqueeze(0))
        return cls_targets.unflatten(0, (2, -1)), patch_targets

    def _plain_losses(
        self, batch: Mapping[str, Any], cls_targets: Tensor, patch_targets: Tensor, batch_size: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        crops = [batch["collated_global_crops"], batch["collated_local_crops"]]
        tokens, local_tokens = plain_backbone(self.student["backbone"], crops, [batch["collated_masks"], None])
        rows = [local_tokens[:, 0], tokens[:, 0], masked_patches(self._patches(tokens), batch)]
        if self.ibot_separate_head:
            local, global_ = self.student["dino_head"](torch.cat(rows[:2])).split([len(r) for r in rows[:2]])
            patches = self.student["ibot_head"](rows[2])
        else:
            local, global_, patches = self.student["dino_head"](torch.cat(rows)).split([len(r) for r in rows])
        temp, n_local = self.dino_loss.student_temp, len(local) // batch_size
        n_terms = 2 + 2 * n_local
        local_term = plain_dino_loss(local.chunk(n_local), list(cls_targets), temp=temp) / n_terms
        # Of two global crops each is the target of the other.
        global_term = 2 * plain_dino_loss([global_], [cls_targets.flip(0).flatten(0, 1)], temp=temp) / n_terms
        koleo = self.cfg.dino.koleo_loss_weight * sum(self.koleo_loss(t) for t in rows[1].chunk(2))
        log_p = F.log_softmax(patches.float() / temp, dim=-1)
        ibot = (
            -(torch.sum(patch_targets * log_p, dim=-1) * batch["masks_weight"]).sum() / batch["collated_masks"].shape[0]
        )
        loss = self.dino_loss_weight * (local_term + global_term) + koleo + self.ibot_loss_weight * ibot
        shown = {
            "dino_local_crops_loss": local_term,
            "dino_global_crops_loss": global_term,
            "koleo_loss": koleo / 2,
            "ibot_loss": ibot / 2,
        }
        return loss, shown

    @property
    def _patch_head(self) -> str:
        return "ibot_head" if self.ibot_separate_head else "dino_head"

    def _patches(self, tokens: Tensor) -> Tensor:
        backbone: Any = self.student["backbone"]
        return tokens[:, 1 + backbone.num_register_tokens :]


def plain_dino_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], *, temp: float) -> Tensor:
    """[B, K] logits and probabilities; the sum over all pairs of the batch's mean cross-entropy."""
    total = student[0].new_zeros((), dtype=torch.float32)
    for logits in student:
        log_p = F.log_softmax(logits.float() / temp, dim=-1)
        for probabilities in teacher:
            total = total - torch.sum(probabilities * log_p, dim=-1).mean()
    return total


def plain_backbone(model: Any, crops: Sequence[Tensor], masks: Sequence[Tensor | None]) -> list[Tensor]:
    """Normed tokens [crops * B, 1 + N, C] of each group of crops."""
    tokens = [model.prepare_tokens_with_masks(x, m) for x, m in zip(crops, masks, strict=True)]
    for block in blocks_in_order(model.blocks):
        tokens = _plain_branch(tokens, block, partial(_plain_attention, block=block), block.ls1)
        tokens = _plain_branch(tokens, block, lambda x, _, block=block: block.mlp(block.norm2(x)), block.ls2)
    return [model.norm(x) for x in tokens]


def plain_optimizer(model: SSLMetaArch) -> torch.optim.AdamW:
    """AdamW as the official code calls it."""
    groups = [{**group, "fused": False, "foreach": True} for group in model.get_params_groups()]
    optim = model.cfg.optim
    return torch.optim.AdamW(groups, betas=(optim.adamw_beta1, optim.adamw_beta2))


@torch.no_grad()
def plain_end_of_step(model: SSLMetaArch, optimizer: torch.optim.Optimizer, *, momentum: float) -> None:
    """Clip each sub-module, step, average."""
    for module in model.student.values():
        torch.nn.utils.clip_grad_norm_(module.parameters(), model.cfg.optim.clip_grad)
    optimizer.step()
    teacher: list[Tensor] = list(model.teacher.parameters())
    student: list[Tensor] = list(model.student.parameters())
    torch._foreach_mul_(teacher, momentum)
    torch._foreach_add_(teacher, student, alpha=1 - momentum)


def _plain_branch(
    tokens: list[Tensor], block: Any, branch: Callable[[Tensor, list[torch.Size]], Tensor], scale: nn.Module
) -> list[Tensor]:
    """Each group plus its residual, run on a random subset of its samples where stochastic depth says so."""
    drops = block.training and block.sample_drop_ratio > 0
    kept = [
        torch.randperm(len(x), device=x.device)[: max(int(len(x) * (1 - block.sample_drop_ratio)), 1)]
        if drops
        else None
        for x in tokens
    ]
    picked = [x if k is None else x[k] for x, k in zip(tokens, kept, strict=True)]
    shapes = [x.shape for x in picked]
    residuals = scale(branch(torch.cat([x.flatten(0, 1) for x in picked]), shapes)).split([s[0] * s[1] for s in shapes])
    out = []
    for x, k, residual, shape in zip(tokens, kept, residuals, shapes, strict=True):
        residual = residual.view(shape).to(x.dtype)
        out.append(x + residual if k is None else torch.index_add(x, 0, k, residual, alpha=len(x) / shape[0]))
    return out


def _plain_attention(packed: Tensor, shapes: list[torch.Size], *, block: Any) -> Tensor:
    """[tokens, C], crops of each group one after the other -> [tokens, C]."""
    attn, out = block.attn, []
    pieces = attn.qkv(block.norm1(packed)).split([s[0] * s[1] for s in shapes])
    for piece, (n_crops, n_tokens, width) in zip(pieces, shapes, strict=True):
        q, k, v = piece.view(n_crops, n_tokens, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        out.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, width))
    return attn.proj(torch.cat(out))
