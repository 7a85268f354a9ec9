"""The ten findings: how often they occur, and the size and place each takes in one animal.

`studies.sample_study` calls `sample_presence`, then `sample_lesions`. Every finding draws from its own stream, so
that switching one on or off leaves the dog, its other findings and its exposures as they were.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np

from vet_extensions.errors import UserError
from vet_extensions.schema import FINDINGS

PROFILES: dict[str, dict[str, float]] = {
    "balanced": dict.fromkeys(FINDINGS, 0.15),
    "clinical": {
        "cardiomegaly": 0.10,
        "effusion": 0.06,
        "pneumothorax": 0.02,
        "megaesophagus": 0.02,
        "consolidation": 0.08,
        "hepatomegaly": 0.08,
        "nodule": 0.06,
        "foreign_body": 0.04,
        "rib_fracture": 0.03,
        "spondylosis": 0.10,
    },
}
"""Prevalence of each finding; findings are independent. "balanced" is for statistical power, "clinical" for rarity."""


class ForeignBodyKind(Enum):
    STONE = 0
    COIN = 1
    BONE = 2
    NEEDLE = 3


@dataclass(frozen=True)
class Nodule:
    """x and radius in trunk lengths; lateral and vertical as fractions of the lung's half width and height there."""

    x: float
    lateral: float
    vertical: float
    radius: float


@dataclass(frozen=True)
class Consolidation:
    """A lobe that lost its air. y and z are for a chest of average width and depth; density is the share of lung made solid."""

    x: float
    y: float
    z: float
    radius: float
    density: float


@dataclass(frozen=True)
class ForeignBody:
    """Something swallowed. offset: place in the stomach, in stomach half axes."""

    kind: ForeignBodyKind
    direction: tuple[float, ...]
    radius: float
    offset: tuple[float, ...]


@dataclass(frozen=True)
class RibFracture:
    """side 0 = right, 1 = left; rib 0..12; fraction of the way down the rib; displacement of the lower end in trunk lengths."""

    side: int
    rib: int
    fraction: float
    displaced_caudal: float
    displaced_dorsal: float


@dataclass(frozen=True)
class Spur:
    """Ventral bridging bone caudal to a vertebra (0 = T1); size in trunk lengths."""

    vertebra: int
    size: float


@dataclass(frozen=True)
class Lesions:
    """What the findings of one animal are in numbers; the defaults are an animal without any.

    heart_enlargement and liver_enlargement are linear factors; effusion and pneumothorax the share by which the lung
    retracts; left_atrium is None where the animal's own fullness holds.
    """

    heart_enlargement: float = 1.0
    left_atrium: float | None = None
    effusion: float = 0.0
    pneumothorax: float = 0.0
    megaesophagus_radius: float = 0.0
    consolidation: Consolidation | None = None
    liver_enlargement: float = 1.0
    nodules: tuple[Nodule, ...] = ()
    foreign_body: ForeignBody | None = None
    rib_fractures: tuple[RibFracture, ...] = ()
    spurs: tuple[Spur, ...] = ()


def sample_presence(
    rng: np.random.Generator, *, profile: str, forced: Mapping[str, bool] | None = None
) -> dict[str, bool]:
    """Which findings an animal has: drawn with the profile's prevalences, then overruled by `forced`."""
    if profile not in PROFILES:
        raise UserError(f"Unknown phantom profile {profile!r}. Allowed: {', '.join(PROFILES)}.")
    unknown = sorted(set(forced or ()) - set(FINDINGS))
    if unknown:
        raise UserError(f"Unknown finding {unknown[0]!r}. Allowed: {', '.join(FINDINGS)}.")
    draws = rng.uniform(size=len(FINDINGS))
    present = {name: bool(draw < PROFILES[profile][name]) for name, draw in zip(FINDINGS, draws)}
    return present | {name: bool(value) for name, value in (forced or {}).items()}


def sample_lesions(present: Mapping[str, bool], *, stream: Callable[[str], np.random.Generator]) -> Lesions:
    """Numbers for the findings that are present. `stream(finding)` gives each its own generator."""
    lesions: dict[str, object] = {}
    for name, sample in _SAMPLERS.items():
        if present[name]:
            lesions |= sample(stream(name))
    return Lesions(**lesions)  # type: ignore[arg-type]  # keys are the field names, set by the samplers below


