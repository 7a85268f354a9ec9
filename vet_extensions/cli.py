"""The command `vetdino`: one verb per step of the way from DICOM files to a report.

Every verb imports its room inside its function, so that `vetdino --help` answers at once and never loads torch. A mistake of
the user ends in one sentence and exit code 2, an interruption in 130; a fault of the program keeps its traceback and ends in 1.
"""

import errno
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Never, cast

import typer
from typer.core import TyperGroup

import vet_extensions
from vet_extensions.commands import ablate, archives, cluster, compare, embed, segment, verbs
from vet_extensions.commands.sentences import raw_views_in_words
from vet_extensions.errors import UserError
from vet_extensions.progress import Progress

if TYPE_CHECKING:
    from vet_extensions.evaluation.results import Result

LEAK_FOUND, USER_ERROR, INTERRUPTED = 1, 2, 130


class SentencesForMistakes(TyperGroup):
    """Runs a verb and turns users' mistakes and interruptions into a sentence and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb that the command line names."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _give_up(
                "interrupted; what was written so far stays, and the same command goes on or starts again.", INTERRUPTED
            )
        except Exception as error:
            sentence = _sentence_for(error)
            if sentence is None:
                raise
            if ctx.params.get("debug"):
                traceback.print_exc()
            _give_up(sentence, USER_ERROR)


def _give_up(sentence: str, code: int) -> Never:
    print(f"error: {sentence}", file=sys.stderr)
    raise typer.Exit(code)


def _sentence_for(error: Exception) -> str | None:
    """What to tell the user, or None where the fault is ours."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, PermissionError | FileExistsError | NotADirectoryError | IsADirectoryError):
        # Without the path, which may hold a name; --debug shows it.
        return f"{error.strerror}. Check the folders given, or choose another output folder; --debug shows which file it was."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return f"{error.strerror}. Make room, or choose another output folder; the same command then goes on."
    return None


app = typer.Typer(
    name="vetdino",
    cls=SentencesForMistakes,
    help="Multi-view DINOv2 for radiograph studies: from DICOM to an evaluated, explained and exported backbone.",
    epilog="Example: vetdino demo --quick",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; it is made.", show_default=False)]
IntakeRoot = Annotated[
    Path, typer.Argument(metavar="ROOT", help="Intake folder (holds manifest.parquet and shards/).", show_default=False)
]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Worker processes; 0 works in this one.")]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a mistake too.")] = False,
) -> None:
    """Options that stand before the verb."""


@app.command(epilog="Example: vetdino phantom studies_dicom --studies 400 --size 512 --workers 4")
def phantom(
    out: Out,
    studies: Annotated[int, typer.Option(min=1, help="Number of studies.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same archive.")] = 0,
    size: Annotated[int, typer.Option(min=32, help="Rows and columns of an image.")] = 512,
    profile: Annotated[str, typer.Option(help="How common findings are: balanced or clinical.")] = "balanced",
    plain: Annotated[bool, typer.Option("--plain", help="Uncompressed files with complete headers only.")] = False,
    workers: Workers = 2,
) -> None:
    """Write an archive of synthetic canine studies as DICOM files, with the truth about every finding."""
    from vet_extensions.phantom.archive import write_archive

    with Progress("phantom", total=studies, unit="studies") as progress:
        summary = write_archive(
            out,
            n_studies=studies,
            seed=seed,
            size_px=size,
            profile=profile,
            plain=plain,
            n_workers=workers,
            on_progress=progress,
        )
    print(summary)


archives.register(app, say=print)


@app.command(epilog="Example: vetdino check studies   or: vetdino check studies --against hospital_b --split train")
def check(
    root: IntakeRoot,
    against: Annotated[
        list[Path] | None, typer.Option(help="Evaluation folder that must share nothing with ROOT; may be repeated.")
    ] = None,
    split: Annotated[str, typer.Option(help="Images of ROOT to compare: train, val, test or all.")] = "all",
    against_split: Annotated[str, typer.Option(help="Images of the other folders to compare.")] = "all",
    pixels: Annotated[bool, typer.Option(help="Look for near-duplicate pictures too; reads every image once.")] = True,
    raw: Annotated[bool, typer.Option("--raw", help="Show every raw value that views came from, names too.")] = False,
) -> None:
    """Say what is in an intake folder and what is wrong with it (exit code 2), or what it shares with others (exit code 1)."""
    from vet_extensions.manifest.validate import summarise

    if against:
        raise typer.Exit(_check_leaks(root, against, split=split, against_split=against_split, pixels=pixels))
    report = summarise(root)
    print(report)
    for line in raw_views_in_words(root, show_all=raw):
        print(line)
    if not report.is_sound:
        raise typer.Exit(USER_ERROR)


def _check_leaks(root: Path, others: list[Path], *, split: str, against_split: str, pixels: bool) -> int:
    from vet_extensions.commands.folders import compare_folders

    code = 0
    for other in others:
        with Progress("looking at pictures", unit="images") as progress:
            report = compare_folders(
                root, other, split=split, other_split=against_split, look_at_pixels=pixels, on_progress=progress
            )
        print(report)
        code = code if report.is_clean else LEAK_FOUND
    return code


verbs.register(app, say=print)


