"""Images to patch tokens, by one strided convolution or by a small stack of them. Called by the vision transformer.

Shape legend: B images, P patch side, h = H / P and w = W / P patches, D embedding channels.
"""

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn

from dinov2.utils.errors import UserError


def make_2tuple(x: int | tuple[int, int]) -> tuple[int, int]:
    """An int becomes a pair; a pair passes; anything else, a list included, is refused as in the official code."""
    if isinstance(x, tuple):
        assert len(x) == 2, f"expected two numbers, got {x}"
        return x
    assert isinstance(x, int), f"expected an int or a tuple of two, got {x!r}"
    return (x, x)


class PatchEmbed(nn.Module):
    """[B, in_chans, H, W] -> [B, h*w, D], rows of patches from the top; or [B, h, w, D] without `flatten_embedding`."""

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        norm_layer: Callable[[int], nn.Module] | None = None,
        flatten_embedding: bool = True,
    ) -> None:
        super().__init__()
        self.img_size = make_2tuple(img_size)
        self.patch_size = make_2tuple(patch_size)
        self.patches_resolution = (self.img_size[0] // self.patch_size[0], self.img_size[1] // self.patch_size[1])
        self.num_patches = self.patches_resolution[0] * self.patches_resolution[1]
        self.in_chans = in_chans
        self.embed_dim = embed_dim
        self.flatten_embedding = flatten_embedding
        self.proj = self._make_projection()
        self.norm = norm_layer(embed_dim) if norm_layer else nn.Identity()

    def _make_projection(self) -> nn.Module:
        """[B, in_chans, H, W] -> [B, D, h, w]."""
        return nn.Conv2d(self.in_chans, self.embed_dim, kernel_size=self.patch_size, stride=self.patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """Raises `UserError` when the image is not a whole number of patches."""
        height, width = x.shape[-2:]
        patch_height, patch_width = self.patch_size
        if height % patch_height or width % patch_width:
            raise UserError(
                f"Image size {height} x {width} is not a whole number of patches of {patch_height} x {patch_width} pixels. "
                f"Crop or resize it to a multiple, for example "
                f"{max(height // patch_height, 1) * patch_height} x {max(width // patch_width, 1) * patch_width}."
            )
        x = self.norm(self.proj(x).flatten(2).transpose(1, 2))  # [B, h*w, D]
        if not self.flatten_embedding:
            x = x.unflatten(1, (height // patch_height, width // patch_width))
        return x

    def flops(self) -> float:
        """Multiply-accumulates of the projection for an image of `img_size`, and of the norm where there is one."""
        per_patch = self.in_chans * self.patch_size[0] * self.patch_size[1]
        flops = self.num_patches * self.embed_dim * per_patch
        return flops if isinstance(self.norm, nn.Identity) else flops + self.num_patches * self.embed_dim


class ConvPatchEmbed(PatchEmbed):
    """As `PatchEmbed`, by stride-2 3x3 convolutions with normalisation and GELU between them; an addition to the official set.

    A patch of P pixels takes log2(P) convolutions, the last three of D/4, D/2 and D channels. Small networks learn from far
    fewer steps with it.
    Source: Xiao et al., "Early convolutions help transformers see better" (arXiv 2106.14881).
    """

    def _make_projection(self) -> nn.Module:
        """Raises `UserError` unless the patch is square with a side of 2, 4, 8, 16, ..."""
        side, other = self.patch_size
        n_layers = side.bit_length() - 1
        if side != other or side != 2**n_layers or n_layers < 1:
            raise UserError(
                f"A convolutional patch embedding halves the image step by step and takes square patches of 2, 4, 8, 16, ... "
                f"pixels; got {side} x {other}. Change student.patch_size, or use an architecture without '_conv'."
            )
        widths = [max(self.embed_dim >> (n_layers - 1 - i), self.embed_dim >> 2) for i in range(n_layers)]
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, (width_in, width) in enumerate(pairwise([self.in_chans, *widths])):
            layers[f"conv{i}"] = nn.Conv2d(width_in, width, kernel_size=3, stride=2, padding=1)
            if i < n_layers - 1:
                # One group: statistics per image, as the rest of the network has them, and none that a batch would share.
                layers[f"norm{i}"] = nn.GroupNorm(1, width)
                layers[f"act{i}"] = nn.GELU()
        return nn.Sequential(layers)

    def flops(self) -> float:
        """Multiply-accumulates of the convolutions for an image of `img_size`."""
        pixels, flops = self.img_size[0] * self.img_size[1], 0.0
        for layer in self.proj.children():
            if isinstance(layer, nn.Conv2d):
                pixels /= 4
                flops += pixels * layer.weight.numel()
        return flops
