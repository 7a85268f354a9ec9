"""The options of a submission, on any command line that sends jobs; called by `dinov2.run.submit` and by the launchers.

Three sources, the first that says something wins: the command line, the cluster's site file (`dinov2.run.site`), the official
defaults. Without SLURM the site file says nothing: it describes the cluster, not this machine.
"""

import argparse
import logging
import shutil
from typing import Any

from dinov2.run.site import find_site_file, read_site_file
from dinov2.utils.cluster import CPUS_PER_TASK, get_slurm_partition
from dinov2.utils.errors import UserError

logger = logging.getLogger("dinov2")

CLUSTERS = ("auto", "slurm", "local", "debug")
SIGNAL_DELAY_S = 120
"""How long before the time limit SLURM warns a job (official value)."""
NOT_OF_A_SITE = ("cluster", "site", "dry_run", "use_volta32")
"""Options of one submission that a site file has no say in."""
LEAST = {"nodes": 1, "ngpus": 0, "tasks_per_node": 1, "cpus_per_task": 1, "timeout": 1, "signal_delay": 1}
"""The options that are whole numbers, and the least that each can be."""


class _Store(argparse.Action):
    """Keep a value, or add to a list or a mapping of them, and remember that the command line said it."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        before = getattr(namespace, self.dest)
        if isinstance(before, list):
            values = [*before, values]
        elif isinstance(before, dict):
            values = {**before, **values}
        setattr(namespace, self.dest, values)
        namespace.given = {*getattr(namespace, "given", ()), self.dest}


def add_submission_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a submission, in a group of their own: the official ones, and those that other clusters need.

    The parsed namespace goes to `dinov2.run.submit`. Its `given` holds the names of the options that the command line named.
    """
    group = parser.add_argument_group("submission")

    def add(*names: str, **settings: Any) -> None:
        group.add_argument(*names, action=_Store, **settings)

    add("--ngpus", "--gpus", "--gpus-per-node", type=int, default=8, help="GPUs a node; 0 for none (default 8)")
    add("--nodes", "--nnodes", type=int, default=1, help="machines (default 1)")
    add("--tasks-per-node", type=int, help="processes a node (default: one for each GPU, or one)")
    add("--cpus-per-task", type=int, default=CPUS_PER_TASK, help=f"CPU cores a process (default {CPUS_PER_TASK})")
    add("--mem", help="memory a node, such as 120G; 0 for all of it (default: SLURM's)")
    add("--timeout", type=int, default=2800, help="minutes until the job goes back into the queue (default 2800)")
    add(
        "--signal-delay",
        type=int,
        default=SIGNAL_DELAY_S,
        metavar="SECONDS",
        help=f"how long before that it is warned, to write a checkpoint (default {SIGNAL_DELAY_S})",
    )
    add("--partition", default=get_slurm_partition(), help="SLURM partition (default: SLURM's)")
    add("--account", help="SLURM account")
    add("--qos", help="SLURM quality of service")
    add("--constraint", help="features that the machines must have")
    group.add_argument("--use-volta32", action="store_true", help="the same as --constraint volta32gb (official)")
    add("--comment", default="", help="comment for SLURM, which some clusters ask for")
    add("--exclude", default="", help="machines that the job must not run on, comma-separated")
    add("--slurm", type=_sbatch_option, default={}, metavar="KEY=VALUE", help="any option of sbatch; may be repeated")
    add("--setup", default=[], metavar="LINE", help="shell line to run before the program; may be repeated")
    add("--site", metavar="FILE", help="the cluster's defaults for these options (default: slurm/site.yaml)")
    group.add_argument("--dry-run", action="store_true", help="show what would be submitted, and submit nothing")
    add(
        "--cluster",
        choices=CLUSTERS,
        default="auto",
        help="slurm: submit and return; local: processes on this machine, waited for; debug: one process, this one, with a "
        "debugger on errors; auto: slurm where sbatch is found, else local (default)",
    )


