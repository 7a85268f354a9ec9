"""One training step beside a plain writing of the official arithmetic: time, share of the device's roof, peak memory.

    python benchmarks/step.py [--threads 1] [--repeats 5] [--precisions fp32 bf16] [--arch vit_small] [--images 8] [--device cuda]

Both ways run by turns in one process on the same batch (2 crops of 224 pixels and 8 of 98 of every image, 65,536 prototypes,
stochastic depth 0.3) from equal weights. Prints the tables of benchmarks/results/step.md.
"""

import argparse
import random
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import torch
from omegaconf import DictConfig, OmegaConf
from plain_step import PlainArch, plain_end_of_step, plain_optimizer
from side_by_side import Timing, by_turns, machine_facts, peak_memory_mib, ratio, roof_flops, table

import dinov2.models.vision_transformer as vits
from dinov2.configs import dinov2_default_config
from dinov2.data import MaskingGenerator, collate_data_and_cast
from dinov2.train import precision as precision_room
from dinov2.train.precision import cpu_has_units_for
from dinov2.train.ssl_meta_arch import SSLMetaArch
from dinov2.train.throughput import step_flops
from dinov2.train.trainer import build_optimizer, clip_gradients

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WAYS: dict[str, type[SSLMetaArch]] = {"plain": PlainArch, "ours": SSLMetaArch}
AS_RUN = "ours, as run here"
"""Where a CPU has no units for the precision that is asked for, and float32 is computed instead."""
MOMENTUM, TEMP = 0.994, 0.05


def make_config(args: argparse.Namespace, precision: str) -> DictConfig:
    """The official defaults with this benchmark's sizes."""
    changes = {
        "student": {"arch": args.arch, "patch_size": 14, "drop_path_rate": 0.3},
        "dino": {"head_n_prototypes": args.prototypes},
        "ibot": {"head_n_prototypes": args.prototypes},
        "crops": {"global_crops_size": args.sides[0], "local_crops_size": args.sides[1]},
        "compute_precision": {
            "grad_scaler": False,
            "student": {"backbone": {"mixed_precision": {"param_dtype": precision}}},
        },
        "train": {"batch_size_per_gpu": args.images},
    }
    cfg = OmegaConf.merge(OmegaConf.create(dinov2_default_config), changes)
    assert isinstance(cfg, DictConfig), "the defaults are a mapping"
    return cfg


def make_batch(cfg: DictConfig) -> dict[str, Any]:
    """Crops of noise, masked as the official collate function masks."""
    random.seed(0)
    torch.manual_seed(0)
    sides = cfg.crops.global_crops_size, cfg.crops.local_crops_size
    grid = sides[0] // cfg.student.patch_size
    samples = []
    for _ in range(cfg.train.batch_size_per_gpu):
        crops = [[torch.randn(3, side, side) for _ in range(n)] for side, n in zip(sides, (2, 8), strict=True)]
        samples.append(({"global_crops": crops[0], "local_crops": crops[1], "offsets": ()}, ()))
    masks = MaskingGenerator(input_size=(grid, grid), max_num_patches=0.5 * grid * grid)
    return collate_data_and_cast(samples, (0.1, 0.5), 0.5, torch.float32, grid * grid, masks)


class Step:
    """One way of doing a whole step, its parts to be called one by one."""

    def __init__(self, kind: str, cfg: DictConfig, batch: dict[str, Any], *, device: str) -> None:
        torch.manual_seed(0)
        self.kind, self.batch = kind, batch
        self.model = WAYS.get(kind, SSLMetaArch)(cfg).to(device)
        self.model.train()
        with nullcontext() if kind == AS_RUN else patch.object(precision_room, "cpu_has_units_for", lambda _: True):
            self.model.prepare_for_distributed_training()
        groups = self.model.get_params_groups()
        self.optimizer = plain_optimizer(self.model) if kind == "plain" else build_optimizer(cfg, groups)
        for group in self.optimizer.param_groups:
            group["lr"] = 1e-6  # so that both ways stay near one another

    def __call__(self) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.model.forward_backward(self.batch, TEMP)
        self.end()
        return float(sum(losses.values()))

    def end(self) -> None:
        """Clipping, optimizer and average, on the gradients that are there."""
        if self.kind == "plain":
            plain_end_of_step(self.model, self.optimizer, momentum=MOMENTUM)
            return
        for module in self.model.student.values():
            clip_gradients(module, max_norm=self.model.cfg.optim.clip_grad)
        self.optimizer.step()
        self.model.update_teacher(MOMENTUM)

    def passes(self) -> None:
        """Forward and backward alone."""
        self.optimizer.zero_grad(set_to_none=True)
        self.model.forward_backward(self.batch, TEMP)


def vit_no_blocks(patch_size: int = 14, **kwargs: Any) -> vits.DinoVisionTransformer:
    """ViT-S without its blocks: what is left of a step are the heads and the losses."""
    kwargs = kwargs | {"block_chunks": 0, "depth": 0}
    return vits.DinoVisionTransformer(patch_size=patch_size, embed_dim=384, num_heads=6, **kwargs)


