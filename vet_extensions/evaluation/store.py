"""Features on disk, each computed once: an array per (weights, architecture, data, preprocessing) and kind of feature.

The suite, `knn_curve`, the controls and `vetdino embed` ask a `FeatureStore` for features; what is not there is embedded, batch
by batch, and kept. `<store>/<key>/cls.1.npy` holds the last block's class tokens of all images of the data, `cls.2.npy` those of
the block before, `mean_patch.npy` and `patches.npy` those of the last block. Each is a `RowFile`: numpy maps it into
memory, and a checksum an image tells what is there, so that an interrupted embedding goes on where it stood, two may write at
once, and what is damaged is computed again. Any file may be deleted at any time.

Class tokens and mean patch tokens are float32: in float16 they would save 1 % of what dense features take, and the images of an
untrained network differ by less than its steps (measured on 1,000 phantom images: macro AUROC moves by up to 0.16 with the class
tokens of a random ViT-S/14, by up to 0.009 with raw pixels). Dense patch features, of which an image has hundreds, are float16,
each value rounded to 11 significant bits (relative error at most 2^-11), where that is at most 1 % of how much they vary, and
else float32.

Shape legend: N images of the data, n of them asked for, k blocks, D feature width, h = w patches a side.
"""

import contextlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vet_extensions.errors import UserError
from vet_extensions.evaluation.embedding import MEAN_PATCH, PATCHES, Backbone, cls_name, embed
from vet_extensions.evaluation.features import PREPARATION, TOKENS, OnProgress, PixelsSource, short_hash
from vet_extensions.evaluation.row_files import RowFile

logger = logging.getLogger("vet_extensions")

_GIB = 2**30
_FREE_SHARE = 0.95
"""Of the free space, how much features may take."""
_PATCH_DTYPES = (np.dtype(np.float16), np.dtype(np.float32))
_MAX_ROUNDING = 0.01
"""Rounding error of patch features (root mean square) as a share of their standard deviation over the patches."""
_N_SAMPLE = 8
"""Images that decide the number format of patch features; the first ones, so that all writers decide alike."""


@dataclass(frozen=True)
class Features:
    """Features of n images.

    cls: [n, k, D] float32, the last k blocks, earliest first; mean_patch: [n, D] float32; patches: [n, h, w, D] float16, or
    float32 where float16 is too coarse; the last two are None where not asked for. rows: [n], the images' rows in the data.
    """

    cls: NDArray[np.float32]
    mean_patch: NDArray[np.float32] | None
    patches: NDArray[np.floating] | None
    rows: NDArray[np.integer]

    def vectors(self, tokens: str = "cls") -> NDArray[np.float32]:
        """One vector an image from the last block, [n, D]; with tokens "cls+mean_patch" [n, 2D], where there are patches."""
        if tokens not in TOKENS:
            raise UserError(f"Unknown tokens {tokens!r}; allowed are {', '.join(TOKENS)}.")
        last = self.cls[:, -1]
        return last if tokens == "cls" or self.mean_patch is None else np.concatenate([last, self.mean_patch], axis=1)