def prefer_options(args: argparse.Namespace, **values: Any) -> None:
    """Set options that the command line did not name, over the site file; for programs that know what they need.

    `prefer_options(args, ngpus=0)` is for work that has no use for a GPU, whatever the site's trainings take.
    """
    given = {*getattr(args, "given", ())}
    for name, value in values.items():
        if name not in given:
            setattr(args, name, value)
    args.given = given | values.keys()


def resolved_options(args: argparse.Namespace) -> argparse.Namespace:
    """A copy with every option settled: the cluster chosen, the site file's values laid under those that were given.

    Raises `UserError` for a site file that cannot be used, for values that cannot be, and where SLURM is asked for and absent.
    """
    options = argparse.Namespace(**vars(args))
    given = {*getattr(args, "given", ())}
    options.cluster = _choose_cluster(args)
    if options.cluster == "slurm":
        _lay_under(options, given)
    elif "ngpus" not in given:
        options.ngpus = _gpus_here()
    if options.use_volta32:
        options.constraint = "volta32gb"
    for name, least in LEAST.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} is {value}; a whole number from {least} up is expected.")
    if options.cluster != "debug" and options.signal_delay >= 60 * options.timeout:
        raise UserError(
            f"--signal-delay {options.signal_delay} seconds before a --timeout of {options.timeout} minutes, a job would be "
            "warned as it starts, and do nothing. Give a longer --timeout or a shorter --signal-delay."
        )
    if options.cluster != "slurm" and options.nodes > 1:
        raise UserError(
            f"--cluster {options.cluster} runs on this machine alone, got --nodes {options.nodes}. Give --nodes 1."
        )
    options.tasks_per_node = 1 if options.cluster == "debug" else options.tasks_per_node or max(1, options.ngpus)
    return options


def number_of_processes(args: argparse.Namespace) -> int:
    """How many processes a job of these options has: the world size of a training."""
    options = resolved_options(args)
    return options.nodes * options.tasks_per_node


def _lay_under(options: argparse.Namespace, given: set[str]) -> None:
    path = find_site_file(options.site)
    if path is None:
        return
    site = read_site_file(path, known=_site_defaults())
    if site:
        logger.info("site file: %s", path)
    for name, value in site.items():
        if isinstance(value, list):
            value = [*value, *getattr(options, name)]
        elif isinstance(value, dict):
            value = {**value, **getattr(options, name)}
        elif name in given:
            continue
        setattr(options, name, value)


def _site_defaults() -> dict[str, type]:
    """What a site file may hold: option -> type of its value."""
    parser = argparse.ArgumentParser(add_help=False)
    add_submission_options(parser)
    return {
        name: type(value) if isinstance(value, (list, dict)) else int if name in LEAST else str
        for name, value in vars(parser.parse_args([])).items()
        if name not in NOT_OF_A_SITE
    }


def _sbatch_option(text: str) -> dict[str, Any]:
    key, is_pair, value = text.partition("=")
    if not key:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not KEY=VALUE, such as gres=gpu:a100:4, or KEY, such as exclusive"
        )
    return {key: {"true": True, "false": False}.get(value, value) if is_pair else True}


def _choose_cluster(args: argparse.Namespace) -> str:
    has_slurm = all(map(shutil.which, ("sbatch", "srun")))
    if args.cluster == "auto":
        if not has_slurm:
            logger.info(
                "no SLURM here (sbatch and srun are not found): running on this machine, as with --cluster local"
            )
        return "slurm" if has_slurm else "local"
    if args.cluster == "slurm" and not has_slurm and not args.dry_run:
        raise UserError(
            "This machine has no SLURM (sbatch and srun are not found). Submit from one that has, see the script with "
            "--dry-run, or run here: with --cluster local --ngpus N."
        )
    return args.cluster


def _gpus_here() -> int:
    import torch

    return torch.cuda.device_count()
