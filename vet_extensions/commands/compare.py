"""The verb `compare`, and the page that `evaluate` ends with. Rooms are imported inside the functions."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vet_extensions.commands.verbs import add_verbs
from vet_extensions.progress import Progress

if TYPE_CHECKING:
    from vet_extensions.evaluation.compare import Comparison, Difference


def register(app: typer.Typer, *, say: Callable[[str], None]) -> None:
    """Add the verb to the program; `say` gets what it has to tell."""
    add_verbs(app, {compare: "vetdino compare results_a results_b --level image --group all"}, say=say)


def compare(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS", help="Folders that vetdino evaluate wrote.", show_default=False)
    ],
    level: Annotated[str, typer.Option(help="Only this level: image, study, ...")] = "",
    group: Annotated[str, typer.Option(help="Only this group of labels: gross or all.")] = "",
    protocol: Annotated[str, typer.Option(help="Only this protocol: knn, linear, ...")] = "",
    labels: Annotated[bool, typer.Option("--labels", help="Compare each label by itself too (AUROC).")] = False,
    controls: Annotated[bool, typer.Option("--controls", help="Compare what was never trained too.")] = False,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples of the test patients.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Decides which patients are drawn.")] = 0,
) -> str:
    """Test whether results differ, pair by pair over the same test patients; what is not told apart is said to be so.

    All arms of all folders are compared, the mean over the seeds of each. p-values are corrected for all pairs and metrics that
    are compared at once (Holm), so name a level, group or protocol where the question is about one.
    """
    from vet_extensions.evaluation.compare import compare_evaluations

    wanted = {name: value for name, value in (("level", level), ("group", group), ("protocol", protocol)) if value}
    with Progress("compare", unit="measurements") as progress:
        found = compare_evaluations(
            results,
            with_controls=controls,
            with_labels=labels,
            wanted=wanted,
            n_resamples=resamples,
            seed=seed,
            on_progress=progress,
        )
    return "\n".join(_in_words(found))


def write_page(folder: Path, *, n_resamples: int = 1000) -> Path:
    """The leaderboard of an evaluation's folder."""
    from vet_extensions.analysis.pages import page_environment
    from vet_extensions.evaluation.leaderboard import TEMPLATES, write_leaderboard

    with Progress("leaderboard", unit="measurements") as progress:
        return write_leaderboard(folder, page_environment(TEMPLATES), n_resamples=n_resamples, on_progress=progress)


def _in_words(found: "Comparison") -> list[str]:
    lines = []
    for name, leak in dict.fromkeys((standing.name, standing.leak) for standing in found.standings):
        if leak and not leak.startswith(("none found", "not trained")):
            lines.append(f"{name}: test data in pre-training: {leak}")
    lines += [f"{'':<52} {'first - second':<44} {'difference':>10}  {'interval':<18}{'p':>8}{'p, Holm':>9}  first is"]
    lines += [_line(row) for row in found.macros]
    if found.labels:
        lines += ["", "Single labels, AUROC, by Obuchowski's test for rows of one patient:"]
        lines += [_line(row) for row in found.labels]
    lines += ["", "Groups that cannot be told apart share a letter:"]
    for standing in found.standings:
        where = f"{standing.level} {standing.group} {standing.protocol} {standing.metric}"
        lines.append(f"{where:<52}{standing.letters:<6}{standing.estimate.value:6.3f}  {standing.name}")
    n_tests, n_labels = len(found.macros), len(found.labels)
    families = f"{n_tests} differences" + (f" and, by themselves, over {n_labels} of single labels" if n_labels else "")
    return [*lines, "", f"Holm's correction over {families}; {found.n_resamples} resamples of whole patients."]


def _line(row: "Difference") -> str:
    where = f"{row.level} {row.group} {row.protocol} {row.label or row.metric}"
    pair = f"{row.first} - {row.second}"
    interval = f"[{row.low:+.3f}, {row.high:+.3f}]"
    return f"{where:<52} {pair:<44} {row.value:+10.3f}  {interval:<18}{row.p:8.4f}{row.p_holm:9.4f}  {row.verdict}"
