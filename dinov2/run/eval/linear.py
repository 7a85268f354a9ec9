"""Linear evaluation as a submitted job.

`python dinov2/run/eval/linear.py --nodes 1 --ngpus 8 --partition NAME --config-file ... --output-dir ...`
The options of `python -m dinov2.eval.linear`, and those of `dinov2.run.options`.
"""

import sys
from pathlib import Path

if not __package__:  # started by its path: this file's folder gives way to the checkout that it lies in
    sys.path[0] = str(Path(__file__).resolve().parents[3])

from dinov2.run.launcher import EntryPointTask


class Evaluator(EntryPointTask):
    """Linear evaluation in a job."""

    module = "dinov2.eval.linear"
    title = "DINOv2 linear evaluation"
    job_name = "dinov2:linear"


get_args_parser = Evaluator.get_args_parser
main = Evaluator.launch

if __name__ == "__main__":
    # Through the package, so that the job finds its class by a name that holds there too.
    from dinov2.run.eval.linear import main as main_of_package

    sys.exit(main_of_package())
