"""Sending a command line to SLURM, or to processes on this machine, through submitit; called by `dinov2/run/{train,eval}/*.py`.

The options are the official ones, and a few that clusters outside Meta need. The job itself is a `SubmittedTask`.
"""

import argparse
import logging
import os
import re
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dinov2.utils.cluster import CPUS_PER_TASK, get_slurm_executor_parameters, get_slurm_partition
from dinov2.utils.errors import UserError

logger = logging.getLogger("dinov2")

CLUSTERS = ("auto", "slurm", "local", "debug")
MAX_REQUEUES = 30
"""How often a SLURM job that reaches its time limit is put back into the queue (official value)."""
SIGNAL_DELAY_S = 120
"""How long before the time limit SLURM tells a job of it (official value)."""


class JobError(RuntimeError):
    """A job on this machine failed for another reason than a user's mistake."""


def get_args_parser(
    description: str | None = None,
    parents: Sequence[argparse.ArgumentParser] | None = None,
    add_help: bool = True,
) -> argparse.ArgumentParser:
    """The options of a submission: the official ones, and `--cluster` to `--mem`."""
    parser = argparse.ArgumentParser(description=description, parents=list(parents or ()), add_help=add_help)
    group = parser.add_argument_group("submission")
    add = group.add_argument
    add("--ngpus", "--gpus", "--gpus-per-node", type=int, default=8, help="GPUs a node; one process each (default 8)")
    add("--nodes", "--nnodes", type=int, default=1, help="machines (default 1)")
    add(
        "--timeout",
        type=int,
        default=2800,
        help="minutes after which the job is put back into the queue (default 2800)",
    )
    add("--partition", type=str, default=get_slurm_partition(), help="SLURM partition (default: SLURM's)")
    add("--use-volta32", action="store_true", help="only V100 GPUs with 32 GB, by the constraint 'volta32gb'")
    add("--comment", type=str, default="", help="comment for SLURM, which some clusters ask for")
    add("--exclude", type=str, default="", help="machines that the job must not run on, comma-separated")
    add(
        "--cluster",
        choices=CLUSTERS,
        default="auto",
        help="slurm: submit and return; local: processes on this machine, waited for; debug: one process, this one, with a "
        "debugger on errors; auto: slurm where sbatch is found (default)",
    )
    add("--cpus-per-task", type=int, default=CPUS_PER_TASK, help=f"CPU cores a process (default {CPUS_PER_TASK})")
    add("--account", type=str, default=None, help="SLURM account")
    add("--qos", type=str, default=None, help="SLURM quality of service")
    add("--mem", type=str, default=None, help="memory a machine, such as 120G; 0 for all of it (default: SLURM's)")
    return parser


def get_shared_folder() -> Path:
    """Where runs without `--output-dir` go: `runs` in the current folder, which every machine of a job must see."""
    return Path.cwd() / "runs"


def submit_jobs(task_class: type, args: argparse.Namespace, name: str) -> Any:
    """Submit `task_class(args)` under a job name; returns submitit's job.

    `args.cluster` becomes the one chosen, `args.output_dir` absolute; `%j` in the latter stands for the job's number. The logs
    of the job's processes lie in that folder too.
    Raises `UserError` where the cluster asked for is not there, or refuses.
    """
    import submitit
    import submitit.helpers
    from submitit.core.utils import FailedJobError

    args.cluster = _choose_cluster(args)
    args.output_dir = os.path.abspath(args.output_dir or get_shared_folder() / "%j")  # noqa: PTH100 - links stay as given
    python = _python_command()
    executor = submitit.AutoExecutor(
        folder=args.output_dir,
        cluster=args.cluster,
        slurm_max_num_timeout=MAX_REQUEUES,
        slurm_python=python,
        local_python=python,
    )
    executor.update_parameters(
        name=name, timeout_min=args.timeout, slurm_signal_delay_s=SIGNAL_DELAY_S, **_resources(args)
    )
    try:
        # A job that is submitted from within a job or under torchrun would take that one's ranks for its own.
        with submitit.helpers.clean_env():
            job = executor.submit(task_class(args))
    except FailedJobError as error:
        raise UserError(f"SLURM refused the job. {str(error).strip()}") from error
    logger.info("job %s submitted to %s: %s", job.job_id, args.cluster, name)
    logger.info("output folder: %s", args.output_dir.replace("%j", job.job_id))
    logger.info("log of the first process: %s", job.paths.stdout)
    return job


