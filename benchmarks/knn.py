"""k-NN class votes of `vet_extensions.evaluation.knn` against the official module (`dinov2.eval.knn.KnnModule`).

    python benchmarks/knn.py [--bank 100000 --queries 5000 --dim 768] [--threads 2] [--smoke]

Both run by turns in one process on the same unit features, so that the ratio holds on any machine. The official module gets its
queries in its own batches of 256. Ours includes the preparation of the bank. Three banks: random directions; clusters, each a
heap of near copies; and features of which most is shared by all images. Prints markdown tables: times, where they go, and
whether neighbours and votes are the same.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from side_by_side import by_turns, machine_facts, peak_memory_mib, table
from torch import Tensor
from torch.profiler import profile

from dinov2.eval.knn import KnnModule
from vet_extensions.evaluation.knn import class_votes
from vet_extensions.evaluation.neighbours import NeighbourSearch

KS = [10, 20, 100, 200]
N_CLASSES = 100
OFFICIAL_BATCH = 256
OFFICIAL, OURS, FLOAT = "official module", "8 bits, compared again in float32", "ours in float32"


def make_features(kind: str, n: int, *, dim: int, generator: torch.Generator) -> Tensor:
    """Unit features [n, dim]. Banks and queries of one kind share cluster centres and what all images share."""
    shared = torch.Generator().manual_seed(1)
    centres, common = torch.randn(200, dim, generator=shared), torch.randn(dim, generator=shared)
    noise = torch.randn(n, dim, generator=generator)
    if kind == "clusters":
        noise = centres[torch.randint(0, len(centres), (n,), generator=generator)] + 0.05 * noise
    elif kind == "much in common":
        noise = 3 * common + noise * torch.linspace(0.05, 2, dim)
    return F.normalize(noise, dim=1)


def official(queries: Tensor, bank: Tensor, classes: Tensor, ks: list[int]) -> dict[int, Tensor]:
    module = KnnModule(bank, classes, ks, 0.07, "cpu", num_classes=N_CLASSES)
    votes = [module(part) for part in queries.split(OFFICIAL_BATCH)]
    return {k: torch.cat([part[k] for part in votes]) for k in ks}


def ours(
    queries: Tensor, bank: Tensor, classes: Tensor, ks: list[int], in_8_bit: bool | None = None
) -> dict[int, Tensor]:
    search = NeighbourSearch(bank, in_8_bit=in_8_bit)
    votes = class_votes(queries, bank=search, bank_classes=classes, n_classes=N_CLASSES, ks=ks)
    return dict(zip(ks, torch.from_numpy(votes), strict=True))


def compare(kind: str, queries: Tensor, bank: Tensor, classes: Tensor, ks: list[int]) -> str:
    """A row: share of the official neighbours found; how much less similar the others are, which float32 cannot tell; largest
    difference of votes, relative to the largest of the query, where the k neighbours are the same."""
    similarity, rows = NeighbourSearch(bank, in_8_bit=True).all(queries, k=max(ks))
    parts = [(part @ bank.T).topk(max(ks), dim=1) for part in queries.split(OFFICIAL_BATCH)]
    best, nearest = (torch.cat(list(part)) for part in zip(*parts, strict=True))
    n_found = sum(len(set(a) & set(b)) for a, b in zip(nearest.tolist(), rows.tolist(), strict=True))
    expected, found = official(queries, bank, classes, ks), ours(queries, bank, classes, ks, True)
    off, n_same = 0.0, 0
    for k in ks:
        same = (nearest[:, :k].sort(dim=1).values == rows[:, :k].sort(dim=1).values).all(dim=1)
        n_same += int(same.sum())
        difference = (found[k] - expected[k]).abs().amax(dim=1) / expected[k].amax(dim=1)
        off = max(off, float(difference[same].max()))
    shortfall = float((best - similarity).max())
    cells = (
        f"{n_found / rows.numel():.6f}",
        f"{shortfall:.1e}",
        f"{n_same / len(ks) / len(queries):.2%}",
        f"{off:.1e}",
    )
    return f"| {kind} | {' | '.join(cells)} |"


def spent(way: Callable[[], object], rows: int = 6) -> str:
    """Markdown: the operators in which a way spends its time."""
    with profile() as profiled:
        way()
    events = [event for event in profiled.key_averages() if event.key.startswith("aten::")]
    total = sum(event.self_cpu_time_total for event in events)
    events = sorted(events, key=lambda event: -event.self_cpu_time_total)[:rows]
    return "\n".join(f"| {event.key} | {event.self_cpu_time_total / total:.0%} |" for event in events)


def memory_of(way: str, n_queries: int, n_bank: int, dim: int) -> None:
    """One way on random features; with any other name the features alone, for what they take themselves."""
    generator = torch.Generator().manual_seed(0)
    queries, bank = (torch.randn(n, dim, generator=generator) for n in (n_queries, n_bank))
    for features in (queries, bank):
        features /= features.norm(dim=1, keepdim=True)
    classes = torch.arange(n_bank) % N_CLASSES
    if way == OFFICIAL:
        official(queries, bank, classes, KS)
    elif way == OURS:
        ours(queries, bank, classes, KS, True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", type=int, default=100_000, help="bank images")
    parser.add_argument("--queries", type=int, default=5_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="everything once, small; the figures mean nothing")
    args = parser.parse_args()
    if args.smoke:
        args.bank, args.queries, args.dim, args.repeats = 26_000, 40, 32, 1
    torch.set_num_threads(args.threads)
    clock = "cpu" if args.threads == 1 else "wall"
    print(f"{machine_facts()}\n{args.queries} queries, {args.bank} x {args.dim} bank, k {KS}, {N_CLASSES} classes")

    checks = []
    for kind in ("random", "clusters", "much in common"):
        generator = torch.Generator().manual_seed(0)
        queries, bank = (make_features(kind, n, dim=args.dim, generator=generator) for n in (args.queries, args.bank))
        classes = torch.randint(0, N_CLASSES, (args.bank,), generator=generator)
        ways = {
            OFFICIAL: partial(official, queries, bank, classes, KS),
            OURS: partial(ours, queries, bank, classes, KS, True),
            FLOAT: partial(ours, queries, bank, classes, KS, False),
        }
        timings = by_turns(ways, repeats=args.repeats, warm_up=0)
        print(f"\n## {kind}\n")
        print(
            table(timings, baseline=OFFICIAL, clock=clock, what="way", items=args.queries, unit="queries"), flush=True
        )
        checks.append(compare(kind, queries[:1024], bank, classes, KS))
        if kind == "random":
            for name in (OFFICIAL, OURS):
                print(f"\n| {name}: operator | share of the time |\n|---|---|\n{spent(ways[name])}", flush=True)
    print("\n| bank | official neighbours found | others less similar by | same k neighbours | votes then off by |")
    print("|---|---|---|---|---|")
    print("\n".join(checks))
    print("\n| what | peak memory, MiB |\n|---|---|")
    for way in ("features alone", OFFICIAL, OURS):
        peak = peak_memory_mib(memory_of, way, 600, args.bank, args.dim)
        print(f"| {way} | {peak:.0f} |")


if __name__ == "__main__":
    main()