class FeatureStore:
    """Features of backbones on data, kept in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def features(
        self,
        backbone: Backbone,
        pixels_source: PixelsSource,
        *,
        content_hash: str,
        n_blocks: int = 1,
        with_mean_patch: bool = False,
        with_patches: bool = False,
        rows: NDArray[np.integer] | None = None,
        image_size_px: int | None = None,
        batch_size: int = 64,
        device: torch.device | str = "cpu",
        amp_dtype: torch.dtype | None = None,
        on_progress: OnProgress | None = None,
    ) -> Features:
        """Features of the images `rows` (None: all) in that order; only images that lack one are embedded.

        content_hash: of the data, as `LabelledImages` and `Manifest` state it. image_size_px: None for the backbone's own.
        with_mean_patch: left out for a backbone without patches. on_progress counts images, those already there at once.
        All images at once come as read-only maps of the files, some as copies. The device is not part of the key.
        Raises `UserError` for what the backbone does not have, features that are not finite, and a disk too small for them.
        """
        size_px = image_size_px or backbone.image_size_px
        backbone.check_size(size_px)
        names = _array_names(backbone, n_blocks, with_mean_patch=with_mean_patch, with_patches=with_patches)
        place = self._place(feature_key(backbone, content_hash, image_size_px=size_px, amp_dtype=amp_dtype))
        wanted = np.arange(len(pixels_source)) if rows is None else np.asarray(rows)
        options = {"image_size_px": size_px, "batch_size": batch_size, "device": device, "amp_dtype": amp_dtype}
        with contextlib.ExitStack() as opened:
            files = {}
            for name in names:
                shape = backbone.shape_of(name, image_size_px=size_px)
                dtype = np.dtype(np.float32)
                if name == PATCHES:
                    dtype = _patch_dtype(place, backbone, pixels_source, **options)
                file = RowFile(_path(place, name), n_rows=len(pixels_source), shape=shape, dtype=dtype)
                files[name] = opened.enter_context(file)
            lacking = {name: np.zeros(len(pixels_source), dtype=bool) for name in names}  # of each image of the data
            for name, file in files.items():
                lacking[name][wanted[file.missing(wanted)]] = True
            missing = wanted[np.logical_or.reduce([mask[wanted] for mask in lacking.values()])]
            report = on_progress or (lambda done, total: None)
            done = len(wanted) - len(missing)
            report(done, len(wanted))
            if len(missing):  # else the weights need not even be read
                self._check_space({name: int(lacking[name].sum()) * file.row_bytes for name, file in files.items()})
                to_do = [name for name in names if lacking[name].any()]
                for batch, found in embed(backbone, pixels_source, rows=missing, names=to_do, **options):
                    for name, values in found.items():
                        is_new = lacking[name][batch]
                        files[name].write(batch[is_new], values[is_new].astype(files[name].dtype, copy=False))
                    done += len(batch)
                    report(done, len(wanted))
            arrays = {name: file.read(None if rows is None else wanted) for name, file in files.items()}
        return _assemble(arrays, wanted)

    def path_of(self, key: Mapping[str, Any], name: str) -> Path:
        """The file of one kind of features under a key."""
        return _path(self.folder / short_hash(key), name)

    def _place(self, key: Mapping[str, Any]) -> Path:
        """The folder of a key, made if need be, with the key in words beside the arrays."""
        place = self.folder / short_hash(key)
        place.mkdir(parents=True, exist_ok=True)
        if not (place / "key.json").is_file():
            (place / "key.json").write_text(json.dumps(key, indent=2) + "\n", encoding="utf-8")
        return place

    def _check_space(self, needed_bytes: Mapping[str, int]) -> None:
        """Say what dense features will take, and refuse what the disk cannot hold."""
        total, free = sum(needed_bytes.values()), shutil.disk_usage(self.folder).free
        if needed_bytes.get(PATCHES):
            logger.info("dense features: %.2f GiB to write, %.2f GiB free", total / _GIB, free / _GIB)
        if total > _FREE_SHARE * free:
            raise UserError(
                f"The features need {total / _GIB:.2f} GiB, and the disk of the feature folder has {free / _GIB:.2f} GiB free. "
                "Choose a folder on a larger disk, a smaller image size or fewer images, or leave the patch features out."
            )


def feature_key(
    backbone: Backbone, content_hash: str, *, image_size_px: int, amp_dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """All that decides features: weights, architecture, data, preprocessing and number format."""
    return {
        "weights": backbone.weights_hash,
        "architecture": backbone.architecture,
        "data": content_hash,
        "image_size_px": image_size_px,
        "mean": list(backbone.mean),
        "std": list(backbone.std),
        "preparation": PREPARATION,
        "computed_in": str(amp_dtype or torch.float32).removeprefix("torch."),
    }


def _array_names(backbone: Backbone, n_blocks: int, *, with_mean_patch: bool, with_patches: bool) -> list[str]:
    if not 1 <= n_blocks <= max(1, backbone.n_blocks):
        raise UserError(
            f"{backbone.name} has {max(1, backbone.n_blocks)} blocks to read features from, {n_blocks} were asked for. "
            f"Ask for 1 to {max(1, backbone.n_blocks)}."
        )
    if with_patches and backbone.patch_size is None:
        raise UserError(f"{backbone.name} gives one vector an image and has no patch features. Leave them out.")
    names = [cls_name(block) for block in range(1, n_blocks + 1)]
    return [*names, *[MEAN_PATCH] * (with_mean_patch and backbone.patch_size is not None), *[PATCHES] * with_patches]


def _path(place: Path, name: str) -> Path:
    return place / f"{name}.npy"


def _patch_dtype(place: Path, backbone: Backbone, pixels_source: PixelsSource, **options: Any) -> np.dtype[np.floating]:
    """That of the file, or, for a new one, the narrowest whose rounding the first images' patches can bear."""
    with contextlib.suppress(OSError, ValueError, EOFError):
        there = np.load(_path(place, PATCHES), mmap_mode="r").dtype
        if there in _PATCH_DTYPES:
            return there
    sample = np.arange(min(_N_SAMPLE, len(pixels_source)))
    _, found = next(embed(backbone, pixels_source, rows=sample, names=[PATCHES], **options))
    tokens = found[PATCHES].reshape(-1, backbone.embed_dim)
    with np.errstate(over="ignore"):  # beyond 65,504 the error is infinite
        error = np.square(tokens - tokens.astype(np.float16)).mean()
    is_fine = bool(error <= np.square(_MAX_ROUNDING) * tokens.var(axis=0).mean())
    if not is_fine:
        logger.info("patch features of %s differ too little for float16 and are kept in float32", backbone.name)
    return _PATCH_DTYPES[0 if is_fine else 1]


def _assemble(arrays: Mapping[str, NDArray[Any]], rows: NDArray[np.integer]) -> Features:
    n_blocks = sum(name.startswith("cls.") for name in arrays)
    blocks = [arrays[cls_name(block)] for block in range(n_blocks, 0, -1)]
    cls = blocks[0][:, None] if n_blocks == 1 else np.stack(blocks, axis=1)
    return Features(cls=cls, mean_patch=arrays.get(MEAN_PATCH), patches=arrays.get(PATCHES), rows=rows)
