"""Student, teacher and their losses: one call does the forward and the backward pass of a training step.

Shape legend: S student global crops, L student local crops, T teacher crops, B samples, N patches of a global crop,
M masked patches, K prototypes, D embedding width. Crops of a batch are stacked crop-major: [S * B, ...].
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from dinov2.fsdp import gradient_sync, local_tensor, reshard_fsdp_model
from dinov2.loss import DINOLoss, KoLeoLoss, iBOTPatchLoss
from dinov2.loss.prototype_loss import CentredTargets, StoredTargets, entropies_of
from dinov2.loss.routing import CropSlots, build_router
from dinov2.models import build_model_from_cfg
from dinov2.models.vision_transformer import DinoVisionTransformer
from dinov2.train.device_batch import count_single_images, masked_patches, slots_of, to_device
from dinov2.train.heads import build_heads
from dinov2.train.initial_weights import load_heads, load_student_backbone, load_whole_model
from dinov2.train.objective import (
    StudentOutputs,
    TeacherTargets,
    batch_losses,
    by_sample,
    centred_targets,
    dino_term,
    ibot_term,
)
from dinov2.train.parallel import is_sharded, make_parallel, set_up_blocks
from dinov2.train.precision import autocast, autocast_dtype, grad_scaler, tell_of_precision
from dinov2.utils.errors import UserError
from dinov2.utils.param_groups import fuse_params_groups, get_params_groups_with_decay
from dinov2.utils.utils import has_batchnorms

logger = logging.getLogger("dinov2")

KOLEO_SLOTS = 2
"""The official KoLeo term is a sum over two global crops; other crop counts are averaged to that size."""


class SSLMetaArch(nn.Module):
    """DINOv2's training objective. The crops and who supervises whom come from the routing (`dinov2.loss.routing`)."""

    _pixel_mean: Tensor
    _pixel_std: Tensor

    def __init__(self, cfg: DictConfig) -> None:
        """cfg: the resolved configuration. The model is built on the CPU; move it with `.to(device)`."""
        super().__init__()
        self.cfg = cfg
        self.do_dino = cfg.dino.loss_weight > 0
        self.do_koleo = cfg.dino.koleo_loss_weight > 0
        self.do_ibot = cfg.ibot.loss_weight > 0
        self.ibot_separate_head = cfg.ibot.separate_head
        self.dino_loss_weight = cfg.dino.loss_weight
        self.ibot_loss_weight = cfg.ibot.loss_weight
        self.dino_out_dim = cfg.dino.head_n_prototypes
        self.ibot_out_dim = cfg.ibot.head_n_prototypes if self.ibot_separate_head else cfg.dino.head_n_prototypes
        self.router = build_router(cfg.routing, cfg.crops.local_crops_number)
        self._check_config()

        student_backbone, teacher_backbone, self.embed_dim = build_model_from_cfg(cfg)
        if cfg.student.pretrained_weights:
            load_student_backbone(student_backbone, cfg.student.pretrained_weights)
        self.student = nn.ModuleDict({"backbone": student_backbone, **build_heads(cfg, self.embed_dim, teacher=False)})
        if cfg.student.heads_from:
            load_heads(self.student, cfg.student.heads_from)
        self.teacher = nn.ModuleDict({"backbone": teacher_backbone, **build_heads(cfg, self.embed_dim, teacher=True)})
        self.teacher.requires_grad_(False)
        subtract_max = cfg.train.sinkhorn_subtract_max
        self.dino_loss = DINOLoss(self.dino_out_dim, sinkhorn_subtract_max=subtract_max)
        self.koleo_loss = KoLeoLoss(
            cast_to_fp32=cfg.dino.koleo_in_fp32, over_all_processes=cfg.dino.koleo_over_all_processes
        )
        self.ibot_patch_loss = iBOTPatchLoss(
            self.ibot_out_dim,
            sinkhorn_subtract_max=subtract_max,
            center_over_all_patches=cfg.ibot.center_over_all_patches,
        )

        # Others, from plugins, need not know of tokens that are not used.
        self._backbones_prune = all(
            isinstance(backbone, DinoVisionTransformer) and backbone.n_blocks > 0
            for backbone in (student_backbone, teacher_backbone)
        )
        for name in ("mean", "std"):  # no state: the configuration has them
            values = torch.tensor(list(cfg.augmentation[name]), dtype=torch.float32)
            self.register_buffer(f"_pixel_{name}", values, persistent=False)
        self.fp16_scaler: torch.amp.GradScaler | None = None
        self._autocast_dtype: torch.dtype | None = None
        self._product_dtype = torch.float32
        # What is called in place of the modules, once they are spread over processes; not registered, so that names stay.
        self._student_calls: dict[str, nn.Module] = dict(self.student.items())
        self._teacher_calls: dict[str, nn.Module] = dict(self.teacher.items())
        self.first_iteration = 0
        """Where a run without a checkpoint of its own begins: `MODEL.WEIGHTS` brings the iteration it was written after."""
        self.diagnostics: dict[str, Tensor] = {}
        """Of the last step, detached: entropy of the teacher's targets and of their mean over the batch, in nats; where the
        routing asks for several images of a sample, how many samples of the batch had only one."""

    def _check_config(self) -> None:
        if self.cfg.train.centering not in ("centering", "sinkhorn_knopp"):
            raise UserError(f"train.centering is '{self.cfg.train.centering}'. Allowed: centering, sinkhorn_knopp.")
        if self.cfg.dino.centering_per_group and self.cfg.train.centering != "sinkhorn_knopp":
            raise UserError(
                "dino.centering_per_group balances prototypes within each group of teacher crops and needs "
                f"train.centering=sinkhorn_knopp; got '{self.cfg.train.centering}'."
            )
        if self.do_ibot and self.router.layout.n_shared == 0:
            raise UserError(
                f"ibot.loss_weight is {self.ibot_loss_weight}, but under routing '{self.cfg.routing.name}' student and teacher "
                "share no crop, so that masked patches have no target. Set ibot.loss_weight=0."
            )

    @property
    def device(self) -> torch.device:
        return self.dino_loss.center.device

    def forward(self, inputs: Any) -> Any:
        raise NotImplementedError(
            "SSLMetaArch is trained through forward_backward(); use .student or .teacher to embed."
        )

    def forward_backward(
        self, images: Mapping[str, Any], teacher_temp: float, *, n_accumulated: int = 1, is_last: bool = True
    ) -> dict[str, Tensor]:
        """One forward and backward pass; gradients are left on the student's parameters.

        images: a batch of `dinov2.data.collate_data_and_cast`. Returns the displayed losses, detached (see `_losses`).
        n_accumulated: batches whose gradients are averaged into one step; is_last: whether this is the last one of them, after
        which gradients and centres are joined over all processes.
        """
        batch = to_device(images, self.device, mean=self._pixel_mean, std=self._pixel_std)
        slots = slots_of(batch, self.router.layout)
        self.diagnostics = count_single_images(slots, self.router.layout)
        for loss_module in (self.dino_loss, self.ibot_patch_loss):
            loss_module.accumulating = not is_last
        with gradient_sync(self._student_calls.values(), enabled=is_last):
            with autocast(self.device, self._autocast_dtype):
                targets = self._teacher_targets(batch, slots, teacher_temp)
                student = self._student_outputs(batch, slots)
                loss, displayed = self._losses(batch, slots, targets, student)
            self.backprop_loss(loss / n_accumulated)
        return displayed

    def backprop_loss(self, loss: Tensor) -> None:
        """Back-propagate, scaled where float16 gradients would underflow."""
        (self.fp16_scaler.scale(loss) if self.fp16_scaler is not None else loss).backward()

    def discard_step(self) -> None:
        """Forget what the passes since the last step left behind besides gradients: the centres' pending moves."""
        for loss_module in (self.dino_loss, self.ibot_patch_loss):
            loss_module.discard_center_update()

    def _tokens(
        self, backbone: nn.Module, batch: Mapping[str, Any], crops: list[Tensor], masks: list[Tensor | None]
    ) -> tuple[list[Tensor], Tensor | None]:
        """The class tokens of each group of crops, and the masked patches of the first one, [M, D], for iBOT."""
        if self._backbones_prune:
            used = [batch["mask_indices_list"] if self.do_ibot else None, *(None for _ in crops[1:])]
            features = backbone(crops, masks=masks, is_training=True, used_patches=used)
            masked = features[0]["x_norm_usedpatchtokens"]
        else:
            features = backbone(crops, masks=masks, is_training=True)
            masked = masked_patches(features[0]["x_norm_patchtokens"], batch)
        return [group["x_norm_clstoken"] for group in features], masked if self.do_ibot else None

    # -- teacher ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _teacher_targets(self, batch: Mapping[str, Any], slots: CropSlots, teacher_temp: float) -> TeacherTargets:
        crops = batch.get("collated_global_crops_teacher", batch["collated_global_crops"])
        n_teacher = len(slots.teacher_globals)
        groups = batch["teacher_groups"].flatten() if "teacher_groups" in batch else None
        (cls_tokens,), masked = self._tokens(self._teacher_calls["backbone"], batch, [crops], [None])
        cls = self._cls_targets(cls_tokens, teacher_temp, groups, n_teacher)
        patches = None
        if masked is not None:
            patches = self._patch_targets(masked, teacher_temp, batch["n_masked_patches"])
        # The average that follows changes the shards: the next pass must gather them anew.
        reshard_fsdp_model(self.teacher)
        return TeacherTargets(cls, patches)

    def _cls_targets(
        self, tokens: Tensor, teacher_temp: float, groups: Tensor | None, n_teacher: int
    ) -> CentredTargets | StoredTargets:
        """[T*B, D] class tokens -> targets of [B, T] rows."""
        head = self._teacher_calls["dino_head"]
        if self.cfg.train.centering == "sinkhorn_knopp":
            per_group = groups if self.cfg.dino.centering_per_group else None
            logits = head(tokens, groups=groups).float()
            probabilities = self.dino_loss.sinkhorn_knopp_teacher(logits, teacher_temp=teacher_temp, groups=per_group)
            return StoredTargets(by_sample(probabilities, n_teacher))
        factors = head(tokens, groups=groups, factored=True)
        return centred_targets(self.dino_loss, *factors, n_crops=n_teacher, temp=teacher_temp)

    def _patch_targets(self, tokens: Tensor, teacher_temp: float, n_masked: Tensor) -> CentredTargets | StoredTargets:
        """[M, D] masked patch tokens -> targets of [M, 1] rows."""
        head = self._teacher_calls["ibot_head" if self.ibot_separate_head else "dino_head"]
        if self.cfg.train.centering == "sinkhorn_knopp":
            probabilities = self.ibot_patch_loss.sinkhorn_knopp_teacher(
                head(tokens).float(), teacher_temp=teacher_temp, n_masked_patches_tensor=n_masked
            )
            return StoredTargets(probabilities.unsqueeze(1))
        return centred_targets(self.ibot_patch_loss, *head(tokens, factored=True), n_crops=1, temp=teacher_temp)

    # -- student ------------------------------------------------------------------------------------------------------

    def _student_outputs(self, batch: Mapping[str, Any], slots: CropSlots) -> StudentOutputs:
        (n_global, batch_size), n_local = slots.student_globals.shape, slots.student_locals.shape[0]
        crops, masks = [batch["collated_global_crops"]], [batch["collated_masks"]]
        if n_local:
            crops, masks = [*crops, batch["collated_local_crops"]], [*masks, None]
        (global_cls, *others), masked = self._tokens(self._student_calls["backbone"], batch, crops, masks)
        local_cls = others[0] if n_local else global_cls[:0]  # [L*B, D]

        rows = [local_cls, global_cls]
        if masked is not None and not self.ibot_separate_head:
            rows.append(masked)
        bottleneck, weight = self._student_calls["dino_head"](torch.cat(rows), factored=True)
        n_cls = len(local_cls) + len(global_cls)
        patches, patch_weight = bottleneck[n_cls:], weight
        if masked is not None and self.ibot_separate_head:
            patches, patch_weight = self._student_calls["ibot_head"](masked, factored=True)
        return StudentOutputs(
            cls=by_sample(bottleneck[:n_cls], n_local + n_global),
            patches=None if masked is None else patches.unsqueeze(1),
            weight=weight,
            patch_weight=patch_weight,
            global_tokens=global_cls.unflatten(0, (n_global, batch_size)),
        )

    # -- losses -------------------------------------------------------------------------------------------------------

    def _losses(
        self, batch: Mapping[str, Any], slots: CropSlots, targets: TeacherTargets, student: StudentOutputs
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The optimised loss, and the official displayed ones, in which KoLeo and iBOT are halved."""
        terms = {}
        if self.do_dino:
            terms["dino"] = dino_term(student, targets, self.router(slots), scale=self.dino_loss_weight)
        if self.do_ibot:
            n_images = slots.n_shared * slots.student_globals.shape[1]
            terms["ibot"] = ibot_term(
                student, targets, batch["masks_weight"], n_images=n_images, scale=self.ibot_loss_weight
            )
        losses = batch_losses(terms, student, student_temp=self.dino_loss.student_temp, dtype=self._product_dtype)
        loss, displayed = losses.total, {}
        if losses.dino is not None:
            n_local = len(slots.student_locals)
            if n_local:
                displayed["dino_local_crops_loss"] = losses.dino[:, :n_local].sum()
            displayed["dino_global_crops_loss"] = losses.dino[:, n_local:].sum()
        if self.do_koleo:
            per_slot = [self.koleo_loss(tokens) for tokens in student.global_tokens]
            term = self.cfg.dino.koleo_loss_weight * sum(per_slot) * (KOLEO_SLOTS / len(per_slot))
            loss = loss + term
            displayed["koleo_loss"] = term / 2
        if losses.ibot is not None:
            displayed["ibot_loss"] = losses.ibot.sum() / 2
        # A teacher at ln K for every crop, or at 0, has collapsed; only the loss would not tell.
        entropies = losses.entropies or entropies_of(targets.cls.stored().probabilities)
        self.diagnostics |= {"teacher_entropy": entropies.mean, "teacher_marginal_entropy": entropies.of_mean}
        return loss, {name: value.detach() for name, value in displayed.items()}

    # -- around the step ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def update_teacher(self, m: float) -> None:
        """Exponential moving average: teacher = m * teacher + (1 - m) * student."""
        teacher = [local_tensor(parameter) for parameter in self.teacher.parameters()]
        student = [local_tensor(parameter) for parameter in self.student.parameters()]
        torch._foreach_lerp_(teacher, student, 1 - m)

    def train(self, mode: bool = True) -> "SSLMetaArch":
        """The student follows `mode`; the teacher always stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def get_maybe_fused_params_for_submodel(self, m: nn.Module) -> list[dict[str, Any]]:
        """Parameter groups of one sub-module: layer-wise rate decay and weight-decay exemptions."""
        groups = get_params_groups_with_decay(
            m,
            lr_decay_rate=self.cfg.optim.layerwise_decay,
            patch_embed_lr_mult=self.cfg.optim.patch_embed_lr_mult,
        )
        fused = list(fuse_params_groups(groups))
        for group in fused:
            # Official: foreach, which takes four times as long on the CPU.
            group["fused"] = True
        return fused

    def get_params_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of all of the student's sub-modules."""
        return [g for module in self.student.values() for g in self.get_maybe_fused_params_for_submodel(module)]

    def prepare_for_distributed_training(self) -> None:
        """Start the teacher as a copy of the student, and settle how both run on their device and processes. Call once."""
        if has_batchnorms(self.student):
            raise UserError(
                "BatchNorm in the student is not supported: its running statistics would not reach the teacher."
            )
        for name in self.student:
            self.teacher[name].load_state_dict(self.student[name].state_dict())
        if self.cfg.MODEL.WEIGHTS:
            self.first_iteration = load_whole_model(self, self.cfg.MODEL.WEIGHTS)
        if not self.do_dino and self.ibot_separate_head:
            self.student["dino_head"].requires_grad_(False)  # no term of the loss reaches it
        train = self.cfg.train
        checkpointing = {"student": train.activation_checkpointing, "teacher": False}  # the teacher keeps none anyway
        for who, modules in (("student", self.student), ("teacher", self.teacher)):
            set_up_blocks(modules, checkpoint_activations=checkpointing[who], compiled=train.compile)
        self._student_calls = make_parallel(self.cfg, self.student, who="student")
        self._teacher_calls = make_parallel(self.cfg, self.teacher, who="teacher")
        reduced = autocast_dtype(self.cfg, self.device)
        tell_of_precision(self.cfg, reduced)
        self.fp16_scaler = grad_scaler(self.cfg, self.device, reduced)
        # Sharded modules cast their own weights and inputs.
        self._autocast_dtype = None if all(is_sharded(self.cfg, name) for name in self.student) else reduced
        self._product_dtype = reduced or torch.float32
