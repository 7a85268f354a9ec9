"""Time of the multi-label k-NN of `vet_extensions.evaluation.probes` against the official maths written out plainly.

    python benchmarks/knn.py --bank 20000 --queries 2000 [--smoke]

Both run by turns in one process on the same random features, so that the ratio holds on any machine. The plain way is DINOv2's
(dinov2/eval/knn.py): all similarities at once, one top-k, softmax over the largest k, a vote for every k; it knows no masked
labels, so none are masked here, and its scores then equal ours for the largest k (the last column says how closely).
Prints a markdown table.
"""

import argparse
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from side_by_side import by_turns, machine_facts, table

from vet_extensions.evaluation.probes import knn_scores


def plain_knn(
    queries: np.ndarray, *, bank: np.ndarray, bank_labels: np.ndarray, ks: Sequence[int], temperature: float
) -> np.ndarray:
    """Scores [G, n, L] as in the official evaluation: softmax over max(ks) neighbours, the first k of them vote."""
    unit_queries, unit_bank = (F.normalize(torch.from_numpy(x), dim=1) for x in (queries, bank))
    similarity, neighbours = (unit_queries @ unit_bank.T).topk(max(ks), dim=1, largest=True, sorted=True)
    weights = F.softmax(similarity / temperature, dim=1)[..., None]  # [n, K, 1]
    votes = torch.from_numpy(bank_labels).float()[neighbours] * weights  # [n, K, L]
    return np.stack([votes[:, :k].sum(dim=1).numpy() for k in ks])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", type=int, default=20_000, help="bank images")
    parser.add_argument("--queries", type=int, default=2_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--labels", type=int, default=10)
    parser.add_argument("--ks", type=int, nargs="+", default=[10, 20, 100, 200])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="everything once, tiny")
    args = parser.parse_args()
    if args.smoke:
        args.bank, args.queries, args.ks, args.repeats = 500, 40, [10, 20], 1
    torch.set_num_threads(args.threads)

    generator = np.random.default_rng(0)
    bank, queries = (generator.normal(size=(n, args.dim)).astype(np.float32) for n in (args.bank, args.queries))
    labels = (generator.random((args.bank, args.labels)) < 0.15).astype(np.int8)
    plain = partial(plain_knn, queries, bank=bank, bank_labels=labels, ks=args.ks, temperature=0.07)
    ours = partial(knn_scores, queries, bank=bank, bank_labels=labels, ks=args.ks, temperature=0.07)

    blocks = [(1024, 65_536), (256, 65_536), (256, 8_192)]
    ways = {f"blocks of {n} x {m}": partial(ours, block_rows=n, bank_block_rows=m) for n, m in blocks}
    sizes = f"{args.queries} queries, {args.bank} bank images, {args.dim} features, {args.labels} labels, k {args.ks}"
    print(f"{machine_facts()}\n{sizes}\n")
    timings = by_turns({"plain, all at once": plain, **ways}, repeats=args.repeats)
    clock = "cpu" if args.threads == 1 else "wall"
    print(table(timings, baseline="plain, all at once", clock=clock, what="way", items=args.queries, unit="queries"))
    last = plain()[-1]
    print("\n| way | largest difference of a score at the largest k |\n|---|---|")
    for name, way in ways.items():
        print(f"| {name} | {float(np.abs(way()[-1] - last).max()):.1e} |")


if __name__ == "__main__":
    main()
