"""The backbone's share of a training step against a plain writing of the official arithmetic: time, memory and where it goes.

    python benchmarks/backbone.py [--precisions fp32 bf16] [--repeats 5] [--memory] [--compile] [--profile] [--smoke]

One batch: 2 global crops of 224 pixels and 8 local ones of 98 of each of 8 images, ViT-S/14, stochastic depth 0.3. The student
runs forward and backward from its class tokens and masked patches, the teacher forward. Results: benchmarks/results/backbone.md.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from plain_step import plain_backbone
from side_by_side import by_turns, machine_facts, peak_memory_mib, table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from dinov2.models.vision_transformer import DinoVisionTransformer, vit_small
from dinov2.train.parallel import set_up_blocks

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PLAIN, ALL, USED = "plain", "all tokens", "used tokens"
RECOMPUTED, COMPILED = "used tokens, recomputed", "used tokens, compiled"


@dataclass(frozen=True)
class Scale:
    """images: of the batch. locals_: local crops of an image. sides: pixels of global and local crops."""

    images: int = 8
    locals_: int = 8
    sides: tuple[int, int] = (224, 98)
    drop: float = 0.3


@dataclass(frozen=True)
class Work:
    """A student or teacher backbone and its batch; `masked` are the masked patches' places in the flattened [crops * N]."""

    model: DinoVisionTransformer
    crops: list[Tensor]
    masks: list[Tensor | None]
    masked: Tensor