def _cardiomegaly(rng: np.random.Generator) -> dict[str, object]:
    return {"heart_enlargement": float(rng.uniform(1.16, 1.38)), "left_atrium": float(rng.uniform(0.6, 1.0))}


def _effusion(rng: np.random.Generator) -> dict[str, object]:
    return {"effusion": float(rng.uniform(0.12, 0.34))}


def _pneumothorax(rng: np.random.Generator) -> dict[str, object]:
    return {"pneumothorax": float(rng.uniform(0.14, 0.34))}


def _megaesophagus(rng: np.random.Generator) -> dict[str, object]:
    return {"megaesophagus_radius": float(rng.uniform(0.05, 0.10))}


def _consolidation(rng: np.random.Generator) -> dict[str, object]:
    x, y, z = ((0.22, 0.10, -0.42), (0.45, 0.17, -0.52), (0.75, 0.16, -0.25))[
        rng.integers(3)
    ]  # the three lobes of a side
    return {
        "consolidation": Consolidation(
            x=float(x + 0.03 * rng.normal()),
            y=float(y * rng.choice((-1, 1))),
            z=z,
            radius=float(rng.uniform(0.08, 0.13)),
            density=float(rng.uniform(0.45, 0.85)),
        )
    }


def _hepatomegaly(rng: np.random.Generator) -> dict[str, object]:
    return {"liver_enlargement": float(rng.uniform(1.22, 1.5))}


def _nodules(rng: np.random.Generator) -> dict[str, object]:
    count = int(rng.choice((1, 1, 1, 2, 3, 6)))
    radius_range = (
        (0.03, 0.085) if count == 1 else (0.022, 0.042)
    )  # a single mass is larger than one metastasis of many
    return {
        "nodules": tuple(
            Nodule(
                x=float(rng.uniform(0.15, 0.95)),
                lateral=float(rng.choice((-1, 1)) * rng.uniform(0.45, 0.75)),
                vertical=float(rng.uniform(-0.35, 0.45)),
                radius=float(rng.uniform(*radius_range)),
            )
            for _ in range(count)
        )
    }


def _foreign_body(rng: np.random.Generator) -> dict[str, object]:
    direction = rng.normal(size=3)
    return {
        "foreign_body": ForeignBody(
            kind=ForeignBodyKind(int(rng.integers(4))),
            direction=tuple((direction / np.linalg.norm(direction)).tolist()),
            radius=float(rng.uniform(0.03, 0.06)),
            offset=tuple(rng.uniform(-0.4, 0.4, 3).tolist()),
        )
    }


def _rib_fractures(rng: np.random.Generator) -> dict[str, object]:
    side, first, count = int(rng.integers(2)), int(rng.integers(3, 9)), int(rng.integers(1, 4))
    fraction = rng.uniform(0.3, 0.75)  # neighbouring ribs break along one line
    return {
        "rib_fractures": tuple(
            RibFracture(
                side=side,
                rib=rib,
                fraction=float(fraction + 0.03 * rng.normal()),
                displaced_caudal=float(rng.uniform(0.018, 0.045) * rng.choice((-1, 1))),
                displaced_dorsal=float(rng.uniform(-0.04, 0.04)),
            )
            for rib in range(first, first + count)
        )
    }


def _spurs(rng: np.random.Generator) -> dict[str, object]:
    first, count = int(rng.integers(7, 14)), int(rng.integers(2, 6))
    return {"spurs": tuple(Spur(k, float(rng.uniform(0.014, 0.026))) for k in range(first, first + count))}


_SAMPLERS: dict[str, Callable[[np.random.Generator], dict[str, object]]] = {
    "cardiomegaly": _cardiomegaly,
    "effusion": _effusion,
    "pneumothorax": _pneumothorax,
    "megaesophagus": _megaesophagus,
    "consolidation": _consolidation,
    "hepatomegaly": _hepatomegaly,
    "nodule": _nodules,
    "foreign_body": _foreign_body,
    "rib_fracture": _rib_fractures,
    "spondylosis": _spurs,
}
