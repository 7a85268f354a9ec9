"""Where the released weights lie and what they are called, and padding to whole patches. Called by the hub's entry points."""

from enum import Enum
from pathlib import Path
from urllib.parse import urlparse

import torch.nn.functional as F
from torch import Tensor, nn

from dinov2.utils.errors import UserError

_DINOV2_BASE_URL = "https://dl.fbaipublicfiles.com/dinov2"


def _make_dinov2_model_name(arch_name: str, patch_size: int, num_register_tokens: int = 0) -> str:
    """`dinov2_vits14_reg4` for ("vit_small", 14, 4)."""
    compact_arch_name = arch_name.replace("_", "")[:4]
    registers = f"_reg{num_register_tokens}" if num_register_tokens else ""
    return f"dinov2_{compact_arch_name}{patch_size}{registers}"


def make_backbone_url(arch_name: str, patch_size: int, num_register_tokens: int = 0) -> str:
    """The address of a released backbone. The folder is named after the model without registers."""
    return _make_url(arch_name, patch_size, num_register_tokens, "pretrain")


def make_linear_head_url(arch_name: str, patch_size: int, num_register_tokens: int = 0, *, layers: int) -> str:
    """The address of a released ImageNet classification head on the last one or four layers."""
    return _make_url(arch_name, patch_size, num_register_tokens, f"linear{'4' if layers == 4 else ''}_head")


def locate_weights(weights: Enum | str | Path, released: type[Enum], url: str, *, option: str = "weights") -> str:
    """The address or path that a user's choice means; `url` is that of the released set.

    weights: a member of `released` or its name, an http(s) address, or the path of a file. Raises `UserError`, naming the
    option, for anything else.
    """
    if isinstance(weights, released) or str(weights) in released.__members__:
        return url
    if urlparse(str(weights)).scheme in ("http", "https") or Path(str(weights)).is_file():
        return str(weights)
    raise UserError(
        f"{option}='{weights}' is neither a released set ({', '.join(released.__members__)}), nor an http(s) address, nor a "
        "file that exists. Give one of these, or pretrained=False for random weights."
    )


class CenterPadding(nn.Module):
    """Zeros around images, so that height and width become multiples of `multiple`; an odd pixel goes right and below.

    [..., H, W] -> [..., H', W']; every dimension after the second is padded, as in the official code. Gradients pass.
    """

    def __init__(self, multiple: int) -> None:
        super().__init__()
        self.multiple = multiple

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size in reversed(x.shape[2:]):  # F.pad begins at the last dimension
            missing = -size % self.multiple
            pads += [missing // 2, missing - missing // 2]
        return F.pad(x, pads)


def _make_url(arch_name: str, patch_size: int, num_register_tokens: int, kind: str) -> str:
    folder = _make_dinov2_model_name(arch_name, patch_size)
    name = _make_dinov2_model_name(arch_name, patch_size, num_register_tokens)
    return f"{_DINOV2_BASE_URL}/{folder}/{name}_{kind}.pth"
