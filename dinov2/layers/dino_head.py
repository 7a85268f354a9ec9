"""The projection head of DINO and iBOT: an MLP to a bottleneck, L2 normalisation, and one logit per prototype.

Called by the training room, on class tokens and on masked patch tokens. Keyword flags add what the official head has not;
their defaults are the official head, and none of them adds a state-dict key.

Shape legend: R rows (tokens; any leading dimensions), D bottleneck channels, K prototypes.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinov2 import distributed
from dinov2.layers.weight_norm import WeightNormLinear
from dinov2.utils.errors import UserError

BottleneckNorm = Literal["none", "batch_per_group"]


class DINOHead(nn.Module):
    """[R, in_dim] -> [R, K] prototype logits. Source: DINO (arXiv 2104.14294), section 3.1 and appendix C."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        use_bn: bool = False,
        nlayers: int = 3,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        mlp_bias: bool = True,
        *,
        normalise: bool = True,
        scale: float = 1.0,
        freeze_prototypes: bool = False,
        bottleneck_norm: BottleneckNorm = "none",
    ) -> None:
        """
        normalise: L2-normalise the bottleneck, so that logits are cosines (official); otherwise it is multiplied by `scale`.
        freeze_prototypes: keep the last layer at its first random values.
        bottleneck_norm: "batch_per_group" standardises the bottleneck per group of rows first; see `standardise_per_group`.
        """
        super().__init__()
        if bottleneck_norm not in get_args(BottleneckNorm):
            raise UserError(
                f"Unknown bottleneck_norm '{bottleneck_norm}'. Allowed: {', '.join(get_args(BottleneckNorm))}."
            )
        self.normalise = normalise
        self.scale = scale
        self.bottleneck_norm = bottleneck_norm
        self.mlp = _build_mlp(
            max(nlayers, 1), in_dim, bottleneck_dim, hidden_dim=hidden_dim, use_bn=use_bn, bias=mlp_bias
        )
        self.apply(_init_linear)
        # After the initialisation pass: the prototypes keep PyTorch's default values, as in the official head.
        self.last_layer = WeightNormLinear(bottleneck_dim, out_dim)
        if freeze_prototypes:
            self.last_layer.requires_grad_(False)

    def forward(
        self, x: Tensor, groups: Tensor | None = None, *, factored: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """[..., in_dim] -> logits [..., K], or their two factors.

        groups: [...] int64, the group of every row; only read when `bottleneck_norm` is "batch_per_group", where None makes
        all rows one group.
        factored: return the bottleneck [..., C] and the weight [K, C], whose product are the logits, for losses that never
        hold all of them (`dinov2.loss.prototype_loss`).
        """
        x = self.mlp(x)
        if self.bottleneck_norm == "batch_per_group":
            x = standardise_per_group(x, groups)
        if self.normalise:
            x = F.normalize(x, dim=-1, p=2, eps=1e-6 if x.dtype == torch.float16 else 1e-12)
        else:
            x = x * self.scale
        return (x, self.last_layer.weight) if factored else self.last_layer(x)


def standardise_per_group(x: Tensor, groups: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    """Give each column mean 0 and variance 1 over the rows of each group: batch normalisation without weights or memory.

    x: [..., D]        groups: [...] int64 in 0..G-1; None is one group        returns: x's shape and dtype, computed in fp32

    A group's rows are those of all processes; gradients do not pass through the statistics of other processes (the head of the
    teacher needs none). A row that is alone in its group has no spread of its own and is standardised by the statistics of all
    rows; a row that is alone altogether passes unchanged.
    """
    rows = x.flatten(0, -2)  # [R, D]
    with torch.autocast(x.device.type, enabled=False):
        rows = rows.float()
        n_rows, overall_mean, overall_var = _overall_statistics(rows)
        mean, var = overall_mean, overall_var
        if groups is not None:
            assert groups.shape == x.shape[:-1], f"one group per row: x {tuple(x.shape)}, groups {tuple(groups.shape)}"
            counts, means, variances = _group_statistics(rows, groups.flatten())
            own = groups.flatten()
            alone = (counts == 1)[own][:, None]
            mean = torch.where(alone, overall_mean, means[own])
            var = torch.where(alone, overall_var, variances[own])
        standardised = (rows - mean) * torch.rsqrt(var + eps) if n_rows > 1 else rows
        return standardised.to(x.dtype).view_as(x)


def _overall_statistics(rows: Tensor) -> tuple[int, Tensor, Tensor]:
    """Of the rows of all processes: their number, mean and biased variance, [D] each."""
    if distributed.get_global_size() == 1:
        # Without a row there is no mean; it will not be used either.
        var, mean = torch.var_mean(rows if len(rows) else rows.new_zeros(1, rows.shape[1]), dim=0, correction=0)
        return len(rows), mean, var
    counts, means, variances = _group_statistics(rows, torch.zeros(len(rows), dtype=torch.int64, device=rows.device))
    return int(counts), means[0], variances[0]


def _group_statistics(rows: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each group over all processes: number of rows [G], mean and biased variance [G, D]."""
    n_groups = torch.ones((), dtype=torch.int64, device=rows.device)
    if len(groups):
        n_groups = groups.max() + 1
    distributed.all_reduce_max(n_groups)

    def sum_of_groups(values: Tensor) -> Tensor:
        sums = values.new_zeros((int(n_groups), *values.shape[1:])).index_add(0, groups, values)
        distributed.all_reduce_sum(sums)
        return sums

    counts = sum_of_groups(rows.new_ones(len(rows)))
    present = counts.clamp(min=1)[:, None]
    means = sum_of_groups(rows) / present
    variances = sum_of_groups((rows - means[groups]).square()) / present
    return counts, means, variances


def _build_mlp(
    n_layers: int, in_dim: int, bottleneck_dim: int, *, hidden_dim: int, use_bn: bool, bias: bool
) -> nn.Linear | nn.Sequential:
    if n_layers == 1:
        return nn.Linear(in_dim, bottleneck_dim, bias=bias)
    layers: list[nn.Module] = []
    width = in_dim
    for _ in range(n_layers - 1):
        layers.append(nn.Linear(width, hidden_dim, bias=bias))
        if use_bn:
            layers.append(nn.BatchNorm1d(hidden_dim))
        layers.append(nn.GELU())
        width = hidden_dim
    layers.append(nn.Linear(hidden_dim, bottleneck_dim, bias=bias))
    return nn.Sequential(*layers)


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
