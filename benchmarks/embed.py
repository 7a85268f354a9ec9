"""Features with the next images made while the network computes (`evaluation.embedding.embed`), against one after the other.

    python benchmarks/embed.py [--threads 2] [--repeats 5] [--smoke]        taskset -c 0 python benchmarks/embed.py

Phantom radiographs of 512 px in a 16-bit shard, prepared for 224 px. Networks: a tiny and a small vision transformer, and a
stand-in for a GPU that takes no core and waits as long as one might compute; for that one also with threads that help preparing,
as `embed` has them on a GPU. By turns in one process, wall seconds. Results: benchmarks/results/embed.md.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from side_by_side import by_turns, machine_facts, table
from torch import Tensor, nn

from dinov2.models.vision_transformer import DinoVisionTransformer, vit_small
from vet_extensions.evaluation.embedding import Backbone, BlockTokens, cls_name, embed
from vet_extensions.evaluation.features import network_input, prepare_image
from vet_extensions.evaluation.prefetch import batches_ahead
from vet_extensions.phantom.render import render_view
from vet_extensions.phantom.studies import sample_study
from vet_extensions.shards import ShardReader, ShardWriter

STORED_PX, SIZE_PX, BATCH, N_DIFFERENT = 512, 224, 64, 16
WAITS_MS = (0.2, 1.0, 3.0)
BEFORE, AFTER, HELPED = "one by one", "made ahead", "made ahead, 2 threads prepare"


def write_shards(folder: Path, n: int) -> ShardReader:
    """n images, uint16 [512, 448]; a few different ones by turns, which have the same cost."""
    studies = [sample_study(0, number) for number in range(N_DIFFERENT)]
    views = [render_view(study, study.exposures[0], STORED_PX).image[:, : STORED_PX * 7 // 8] for study in studies]
    with ShardWriter(folder / "shards") as writer:
        for number in range(n):
            grey = np.clip(views[number % N_DIFFERENT], 0, 1) * 65535
            writer.add(f"{number:016x}", np.rint(grey).astype(np.uint16))
    return ShardReader(folder)


def backbone_of(model: nn.Module, embed_dim: int, read: Callable[..., tuple[BlockTokens, ...]]) -> Backbone:
    return Backbone(
        name="benchmark",
        weights_hash="",
        architecture="",
        embed_dim=embed_dim,
        patch_size=None,
        n_blocks=0,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        image_size_px=SIZE_PX,
        build=lambda: model,
        read=read,
    )


def read_tokens(model: nn.Module, images: Tensor, _indices: Sequence[int]) -> tuple[BlockTokens, ...]:
    return (BlockTokens(model(images), None),)


def wait(_model: nn.Module, images: Tensor, _indices: Sequence[int], *, ms: float) -> tuple[BlockTokens, ...]:
    """Takes a time and no core, as waiting for a GPU does."""
    time.sleep(ms / 1000 * len(images))
    return (BlockTokens(images[:, :, 0, 0], None),)


def batches_of(n: int, size: int) -> list[np.ndarray]:
    return [np.arange(start, min(n, start + size)) for start in range(0, n, size)]


def one_by_one(backbone: Backbone, reader: ShardReader, *, n: int, batch_size: int) -> np.ndarray:
    """As `embed` did before."""
    found = []
    for batch in batches_of(n, batch_size):
        prepared = [prepare_image(reader.read(int(row)), SIZE_PX) for row in batch]
        images = network_input(prepared, mean=backbone.mean, std=backbone.std)
        with torch.inference_mode():
            found.append(backbone.cls(images).float().numpy())
    return np.concatenate(found)


def made_ahead(backbone: Backbone, reader: ShardReader, *, n: int, batch_size: int) -> np.ndarray:
    batches = embed(
        backbone, reader, rows=np.arange(n), names=[cls_name(1)], image_size_px=SIZE_PX, batch_size=batch_size
    )
    return np.concatenate([features[cls_name(1)] for _, features in batches])


def with_helpers(backbone: Backbone, reader: ShardReader, *, n: int, batch_size: int) -> np.ndarray:
    """`embed`, less its checks, with the threads that it takes for a GPU alone."""
    inputs = batches_ahead(
        batches_of(n, batch_size),
        read=reader.read,
        prepare=partial(prepare_image, image_size_px=SIZE_PX),
        join=partial(network_input, mean=backbone.mean, std=backbone.std),
        n_helpers=2,
    )
    with torch.inference_mode():
        return np.concatenate([backbone.cls(images).float().numpy() for images in inputs])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, help="for the small vision transformer an eighth of them")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="everything once, small; the figures mean nothing")
    args = parser.parse_args()
    if args.smoke:
        args.images, args.repeats = 16, 1
    torch.set_num_threads(args.threads)
    print(f"{machine_facts()}\n{args.images} images, batches of {BATCH}; ViT-S/14: an eighth")
    tiny = DinoVisionTransformer(
        img_size=SIZE_PX, patch_size=14, embed_dim=64, depth=4, num_heads=2, mlp_ratio=4, block_chunks=0
    )
    small = vit_small(14, img_size=SIZE_PX, block_chunks=0)
    networks = {"tiny, 64 wide, 4 blocks": (tiny, 64, 1), "ViT-S/14": (small, 384, 8)}
    cases = {
        name: (backbone_of(model.eval(), width, read_tokens), share) for name, (model, width, share) in networks.items()
    }
    for ms in WAITS_MS:
        cases[f"stand-in for a GPU, {ms} ms an image"] = backbone_of(nn.Identity(), 3, partial(wait, ms=ms)), 1
    with tempfile.TemporaryDirectory() as folder:
        reader = write_shards(Path(folder), args.images)
        for name, (backbone, share) in cases.items():
            options = {"n": args.images // share, "batch_size": BATCH // share}
            ways = {BEFORE: partial(one_by_one, backbone, reader, **options)}
            ways[AFTER] = partial(made_ahead, backbone, reader, **options)
            if name.startswith("stand-in"):
                ways[HELPED] = partial(with_helpers, backbone, reader, **options)
            expected = ways[BEFORE]()
            is_equal = all(np.array_equal(expected, way()) for way in ways.values())
            timings = by_turns(ways, repeats=args.repeats)
            cpu = ", ".join(f"{1000 * timing.median('cpu') / options['n']:.2f}" for timing in timings.values())
            print(
                f"\n## {name}\n\n{table(timings, baseline=BEFORE, clock='wall', what='way', items=options['n'])}\n\n"
                f"CPU ms an image: {cpu}. "
                f"Features equal to the last bit: {'yes' if is_equal else 'NO'}.",
                flush=True,
            )


if __name__ == "__main__":
    main()
