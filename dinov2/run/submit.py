"""Sending tasks to SLURM, or to processes on this machine, through submitit; called by the launchers and by other commands.

A task is a `SubmittedTask`; the options are those of `dinov2.run.options`, with the cluster's own in a site file.
"""

import argparse
import io
import logging
import os
import shlex
import sys
import sysconfig
import time
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from dinov2.run.options import add_submission_options, number_of_processes, prefer_options, resolved_options
from dinov2.run.task import SubmittedTask
from dinov2.utils.cluster import get_slurm_executor_parameters
from dinov2.utils.errors import UserError
from dinov2.utils.stop import warning_signal

__all__ = [
    "add_submission_options",
    "describe_submission",
    "get_args_parser",
    "get_shared_folder",
    "number_of_processes",
    "prefer_options",
    "submit_jobs",
    "submit_tasks",
]

logger = logging.getLogger("dinov2")

MAX_REQUEUES = 30
"""How often a SLURM job that reaches its time limit is put back into the queue (official value)."""
GPU_KEYS = {"gres", "gpus", "gpus_per_task", "gpus_per_socket"}
"""Options of sbatch that say in another way how many GPUs a job gets, and of which kind."""
RESIZED = (
    "# SLURM keeps the number of processes of the first start, also where a later one has another number of nodes.",
    "export SLURM_NTASKS=$((SLURM_JOB_NUM_NODES * SLURM_NTASKS_PER_NODE))",
    "export SLURM_NPROCS=$SLURM_NTASKS",
)
"""Lines of every script, before those of the user."""
POLL_S = 0.2


def get_args_parser(
    description: str | None = None,
    parents: Sequence[argparse.ArgumentParser] | None = None,
    add_help: bool = True,
) -> argparse.ArgumentParser:
    """A parser with the options of a submission."""
    parser = argparse.ArgumentParser(description=description, parents=list(parents or ()), add_help=add_help)
    add_submission_options(parser)
    return parser


def get_shared_folder() -> Path:
    """Where runs without `--output-dir` go: `runs` in the current folder, which every machine of a job must see."""
    return Path.cwd() / "runs"


def submit_jobs(task_class: type, args: argparse.Namespace, name: str) -> Any:
    """Submit `task_class(args)` under a job name and return submitit's job, without waiting for it.

    `args.cluster` becomes the one chosen, `args.output_dir` absolute; `%j` in the latter stands for the job's number. The logs
    of the job's processes lie in that folder too.
    Raises `UserError` where the cluster asked for is not there, or refuses.
    """
    options = resolved_options(args)
    args.cluster = options.cluster
    args.output_dir = absolute_output_dir(args)
    executor = _executor(options, Path(args.output_dir), name=name)
    (job,) = _submit(executor, [task_class(args)])
    logger.info("job %s submitted to %s: %s", job.job_id, args.cluster, name)
    logger.info("output folder: %s", args.output_dir.replace("%j", job.job_id))
    logger.info("log of the first process: %s", job.paths.stdout)
    return job


def submit_tasks(
    tasks: Sequence[SubmittedTask],
    args: argparse.Namespace,
    *,
    name: str,
    folder: Path,
    parallelism: int | None = None,
    after: str | None = None,
) -> list[Any]:
    """Submit tasks under a job name, one job for each; returns submitit's jobs, in the tasks' order.

    On SLURM one task is a plain job, several are one array. On this machine the jobs are waited for, and whether each one
    succeeded is for the caller to ask (`job.exception()`); under `--cluster debug` the first error is raised.
    folder: where submitit keeps scripts, pickles and logs; every machine of the jobs must see it.
    parallelism: how many may run at a time; without it SLURM decides, and this machine runs one after the other.
    after: number of a job, or of a whole array (the part before the `_`), that must have ended before, well or not.
    Raises `UserError` where the cluster asked for is not there, or refuses.
    """
    options = resolved_options(args)
    executor = _executor(options, folder, name=name, parallelism=parallelism, after=after)
    if options.cluster == "local":
        return _run_here(executor, tasks, parallelism or 1)
    jobs = _submit(executor, tasks)
    if options.cluster == "debug":
        for job in jobs:
            job.results()
    return jobs


def describe_submission(
    tasks: Sequence[SubmittedTask],
    args: argparse.Namespace,
    *,
    name: str,
    folder: Path,
    parallelism: int | None = None,
    after: str | None = None,
) -> str:
    """What `submit_tasks` with the same arguments would submit: the sbatch script, or the processes on this machine.

    Needs no SLURM, and writes nothing.
    """
    options = resolved_options(args)
    if options.cluster != "slurm":
        return (
            f"On this machine: {len(tasks)} job(s), {parallelism or 1} at a time, of {options.tasks_per_node} process(es) each, "
            f"in {folder}. The script for SLURM is shown by --cluster slurm --dry-run.\n"
        )
    executor = _executor(options, folder, name=name, parallelism=parallelism, after=after)
    if len(tasks) > 1:
        executor.parameters["map_count"] = len(tasks)
    return executor._make_submission_file_text(executor._submitit_command_str, uid="")


def absolute_output_dir(args: argparse.Namespace) -> str:
    """`args.output_dir`, or the shared folder and the job's number, as an absolute path in which links stay as given."""
    return os.path.abspath(args.output_dir or get_shared_folder() / "%j")  # noqa: PTH100


