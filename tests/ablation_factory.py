"""Plans and finished cells for the tests of an ablation's table: results as an evaluation writes them, without any training."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vet_extensions.ablation.cells import DONE, CellResult
from vet_extensions.ablation.plan import FULL, ONE_AT_A_TIME, Arms, Plan
from vet_extensions.evaluation.results import Result

METRIC = "knn/study/gross/macro_auroc"
OTHER_METRIC = "linear/image/all/macro_average_precision"

ROUTINGS = {"single_view": {"routing.name": "same_image"}, "multi_view": {"routing.name": "vet_dino"}}
IBOT = {"on": {}, "off": {"ibot.loss_weight": 0}}


def one_axis_plan(arms: Iterable[str] = ("a", "b"), *, seeds: Iterable[int] = (0, 1, 2), **changes: Any) -> Plan:
    """One axis, `arm`, whose first arm is the baseline."""
    arms = list(arms)
    axes = {"arm": {arm: {"optim.base_lr": place} for place, arm in enumerate(arms)}}
    plan = Plan(
        name="small",
        question="Does the arm matter?",
        base=Path("configs/debug/tiny.yaml"),
        options={"optim.epochs": 2},
        axes=axes,
        design=ONE_AT_A_TIME,
        baseline={"arm": arms[0]},
        seeds=tuple(seeds),
        evaluation=Path("configs/evaluation/quick.yaml"),
        metrics=(METRIC,),
    )
    return replace(plan, **changes)


def two_axes_plan(*, seeds: Iterable[int] = (0, 1), **changes: Any) -> Plan:
    """Routing and iBOT in every combination."""
    axes: Mapping[str, Any] = {"routing": ROUTINGS, "ibot": IBOT}
    baseline = {"routing": "single_view", "ibot": "on"}
    return one_axis_plan(seeds=seeds, **({"axes": axes, "baseline": baseline, "design": FULL} | changes))


def result(metric: str, value: float, *, arm: str = "vet_dino", seed: int | None = 0, **changes: Any) -> Result:
    """A row of an evaluation; a trained run's has an iteration, a control's has none."""
    protocol, level, group, name = metric.split("/")
    row = Result("score", arm, level, group, protocol, name, value, value - 0.05, value + 0.05, 120, 60, 6, 0)
    return replace(row, seed=seed, **({"iteration": 9} | changes))


def cell(arms: Arms, seed: int, value: float, *, metrics: Iterable[str] = (METRIC,), **changes: Any) -> CellResult:
    """A finished cell with its score, the same for each metric, beside its controls."""
    rows = []
    for metric in metrics:
        rows.append(result(metric, value, seed=seed))
        rows.append(result(metric, 0.52 + 0.01 * seed, arm="random_init", seed=seed, iteration=None))
        rows.append(result(metric, 0.5, arm="raw_pixels", seed=None, iteration=None))
    digest = hashlib.sha256(repr((dict(arms), seed)).encode()).hexdigest()
    done = CellResult(digest, arms, seed, DONE, rows, cost=36.0, device="cpu", steps=10)
    return replace(done, **changes)


def cells(plan: Plan, score: Callable[[Arms, int], float]) -> list[CellResult]:
    """Every cell of a plan, finished."""
    return [
        cell(arms, seed, score(arms, seed), metrics=plan.metrics) for arms in plan.combinations() for seed in plan.seeds
    ]
