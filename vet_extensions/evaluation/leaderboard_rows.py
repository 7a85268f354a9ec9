"""What `leaderboard` shows of measurements that keep no predictions: few-shot curves, retrieval, segmentations.

Their rows of results.jsonl hold scores with intervals, and differences that were paired when they were measured.
"""

from collections.abc import Iterable, Iterator, Sequence

from vet_extensions.evaluation.chance import SHUFFLED_LABELS
from vet_extensions.evaluation.compare import Standing
from vet_extensions.evaluation.controls import RANDOM_INIT
from vet_extensions.evaluation.results import Result
from vet_extensions.evaluation.statistics import Estimate

LOWER_IS_BETTER = ("hd95_mm", "median_rank")


def rest_of(results: Sequence[Result], compared: Iterable[Standing]) -> list[Result]:
    """The rows of measurements that are not among those compared case by case."""
    known = {(standing.level, standing.group, standing.protocol) for standing in compared}
    return [row for row in results if (row.level, row.group, row.protocol) not in known and row.arm != SHUFFLED_LABELS]


def standings_of(results: Sequence[Result]) -> Iterator[Standing]:
    """Scores without letters, best first in each metric: the mean over seeds, or single scores where nothing was averaged."""
    judged = {row.arm for row in results if row.checkpoint_hash and not row.arm.startswith(RANDOM_INIT)}
    averaged = {(row.arm, row.level, row.group, row.protocol) for row in results if row.kind == "mean"}
    rows = [
        row
        for row in results
        if row.kind == "mean" or (row.kind == "score" and (row.arm, row.level, row.group, row.protocol) not in averaged)
    ]
    for row in sorted(rows, key=lambda row: (row.metric, row.value if row.metric in LOWER_IS_BETTER else -row.value)):
        yield Standing(
            level=row.level,
            group=row.group,
            protocol=row.protocol,
            metric=row.metric,
            name=row.arm,
            is_control=row.arm not in judged,
            leak=str(row.config.get("leak", "")),
            n_seeds=row.n_seeds,
            n_cases=row.n_images,
            n_patients=row.n_patients,
            estimate=Estimate(row.value, row.low, row.high, row.n_labels, ()),
        )
