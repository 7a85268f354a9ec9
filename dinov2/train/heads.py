"""The projection heads of student and teacher, from the configuration. Called by `SSLMetaArch`."""

from functools import partial
from typing import Any

from omegaconf import DictConfig
from torch import nn

from dinov2.layers import DINOHead


def build_heads(cfg: DictConfig, embed_dim: int, *, teacher: bool) -> dict[str, nn.Module]:
    """`dino_head`, and `ibot_head` where iBOT has a head of its own; [R, embed_dim] -> [R, K]."""
    dino, ibot = cfg.dino, cfg.ibot
    normalisation: dict[str, Any] = (
        {"bottleneck_norm": dino.head_teacher_norm}
        if teacher
        else {"normalise": dino.head_student_normalise, "scale": dino.head_student_scale}
    )
    build = partial(DINOHead, in_dim=embed_dim, freeze_prototypes=dino.head_freeze_prototypes, **normalisation)
    heads: dict[str, nn.Module] = {
        "dino_head": build(
            out_dim=dino.head_n_prototypes,
            hidden_dim=dino.head_hidden_dim,
            bottleneck_dim=dino.head_bottleneck_dim,
            nlayers=dino.head_nlayers,
        )
    }
    if ibot.loss_weight > 0 and ibot.separate_head:
        heads["ibot_head"] = DINOHead(
            in_dim=embed_dim,
            out_dim=ibot.head_n_prototypes,
            hidden_dim=ibot.head_hidden_dim,
            bottleneck_dim=ibot.head_bottleneck_dim,
            nlayers=ibot.head_nlayers,
        )
    return heads