@app.command(
    epilog="Example: vetdino train --config-file configs/debug/tiny.yaml --output-dir run "
    "train.dataset_path=VetStudies:root=studies"
)
def train(
    config_file: Annotated[
        Path, typer.Option(help="YAML with the keys that differ from the defaults.", show_default=False)
    ],
    output_dir: Annotated[Path | None, typer.Option(help="Run folder; an unfinished run in it goes on.")] = None,
    no_resume: Annotated[bool, typer.Option("--no-resume", help="Start anew, whatever the folder holds.")] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Keys that win over the file.", show_default=False),
    ] = None,
) -> None:
    """Pre-train. The same command goes on from the newest whole checkpoint after a stop."""
    from dinov2.train.train import get_args_parser, main

    arguments = ["--config-file", str(config_file)]
    if output_dir is not None:
        arguments += ["--output-dir", str(output_dir)]
    if no_resume:
        arguments.append("--no-resume")
    main(get_args_parser().parse_args([*arguments, *(overrides or [])]))


@app.command(epilog="Example: vetdino evaluate run --data studies --suite configs/evaluation/quick.yaml --out results")
def evaluate(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="Run folders; also checkpoints, DINOv2 files, hf:FOLDER, timm:NAME:FILE, cnn:NAME:FILE, random:SPEC, pixels.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str,
        typer.Option(help="Intake folder, or a public data set: NAME:root=FOLDER:key=value.", show_default=False),
    ],
    suite: Annotated[Path, typer.Option(help="YAML that names the tasks and protocols.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the results.", show_default=False)],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    allow_leak: Annotated[
        bool, typer.Option("--allow-leak", help="Judge models that were pre-trained on test data; every row says so.")
    ] = False,
) -> None:
    """Embed the images once per model, then score them: k-NN and linear probe with intervals, beside controls."""
    from dinov2.utils.device import resolve_device
    from vet_extensions.evaluation.suite import run_suite

    with Progress("evaluate", unit="images") as progress:
        chosen = resolve_device(device, key="--device")
        results = run_suite(runs, data, suite, out, on_progress=progress, device=chosen, allow_leak=allow_leak)
    means = [row for row in results if row.kind == "mean" and row.metric in ("macro_auroc", "accuracy")]
    for row in means[:_MAX_LINES]:
        print(_in_one_line(row))
    print(
        f"{len(results):,} rows are in {out / 'results.jsonl'}; above {min(_MAX_LINES, len(means))} of the means over seeds."
    )
    print(f"Open {compare.write_page(out)} in a browser: scores, groups that cannot be told apart, controls, leaks.")


_MAX_LINES = 60
"""Of a suite's rows that are printed: the page shows them all."""


def _in_one_line(row: "Result") -> str:
    seed = "" if row.seed is None else f" seed {row.seed}"
    what = f"{row.arm}{seed}" if row.baseline is None else f"{row.arm} - {row.baseline}{seed}"
    return (
        f"{what:<32} {row.level:<11} {row.group:<8} {row.protocol:<7} {row.metric:<24} "
        f"{row.value:6.3f} [{row.low:.3f}, {row.high:.3f}]"
    )


@app.command(epilog="Example: vetdino export run --to hub --out backbone.pth --img-size 518")
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a trained model.", show_default=False)],
    out: Annotated[Path, typer.Option(help="File to write.", show_default=False)],
    to: Annotated[str, typer.Option(help="Format: hub (a state dict that dinov2's builders load).")] = "hub",
    img_size: Annotated[
        int | None, typer.Option(min=1, help="Resample the position embedding for images of this side.")
    ] = None,
    arch: Annotated[str | None, typer.Option(help="Architecture of a checkpoint without a config.yaml.")] = None,
) -> None:
    """Write the teacher's backbone in a format that others load; it is loaded again and compared before it counts."""
    if to != "hub":
        raise UserError(
            f"Unknown export format '{to}'. Allowed: hub. Run: vetdino export {run.name} --to hub --out FILE"
        )
    from vet_extensions.export.checkpoint import export_hub

    print(export_hub(run, out, img_size=img_size, arch=arch))


@app.command(epilog="Example: vetdino demo --quick --out demo-quick")
def demo(
    out: Annotated[Path | None, typer.Option(help="Folder to write (demo, or demo-quick).")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One seed and fewer studies: about 3 minutes on 2 cores.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the synthetic archive and of the training runs.")] = 0,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes at a time (one a core, at most 4).")
    ] = None,
) -> None:
    """Run the whole way on synthetic studies: DICOM, intake, two pre-training arms, evaluation, export, report.html."""
    from vet_extensions.demo import run_demo

    report = run_demo(out or Path("demo-quick" if quick else "demo"), quick=quick, seed=seed, n_workers=workers)
    print(f"Done. Open {report} in a browser: what was trained, how, and what was measured.")


@app.command(epilog="Example: vetdino version")
def version() -> None:
    """Print the version."""
    print(vet_extensions.__version__)


def run_verb(words: Sequence[str]) -> None:
    """Run a verb in this process, as a submitted job does: a mistake of the user is raised, for the job to fail with it.

    words: the verb and its arguments. Errors: UserError with the sentence that the command line would print; RuntimeError where
    the verb ends with an exit code of its own.
    """
    program = typer.main.get_command(app)
    try:
        with program.make_context("vetdino", list(words)) as context:
            TyperGroup.invoke(cast(TyperGroup, program), context)
    except typer.Exit as stop:
        if stop.exit_code:
            raise RuntimeError(f"vetdino {words[0]} ended with exit code {stop.exit_code}.") from None
    except Exception as error:
        sentence = _sentence_for(error)
        if sentence is None:
            raise
        raise UserError(sentence) from None


embed.register(app, say=print)
cluster.register(app, run_verb=run_verb, say=print)
ablate.register(app, say=print)
compare.register(app, say=print)
segment.register(app, say=print)


def main() -> None:
    """Entry point of the console script; ends the process with the exit code."""
    app()
