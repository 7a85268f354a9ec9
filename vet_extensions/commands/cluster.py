"""The verb `submit` of the command line, which `vet_extensions.cli` registers: another verb as a job on a cluster, and an intake
as an array of jobs with one more that merges.

The options before `--` are those of every launcher (`dinov2.run.submit`); what stands behind it is a command line of `vetdino`,
read here already, so that a mistake in it is told now and not after hours in a queue.
"""

import argparse
import hashlib
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from dinov2.run.task import SubmittedTask
from vet_extensions.errors import UserError
from vet_extensions.schema import IntakeFolder

RunVerb = Callable[[Sequence[str]], None]

EXAMPLES = """\
Example: vetdino submit --ngpus 1 -- evaluate run --data studies --suite configs/evaluation/quick.yaml --out results
Example: vetdino submit --parts 16 --jobs 8 --cpus-per-task 4 -- intake ARCHIVE studies --workers 4"""

_SUBMITS_ITSELF = ("submit", "ablate")
_NOT_OF_THE_CONTENT = {"out": None, "workers": None, "sheets": False}
"""Options of an intake that decide where it writes and how fast it is; a second submission may change them."""


class VerbTask(SubmittedTask):
    """One command line of `vetdino` in a job. args: run (what runs a verb in this process), words (verb and arguments)."""

    def _main(self, args: argparse.Namespace) -> None:
        args.run(args.words)


class MergeTask(VerbTask):
    """The merge that ends an intake in parts. args: run, words, parts (part -> its log; "" where it was finished before)."""

    def _main(self, args: argparse.Namespace) -> None:
        missing = [f"  {part.name}: {log}" for part, log in args.parts.items() if not _is_finished(part)]
        if missing:
            raise UserError(
                f"Nothing was merged: {len(missing)} of {len(args.parts)} parts are not done. Their logs say why:\n"
                + "\n".join(missing)
                + "\nGive the same command again: it reads what is missing, and merges."
            )
        super()._main(args)


class _Unparsed(TyperCommand):
    """Hands its arguments on as they are: the usual parser takes the first `--` away."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.args = list(args)
        return ctx.args


def register(app: typer.Typer, *, run_verb: RunVerb, say: Callable[[str], None]) -> None:
    """Add the verb to the program. run_verb: runs a command line of the program in this process; `say` gets what to tell."""

    @app.command(cls=_Unparsed)
    def submit(context: typer.Context) -> None:
        """Run another verb as a job: on SLURM, or on this machine. An intake may be cut into parts that run side by side."""
        arguments = list(context.args)
        dashes = arguments.index("--") if "--" in arguments else len(arguments)
        args, others = _parser().parse_known_args(arguments[:dashes])
        words = arguments[dashes + 1 :]
        if others or not words:
            got = f"got '{others[0]}' before it" if others else "nothing stands behind it"
            raise UserError(f"Give options of the submission, then --, then a verb with its own; {got}.\n{EXAMPLES}")
        verb = _read_verb(app, words)
        is_free = args.cluster == "auto"
        _settle_options(args, verb)
        if is_free and args.cluster == "local":
            say("No SLURM here (sbatch and srun are not found): running on this machine, and waiting for it.")
        if args.parts is None:
            _submit_verb(words, args, run_verb=run_verb, say=say)
        else:
            _submit_parts(IntakeInParts.from_verb(verb, args.parts), args, run_verb=run_verb, say=say)


def _parser() -> argparse.ArgumentParser:
    from dinov2.run.submit import add_submission_options

    parser = argparse.ArgumentParser(
        prog="vetdino submit",
        usage="%(prog)s [options] -- VERB ...",
        description="Run another verb of vetdino as a job: on SLURM, or on this machine.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--parts", type=int, metavar="N", help="for intake: read N parts as an array of jobs, then merge"
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="parts that run at the same time (default: all)")
    parser.add_argument("--logs", type=Path, help="folder of the job's log (default: runs/VERB, or OUT.parts/jobs)")
    add_submission_options(parser)
    return parser


def _read_verb(app: typer.Typer, words: Sequence[str]) -> Any:
    """The parsed context of a verb's command line; it tells its own mistakes, and ends the process after a `--help`."""
    program: Any = typer.main.get_command(app)
    if words[0] not in program.commands or words[0] in _SUBMITS_ITSELF:
        why = "submits its jobs itself" if words[0] in _SUBMITS_ITSELF else "is no verb"
        verbs = ", ".join(sorted(set(program.commands) - {*_SUBMITS_ITSELF}))
        raise UserError(f"'{words[0]}' {why}. What can be submitted: {verbs}.")
    return program.commands[words[0]].make_context(f"vetdino {words[0]}", list(words[1:]))


