"""The data path on one core: crops from a prepared shard and straight from DICOM, against the official augmentation on JPEG.

    python benchmarks/data.py [--repeats 9] [--smoke]

Tables: images a second beside what the project asks for; how close the crops come to Pillow's bicubic filter on the full image;
where the time of a sample goes; DICOM straight to crops, which no command does: the rooms `intake` and `data` put together here.
CPU seconds of one thread, ratios by turns. Images are synthetic: two views of the phantom, and one with hard letters and much
grain. Results: benchmarks/results/data.md.
"""

import argparse
import io
import math
import pickle
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from intake import SYNTAXES, make_file
from PIL import Image
from side_by_side import Timing, by_turns, machine_facts, ratio

from dinov2.data import collate_data_and_cast
from dinov2.data.augmentations import DataAugmentationDINO
from dinov2.data.datasets.decoders import ImageDataDecoder
from dinov2.loss.routing import build_router
from vet_extensions.data import StudySample
from vet_extensions.data.paired_augmentation import PairedViewAugmentation
from vet_extensions.data.radiograph_crop import CropSettings, RadiographCrop
from vet_extensions.data.resampling import Box, resized_box
from vet_extensions.intake.decode import read_frame
from vet_extensions.intake.dicom import PixelLayout, largest_file, open_dicom, pixel_layout
from vet_extensions.intake.image import ImageReader
from vet_extensions.intake.opening import opened
from vet_extensions.intake.options import IntakeOptions
from vet_extensions.intake.pixels import to_grey
from vet_extensions.intake.resize import reduce_to, to_bits
from vet_extensions.intake.sources.dicom_folder import DicomFolder
from vet_extensions.phantom.render import render_view
from vet_extensions.phantom.studies import sample_study
from vet_extensions.routing import VetDino
from vet_extensions.schema import View
from vet_extensions.shards import ShardReader, ShardWriter

MAX_PIXELS = 10**8
STORED_PX = 512
N_LOCAL = 8
SETTINGS = CropSettings(global_scale=(0.32, 1.0), local_scale=(0.05, 0.32), global_size_px=224, local_size_px=98)
GEOMETRY = replace(SETTINGS, gamma_sigma=0, contrast_sigma=0, brightness_sigma=0, noise_sigma=0, blur_probability=0)
TARGETS = {"2048": 25.0, "512": 6.0, "uncompressed": 100.0, "JPEG lossless .70": 20.0, "psnr": 50.0}


@dataclass(frozen=True)
class Size:
    """How long the run is. full_px: longer side of the full images. repeats: turns. n_boxes: crops compared for each figure."""

    full_px: int
    repeats: int
    n_boxes: int


def pictures(full_px: int) -> dict[str, np.ndarray]:
    """Name -> full image, uint16 [H, W]: lateral and ventrodorsal phantom; letters and grain, at 7/8 of the width."""
    study = sample_study(0, 0)
    views = {"phantom, " + e.view.lower().replace("_", " "): e for e in (study.exposures[0], study.exposures[-1])}
    images = {name: render_view(study, exposure, full_px).image for name, exposure in views.items()}
    images["letters and grain"] = letters_and_grain(next(iter(images.values())))
    width = full_px * 7 // 8
    return {name: np.rint(np.clip(image[:, :width], 0, 1) * 65535).astype(np.uint16) for name, image in images.items()}


def letters_and_grain(image: np.ndarray) -> np.ndarray:
    """The image under independent noise of 2.4 % of the range a pixel and white text with hard borders of many sizes."""
    rng, side = np.random.default_rng(0), image.shape[0]
    noisy = np.clip(255 * (image + rng.normal(0, 0.024, image.shape)), 0, 255).astype(np.uint8)
    for _ in range(12):
        x, y = (int(rng.integers(0, 0.6 * side)), int(rng.integers(0.05 * side, side)))
        cv2.putText(noisy, "L R 12 VET", (x, y), 0, side / 1024 * rng.uniform(0.5, 2), 255, 1 + int(rng.integers(1, 5)))
    return noisy / 255


