"""Backbones of every kind by one text: `open_backbone(spec)`. The suite, `vetdino evaluate` and `vetdino embed` call it.

| spec | what it is |
|---|---|
| `RUN` | a run folder of this project (its newest teacher checkpoint), or one checkpoint with its config.yaml |
| `FILE` | DINOv2 weights without a config.yaml: released files with or without registers, in any layout that is known |
| `hf:FOLDER` | a vision model that transformers saved: DINOv2, DINOv3, RAD-DINO, ViT, CLIP, SigLIP, MAE, ResNet, ... |
| `timm:NAME:FILE` | a timm architecture with the weights of a file (released DINOv3 files too) |
| `cnn:NAME:FILE` | the same, of which only the pooled vector is read |
| `random:SPEC` | the network of any of these with random weights; needs no FILE |
| `pixels` | small images as vectors, which the suite whitens on the training images |

Nothing is ever downloaded. Before the weights are needed only their bytes are hashed.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from dinov2.data.transforms import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from dinov2.eval.run_folder import find_checkpoint, find_run, iteration_of, preprocessing_of
from dinov2.models import build_model_from_cfg
from dinov2.models import vision_transformer as vits
from dinov2.models.pos_embed import square_grid
from dinov2.utils.files import file_sha256
from dinov2.utils.utils import read_checkpoint
from dinov2.utils.weight_layouts import find_backbone
from dinov2.utils.weights import architecture_of as tensors_tell
from dinov2.utils.weights import load_backbone_weights
from vet_extensions.errors import UserError
from vet_extensions.evaluation.embedding import Backbone, BlockTokens, shape_only, untrained
from vet_extensions.evaluation.features import HASH_DIGITS, load_backbone, short_hash

PIXELS = "pixels"
PIXELS_SIDE_PX = 32
RELEASED_SIZE_PX = 224
"""Side of the images that released DINOv2 weights are evaluated with, whatever their position grid."""

_RELEASED = {(384, 12): "vit_small", (768, 12): "vit_base", (1024, 24): "vit_large", (1536, 40): "vit_giant2"}
"""(width, blocks) -> architecture of the released sizes, all with heads of 64 channels."""

_NOT_ARCHITECTURE = ("drop_path_rate", "drop_path_uniform", "pretrained_weights")
"""Keys of the student section that change training but not the network."""


def open_backbone(spec: str | Path) -> Backbone:
    """The backbone that a text of the table above, or a path, names. Its weights are read when its `model` is first used.

    Raises `UserError` for a spec that names nothing, absent files, and packages that are not installed.
    """
    text = str(spec)
    kind, _, rest = text.partition(":")
    if text == PIXELS:
        return _pixels()
    if kind == "random":
        return _random(rest)
    if kind == "hf":
        from vet_extensions.evaluation.transformers_backbones import open_folder

        return open_folder(Path(rest))
    if kind in ("timm", "cnn"):
        from vet_extensions.evaluation.timm_backbones import open_timm

        name, _, file = rest.partition(":")
        if not file:
            raise UserError(
                f"'{text}' names no weights, and nothing is downloaded. Give a file that timm wrote or released, "
                f"{kind}:{name}:FILE, or ask for random weights: random:{kind}:{name}"
            )
        return open_timm(name, Path(file), is_pooled_only=kind == "cnn")
    if (Path(spec) / "config.json").is_file():
        raise UserError(
            f"'{Path(spec).name}' is a folder of transformers, not a run of this project: write hf: before it."
        )
    checkpoint, config = find_checkpoint(spec)
    return _of_weights_file(checkpoint) if config is None else _of_run(checkpoint)


def architecture_of(run_config: DictConfig) -> str:
    """A hash of all that shapes a run's backbone but its weights."""
    student = OmegaConf.to_container(run_config.student, resolve=True)
    assert isinstance(student, dict)
    kept = {key: value for key, value in student.items() if key not in _NOT_ARCHITECTURE}
    return short_hash({"student": kept, "crop_px": run_config.crops.global_crops_size})


def _random(spec: str) -> Backbone:
    """`random:SPEC`, with seed 0, or the seed of the run that SPEC names."""
    kind, _, rest = spec.partition(":")
    if kind in ("timm", "cnn"):
        from vet_extensions.evaluation.timm_backbones import open_timm

        known = open_timm(rest.partition(":")[0], None, is_pooled_only=kind == "cnn")
    else:
        known = open_backbone(spec)
    if known.untrained is None:
        raise UserError(f"'{spec}' has no weights that could be random. Leave 'random:' out.")
    return known.untrained(known.seed or 0)