def _settle_options(args: argparse.Namespace, verb: Any) -> None:
    """Choose the cluster, and ask it for what the verb can use: training takes a process a GPU, the others one process."""
    from dinov2.run.options import prefer_options, resolved_options

    for name, value in (("parts", args.parts), ("jobs", args.jobs)):
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}; a whole number from 1 up is expected.")
    if args.parts is not None and verb.command.name != "intake":
        raise UserError(f"--parts is for intake alone, got '{verb.command.name}'. Leave it out.")
    is_one_process = verb.command.name != "train"
    if is_one_process:
        prefer_options(args, nodes=1, tasks_per_node=1, ngpus=1 if "device" in verb.params else 0)
    options = resolved_options(args)
    if is_one_process and (options.nodes, options.tasks_per_node) != (1, 1):
        raise UserError(
            f"'{verb.command.name}' runs in one process, got --nodes {args.nodes} --tasks-per-node {args.tasks_per_node}. "
            "Leave both out."
        )
    args.cluster = options.cluster


def _submit_verb(words: list[str], args: argparse.Namespace, *, run_verb: RunVerb, say: Callable[[str], None]) -> None:
    from dinov2.run.submit import describe_submission, get_shared_folder, submit_tasks

    folder = (args.logs or get_shared_folder() / words[0]).absolute()
    name = f"vetdino-{words[0]}"
    task = _verb_task(words, run_verb, folder)
    if args.dry_run:
        say(f"$ {_in_one_line(words)}\n{describe_submission([task], args, name=name, folder=folder)}")
        return
    say(f"{_in_one_line(words)}\nLogs: {folder}")
    (job,) = submit_tasks([task], args, name=name, folder=folder)
    say(f"Job {job.job_id}: {job.paths.stdout} and .err")
    _raise_if_it_failed_here(job, args)


@dataclass(frozen=True)
class IntakeInParts:
    """An intake into `out`, cut into `n` parts that lie beside it in OUT.parts. words: the verb without what differs by part."""

    words: tuple[str, ...]
    fingerprint: str
    source: str
    out: Path
    salt_file: Path
    n: int
    sheets: bool

    @classmethod
    def from_verb(cls, verb: Any, n: int) -> "IntakeInParts":
        """Errors: UserError where the command line asks for one part itself."""
        if verb.params["part"] is not None:
            raise UserError("--parts gives each job its --part. Leave --part out.")
        out = Path(verb.params["out"]).absolute()
        salt_file = Path(verb.params["salt_file"] or _parts_folder(out) / "salt")
        content = _words_of(verb, salt_file=str(salt_file), **_NOT_OF_THE_CONTENT)
        return cls(
            words=tuple(_words_of(verb, salt_file=str(salt_file), out=None, source=None, sheets=False)),
            fingerprint=hashlib.sha256(shlex.join(content).encode()).hexdigest(),
            source=str(verb.params["source"]),
            out=out,
            salt_file=salt_file,
            n=n,
            sheets=bool(verb.params["sheets"]),
        )

    @property
    def folder(self) -> Path:
        """OUT.parts: the parts, the jobs' logs, and the salt where no other was given."""
        return _parts_folder(self.out)

    def part(self, number: int) -> Path:
        """The folder of one part, from 1 to n."""
        return self.folder / f"part_{number}_of_{self.n}"

    def unfinished(self) -> list[int]:
        """The parts that are still to be read, whole or in part."""
        return [number for number in range(1, self.n + 1) if not _is_finished(self.part(number))]

    def words_of(self, number: int) -> list[str]:
        """The command line of one part; it can be given by hand, too."""
        verb, *options = self.words
        return [verb, self.source, str(self.part(number)), *options, "--part", f"{number}/{self.n}"]

    def begin(self) -> None:
        """Note in OUT.parts which intake its parts are of. Errors: UserError where they are of another one, or OUT is taken."""
        from vet_extensions.intake.folder import OutputFolder

        note = self.folder / "intake.sha256"
        if note.exists() and note.read_text(encoding="utf-8").strip() != self.fingerprint:
            raise UserError(
                f"'{self.folder}' holds parts that were read with other options or from another source. Give the options as they "
                "were, or another OUT, or delete that folder."
            )
        if OutputFolder(self.out).finished() is not None and self.unfinished():
            raise UserError(f"'{self.out}' holds a finished intake that was not made of these parts. Give another OUT.")
        self.folder.mkdir(parents=True, exist_ok=True)
        note.write_text(self.fingerprint + "\n", encoding="utf-8")


