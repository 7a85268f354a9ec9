"""The verbs `filter`, `split` and `stats` of the command line, which `vet_extensions.cli` registers.

`add_verbs` is how the verbs of this folder's modules become commands.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from vet_extensions.errors import UserError
from vet_extensions.progress import Progress
from vet_extensions.schema import Split

IntakeRoot = Annotated[
    Path, typer.Argument(metavar="ROOT", help="Intake folder (holds manifest.parquet and shards/).", show_default=False)
]


def register(app: typer.Typer, *, say: Callable[[str], None]) -> None:
    """Add the verbs to the program; `say` gets what each has to tell."""
    add_verbs(app, _EXAMPLES, say=say)


def add_verbs(app: typer.Typer, examples: Mapping[Callable[..., str], str], *, say: Callable[[str], None]) -> None:
    """Make each function a command with an example below its help; `say` gets the text that it returns."""
    for verb, example in examples.items():
        app.command(epilog=f"Example: {example}")(_saying(verb, say))


def _saying(verb: Callable[..., str], say: Callable[[str], None]) -> Callable[..., None]:
    @functools.wraps(verb)
    def run(*args: Any, **options: Any) -> None:
        say(verb(*args, **options))

    return run


def filter(
    root: IntakeRoot,
    where: Annotated[
        str, typer.Argument(metavar="EXPRESSION", help="What must hold for an image.", show_default=False)
    ],
    into: Annotated[Path, typer.Option(help="New folder for the chosen images, pixels and all.", show_default=False)],
) -> str:
    """Copy the images for which an expression holds into a new folder; nothing of the others goes along.

    Columns, texts in quotes, numbers, == != < <= > >=, in, not in, is None, and, or, not. Labels are label.<finding>. To train
    on a part without copying it, give the same expression to the data set: VetStudies:root=ROOT:where=EXPRESSION
    """
    from vet_extensions.commands.folders import choose_into

    with Progress("filter", unit="images") as progress:
        chosen = choose_into(root, into, where=where, on_progress=progress)
    return f"{chosen.n_images:,} images of {chosen.n_studies:,} studies are in {into}."


def split(
    root: IntakeRoot,
    stratify: Annotated[
        str,
        typer.Option(
            help="Columns whose values each split shall have its share of: labels, label.x, species, view ..."
        ),
    ] = "",
    seed: Annotated[int, typer.Option(min=0, help="Decides which patients are train, val and test.")] = 0,
    fractions: Annotated[str, typer.Option(help="Shares of the patients for train, val and test.")] = "0.7,0.1,0.2",
    replace: Annotated[
        bool, typer.Option("--replace", help="Write the new split; without it, it is only shown.")
    ] = False,
) -> str:
    """Split the patients of a folder anew, by patient, spreading rare findings over train, val and test.

    A model that was trained before has seen patients that are test patients now: train again after --replace, or its results
    are worth nothing. Caches and results know the folder by its content hash, which changes with the split.
    """
    from vet_extensions.commands.folders import split_folder

    by = [name.strip() for name in stratify.split(",") if name.strip()]
    counts, is_written = split_folder(root, fractions=_shares(fractions), seed=seed, by=by, replace=replace)
    lines = [f"{'patients with':<44}" + "".join(f"{split:>10}" for split in Split)]
    lines += [f"{trait:<44}" + "".join(f"{n:>10,}" for n in row.values()) for trait, row in counts.items()]
    if is_written:
        lines.append("The split was written; models trained before have seen some of the new test patients.")
    elif replace:
        lines.append("The folder has this very split already.")
    else:
        lines.append("Nothing was written. To write this split, add --replace.")
    return "\n".join(lines)


def _shares(text: str) -> dict[Split, float]:
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = []
    if len(shares) != len(Split) or not all(0 <= share <= 1 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        raise UserError(f"--fractions is '{text}'; it needs three shares that sum to 1, for example 0.7,0.1,0.2")
    return dict(zip(Split, shares, strict=True))


def stats(
    root: IntakeRoot,
    html: Annotated[Path, typer.Option(help="Page to write; it needs no other file.", show_default=False)],
) -> str:
    """Write a page of what is in a folder: views, sizes, spacings, labels by split, images a study."""
    from vet_extensions.manifest.io import Manifest
    from vet_extensions.manifest.statistics import statistics_page

    html.write_text(statistics_page(Manifest.open(root)), encoding="utf-8")
    return f"Open {html} in a browser."


_EXAMPLES: dict[Callable[..., str], str] = {
    filter: """vetdino filter studies "view in ['VD', 'DV'] and label.effusion >= 0" --into studies_vd""",
    split: "vetdino split studies --stratify labels,species --seed 1 --replace",
    stats: "vetdino stats studies --html studies.html",
}
