"""Did a pre-training run learn by distillation? Two checks that read its log; used by the report.

Teacher entropy at ln K means that the teacher answers every image alike (collapse). A DINO loss at ln K means that the student
cannot tell the teacher's answers apart from a uniform guess: it may still move, by KoLeo alone. Only a run that is below ln K in
both has learned something from its targets.
"""

import math
from typing import Any

from vet_extensions.analysis.curves import RunCurves

COLLAPSE_SHARE = 0.95
"""A teacher whose entropy stays above this share of ln K answers almost uniformly: its arm has not learned by distillation."""

LEARNED = "Learned"


def dino_loss(run: RunCurves) -> float:
    """Cross-entropy of student against teacher at the end of the run, nats, local and global cells together; NaN if not logged.

    Comparable with ln K where the routing's weights sum to 1, as those of all packaged routings do with local crops.
    """
    return run.final("dino_local_crops_loss") + run.final("dino_global_crops_loss")


def describe_learning(run: RunCurves) -> str:
    """The verdict in words; begins with `LEARNED` only where both checks passed."""
    entropy, loss = run.final("teacher_entropy"), dino_loss(run)
    if not run.n_prototypes or math.isnan(entropy):
        return "Not checked: the teacher's entropy or the number of prototypes was not logged."
    ln_k = math.log(run.n_prototypes)
    share = entropy / ln_k
    if share > COLLAPSE_SHARE:
        return (
            f"Collapsed or not trained: the teacher's entropy is {share:.0%} of ln K, an almost uniform answer. "
            "Whatever its features gained did not come from distillation."
        )
    below = f"teacher entropy {share:.0%} of ln K"
    if math.isnan(loss):
        return f"Not collapsed: {below}. The DINO loss was not logged."
    if loss >= ln_k:
        return f"Not learned: {below}, but the student's loss is not below that of a uniform guess."
    return f"{LEARNED}: {below}, and the student's loss is {ln_k - loss:.3f} nats below that of a uniform guess."


def learning_row(run: RunCurves) -> dict[str, Any]:
    """The run's line in the report's table of checks."""
    return {
        "arm": run.arm,
        "seed": run.seed,
        "loss": dino_loss(run),
        "entropy": run.final("teacher_entropy"),
        "ln_k": math.log(run.n_prototypes) if run.n_prototypes else math.nan,
        "reading": describe_learning(run),
    }
