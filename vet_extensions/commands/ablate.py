"""The verb `ablate` of the command line, which `vet_extensions.cli` registers."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from vet_extensions.errors import UserError
from vet_extensions.progress import Progress

if TYPE_CHECKING:
    from vet_extensions.ablation.session import Session

EXAMPLES = """\
Example: vetdino ablate configs/ablation/debug.yaml --data studies --out ablation --jobs 2
Example: vetdino ablate configs/ablation/ibot.yaml --data studies --out ablation --jobs 8 --ngpus 4 --partition gpu
Example: vetdino ablate configs/ablation/ibot.yaml --data studies --out ablation --status"""
INCOMPLETE = 1
_AS_TYPED = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def register(app: typer.Typer, *, say: Callable[[str], None]) -> None:
    """Add the verb to the program; `say` gets what it has to tell."""

    @app.command(context_settings=_AS_TYPED)
    def ablate(context: typer.Context) -> None:
        """Run a grid of trainings from one plan, on SLURM or on this machine, and write one table of them."""
        args = _parser().parse_args(context.args)
        if args.status:
            say(_status(args.out))
            return
        session = _open(args)
        say("\n".join(session.plan_in_words()))
        if args.dry_run:
            say(session.script())
        elif not args.plan and _is_wanted(session, args):
            _run(session, args, say)


def _parser() -> argparse.ArgumentParser:
    from dinov2.run.submit import add_submission_options

    parser = argparse.ArgumentParser(
        prog="vetdino ablate",
        description="Run a grid of trainings from one plan, on SLURM or on this machine, and write one table of them. The same "
        "command again goes on: done cells stay, running ones are left alone.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="the plan, such as configs/ablation/debug.yaml")
    parser.add_argument("--data", type=Path, required=True, metavar="ROOT", help="intake folder, {data} of the plan")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the cells and the table")
    parser.add_argument("--plan", action="store_true", help="show the plan with its cost, and start nothing")
    parser.add_argument("--status", action="store_true", help="show how far every cell is, and start nothing")
    parser.add_argument("--retry", action="store_true", help="start failed cells again, too")
    parser.add_argument("--wait", action="store_true", help="on SLURM, wait for the end of all cells")
    parser.add_argument("--yes", "-y", action="store_true", help="do not ask before starting")
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="cells at a time (default: SLURM's limit; here, one a GPU)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="value of {NAME} in the plan; may be repeated"
    )
    add_submission_options(parser)
    return parser


def _open(args: argparse.Namespace) -> "Session":
    from vet_extensions.ablation.session import Session

    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs is {args.jobs}; a whole number from 1 up is expected.")
    wrong = [text for text in args.set if not text.partition("=")[0].isidentifier() or "=" not in text]
    if wrong:
        raise UserError(f"--set {wrong[0]} is not NAME=VALUE, such as weights=teacher_checkpoint.pth.")
    values = {name: value for name, _, value in (text.partition("=") for text in args.set)}
    return Session.open(
        args.config, data=args.data, folder=args.out, values=values, args=args, jobs=args.jobs, retry=args.retry
    )


def _is_wanted(session: "Session", args: argparse.Namespace) -> bool:
    if args.yes or not sys.stdin.isatty() or not session.missing():
        return True
    return typer.confirm("Start?", default=True)


def _run(session: "Session", args: argparse.Namespace, say: Callable[[str], None]) -> None:
    from vet_extensions.ablation.status import in_words, steps_of

    if session.args.cluster == "slurm":
        job = session.submit()
        if job is not None:
            say(
                f"Submitted as job {job}; a job after it writes the table. How far it is: the same command with --status"
            )
        if session.is_at_work() and not args.wait:
            return
    with Progress("ablation", unit="steps") as progress:
        progress.skip(steps_of(session.statuses())[0])
        if session.args.cluster == "slurm":
            session.wait(on_progress=progress)
        else:
            session.run_here(on_progress=progress)
    page, is_complete = session.finish()
    say("\n".join(in_words(session.statuses())))
    say(f"The table: {page} to open in a browser; as text and for programs beside it.")
    if not is_complete:
        raise typer.Exit(INCOMPLETE)


def _status(folder: Path) -> str:
    from vet_extensions.ablation.status import in_words, look

    return "\n".join(in_words(look(folder.absolute())))
