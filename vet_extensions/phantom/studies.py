"""Studies of the synthetic archive: one animal, its findings, and its views with their exposures.

`sample_study` is the way in: everything about study `number` follows from (seed, number) alone, in any order and any
process. `render` makes images of a study, `archive` writes it as DICOM, `truth` writes down what is known about it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np

from vet_extensions.errors import UserError
from vet_extensions.phantom.anatomy import Anatomy, sample_anatomy
from vet_extensions.phantom.anatomy_bones import rib_name, vertebra_name
from vet_extensions.phantom.exposure import FRONTAL_VIEWS, LATERAL_VIEWS, PHANTOM_VIEWS, Exposure, sample_exposure
from vet_extensions.phantom.findings import Lesions, sample_lesions, sample_presence
from vet_extensions.phantom.scene import Scene, build_scene
from vet_extensions.schema import FINDINGS, View

LANDMARKS = (
    *(vertebra_name(k) for k in range(-2, 16)),
    *(f"sternebra_{k}" for k in range(1, 9)),
    *(rib_name(side, rib) for side in (0, 1) for rib in (2, 5, 8, 11)),
    *("thoracic_inlet", "carina", "heart_centre", "heart_apex", "heart_base", "left_atrium"),
    *("diaphragm_cupola", "liver", "stomach", "spleen", "kidney_right", "kidney_left"),
)
"""The 46 points that every animal has: C6 to L3, the sternebrae, the middle of four ribs a side, and the organs."""

# Where the findings sit: landmark names, or their prefixes where there can be several.
_FINDING_LANDMARKS = {
    "cardiomegaly": "heart_centre",
    "megaesophagus": "esophagus",
    "consolidation": "consolidation",
    "hepatomegaly": "liver",
    "nodule": "nodule_",
    "foreign_body": "foreign_body",
    "rib_fracture": "fracture_",
    "spondylosis": "spur_",
}


class _Stream(IntEnum):
    """Independent random streams of a study. Numbers are part of the archive's identity: never reorder them."""

    ANATOMY = 0
    PRESENCE = 1
    LESIONS = 2
    VIEWS = 3
    EXPOSURE = 4


@dataclass(frozen=True)
class PhantomStudy:
    """One synthetic study. findings: every name of `schema.FINDINGS`; lesions: the same in numbers."""

    seed: int
    number: int
    anatomy: Anatomy
    lesions: Lesions
    findings: dict[str, bool]
    exposures: tuple[Exposure, ...]

    @property
    def trunk_length_mm(self) -> float:
        """First to last thoracic vertebra; the phantom's measure of body size."""
        return self.anatomy.trunk_length_mm


def sample_study(
    seed: int,
    number: int,
    *,
    profile: str = "balanced",
    views: Sequence[str] | None = None,
    findings: Mapping[str, bool] | None = None,
    shared_exposure: bool = False,
) -> PhantomStudy:
    """Draw study `number` of the archive `seed`.

    profile: "balanced" (each finding in 15 % of animals) or "clinical" (2 to 10 %); findings are independent of each
    other. views: which to take, in this order; by default one lateral and one frontal, drawn at random. findings:
    overrules the draw for the findings it names and changes nothing else about the animal. shared_exposure: give all
    views the first view's nuisance variables. A trap for tests: studies can then be told apart by how they were
    exposed, which says nothing about the animal. Raises UserError for an unknown profile, view or finding, or a
    negative seed or number.
    """
    if seed < 0 or number < 0:
        raise UserError(f"Seed and study number must be 0 or more, got seed {seed} and number {number}.")
    present = sample_presence(_generator(seed, number, _Stream.PRESENCE), profile=profile, forced=findings)
    lesions = sample_lesions(
        present, stream=lambda name: _generator(seed, number, _Stream.LESIONS, FINDINGS.index(name))
    )
    chosen = _choose_views(views, _generator(seed, number, _Stream.VIEWS))
    exposures = []
    for place, view in enumerate(chosen):
        repeat = chosen[:place].count(view)  # a view taken twice is two exposures
        stream = (_Stream.EXPOSURE, PHANTOM_VIEWS.index(view), repeat)
        exposures.append(sample_exposure(view, rng=_generator(seed, number, *stream)))
    if shared_exposure:
        exposures = [replace(exposures[0], view=view) for view in chosen]
    return PhantomStudy(
        seed=seed,
        number=number,
        anatomy=sample_anatomy(_generator(seed, number, _Stream.ANATOMY)),
        lesions=lesions,
        findings=present,
        exposures=tuple(exposures),
    )


def study_scene(study: PhantomStudy, exposure: Exposure, *, is_fine: bool = False) -> Scene:
    """The animal as it lies for one exposure."""
    return build_scene(study.anatomy, study.lesions, exposure, is_fine=is_fine)


def landmarks_mm(study: PhantomStudy, exposure: Exposure) -> dict[str, np.ndarray]:
    """The 46 `LANDMARKS` in the body frame, [3] in mm each. Breathing, heart beat and lying side move some of them."""
    known = study_scene(study, exposure).landmarks
    return {name: known[name] for name in LANDMARKS}


def finding_centroids_mm(
    study: PhantomStudy, exposure: Exposure | None = None
) -> dict[str, list[tuple[float, float, float]]]:
    """Where the findings that are present sit in the body frame, in mm; one point per nodule, fracture and spur.

    Without an exposure: as in a textbook VD view at rest. Effusion and pneumothorax lie all round the lung; their
    point is the middle of each half of the chest.
    """
    landmarks = study_scene(study, exposure or Exposure(view=View.VD)).landmarks
    return centroids_of(study, landmarks)


def centroids_of(
    study: PhantomStudy, landmarks: Mapping[str, np.ndarray]
) -> dict[str, list[tuple[float, float, float]]]:
    """`finding_centroids_mm` from a scene's landmarks."""
    centroids: dict[str, list[tuple[float, float, float]]] = {}
    for name in (name for name in FINDINGS if study.findings[name]):
        if name in ("effusion", "pneumothorax"):
            points = [landmarks["pleura_right"], landmarks["pleura_left"]]
        else:
            stem = _FINDING_LANDMARKS[name]
            points = [
                point for key, point in landmarks.items() if key == stem or (stem[-1] == "_" and key.startswith(stem))
            ]
        centroids[name] = [(float(x), float(y), float(z)) for x, y, z in points]
    return centroids


def _generator(seed: int, number: int, *stream: int) -> np.random.Generator:
    return np.random.default_rng([seed, number, *stream])


def _choose_views(views: Sequence[str] | None, rng: np.random.Generator) -> list[View]:
    lateral, frontal = LATERAL_VIEWS[rng.integers(2)], FRONTAL_VIEWS[rng.integers(2)]
    if views is None:
        return [lateral, frontal]
    allowed = {view.value: view for view in PHANTOM_VIEWS}
    unknown = [str(view) for view in views if str(view) not in allowed]
    if unknown or not views:
        got = f"Unknown phantom view {unknown[0]!r}." if unknown else "No view was asked for."
        raise UserError(f"{got} Allowed: {', '.join(allowed)}.")
    return [allowed[str(view)] for view in views]