def jpeg(grey: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(to_bits(grey, bits=8)).save(file, "JPEG", quality=92)
    return file.getvalue()


def official(payload: bytes, *, shortest_side_px: int = 0) -> Callable[[], object]:
    """One sample as the official data path makes it: decoded to RGB, then `DataAugmentationDINO`."""
    s = SETTINGS
    augment = DataAugmentationDINO(
        s.global_scale, s.local_scale, N_LOCAL, global_crops_size=s.global_size_px, local_crops_size=s.local_size_px
    )
    return lambda: augment(ImageDataDecoder(payload, shortest_side_px=shortest_side_px).decode())


def cropped(settings: CropSettings, read: Callable[[], np.ndarray]) -> Callable[[], object]:
    """One sample of `paired_views` with all crops from one image; every call is another position of the run."""
    layout = build_router({"name": "same_image"}, N_LOCAL).layout
    augment = PairedViewAugmentation(RadiographCrop(settings), layout, seed=0, teacher_view="first")
    positions = iter(range(10**9))
    return lambda: augment(StudySample(pixels=(read(),), views=(View.LATERAL_LEFT,), position=next(positions)))


def timed(ways: Mapping[str, tuple[Callable[[], object], int]], *, repeats: int) -> dict[str, Timing]:
    """CPU seconds of one call. ways: name -> (work, how many calls make a turn), so that turns are of like length."""

    def many(work: Callable[[], object], n: int) -> Callable[[], object]:
        return lambda: [work() for _ in range(n)]

    turns = by_turns({name: many(work, n) for name, (work, n) in ways.items()}, repeats=repeats)
    return {
        name: Timing([t / ways[name][1] for t in timing.cpu_s], [t / ways[name][1] for t in timing.wall_s])
        for name, timing in turns.items()
    }


def rate_table(images: Mapping[str, np.ndarray], folder: Path, *, repeats: int) -> None:
    """Crops from a shard against the official augmentation on the same image as JPEG; then where the time goes."""
    full = next(iter(images.values()))
    stored = reduce_to(full, longest_side_px=STORED_PX)
    with ShardWriter(folder / "shards") as writer:
        writer.add("0" * 16, to_bits(stored, bits=8))
        writer.add("1" * 16, stored)
    reader = ShardReader(folder)
    held = reader.read(0)
    curve = replace(GEOMETRY, gamma_sigma=0.2, contrast_sigma=0.2, brightness_sigma=0.05)
    ways = {
        "official, JPEG 2048": (official(jpeg(full)), 1),
        "official, JPEG 512": (official(jpeg(stored)), 4),
        "official, JPEG 2048 decoded at a part (shortest_side=396)": (official(jpeg(full), shortest_side_px=396), 4),
        "shard to crops": (cropped(SETTINGS, lambda: reader.read(0)), 16),
        "shard to crops, turned by 5 degrees": (cropped(replace(SETTINGS, rotation_deg=5), lambda: reader.read(0)), 16),
        "16-bit shard to crops": (cropped(SETTINGS, lambda: reader.read(1)), 16),
        "all steps, image in memory": (cropped(SETTINGS, lambda: held), 16),
        "without noise": (cropped(replace(SETTINGS, noise_sigma=0), lambda: held), 16),
        "without noise and blur": (cropped(curve, lambda: held), 16),
        "box and resize alone": (cropped(GEOMETRY, lambda: held), 16),
        "reading alone": (lambda: reader.read(0), 64),
        "generator of the sample alone": (lambda: np.random.default_rng((0, 1)), 64),
    }
    timings = timed(ways, repeats=repeats)
    print(
        "\n| 2 x 224 + 8 x 98 crops | ms | images/s | times JPEG 2048 | asked | times JPEG 512 | asked |\n"
        + "|---" * 7
        + "|"
    )
    for name in list(ways)[:6]:
        t = timings[name].median("cpu")
        times = {px: ratio(timings, baseline=f"official, JPEG {px}", way=name, clock="cpu") for px in ("2048", "512")}
        asked = {px: f">= {TARGETS[px]:.0f}" if name == "shard to crops" else "" for px in times}
        cells = " | ".join(f"{times[px]:.1f} | {asked[px]}" for px in times)
        print(f"| {name} | {1000 * t:.2f} | {1 / t:.0f} | {cells} |")
    ms = {name: 1000 * timing.median("cpu") for name, timing in timings.items()}
    steps = {
        "reading from the shard": ms["reading alone"],
        "generator": ms["generator of the sample alone"],
        "box and resize": ms["box and resize alone"] - ms["generator of the sample alone"],
        "gamma, contrast, brightness": ms["without noise and blur"] - ms["box and resize alone"],
        "blur (in 1 of 5 crops)": ms["without noise"] - ms["without noise and blur"],
        "noise": ms["all steps, image in memory"] - ms["without noise"],
    }
    print("\n| step of a sample (difference of two rows timed) | ms | share |\n|---|---|---|")
    for name, value in steps.items():
        print(f"| {name} | {value:.2f} | {value / ms['shard to crops']:.0%} |")


def device_table(pictures_of_pair: Sequence[np.ndarray], *, repeats: int) -> None:
    """A batch of `vet_dino` with its crops made in the worker, and with images and plans sent for the device to make them.

    Worker: CPU time from images in memory to the collated batch. Device: of the crops alone, on the GPU where there is one.
    """
    name, n = ("cuda", 64) if torch.cuda.is_available() else ("cpu", 8)
    images = tuple(to_bits(reduce_to(image, longest_side_px=STORED_PX), bits=8) for image in pictures_of_pair)
    samples = [StudySample(images, (View.LATERAL_LEFT, View.VD), position) for position in range(n)]
    layout = VetDino({"name": "vet_dino"}, N_LOCAL).layout

    def collated(*, on_device: bool) -> dict[str, Any]:
        augment = PairedViewAugmentation(RadiographCrop(SETTINGS), layout, seed=0, crops_on_device=on_device)
        return collate_data_and_cast([(augment(sample), ()) for sample in samples], (0.1, 0.5), 0.5, torch.float32, 256)

    worker = by_turns(
        {"in workers": lambda: collated(on_device=False), "on the device": lambda: collated(on_device=True)},
        repeats=repeats,
    )
    maker, device = collated(on_device=True)["crops_on_device"], torch.device(name)
    made = by_turns({"": lambda: maker.crops(device)}, repeats=repeats, device=name)[""]
    device_s = {"in workers": 0.0, "on the device": made.median("wall" if name == "cuda" else "cpu")}
    height, width = images[0].shape
    print(
        f"\n| crops of pairs of {height} x {width}, batches of {n} | worker, ms a sample | KiB a sample from the worker "
        f"| device ({name}), ms a sample |\n|---|---|---|---|"
    )
    for way, timing in worker.items():
        sent = len(pickle.dumps(collated(on_device=way == "on the device"), protocol=5))
        print(
            f"| {way} | {1000 * timing.median('cpu') / n:.2f} | {sent / n / 1024:.0f} | {1000 * device_s[way] / n:.2f} |"
        )


def boxes(rng: np.random.Generator, scale: tuple[float, float], shape: tuple[int, ...], n: int) -> Iterator[Box]:
    """Boxes as `RadiographCrop` draws them."""
    crop = RadiographCrop(replace(SETTINGS, global_scale=scale))
    for plan in crop.plans([shape] * n, is_global=True, rng=rng):
        yield plan.box


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """dB between 8-bit images."""
    return 10 * math.log10(255**2 / max(float(np.mean((a.astype(np.float64) - b) ** 2)), 1e-9))


def pillow(image: Image.Image, box: Box, size: int, scale: tuple[float, float] = (1, 1)) -> np.ndarray:
    x, y = scale
    corners = (x * box.left, y * box.top, x * (box.left + box.width), y * (box.top + box.height))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=corners))


