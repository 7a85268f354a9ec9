"""Small tools at the bottom of the package: seeds, the source revision, the cosine schedule; and the names for loading weights.

Called by training, evaluation and the hub. The official package has `load_pretrained_weights` here; `weights` does the work.
"""

import random
import subprocess
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dinov2.utils.errors import UserError
from dinov2.utils.weight_files import read_checkpoint
from dinov2.utils.weights import LoadReport, load_pretrained_weights

__all__ = [
    "CosineScheduler",
    "LoadReport",
    "fix_random_seeds",
    "get_sha",
    "has_batchnorms",
    "load_pretrained_weights",
    "read_checkpoint",
]


def fix_random_seeds(seed: int = 31) -> None:
    """Seed torch (every device), numpy's global generator and Python's."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - third-party code draws from the global generator
    random.seed(seed)


def get_sha() -> str:
    """One line with the git commit, state and branch of this source; `N/A` where there is no repository."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        sha, branch = git("rev-parse", "HEAD"), git("rev-parse", "--abbrev-ref", "HEAD")
        state = "has uncommitted changes" if git("diff-index", "HEAD") else "clean"
    except (OSError, subprocess.CalledProcessError):
        sha, state, branch = "N/A", "clean", "N/A"
    return f"sha: {sha}, status: {state}, branch: {branch}"


class CosineScheduler:
    """A value per iteration: zeros while frozen, a linear warm-up, then half a cosine down to the final value.

    Indexing beyond the end gives `final_value`. The warm-up includes its end point, so `base_value` appears twice.
    """

    def __init__(
        self,
        base_value: float,
        final_value: float,
        total_iters: int,
        warmup_iters: int = 0,
        start_warmup_value: float = 0,
        freeze_iters: int = 0,
    ) -> None:
        self.final_value = np.float64(final_value)
        self.total_iters = total_iters
        n_cosine = total_iters - warmup_iters - freeze_iters
        if n_cosine < 0:
            raise UserError(
                f"A schedule of {total_iters} iterations cannot hold {freeze_iters} frozen and {warmup_iters} warm-up "
                "iterations. Train longer, or shorten the warm-up or the freeze."
            )
        warmup = np.linspace(start_warmup_value, base_value, warmup_iters)
        phase = np.pi * np.arange(n_cosine) / max(n_cosine, 1)
        cosine = final_value + 0.5 * (base_value - final_value) * (1 + np.cos(phase))
        self.schedule = np.concatenate((np.zeros(freeze_iters), warmup, cosine))

    def __getitem__(self, iteration: int) -> np.float64:
        return self.final_value if iteration >= self.total_iters else self.schedule[iteration]


def has_batchnorms(model: nn.Module) -> bool:
    """Whether any submodule keeps batch statistics."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    return any(isinstance(module, kinds) for module in model.modules())
