"""What a backbone is to the evaluation (`Backbone`), and the one loop that turns images into features (`embed`).

`backbones.open_backbone` makes backbones of every kind; `store.FeatureStore` runs the loop and keeps what comes out. Decoders and
fine-tuning call `Backbone.intermediate` with gradients.

Shape legend: B images of a batch, H = W = image_size_px, h = H // patch_size, w = W // patch_size, D feature width.
"""

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vet_extensions.errors import UserError
from vet_extensions.evaluation.features import PixelsSource, network_input, prepare_image, short_hash
from vet_extensions.evaluation.prefetch import batches_ahead

MEAN_PATCH, PATCHES = "mean_patch", "patches"

_MAX_HELPERS = 8
"""Threads that prepare images for a GPU, which takes them faster than one thread makes them."""


def cls_name(block_from_end: int) -> str:
    """The array of a block's class tokens: `cls.1` is the last block's, `cls.2` that of the block before."""
    return f"cls.{block_from_end}"


class BlockTokens(NamedTuple):
    """What one block gives, normalised by the backbone's final norm. cls: [B, D]; patches: [B, h, w, D], None where the
    backbone gives one vector an image and no more."""

    cls: Tensor
    patches: Tensor | None


ReadTokens = Callable[[nn.Module, Tensor, Sequence[int]], tuple[BlockTokens, ...]]
"""(model, normalised images [B, 3, H, W], ascending block indices) -> the tokens after each of these blocks."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Backbone:
    """One network that features are taken from. All but `model` is known without reading its weights.

    name: what results call it, never a path. weights_hash: of the file's bytes, or of what a random network follows from.
    architecture: equal for two networks that differ in their weights alone. patch_size: None where there are no patches.
    n_blocks: 0 where there are no patches. mean, std, image_size_px: the preprocessing it was trained with. seed, iteration:
    of the training run, where there was one. untrained: the same network with the random weights of a seed.
    """

    name: str
    weights_hash: str
    architecture: str
    embed_dim: int
    patch_size: int | None
    n_blocks: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size_px: int
    build: Callable[[], nn.Module] = field(repr=False)
    read: ReadTokens = field(repr=False)
    untrained: "Callable[[int], Backbone] | None" = field(default=None, repr=False)
    seed: int | None = None
    iteration: int | None = None

    @cached_property
    def model(self) -> nn.Module:
        """The network with its weights, in evaluation mode; read when first asked for. Errors: `UserError` of its kind."""
        return self.build().eval()

    def intermediate(self, images: Tensor, n: int | Sequence[int] = 1) -> tuple[BlockTokens, ...]:
        """Tokens of the last `n` blocks, or of the blocks whose indices `n` lists (0 is the first); earliest block first.

        images: normalised, [B, 3, H, W], on the model's device. A backbone without blocks has only its last vector.
        Errors: `UserError` for blocks that it has not, and for sizes that its patches do not tile.
        """
        n_blocks = max(1, self.n_blocks)
        indices = list(range(n_blocks - n, n_blocks)) if isinstance(n, int) else sorted(n)
        if not indices or indices[0] < 0 or indices[-1] >= n_blocks:
            raise UserError(
                f"{self.name} has {n_blocks} blocks to read features from, asked for {n}. Ask for at most its last {n_blocks}."
            )
        self.check_size(images.shape[-1])
        return self.read(self.model, images, indices)

    def cls(self, images: Tensor) -> Tensor:
        """The image's vector [B, D]: the last class token, or what the network pools to."""
        return self.intermediate(images)[-1].cls

    def patches(self, images: Tensor) -> Tensor:
        """Patch tokens of the last block, [B, h, w, D]. Errors: `UserError` where there are none."""
        found = self.intermediate(images)[-1].patches
        if found is None:
            raise UserError(
                f"{self.name} gives one vector an image and no patch features. Use its class tokens, or a vision transformer."
            )
        return found

    def check_size(self, image_size_px: int) -> None:
        """Raise `UserError` for a side that the patches do not tile."""
        patch_size = self.patch_size or 1
        if image_size_px < patch_size or image_size_px % patch_size:
            lower = max(1, image_size_px // patch_size) * patch_size
            raise UserError(
                f"image_size_px is {image_size_px}, which is not a multiple of the patch size {patch_size} of {self.name}. "
                f"Use {lower} or {lower + patch_size}."
            )

    def shape_of(self, name: str, *, image_size_px: int) -> tuple[int, ...]:
        """The shape of one image's entry in the array `name`."""
        if name == PATCHES:
            assert self.patch_size is not None, "patches were asked of a backbone without them"
            side = image_size_px // self.patch_size
            return side, side, self.embed_dim
        return (self.embed_dim,)


class _KeepAsIs(TorchFunctionMode):
    """Leaves out what draws random values: on the meta device there are none, and torch would load its compiler to do so."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func.__name__ in _DRAWS:
            return args[0] if args else given["tensor"]
        return func(*args, **given)


_DRAWS = ("normal_", "uniform_", "trunc_normal_", "erfinv_", "bernoulli_")


def shape_only(build: Callable[[], nn.Module]) -> nn.Module:
    """What `build` gives, with the shapes of its weights and no memory for them."""
    with torch.device("meta"), _KeepAsIs():
        return build()


def drawn_from(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    """What `build` gives with random weights that follow from `seed`; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def untrained(backbone: Backbone, build: Callable[[], nn.Module], seed: int) -> Backbone:
    """The backbone with what `build` gives for random weights of a seed in the place of its own."""
    return replace(
        backbone,
        name=f"random:{backbone.name}",
        weights_hash=short_hash({"random_init": backbone.architecture, "seed": seed}),
        build=partial(drawn_from, seed, build),
        untrained=None,
        seed=seed,
        iteration=None,
    )


def embed(
    backbone: Backbone,
    pixels_source: PixelsSource,
    *,
    rows: NDArray[np.integer],
    names: Sequence[str],
    image_size_px: int,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    amp_dtype: torch.dtype | None = None,
) -> Iterator[tuple[NDArray[np.integer], dict[str, NDArray[np.float32]]]]:
    """Batch after batch of the images `rows`: (their rows, array name -> features), without gradients, in evaluation mode.

    names: of `cls_name`, MEAN_PATCH (the mean patch token of the last block), PATCHES. amp_dtype: autocast type, None for
    float32. The next batches are read meanwhile, in order and by one thread: until the iterator ends or is closed, the source is
    its own. Raises `UserError` for a size that the patches do not tile, or features that are not finite.
    """
    backbone.check_size(image_size_px)
    device = torch.device(device)
    n_blocks = max([1, *(int(name.removeprefix("cls.")) for name in names if name.startswith("cls."))])
    backbone.model.eval().to(device)
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    with closing(_inputs(backbone, pixels_source, batches, image_size_px=image_size_px, device=device)) as inputs:
        for batch, images in zip(batches, inputs, strict=True):
            # Entered anew for each batch: what the caller does between two batches is its own affair.
            with torch.inference_mode(), torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
                blocks = backbone.intermediate(images.to(device, non_blocking=device.type == "cuda"), n_blocks)
                found = {name: _pick(blocks, name).float().cpu().numpy() for name in names}
            _refuse_not_finite(found, backbone)
            yield batch, found


def _inputs(
    backbone: Backbone,
    pixels_source: PixelsSource,
    batches: Sequence[NDArray[np.integer]],
    *,
    image_size_px: int,
    device: torch.device,
) -> Generator[Tensor]:
    """What the network takes for each batch, [B, 3, H, W], made ahead of it; for a GPU in memory that is copied fastest."""
    is_cuda = device.type == "cuda"

    def join(prepared: list[NDArray[np.float32]]) -> Tensor:
        images = network_input(prepared, mean=backbone.mean, std=backbone.std)
        return images.pin_memory() if is_cuda else images

    return batches_ahead(
        batches,
        read=pixels_source.read,
        prepare=partial(prepare_image, image_size_px=image_size_px),
        join=join,
        n_helpers=min(_MAX_HELPERS, os.cpu_count() or 1) if is_cuda else 0,
    )


def _pick(blocks: Sequence[BlockTokens], name: str) -> Tensor:
    if name in (MEAN_PATCH, PATCHES):
        patches = blocks[-1].patches
        assert patches is not None, "patches were asked of a backbone without them"
        return patches.flatten(1, 2).mean(dim=1) if name == MEAN_PATCH else patches
    return blocks[-int(name.removeprefix("cls."))].cls


def _refuse_not_finite(found: dict[str, NDArray[np.float32]], backbone: Backbone) -> None:
    for name, values in found.items():
        broken = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        if broken.any():
            raise UserError(
                f"{int(broken.sum())} of {len(values)} images of a batch got features of {backbone.name} ({name}) that are not "
                "finite. The checkpoint has diverged, or amp_dtype is too narrow for it: use an earlier checkpoint, or float32."
            )
