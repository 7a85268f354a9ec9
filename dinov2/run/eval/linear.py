"""Linear evaluation as a submitted job.

`python dinov2/run/eval/linear.py --nodes 1 --ngpus 8 --partition NAME --config-file ... --output-dir ...`
The options of `python -m dinov2.eval.linear`, and those of `dinov2.run.submit`.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

if not __package__:  # started by its path: this file's folder gives way to the checkout that it lies in
    sys.path[0] = str(Path(__file__).resolve().parents[3])

from dinov2.run.submit import get_args_parser as get_submit_args_parser
from dinov2.run.submit import launch
from dinov2.run.task import SubmittedTask


class Evaluator(SubmittedTask):
    """Linear evaluation in a job."""

    def _main(self, args: argparse.Namespace) -> Any:
        from dinov2.eval.linear import main

        return main(args)


def get_args_parser(add_help: bool = True) -> argparse.ArgumentParser:
    """The options of `dinov2.eval.linear` and of a submission."""
    from dinov2.eval.linear import get_args_parser as get_own_args_parser

    return get_submit_args_parser(
        "Submitit launcher for DINOv2 linear evaluation",
        parents=[get_own_args_parser(add_help=False)],
        add_help=add_help,
    )


def main(arguments: list[str] | None = None) -> int:
    """Submit; returns the exit status."""
    return launch(Evaluator, name="dinov2:linear", parser=get_args_parser(), arguments=arguments)


if __name__ == "__main__":
    # Through the package, so that the job finds its class by a name that holds there too.
    from dinov2.run.eval.linear import main as main_of_package

    sys.exit(main_of_package())