def launch(task_class: type, *, name: str, parser: argparse.ArgumentParser, arguments: list[str] | None = None) -> int:
    """A launcher's whole command line; the exit status: 0 done or submitted, 1 failed, 2 a user's mistake, 130 interrupted."""
    from dinov2.eval.setup import run_command_line
    from dinov2.logging import setup_logging

    setup_logging(level=logging.INFO)
    try:
        return run_command_line(partial(_submit_and_see, task_class, name), parser, arguments)
    except JobError as error:
        parser.exit(1, f"error: {error}\n")


def _submit_and_see(task_class: type, name: str, args: argparse.Namespace) -> None:
    from dinov2.utils.config import get_cfg_from_args

    if args.config_file:
        args.config_file = os.path.abspath(args.config_file)  # noqa: PTH100 - links stay as given
    get_cfg_from_args(args)  # a misspelt key is told now, not after hours in a queue
    job = submit_jobs(task_class, args, name)
    if args.cluster == "slurm":
        logger.info("watch it: squeue --job %s    stop it: scancel %s", job.job_id, job.job_id)
    elif args.cluster == "debug":
        job.results()
    else:
        logger.info("waiting for it; its progress is in that log")
        try:
            _raise_failure(job)
        finally:
            _remove_unnumbered(Path(args.output_dir))
        logger.info("job %s is done", job.job_id)


def _remove_unnumbered(output_dir: Path) -> None:
    """submitit's local controller makes the folder with a literal `%j` in its name, too."""
    if "%j" in output_dir.name and output_dir.is_dir() and not any(output_dir.iterdir()):
        output_dir.rmdir()


def _choose_cluster(args: argparse.Namespace) -> str:
    has_slurm = all(map(shutil.which, ("sbatch", "srun")))
    if args.cluster in ("auto", "slurm") and not has_slurm:
        raise UserError(
            "This machine has no SLURM (sbatch and srun are not found). Submit from one that has, or run here: with "
            "--cluster local --ngpus N, or with torchrun --nproc-per-node N -m dinov2.train.train (or dinov2.eval.knn, ...) "
            "and the same --config-file and --output-dir."
        )
    if args.cluster == "local" and args.nodes > 1:
        raise UserError(f"--cluster local runs on this machine alone, got --nodes {args.nodes}. Give --nodes 1.")
    return "slurm" if args.cluster == "auto" else args.cluster


def _resources(args: argparse.Namespace) -> dict[str, Any]:
    """The submission's options by submitit's names; those that were not given are left out."""
    for option, value, least in (("nodes", args.nodes, 1), ("ngpus", args.ngpus, 0), ("timeout", args.timeout, 1)):
        if value < least:
            raise UserError(f"--{option} is {value}; a whole number from {least} up is expected.")
    return get_slurm_executor_parameters(
        nodes=args.nodes,
        num_gpus_per_node=args.ngpus,
        cpus_per_task=args.cpus_per_task,
        slurm_partition=args.partition,
        slurm_constraint="volta32gb" if args.use_volta32 else None,
        slurm_comment=args.comment or None,
        slurm_exclude=args.exclude or None,
        slurm_account=args.account,
        slurm_qos=args.qos,
        slurm_mem=args.mem,
    )


def _python_command() -> str:
    """This interpreter, with the folders that only this process was told of: a checkout, `PYTHONPATH`, users' plugins."""
    standard = Path(sysconfig.get_path("stdlib")).resolve()
    folders = dict.fromkeys(Path(entry).resolve() for entry in sys.path)  # "" is the current folder
    told = [
        str(folder)
        for folder in folders
        if folder.is_dir()
        and standard not in (folder, *folder.parents)
        and folder.name not in ("site-packages", "dist-packages")
    ]
    path = [f"PYTHONPATH={os.pathsep.join(told)}"] if told else []
    return shlex.join(["env", *path, sys.executable])


def _raise_failure(job: Any) -> None:
    """Wait for a job's processes on this machine; raise what became of those that failed, and say where the log is.

    A user's mistake comes first: the other processes then only tell that one of them is gone.
    """
    problems = {
        number: problem for number in range(job.num_tasks) if (problem := job.task(number).exception()) is not None
    }
    for number, problem in problems.items():
        # The last entry of its traceback: our error type, and the message up to submitit's closing line.
        found = re.search(r"^dinov2\.[\w.]+Error: (.+?)\n*^-{10,}$", str(problem), flags=re.MULTILINE | re.DOTALL)
        if found is not None:
            raise UserError(f"{found.group(1).strip()}\n{_where(job, number)}")
    for number, problem in problems.items():
        raise JobError(f"{_where(job, number)}\n{problem}")


def _where(job: Any, number: int) -> str:
    return f"This happened in process {number} of job {job.job_id}; its log: {job.task(number).paths.stderr}"