def _executor(
    options: argparse.Namespace, folder: Path, *, name: str, parallelism: int | None = None, after: str | None = None
) -> Any:
    """The executor of submitit for settled options."""
    from submitit.local.debug import DebugExecutor
    from submitit.local.local import LocalExecutor

    if options.cluster == "debug":
        return DebugExecutor(folder)
    if options.cluster == "local":
        executor = LocalExecutor(folder, max_num_timeout=MAX_REQUEUES, python=_local_python(options.setup))
        executor.update_parameters(
            timeout_min=options.timeout,
            tasks_per_node=options.tasks_per_node,
            gpus_per_node=options.ngpus,
            signal_delay_s=options.signal_delay,
        )
        return executor
    executor = _slurm_executor()(folder, max_num_timeout=MAX_REQUEUES, python=shlex.join(_slurm_python()))
    executor.update_parameters(job_name=name, **_slurm_parameters(options, parallelism=parallelism, after=after))
    return executor


def _slurm_executor() -> type:
    from submitit.slurm.slurm import SlurmExecutor

    class Executor(SlurmExecutor):
        """submitit's, which also shows a script where there is no SLURM: whether there is one, the options have settled."""

        @classmethod
        def affinity(cls) -> int:
            return 2

    return Executor


def _slurm_parameters(options: argparse.Namespace, *, parallelism: int | None, after: str | None) -> dict[str, Any]:
    """Settled options by the names of sbatch, as submitit's SLURM executor takes them; what was not given is left out."""
    official = get_slurm_executor_parameters(
        nodes=options.nodes,
        num_gpus_per_node=options.ngpus,
        cpus_per_task=options.cpus_per_task,
        slurm_partition=options.partition,
        slurm_constraint=options.constraint,
        slurm_comment=options.comment or None,
        slurm_exclude=options.exclude or None,
        slurm_account=options.account,
        slurm_qos=options.qos,
    )
    parameters = {key.removeprefix("slurm_"): value for key, value in official.items() if key != "tasks_per_node"}
    # A site whose default is not to requeue would end a training at its first preemption.
    extra = {"requeue": True, **({"mem": options.mem} if options.mem else {})}
    for key, value in options.slurm.items():
        extra[key.replace("-", "_")] = value
    if GPU_KEYS & extra.keys():
        parameters.pop("gpus_per_node", None)
    if "no_requeue" in extra:
        extra.pop("requeue")
    parameters |= {
        "ntasks_per_node": options.tasks_per_node,
        "time": options.timeout,
        "signal_delay_s": options.signal_delay,
        "setup": [*RESIZED, *options.setup],
        "array_parallelism": parallelism,
        "dependency": f"afterany:{after}" if after else None,
        # From SLURM 22.05 on srun does not take the number of cores over from the job: a process would have one.
        "srun_args": [f"--cpus-per-task={options.cpus_per_task}"],
        "additional_parameters": {key: value for key, value in extra.items() if value is not False},
    }
    # The work characterisation key of submitit's own is refused where a cluster keeps a list of them.
    return {**{key: value for key, value in parameters.items() if value is not None}, "wckey": None}


def _submit(executor: Any, tasks: Sequence[SubmittedTask]) -> list[Any]:
    import submitit.helpers
    from submitit.core.utils import FailedJobError, environment_variables

    from dinov2.distributed.launch import site_variables

    kept = site_variables()
    twice = io.StringIO()  # what sbatch says, which is in the error too
    try:
        # A job that is submitted from within a job or under torchrun would take that one's ranks for its own.
        with submitit.helpers.clean_env(), environment_variables(**kept), redirect_stderr(twice), executor.batch():
            jobs = [executor.submit(task) for task in tasks]
    except FailedJobError as error:
        raise UserError(f"SLURM refused the job. {str(error).strip()}") from error
    return jobs


def _run_here(executor: Any, tasks: Sequence[SubmittedTask], parallelism: int) -> list[Any]:
    """Run tasks on this machine, some at a time; when interrupted, end those that run."""
    jobs: list[Any] = []
    try:
        for task in tasks:
            while sum(not job.done() for job in jobs) >= parallelism:
                time.sleep(POLL_S)
            jobs += _submit(executor, [task])
        for job in jobs:
            job.wait()
    finally:
        for job in jobs:
            if not job.done():
                job.cancel()
    return jobs


def _python() -> list[str]:
    """This interpreter, with the folders that only this process was told of: a checkout, `PYTHONPATH`, users' plugins."""
    standard = Path(sysconfig.get_path("stdlib")).resolve()
    programs = Path(sysconfig.get_path("scripts")).resolve()  # first on the path of a program that pip installed
    folders = dict.fromkeys(Path(entry).resolve() for entry in sys.path)  # "" is the current folder
    told = [
        str(folder)
        for folder in folders
        if folder.is_dir()
        and folder != programs
        and standard not in (folder, *folder.parents)
        and folder.name not in ("site-packages", "dist-packages")
    ]
    path = [f"PYTHONPATH={os.pathsep.join(told)}"] if told else []
    return ["env", *path, sys.executable]


def _slurm_python() -> list[str]:
    """The same in a job, where the warning of its end is ignored until the program takes it.

    It would kill a process that is just starting, and the job would have failed. Ignored, it comes again as SIGTERM.
    """
    name = warning_signal().name.removeprefix("SIG")
    return ["bash", "-c", f'trap "" {name}; exec "$@"', "bash", *_python()]


def _local_python(setup: Sequence[str]) -> str:
    """The same for processes on this machine, after the set-up lines, and with the GPUs that the user chose, if any.

    submitit has a place for set-up lines too. It finds the job's number there only where `sh` starts the last of several
    commands as its child, which bash does not do.
    """
    from dinov2.distributed.launch import visible_devices

    devices = visible_devices()
    command = _python() if devices is None else ["env", f"CUDA_VISIBLE_DEVICES={devices}", *_python()]
    if setup:
        command = ["bash", "-c", "\n".join([*setup, 'exec "$@"']), "bash", *command]
    return shlex.join(command)