def fidelity(full: np.ndarray, stored: np.ndarray, *, n: int) -> dict[str, dict[str, list[float]]]:
    """Crop -> comparison -> dB of each box. full: the grey image, stored: what crops are cut from, both uint8."""
    scale = (full.shape[1] / stored.shape[1], full.shape[0] / stored.shape[0])
    whole, small = Image.fromarray(full), Image.fromarray(stored)
    found: dict[str, dict[str, list[float]]] = {}
    s = SETTINGS
    for name, share, size in (("224", s.global_scale, s.global_size_px), ("98", s.local_scale, s.local_size_px)):
        figures = found.setdefault(name, {"whole": [], "stored": [], "limit": []})
        for box in boxes(np.random.default_rng(0), share, stored.shape, n):
            crop, reference, same = (
                resized_box(stored, box, size=size),
                pillow(whole, box, size, scale),
                pillow(small, box, size),
            )
            figures["whole"].append(psnr(crop, reference))
            figures["stored"].append(psnr(crop, same))
            figures["limit"].append(psnr(same, reference))
    return found


def fidelity_table(images: Mapping[str, np.ndarray], *, n: int) -> None:
    print(
        f"\nPSNR against Pillow's bicubic filter, mean / lowest of {n} boxes. Asked: >= {TARGETS['psnr']:.0f} dB mean.\n"
    )
    print(
        "| image | crop | crop: full image | Pillow on the stored image: full image | crop: Pillow on the stored image |"
    )
    print("|---" * 5 + "|")
    for name, full in images.items():
        stored = to_bits(reduce_to(full, longest_side_px=STORED_PX), bits=8)
        for size, figures in fidelity(to_bits(full, bits=8), stored, n=n).items():
            shown = {key: f"{np.mean(values):.1f} / {min(values):.1f}" for key, values in figures.items()}
            print(f"| {name} | {size} | {shown['whole']} | {shown['limit']} | {shown['stored']} |")