def _submit_parts(
    intake: IntakeInParts, args: argparse.Namespace, *, run_verb: RunVerb, say: Callable[[str], None]
) -> None:
    """The parts that are not finished as one array, and the merge as a job that waits for it."""
    from dinov2.run.submit import submit_tasks

    numbers, folder = intake.unfinished(), (args.logs or intake.folder / "jobs").absolute()
    tasks = [_verb_task(intake.words_of(number), run_verb, folder) for number in numbers]
    logs = dict.fromkeys(range(1, intake.n + 1), "")
    if args.dry_run:
        _show_parts(intake, tasks, _merge_task(intake, logs, run_verb, folder), args, folder=folder, say=say)
        return
    intake.begin()
    say(f"Parts to read: {len(numbers)} of {intake.n}; then all are merged into {intake.out}. Logs: {folder}")
    reading = submit_tasks(tasks, args, name="vetdino-intake", folder=folder, parallelism=args.jobs) if tasks else []
    logs |= {number: str(job.paths.stderr) for number, job in zip(numbers, reading, strict=True)}
    array = reading[0].job_id.partition("_")[0] if reading else None
    task = _merge_task(intake, logs, run_verb, folder)
    (merging,) = submit_tasks([task], args, name="vetdino-merge", folder=folder, after=array)
    if args.cluster == "slurm":
        say((f"Parts: job {array}. " if array else "") + f"Merge, when the parts have ended: job {merging.job_id}.")
    say(f"It tells which parts failed, if any: {merging.paths.stdout} and .err")
    _raise_if_it_failed_here(merging, args)
    say(f"Then look at what there is: vetdino check {shlex.quote(str(intake.out))}")


def _show_parts(
    intake: IntakeInParts,
    tasks: Sequence[VerbTask],
    merge: MergeTask,
    args: argparse.Namespace,
    *,
    folder: Path,
    say: Callable[[str], None],
) -> None:
    from dinov2.run.submit import describe_submission

    for task in (*tasks, merge):
        say(f"$ {_in_one_line(task.args.words)}")
    if tasks:
        say(describe_submission(tasks, args, name="vetdino-intake", folder=folder, parallelism=args.jobs))
    say(describe_submission([merge], args, name="vetdino-merge", folder=folder, after="JOB" if tasks else None))


def _raise_if_it_failed_here(job: Any, args: argparse.Namespace) -> None:
    """Errors: the job's, where it ran on this machine and has ended; on SLURM it has not begun."""
    from dinov2.run.launcher import JobError, raise_failure

    if args.cluster == "slurm":
        return
    try:
        raise_failure(job)
    except JobError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


def _verb_task(words: list[str], run_verb: RunVerb, folder: Path) -> VerbTask:
    return VerbTask(argparse.Namespace(run=run_verb, words=words, output_dir=str(folder)))


def _merge_task(intake: IntakeInParts, logs: dict[int, str], run_verb: RunVerb, folder: Path) -> MergeTask:
    parts = {intake.part(number): log for number, log in logs.items()}
    words = ["merge", *map(str, parts), "--into", str(intake.out), *(["--sheets"] if intake.sheets else [])]
    return MergeTask(argparse.Namespace(run=run_verb, words=words, parts=parts, output_dir=str(folder)))


def _words_of(verb: Any, **instead: Any) -> list[str]:
    """A parsed command line as words again: the verb, and what the user gave. instead: other values; None leaves one out."""
    words = [verb.command.name]
    for parameter in verb.command.params:
        name = parameter.name
        if name not in instead and verb.get_parameter_source(name).name != "COMMANDLINE":
            continue
        value = instead.get(name, verb.params.get(name))
        if value is None:
            continue
        if isinstance(value, bool):
            words += (parameter.opts if value else parameter.secondary_opts)[:1]
        elif parameter.param_type_name == "argument":
            words.append(str(value))
        else:
            for one in value if isinstance(value, list | tuple) else [value]:
                words += [parameter.opts[0], str(one)]
    return words


def _in_one_line(words: Sequence[str]) -> str:
    return shlex.join(["vetdino", *words])


def _parts_folder(out: Path) -> Path:
    return out.with_name(f"{out.name}.parts")


def _is_finished(part: Path) -> bool:
    return IntakeFolder(part).summary.exists()
