"""What place alone and a patch's own pixels say about organs: the linear decoder on features that no network made.

    python benchmarks/organs.py ORGANS [--size 128] [--patch 8] [--smoke]

ORGANS is a folder of `vetdino organs`. Trained, chosen and scored as `vetdino segment` does it; `position` gives each patch of
the grid a feature of its own, so that the decoder learns one label map for all images, and `pixels` gives it the grey values of
its patch. Results: benchmarks/results/organs.md.

Shape legend: B images, S = --size, h patches along a side, P = --patch.
"""

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from dinov2.data.transforms import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from vet_extensions.evaluation.embedding import Backbone, BlockTokens
from vet_extensions.evaluation.segmentation.judging import IMAGE, judge
from vet_extensions.evaluation.segmentation.scores import CASE_DICE
from vet_extensions.evaluation.segmentation.sets import SegmentationSet, open_mask_folder
from vet_extensions.evaluation.segmentation.training import SegmentationConfig, fit, predict
from vet_extensions.evaluation.statistics import PatientBootstrap, macro_estimate
from vet_extensions.phantom.organs import write_organ_folder
from vet_extensions.schema import Split

POSITION, PIXELS = "position", "pixels"


def place_tokens(network: nn.Module, images: Tensor, blocks: Sequence[int], *, patch: int) -> tuple[BlockTokens, ...]:
    """One-hot place of each patch, [B, h, h, h * h]; nothing of the image is read but its size."""
    side = images.shape[-1] // patch
    places = torch.eye(side * side).view(1, side, side, -1).expand(len(images), -1, -1, -1)
    return (BlockTokens(places[:, 0, 0], places),)


def pixel_tokens(network: nn.Module, images: Tensor, blocks: Sequence[int], *, patch: int) -> tuple[BlockTokens, ...]:
    """The pixels of each patch, [B, h, h, P * P]. images: [B, 3, S, S], three times the same grey."""
    values = images[:, 0].unfold(1, patch, patch).unfold(2, patch, patch).flatten(3)
    return (BlockTokens(values[:, 0, 0], values),)


def control(name: str, *, size: int, patch: int) -> Backbone:
    """One of the two as what `fit` takes."""
    is_place = name == POSITION
    return Backbone(
        name=name,
        weights_hash=f"{name}-{size}-{patch}",
        architecture=name,
        embed_dim=(size // patch) ** 2 if is_place else patch * patch,
        patch_size=patch,
        n_blocks=1,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        image_size_px=size,
        build=nn.Identity,
        read=partial(place_tokens if is_place else pixel_tokens, patch=patch),
    )


def measure(name: str, data: SegmentationSet, config: SegmentationConfig, *, size: int, patch: int) -> list[str]:
    """A row of the table: name, validation Dice, test Dice of all classes with its interval over patients, and of each class."""
    with tempfile.TemporaryDirectory() as folder:
        fitted = fit(control(name, size=size, patch=patch), data, config, decoder="linear", folder=Path(folder))
    scores = judge(
        lambda row: predict(fitted.segmenter, data.read(row), config), data, tolerance_mm=config.tolerance_mm
    )[IMAGE]
    codes = data.patient_codes[data.rows(Split.TEST)]
    samples = scores.samples(PatientBootstrap(codes), patient_codes=codes)[CASE_DICE]
    overall = macro_estimate(samples)
    classes = [f"{macro_estimate(samples.select([column])).value:.3f}" for column in range(len(data.class_names) - 1)]
    interval = f"{overall.value:.3f} [{overall.low:.3f}, {overall.high:.3f}]"
    return [name, f"{fitted.val_dice:.3f}", interval, *classes]


def main() -> None:
    """Measure both and print them as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("organs", nargs="?", type=Path)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--patch", type=int, default=8)
    parser.add_argument("--smoke", action="store_true", help="ten small studies of its own and one epoch")
    args = parser.parse_args()
    if not args.smoke and args.organs is None:
        parser.error("name a folder of `vetdino organs`, or give --smoke")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        if args.smoke:
            args.organs, args.size = Path(scratch) / "organs", 32
            write_organ_folder(args.organs, n_studies=10, size_px=args.size)
        data = open_mask_folder(args.organs)
        config = SegmentationConfig(image_size_px=args.size, epochs=1 if args.smoke else SegmentationConfig.epochs)
        names = ["features", "validation", "all", *data.class_names[1:]]
        print(f"| {' | '.join(names)} |", f"|{'---|' * len(names)}", sep="\n")
        for name in (POSITION, PIXELS):
            cells = measure(name, data, config, size=args.size, patch=args.patch)
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