def halved(pixels: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels, as often as the longer side stays at the stored size: eight times as fast as a broken factor."""
    while max(pixels.shape) >= 2 * STORED_PX:
        size = (pixels.shape[1] // 2, pixels.shape[0] // 2)
        pixels = cv2.resize(pixels[: 2 * size[1], : 2 * size[0]], size, interpolation=cv2.INTER_AREA)
    return pixels


def decoded(source: DicomFolder, name: str) -> tuple[np.ndarray, Any, PixelLayout]:
    """Bit patterns, header and layout, with all of intake's checks."""
    with (
        opened(source, name, max_bytes=largest_file(MAX_PIXELS)) as file,
        open_dicom(file, with_pixels=True, max_pixels=MAX_PIXELS) as dataset,
    ):
        layout = pixel_layout(dataset, max_pixels=MAX_PIXELS)
        return read_frame(dataset, layout)[0], dataset, layout


def small_grey(source: DicomFolder, name: str) -> np.ndarray:
    """uint8 grey for crops, straight from DICOM.

    Reduced before the grey scale where stored values may be averaged and need no percentiles of the whole image: unsigned, in all
    bits below the highest, no padding, a window. Else the grey scale comes first.
    """
    raw, dataset, layout = decoded(source, name)
    may_be_averaged = not (layout.is_signed or "PixelPaddingValue" in dataset) and "WindowCenter" in dataset
    if may_be_averaged and layout.is_monochrome and layout.high_bit + 1 == layout.bits_stored:
        return to_bits(to_grey(halved(raw), dataset, layout), bits=8)
    return to_bits(halved(to_grey(raw, dataset, layout)), bits=8)


def dicom_table(folder: Path, *, repeats: int, n: int) -> None:
    folder.mkdir()
    source = DicomFolder(folder)
    reader = ImageReader(IntakeOptions(), source)
    head = (
        "decoding, ms",
        "intake's pixel pass, images/s",
        "to crops, images/s",
        "asked",
        "decoding's share",
        "PSNR 224 / 98",
    )
    print("\n| DICOM, 2500 x 2048 | " + " | ".join(head) + " |")
    print("|---" * 7 + "|")
    for syntax, n_calls in (("uncompressed", 8), ("JPEG lossless .70", 1)):
        path = folder / f"{syntax[:4]}.dcm"
        make_file(path, SYNTAXES[syntax])
        ways = {
            "decoder": (lambda path=path: decoded(source, path.name), n_calls),
            "intake": (lambda path=path: reader((path.name, 0)), n_calls),
            "crops": (cropped(SETTINGS, lambda path=path: small_grey(source, path.name)), n_calls),
        }
        s = {name: timing.median("cpu") for name, timing in timed(ways, repeats=repeats).items()}
        full = to_bits(to_grey(*decoded(source, path.name)), bits=8)
        found = fidelity(full, small_grey(source, path.name), n=n)
        close = " / ".join(f"{np.mean(figures['whole']):.1f}" for figures in found.values())
        print(
            f"| {syntax} | {1000 * s['decoder']:.1f} | {1 / s['intake']:.0f} | {1 / s['crops']:.1f} | >= {TARGETS[syntax]:.0f} "
            f"| {s['decoder'] / s['crops']:.0%} | {close} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="turns of each way")
    parser.add_argument(
        "--smoke", action="store_true", help="every table in seconds, from smaller images; no figures to quote"
    )
    args = parser.parse_args()
    size = Size(1024, 1, 2) if args.smoke else Size(2048, args.repeats, 32)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    print(machine_facts())
    images = pictures(size.full_px)
    with tempfile.TemporaryDirectory() as folder:
        rate_table(images, Path(folder), repeats=size.repeats)
        device_table([images[name] for name in list(images)[:2]], repeats=size.repeats)
        fidelity_table(images, n=size.n_boxes)
        dicom_table(Path(folder) / "dicom", repeats=size.repeats, n=size.n_boxes)


if __name__ == "__main__":
    main()
