"""Images to patch tokens by one strided convolution. Called by the vision transformer.

Shape legend: B images, P patch side, h = H / P and w = W / P patches, D embedding channels.
"""

from collections.abc import Callable

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
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=self.patch_size, stride=self.patch_size)
        self.norm = norm_layer(embed_dim) if norm_layer else nn.Identity()

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
