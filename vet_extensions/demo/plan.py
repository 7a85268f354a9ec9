"""What the demo does, in numbers: the full one and the quick one."""

from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vet_extensions.evaluation.suite_config import SuiteConfig

ARMS = ("same_image", "vet_dino")
"""The two arms, named after their routing; both take the same number of steps and see the same number of crops."""


@dataclass(frozen=True)
class DemoPlan:
    """One demo. Sizes in pixels; `steps` are optimisation steps of each pre-training run."""

    n_studies: int
    image_px: int
    split_fractions: tuple[float, float, float]
    seeds: tuple[int, ...]
    epochs: int
    epoch_length: int
    n_curve_points: int
    n_resamples: int

    @property
    def steps(self) -> int:
        """Steps of each run; `epochs` is fixed by the configurations, the length of an epoch by the plan."""
        return self.epochs * self.epoch_length

    @property
    def runs(self) -> list[tuple[str, int]]:
        """(arm, seed) of every pre-training run, seed by seed so that arms stay paired if the demo is stopped."""
        return [(arm, seed) for seed in self.seeds for arm in ARMS]

    def shorten(self, suite: "SuiteConfig") -> "SuiteConfig":
        """The suite with this plan's number of bootstrap resamples."""
        return replace(suite, bootstrap=replace(suite.bootstrap, n_resamples=self.n_resamples))


FULL = DemoPlan(
    n_studies=3200,
    image_px=128,
    split_fractions=(0.625, 0.125, 0.25),
    seeds=(0, 1),
    epochs=6,
    epoch_length=40,
    n_curve_points=4,
    n_resamples=1000,
)
QUICK = DemoPlan(
    n_studies=800,
    image_px=128,
    split_fractions=(0.625, 0.125, 0.25),
    seeds=(0,),
    epochs=6,
    epoch_length=20,
    n_curve_points=3,
    n_resamples=300,
)


def config_path(arm: str) -> Path:
    """The packaged training configuration of an arm."""
    return Path(str(files("vet_extensions.demo") / "configs" / f"{arm}.yaml"))


def suite_path() -> Path:
    """The packaged evaluation suite."""
    return Path(str(files("vet_extensions.demo") / "configs" / "suite.yaml"))
