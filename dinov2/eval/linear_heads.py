"""The linear heads of a probe: what they read of the backbone's tokens, and the grid of heads that is trained side by side.

Used by `dinov2.eval.linear`, from where the official names are imported.

Shape legend: B batch, N patches, D embedding width, C classes. "Tokens" are a tuple of (patches [B, N, D], cls [B, D]), one pair
for each of the last blocks, the earliest first.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dinov2 import distributed

logger = logging.getLogger("dinov2")

Tokens = Sequence[tuple[Tensor, Tensor]]


def create_linear_input(x_tokens_list: Tokens, use_n_blocks: int, use_avgpool: bool) -> Tensor:
    """The cls tokens of the last n blocks side by side, and if wanted the last one's mean patch: float32 [B, n*D (+ D)]."""
    blocks = x_tokens_list[-use_n_blocks:]
    parts = [class_token for _, class_token in blocks]
    if use_avgpool:
        parts.append(blocks[-1][0].mean(dim=1))
    # cat makes a new tensor, which unlike the tokens (from inference mode) may take part in autograd.
    return torch.cat(parts, dim=-1).float()


class LinearClassifier(nn.Module):
    """One linear layer on frozen tokens; weights start at N(0, 0.01), biases at 0."""

    def __init__(
        self,
        out_dim: int,
        use_n_blocks: int,
        use_avgpool: bool,
        num_classes: int = 1000,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        """out_dim: width of its input (the official name). generator: of the initial weights."""
        super().__init__()
        self.out_dim = out_dim
        self.use_n_blocks = use_n_blocks
        self.use_avgpool = use_avgpool
        self.num_classes = num_classes
        self.linear = nn.Linear(out_dim, num_classes)
        nn.init.normal_(self.linear.weight, mean=0.0, std=0.01, generator=generator)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x_tokens_list: Tokens) -> Tensor:
        return self.linear(create_linear_input(x_tokens_list, self.use_n_blocks, self.use_avgpool))


class AllClassifiers(nn.Module):
    """Heads by name, all applied to the same tokens: -> {name: logits [B, C]}."""

    def __init__(self, classifiers_dict: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.classifiers_dict = nn.ModuleDict()
        self.classifiers_dict.update(classifiers_dict)

    def forward(self, inputs: Tokens) -> dict[str, Tensor]:
        """Logits by name; the input that a learning-rate row of the grid shares is made once."""
        shared: dict[tuple[int, bool], Tensor] = {}
        outputs = {}
        for name, head in self.classifiers_dict.items():
            assert isinstance(head, LinearClassifier), f"head '{name}' is a {type(head).__name__}"
            kind = (head.use_n_blocks, head.use_avgpool)
            if kind not in shared:
                shared[kind] = create_linear_input(inputs, *kind)
            outputs[name] = head.linear(shared[kind])
        return outputs

    def __len__(self) -> int:
        return len(self.classifiers_dict)


class LinearPostprocessor(nn.Module):
    """A head's logits and the targets, in the form that a metric takes."""

    def __init__(self, linear_classifier: nn.Module, class_mapping: Any = None) -> None:
        """class_mapping: for each class of the evaluated data set, the training class that stands for it; None: the same."""
        super().__init__()
        self.linear_classifier = linear_classifier
        mapping = None if class_mapping is None else torch.as_tensor(class_mapping, dtype=torch.int64)
        self.register_buffer("class_mapping", mapping)

    def forward(self, samples: Tokens, targets: Tensor) -> dict[str, Tensor]:
        logits = self.linear_classifier(samples)
        if self.class_mapping is not None:
            logits = logits[:, self.class_mapping.to(logits.device)]
        return {"preds": logits, "target": targets}


def scale_lr(learning_rates: float, batch_size: int) -> float:
    """The linear scaling rule: a learning rate for 256 images becomes one for the batch of all processes."""
    return learning_rates * (batch_size * distributed.get_global_size()) / 256.0


def setup_linear_classifiers(
    sample_output: Tokens,
    n_last_blocks_list: Sequence[int],
    learning_rates: Sequence[float],
    batch_size: int,
    num_classes: int = 1000,
    *,
    unique_names: bool = False,
    generator: torch.Generator | None = None,
) -> tuple[AllClassifiers | DistributedDataParallel, list[dict[str, Any]]]:
    """Heads for every number of blocks, pooling and learning rate, on the tokens' device, and their optimiser groups.

    With several processes the heads come in a data-parallel wrapper, which averages their gradients (official).
    unique_names: False is official: names carry the scaled learning rate with five decimals, so that small ones share a name and
    only the last head of a name is kept (48 of 52 with the default grid and a batch of 128), while the optimiser has a group for
    each. True names them by five significant digits, and all heads are trained.
    """
    device = sample_output[0][0].device
    heads: dict[str, nn.Module] = {}
    groups: list[dict[str, Any]] = []
    for n in n_last_blocks_list:
        for avgpool in (False, True):
            width = create_linear_input(sample_output, n, avgpool).shape[1]
            for learning_rate in learning_rates:
                lr = scale_lr(learning_rate, batch_size)
                digits = f"{lr:.5g}" if unique_names else f"{lr:.5f}"
                head = LinearClassifier(width, n, avgpool, num_classes, generator=generator).to(device)
                heads[f"classifier_{n}_blocks_avgpool_{avgpool}_lr_{digits}".replace(".", "_")] = head
                groups.append({"params": list(head.parameters()), "lr": lr})
    if len(heads) < len(groups):
        logger.warning(
            "%d of %d linear heads share their name with another and are dropped, as in the official code; to train all of "
            "them, use unique names (--unique-names)",
            len(groups) - len(heads),
            len(groups),
        )
    classifiers = AllClassifiers(heads)
    if distributed.get_global_size() > 1:
        return DistributedDataParallel(classifiers), groups
    return classifiers, groups


def has_ddp_wrapper(m: nn.Module) -> bool:
    """Whether the module is wrapped for data-parallel training."""
    return isinstance(m, DistributedDataParallel)


def remove_ddp_wrapper(m: nn.Module) -> nn.Module:
    """The module inside a data-parallel wrapper, or the module itself."""
    return m.module if isinstance(m, DistributedDataParallel) else m
