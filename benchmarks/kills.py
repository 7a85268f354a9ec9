"""A training that is killed with SIGKILL again and again, against the same training left alone.

    python benchmarks/kills.py                                                      # 20 kills of a 60-step run, about 4 minutes
    python benchmarks/kills.py --kills 5 --processes 2 train.checkpoint_in_background=true

Half of the kills fall into the writing of a checkpoint. Prints a table of the kills and whether weights, optimizer state and
every number of training_metrics.json end equal bit for bit. Exit status 0 when they do, 1 when not.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from killing import TINY, Kill, Run, kill_again_and_again  # pyright: ignore[reportMissingImports]
from study_factory import make_intake  # pyright: ignore[reportMissingImports]


def main() -> int:
    """Run both trainings and compare; the exit status."""
    parser = argparse.ArgumentParser(description="Kill a training again and again; see this file's head.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1, help="started by torchrun when more than one")
    parser.add_argument("--write-seconds", type=float, default=0.25, help="about how long one checkpoint takes here")
    parser.add_argument("options", nargs="*", help="key=value for both trainings")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config = folder / "tiny.yaml"
        config.write_text(TINY)
        data = make_intake(folder / "studies")
        undisturbed, killed = (
            Run(config, data, folder / name, tuple(arguments.options), arguments.processes)
            for name in ("alone", "killed")
        )
        status = undisturbed.finish()
        began = time.monotonic()
        kills = kill_again_and_again(
            killed, n_kills=arguments.kills, seed=arguments.seed, write_s=arguments.write_seconds
        )
        status = status or killed.finish()
        seconds = time.monotonic() - began
        if status:
            print((folder / "killed.terminal.txt").read_text()[-4000:], file=sys.stderr)
            return 1
        return report(undisturbed, killed, kills, seconds)


def report(undisturbed: Run, killed: Run, kills: list[Kill], seconds: float) -> int:
    """Print what was done to the run and how it ended; the exit status."""
    print("| kill | aimed at | killed | after s | cut a checkpoint | steps logged |\n|---|---|---|---|---|---|")
    for number, kill in enumerate(kills, start=1):
        aim = "a checkpoint" if kill.while_writing else "anything"
        cut = "yes" if kill.cut_a_checkpoint else "no"
        print(
            f"| {number} | {aim} | {kill.whom if kill.hit else 'had ended'} | {kill.seconds:.1f} | {cut} | {kill.n_lines} |"
        )
    a, b = undisturbed.tensors(), killed.tensors()
    same_tensors = a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    same_losses = undisturbed.losses() == killed.losses()
    resumed = killed.resumed_after()
    print(
        f"\n{sum(kill.hit for kill in kills)} kills, {sum(kill.cut_a_checkpoint for kill in kills)} of them cut a checkpoint; "
        f"resumed {len(resumed)} times, after iterations {resumed}; {seconds:.0f} s.\n"
        f"{len(a)} tensors equal: {same_tensors}. {len(undisturbed.losses())} lines of metrics equal: {same_losses}."
    )
    return 0 if same_tensors and same_losses and resumed == sorted(resumed) else 1


if __name__ == "__main__":
    sys.exit(main())
