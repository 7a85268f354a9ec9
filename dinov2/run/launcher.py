"""The frame of the launchers `dinov2/run/{train,eval}/*.py`: their command line, from the options to the exit status.

Each of them is an `EntryPointTask` that names a program; everything else is here.
"""

import argparse
import logging
import os
import re
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from dinov2.run.submit import absolute_output_dir, describe_submission, submit_jobs
from dinov2.run.submit import get_args_parser as get_submit_args_parser
from dinov2.run.task import SubmittedTask
from dinov2.utils.errors import UserError

logger = logging.getLogger("dinov2")


class JobError(RuntimeError):
    """A job on this machine failed for another reason than a user's mistake."""


class EntryPointTask(SubmittedTask):
    """A program of this package, in a job.

    module: its module, which has `get_args_parser` and `main`; title: what it does; job_name: under which SLURM lists it.
    """

    module: ClassVar[str]
    title: ClassVar[str]
    job_name: ClassVar[str]

    def _main(self, args: argparse.Namespace) -> Any:
        return import_module(self.module).main(args)

    @classmethod
    def get_args_parser(cls, add_help: bool = True) -> argparse.ArgumentParser:
        """The options of the program and of a submission."""
        own = import_module(cls.module).get_args_parser(add_help=False)
        return get_submit_args_parser(f"Submitit launcher for {cls.title}", parents=[own], add_help=add_help)

    @classmethod
    def launch(cls, arguments: list[str] | None = None) -> int:
        """The command line; its exit status: 0 done or submitted, 1 failed, 2 a user's mistake, 130 interrupted."""
        from dinov2.eval.setup import run_command_line
        from dinov2.logging import setup_logging

        setup_logging(level=logging.INFO)
        parser = cls.get_args_parser()
        try:
            return run_command_line(partial(_submit_and_see, cls), parser, arguments)
        except JobError as error:
            parser.exit(1, f"error: {error}\n")


def _submit_and_see(task_class: type[EntryPointTask], args: argparse.Namespace) -> None:
    from omegaconf import OmegaConf

    from dinov2.utils.config import get_cfg_from_args

    if args.config_file:
        args.config_file = os.path.abspath(args.config_file)  # noqa: PTH100 - links stay as given
    config = get_cfg_from_args(args)  # a misspelt key is told now, not after hours in a queue
    if args.dry_run:
        folder = Path(absolute_output_dir(args))
        script = describe_submission([task_class(args)], args, name=task_class.job_name, folder=folder)
        sys.stdout.write(f"{script}\n# configuration\n{OmegaConf.to_yaml(config)}")
        return
    job = submit_jobs(task_class, args, task_class.job_name)
    if args.cluster == "slurm":
        logger.info("watch it: squeue --job %s    stop it: scancel %s", job.job_id, job.job_id)
    elif args.cluster == "debug":
        job.results()
    else:
        logger.info("waiting for it; its progress is in that log")
        try:
            raise_failure(job)
        finally:
            _remove_unnumbered(Path(args.output_dir))
        logger.info("job %s is done", job.job_id)


def _remove_unnumbered(output_dir: Path) -> None:
    """submitit's local controller makes the folder with a literal `%j` in its name, too."""
    if "%j" in output_dir.name and output_dir.is_dir() and not any(output_dir.iterdir()):
        output_dir.rmdir()


def raise_failure(job: Any) -> None:
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
