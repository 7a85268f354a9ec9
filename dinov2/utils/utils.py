"""Small tools at the bottom of the package: loading weights, seeds, the source revision, the cosine schedule.

Called by training, evaluation and the hub. Imports nothing of ours but the error type.
"""

import logging
import pickle
import random
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import numpy as np
import torch
from torch import Tensor, nn

from dinov2.utils.errors import UserError

logger = logging.getLogger("dinov2")


@dataclass(frozen=True)
class LoadReport:
    """What came of loading weights: names that matched, names of the model that the file lacks, names it has too many."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        return f"{len(self.matched)} matched, {_named(self.missing)} missing, {_named(self.unexpected)} not used"


def strip_prefix(state: Mapping[str, Any], prefixes: tuple[str, ...] = ("module.", "backbone.")) -> dict[str, Any]:
    """Remove these prefixes from the start of every name, in any order and number; names that merely contain one keep it."""

    def strip(name: str) -> str:
        while match := next((prefix for prefix in prefixes if name.startswith(prefix)), None):
            name = name[len(match) :]
        return name

    return {strip(name): value for name, value in state.items()}


def read_checkpoint(path_or_url: str | Path) -> dict[str, Any]:
    """The dictionary in a weights file, on the CPU; nothing but tensors and plain containers is unpickled.

    Raises `UserError` when the file is absent, unreadable, unsafe to read, or not a dictionary.
    """
    location = str(path_or_url)
    try:
        if urlparse(location).scheme in ("http", "https"):
            content = torch.hub.load_state_dict_from_url(location, map_location="cpu", weights_only=True)
        else:
            content = torch.load(location, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"No weights file '{location}'. Give the path of a file, or an http(s) address.") from None
    except URLError as error:
        raise UserError(
            f"Could not fetch '{location}' ({error.reason}). Download the file where there is a network and give its path."
        ) from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).strip().splitlines()
        raise UserError(
            f"'{location}' is no readable weights file ({reason[0] if reason else type(error).__name__}). Wanted: a file "
            "that torch.save wrote, holding only tensors, numbers and text. It may have been cut off: copy it again, or use "
            "an earlier one."
        ) from error
    if not isinstance(content, Mapping):
        raise UserError(f"'{location}' holds a {type(content).__name__}. Wanted: a dictionary of named tensors.")
    return dict(content)


def load_pretrained_weights(model: nn.Module, pretrained_weights: str | Path, checkpoint_key: str | None) -> LoadReport:
    """Load a weights file into a backbone, and say what matched.

    checkpoint_key: take the dictionary below this key, if the file has it. Leading `module.` and `backbone.` are removed
    from names. A model with a method `adapt_state_dict` may bring the weights to its own layout first. Names the model
    lacks (heads, for example) are left out; raises `UserError` when nothing matches or a shape differs.
    """
    state = read_checkpoint(pretrained_weights)
    if checkpoint_key is not None and checkpoint_key in state:
        logger.info("Take key %s in %s", checkpoint_key, pretrained_weights)
        state = state[checkpoint_key]
    state = {name: value for name, value in strip_prefix(state).items() if isinstance(value, Tensor)}
    adapt: Any = getattr(model, "adapt_state_dict", None)
    if adapt is not None:
        state = adapt(state)
    own = model.state_dict()
    matched = tuple(name for name in own if name in state)
    if not matched:
        raise UserError(
            f"No name in '{pretrained_weights}' matches the model. The file has {_named(tuple(state))}, the model "
            f"{_named(tuple(own))}. Check the architecture and the checkpoint key ('{checkpoint_key}')."
        )
    wrong = [
        f"{n} {tuple(state[n].shape)} for {tuple(own[n].shape)}" for n in matched if state[n].shape != own[n].shape
    ]
    if wrong:
        raise UserError(
            f"{len(wrong)} weights of '{pretrained_weights}' have another shape than the model's: {'; '.join(wrong[:4])}. "
            "Build the model with the architecture, patch size and registers that the file was made with."
        )
    model.load_state_dict(state, strict=False)
    report = LoadReport(
        matched=matched,
        missing=tuple(name for name in own if name not in state),
        unexpected=tuple(name for name in state if name not in own),
    )
    log = logger.warning if report.missing else logger.info
    log("Weights of %s loaded: %s", pretrained_weights, report)
    return report


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


def _named(names: tuple[str, ...], n_shown: int = 4) -> str:
    """`3 (a, b, c)`; long lists are cut."""
    if not names:
        return "0"
    more = ", ..." if len(names) > n_shown else ""
    return f"{len(names)} ({', '.join(names[:n_shown])}{more})"
