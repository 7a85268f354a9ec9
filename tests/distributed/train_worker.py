"""One process of several that runs a list of trainings one after the other, and writes down what the tests ask about them.

    RANK=0 WORLD_SIZE=2 ... python train_worker.py plan.json results/

plan.json: a list of {"name", "arguments" of the training command, "at": {event: [rank, iteration]}}. Events happen in that
process before that step: "stop" (SIGTERM), "nan" (its KoLeo loss is not finite), "full" (no file of its may grow beyond 4 MB for
the rest of the training), "die" (SIGKILL).
results/<rank>.json: by name {"status", "samples": {iteration: indices}}; results/<name>.loaded.pt: what a resumed run began with.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dinov2 import distributed
from dinov2.fsdp import full_tensor
from dinov2.train.checkpoint import StoredCheckpoint
from dinov2.train.state import training_tensors
from dinov2.train.train import run
from dinov2.train.trainer import Trainer


class WatchedTrainer(Trainer):
    """A trainer that keeps a diary and lets accidents happen."""

    job: dict[str, Any]
    results: Path
    samples: dict[int, list[int]]

    def train_step(self, batches: Sequence[Any], iteration: int, *, read: bool = True) -> None:
        self.samples[iteration] = [int(i) for batch in batches for i in batch["sample_indices"]]
        here = [distributed.get_global_rank(), iteration]
        events = [event for event, place in self.job.get("at", {}).items() if place == here]
        if "stop" in events:
            os.kill(os.getpid(), signal.SIGTERM)
        if "die" in events:
            os.kill(os.getpid(), signal.SIGKILL)
        if "full" in events:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, resource.RLIM_INFINITY))
        if "nan" in events:
            self._break_koleo()
        super().train_step(batches, iteration, read=read)

    def _break_koleo(self) -> None:
        compute = self.model.forward_backward

        def broken(*args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
            losses = compute(*args, **kwargs)
            return {**losses, "koleo_loss": losses["koleo_loss"] * float("nan")}

        self.model.forward_backward = broken  # pyright: ignore[reportAttributeAccessIssue]

    def load_tensors(self, stored: StoredCheckpoint) -> None:
        super().load_tensors(stored)
        tensors = training_tensors(self.model, self.model.student, self.optimizer)
        whole = {name: full_tensor(value.detach()).clone() for name, value in tensors.items()}
        if distributed.is_main_process():
            torch.save(whole, self.results / f"{self.job['name']}.loaded.pt")


def main(plan: Path, results: Path) -> None:
    import dinov2.train.train as training

    training.Trainer = WatchedTrainer  # pyright: ignore[reportPrivateImportUsage]
    diary = {}
    with distributed.session():
        for job in json.loads(plan.read_text()):
            WatchedTrainer.job, WatchedTrainer.results, WatchedTrainer.samples = job, results, {}
            status = run(job["arguments"])
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            diary[job["name"]] = {"status": status, "samples": WatchedTrainer.samples}
            (results / f"{distributed.get_global_rank()}.json").write_text(json.dumps(diary))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