def _of_run(checkpoint: Path) -> Backbone:
    """A teacher checkpoint of this project, built as its config.yaml says."""
    _, config = find_run(checkpoint)
    mean, std = preprocessing_of(config)
    student, size_px = config.student, int(config.crops.global_crops_size)

    def build_random() -> nn.Module:
        return build_model_from_cfg(config, only_teacher=True)[0]

    shape = shape_only(build_random)
    known = Backbone(
        name=str(OmegaConf.select(config, "routing.name", default="same_image")),
        weights_hash=file_sha256(checkpoint)[:HASH_DIGITS],
        architecture=architecture_of(config),
        embed_dim=int(shape.embed_dim),  # type: ignore[arg-type]
        patch_size=int(student.patch_size),
        n_blocks=int(shape.n_blocks),  # type: ignore[arg-type]
        mean=mean,
        std=std,
        image_size_px=size_px,
        build=lambda: load_backbone(checkpoint)[0],
        read=read_vit,
        seed=int(OmegaConf.select(config, "train.seed", default=0)),
        iteration=iteration_of(checkpoint),
    )
    return replace(known, untrained=partial(untrained, known, build_random))


def _of_weights_file(path: Path) -> Backbone:
    """DINOv2 weights that come without a configuration: their tensors tell the architecture, of the released sizes."""
    state = find_backbone(read_checkpoint(path), source=path.name).state
    found = tensors_tell(state)
    if "storage_tokens" in state:
        raise UserError(
            f"'{path.name}' holds DINOv3 weights, whose network this package does not have. Give timm's name of it, "
            f"timm:vit_small_patch16_dinov3:FILE for example, or the folder of transformers: hf:FOLDER"
        )
    arch = _RELEASED.get((found.get("embedding width"), found.get("number of blocks")))  # type: ignore[arg-type]
    if arch is None or "pos_embed" not in state or "student.patch_size" not in found:
        raise UserError(
            f"'{path.name}' has no config.yaml beside it and is none of the released DINOv2 sizes "
            f"({', '.join(_RELEASED.values())}). Put the run's config.yaml beside the file, or give hf:FOLDER or timm:NAME:FILE."
        )
    patch_size, n_registers = found["student.patch_size"], found["student.num_register_tokens"]
    settings: dict[str, Any] = {
        "img_size": square_grid(state["pos_embed"].shape[1] - 1)[0] * patch_size,
        "patch_size": patch_size,
        "num_register_tokens": n_registers,
        "ffn_layer": found["student.ffn_layer"],
        "init_values": 1.0 if found["student.layerscale"] else None,
        **{name: found[f"student.{name}"] for name in ("qkv_bias", "proj_bias", "ffn_bias")},
        # As the released models interpolate positions: those with registers were trained with plain resizing.
        "interpolate_antialias": n_registers > 0,
        "interpolate_offset": 0.0 if n_registers else 0.1,
        "block_chunks": 0,
    }

    def build_random() -> nn.Module:
        return vits.__dict__[arch](**settings)

    def build() -> nn.Module:
        model = build_random()
        load_backbone_weights(model, path)
        return model

    known = Backbone(
        name=path.stem,
        weights_hash=file_sha256(path)[:HASH_DIGITS],
        architecture=short_hash({"arch": arch, **settings}),
        embed_dim=found["embedding width"],
        patch_size=patch_size,
        n_blocks=found["number of blocks"],
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        image_size_px=RELEASED_SIZE_PX // patch_size * patch_size,
        build=build,
        read=read_vit,
    )
    return replace(known, untrained=partial(untrained, known, build_random))


def _pixels() -> Backbone:
    """Images of 32 x 32 pixels as vectors [1024], each with mean 0 and standard deviation 1."""
    return Backbone(
        name=PIXELS,
        weights_hash=PIXELS,
        architecture=PIXELS,
        embed_dim=PIXELS_SIDE_PX**2,
        patch_size=None,
        n_blocks=0,
        mean=(0.0,),
        std=(1.0,),
        image_size_px=PIXELS_SIDE_PX,
        build=nn.Identity,
        read=_read_pixels,
    )


def read_vit(model: nn.Module, images: Tensor, indices: Sequence[int]) -> tuple[BlockTokens, ...]:
    """Tokens of this package's vision transformers."""
    found = model.get_intermediate_layers(images, list(indices), reshape=True, return_class_token=True)  # type: ignore[operator]
    return tuple(BlockTokens(cls, patches.permute(0, 2, 3, 1)) for patches, cls in found)


def _read_pixels(model: nn.Module, images: Tensor, indices: Sequence[int]) -> tuple[BlockTokens, ...]:
    vectors = images[:, 0].flatten(1)
    vectors = vectors - vectors.mean(dim=1, keepdim=True)
    return (BlockTokens(vectors / (vectors.std(dim=1, correction=0, keepdim=True) + 1e-6), None),)