def compare(args: argparse.Namespace, precision: str, *, clock: str) -> dict[str, Timing]:
    """Prints the tables of one precision: whole steps, heads and losses, end of the step. Returns the whole steps' times."""
    cfg = make_config(args, precision)
    batch = make_batch(cfg)
    is_replaced = args.device == "cpu" and precision != "fp32" and not cpu_has_units_for(DTYPES[precision])
    kinds = [*WAYS, *([AS_RUN] if is_replaced else [])]
    steps = {kind: Step(kind, cfg, batch, device=args.device) for kind in kinds}
    losses = {kind: step() for kind, step in steps.items()}
    whole = by_turns(steps, repeats=args.repeats, device=args.device)
    print(f"\n### {precision}\n\n" + table(whole, baseline="plain", clock=clock, what="whole step", items=args.images))
    print(
        f"\nFirst losses: plain {losses['plain']:.6f}, ours {losses['ours']:.6f} (other samples are left out of branches)."
    )
    ends = by_turns({kind: step.end for kind, step in steps.items()}, repeats=args.repeats, device=args.device)
    print("\n" + table(ends, baseline="plain", clock=clock, what="clipping, optimizer, average"))
    del steps
    cfg = OmegaConf.merge(cfg, {"student": {"arch": "vit_no_blocks"}})
    assert isinstance(cfg, DictConfig), "a mapping"
    heads = {kind: Step(kind, cfg, batch, device=args.device).passes for kind in kinds}
    timings = by_turns(heads, repeats=args.repeats, device=args.device)
    print("\n" + table(timings, baseline="plain", clock=clock, what="heads and losses"), flush=True)
    return whole


def one_step(kind: str, precision: str, args: argparse.Namespace) -> None:
    """Two steps, for the memory that they need: the optimizer's state is made in the first."""
    torch.set_num_threads(args.threads)
    cfg = make_config(args, precision)
    step = Step(kind, cfg, make_batch(cfg), device="cpu")
    for _ in range(2):
        step()


def peak_table(args: argparse.Namespace) -> str:
    """Most memory that a fresh process adds for whole steps to PyTorch itself: model, gradients and optimizer included."""
    rows = ["| peak memory | plain, MiB | ours, MiB | share |", "|---|---|---|---|"]
    for precision in args.precisions:
        if args.device.startswith("cuda"):
            plain, ours = (_cuda_peak_mib(kind, precision, args) for kind in WAYS)
        else:
            plain, ours = (peak_memory_mib(one_step, kind, precision, args) for kind in WAYS)
        share = f"{ours / plain:.2f}" if plain else "too small to see"
        rows.append(f"| {precision} | {plain:.0f} | {ours:.0f} | {share} |")
    return "\n".join(rows)


def roof_table(args: argparse.Namespace, timings: dict[str, dict[str, Timing]]) -> str:
    """Which share of the fastest matrix product of the same run a step reaches, by wall time, with the step's own FLOPs."""
    cfg = make_config(args, "fp32")
    flops = step_flops(cfg, make_batch(cfg))
    assert flops is not None, "this benchmark's own model can be counted"
    rows = [
        f"| share of the roof, {flops / 1e9:.0f} GFLOP a step | roof, GFLOP/s | plain | ours |",
        "|---|---|---|---|",
    ]
    for precision, whole in timings.items():
        roof = roof_flops(DTYPES[precision], device=args.device)
        shares = [flops / min(whole[kind].wall_s) / roof for kind in WAYS]
        rows.append(f"| {precision} | {roof / 1e9:.0f} | {shares[0]:.0%} | {shares[1]:.0%} |")
    return "\n".join(rows)


def _cuda_peak_mib(kind: str, precision: str, args: argparse.Namespace) -> float:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    cfg = make_config(args, precision)
    step = Step(kind, cfg, make_batch(cfg), device=args.device)
    for _ in range(2):
        step()
    return torch.cuda.max_memory_allocated() / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="1: CPU seconds are compared; more: wall seconds")
    parser.add_argument("--repeats", type=int, default=5, help="timed turns of each kind")
    parser.add_argument("--precisions", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--arch", default="vit_small")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--prototypes", type=int, default=65536)
    parser.add_argument("--sides", type=int, nargs=2, default=(224, 98), help="pixels of global and local crops")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--no-memory", action="store_true", help="leave out the peak memory, which takes processes of its own"
    )
    parser.add_argument("--smoke", action="store_true", help="everything once, tiny")
    args = parser.parse_args()
    if args.smoke:
        args.arch, args.images, args.prototypes, args.sides, args.repeats = "vit_micro", 2, 512, (56, 28), 1
    torch.set_num_threads(args.threads)
    vits.vit_no_blocks = vit_no_blocks  # pyright: ignore[reportAttributeAccessIssue] (architectures are found by name there)
    clock = "cpu" if args.threads == 1 and args.device == "cpu" else "wall"
    print(f"{machine_facts()}\n{args.arch}/14, {args.images} images, {args.prototypes} prototypes")
    timings = {precision: compare(args, precision, clock=clock) for precision in args.precisions}
    if len(timings) > 1:
        (best, *_) = sorted(timings["bf16"].items(), key=lambda item: item[1].median(clock))
        across = {"plain": timings["fp32"]["plain"], best[0]: best[1]}
        times = ratio(across, baseline="plain", way=best[0], clock=clock)
        print(f"\nAsked for bf16 ({best[0]}) against plain fp32: {times:.2f} times as fast.")
    print("\n" + roof_table(args, timings))
    if not args.no_memory:
        print("\n" + peak_table(args))


if __name__ == "__main__":
    main()