def make_work(scale: Scale, *, teacher: bool = False, layer_scale: float = 0.3) -> Work:
    """Random images; half of the global crops masked, by 10 to 50 % of their patches as in the official collate function.

    layer_scale: far above the official first value, so that every branch has a part in gradients that are compared.
    """
    torch.manual_seed(0)
    model = vit_small(
        14,
        img_size=scale.sides[0],
        drop_path_rate=0.0 if teacher else scale.drop,
        drop_path_uniform=True,
        init_values=layer_scale,
        block_chunks=0,
    )
    n_global, n_patches = 2 * scale.images, (scale.sides[0] // 14) ** 2
    ratios = torch.linspace(0.1, 0.5, scale.images).tolist() + [0.0] * scale.images
    masks = torch.stack([torch.randperm(n_patches) < round(ratio * n_patches) for ratio in ratios])
    crops = [torch.randn(n_global, 3, scale.sides[0], scale.sides[0])]
    if not teacher:
        crops.append(torch.randn(scale.images * scale.locals_, 3, scale.sides[1], scale.sides[1]))
    masked = masks.flatten().nonzero().flatten()
    return Work(model.train(not teacher), crops, [None] if teacher else [masks, None], masked)


# -- the ways that are timed ------------------------------------------------------------------------------------------


def tokens_of(work: Work, way: str) -> list[Tensor]:
    """Class tokens of each crop group and the masked patches of the first, by one of the ways."""
    if way == PLAIN:
        normed = plain_backbone(work.model, work.crops, work.masks)
        return [*(x[:, 0] for x in normed), normed[0][:, 1:].flatten(0, 1).index_select(0, work.masked)]
    if way == ALL:
        features = work.model.forward_features(work.crops, work.masks)
        patches = features[0]["x_norm_patchtokens"].flatten(0, 1).index_select(0, work.masked)
    else:
        used = [work.masked, *[None] * (len(work.crops) - 1)]
        features = work.model.forward_features(work.crops, work.masks, used_patches=used)
        patches = features[0]["x_norm_usedpatchtokens"]
    return [*(f["x_norm_clstoken"] for f in features), patches]


def student_step(work: Work, way: str, precision: str) -> float:
    """The loss, a fixed weighting of all tokens; its gradients are left on the model. The same samples are kept each time."""
    work.model.zero_grad()
    torch.manual_seed(1)
    with torch.autocast("cpu", DTYPES[precision], enabled=precision != "fp32"):
        tokens = [x.float() for x in tokens_of(work, way)]
        loss = sum((torch.sin(torch.arange(x.numel())).view_as(x) * x).mean() for x in tokens)
    assert isinstance(loss, Tensor)
    loss.backward()
    return loss.item()


def teacher_pass(work: Work, way: str, precision: str) -> list[Tensor]:
    with torch.no_grad(), torch.autocast("cpu", DTYPES[precision], enabled=precision != "fp32"):
        return tokens_of(work, way)


def works_by_way(scale: Scale, ways: Sequence[str], *, teacher: bool = False) -> dict[str, Work]:
    """One backbone for each way, of equal weights: a block that is compiled or recomputed stays so."""
    works = {way: make_work(scale, teacher=teacher) for way in ways}
    for way, work in works.items():
        set_up_blocks(
            nn.ModuleDict({"backbone": work.model}),
            checkpoint_activations=way == RECOMPUTED,
            compiled=way == COMPILED,
        )
    return works


def gradients(work: Work) -> Tensor:
    """All gradients of the model, one after the other."""
    return torch.cat([p.grad.flatten() for p in work.model.parameters() if p.grad is not None])


def compare(scale: Scale, ways: Sequence[str], *, precision: str, repeats: int) -> None:
    """Print how far, relatively, each way's loss and gradients lie from the plain one's, and the times of student and teacher."""
    works = works_by_way(scale, ways)
    losses = {way: student_step(work, way, precision) for way, work in works.items()}
    exact = gradients(works[PLAIN])
    print(f"\n## {precision}\n\n| student | loss off by | gradients off by |\n|---|---|---|")
    for way, work in works.items():
        off = (gradients(work) - exact).norm() / exact.norm()
        print(f"| {way} | {abs(losses[way] / losses[PLAIN] - 1):.1e} | {off:.1e} |")
    turns = {way: partial(student_step, work, way, precision) for way, work in works.items()}
    timings = by_turns(turns, repeats=repeats)
    print("\n" + table(timings, baseline=PLAIN, clock="cpu", what="student, forward and backward"))
    works = works_by_way(scale, [way for way in (PLAIN, ALL, USED) if way in ways], teacher=True)
    turns = {way: partial(teacher_pass, work, way, precision) for way, work in works.items()}
    timings = by_turns(turns, repeats=repeats)
    print("\n" + table(timings, baseline=PLAIN, clock="cpu", what="teacher, forward"))


def steps_in_fresh_process(scale: Scale, way: str, precision: str) -> None:
    torch.set_num_threads(1)
    work = works_by_way(scale, [way])[way]
    for _ in range(2):
        student_step(work, way, precision)


def print_memory(scale: Scale, ways: Sequence[str], precisions: Sequence[str]) -> None:
    print("\n## Peak memory of two student steps, model and batch included, MiB\n")
    print(f"| student | {' | '.join(precisions)} |\n|---|{'---|' * len(precisions)}")
    for way in ways:
        peaks = [peak_memory_mib(steps_in_fresh_process, scale, way, precision) for precision in precisions]
        print(f"| {way} | {' | '.join(f'{peak:.0f}' for peak in peaks)} |")


def print_profile(scale: Scale, precision: str, *, rows: int = 14) -> None:
    """The operators that take most time of a student step, by the plain way and by the fastest."""
    for way in (PLAIN, USED):
        work = make_work(scale)
        for _ in range(2):
            student_step(work, way, precision)
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            student_step(work, way, precision)
        events = sorted(seen.key_averages(), key=lambda event: -event.self_cpu_time_total)
        total = sum(event.self_cpu_time_total for event in events)
        print(f"\n## {way}, {precision}: self time by operator\n\n| operator | ms | share | calls |\n|---|---|---|---|")
        for event in events[:rows]:
            share = event.self_cpu_time_total / total
            print(f"| {event.key} | {event.self_cpu_time_total / 1000:.0f} | {share:.1%} | {event.count} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precisions", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="peak memory of each way, in processes of their own")
    parser.add_argument("--compile", action="store_true", help="also blocks through torch.compile: a minute once")
    parser.add_argument("--profile", action="store_true", help="operators by self time")
    parser.add_argument("--smoke", action="store_true", help="every way once at a toy size: does it run?")
    args = parser.parse_args()
    torch.set_num_threads(1)
    scale = Scale(images=2, locals_=2, sides=(56, 28)) if args.smoke else Scale()
    ways = [PLAIN, ALL, USED, RECOMPUTED] + [COMPILED] * args.compile
    print(machine_facts())
    for precision in args.precisions:
        compare(scale, ways, precision=precision, repeats=1 if args.smoke else args.repeats)
        if args.profile:
            print_profile(scale, precision)
    if args.memory:
        print_memory(scale, ways[:4], args.precisions)


if __name__ == "__main__":
    main()
