"""The animal: the numbers that make one dog different from another, shared by all views of its study.

`studies.sample_study` draws an `Anatomy`; `trunk`, `anatomy_bones` and `anatomy_viscera` build the body from it.
Lengths are in units of the trunk length (T1 to T13) unless a name says millimetres.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Anatomy:
    """One dog without its findings.

    Chest depth and half width share a conformation factor: deep and narrow sighthounds to round bulldogs.
    """

    trunk_length_mm: float
    chest_depth: float
    chest_half_width: float
    body_condition: float
    """-1.5 (lean) to 2.2 (obese)."""
    fat_thickness: float
    muscle_thickness: float
    spine_curve: tuple[float, ...]
    """Height offsets of the five inner knots of the thoracolumbar spine."""
    heart_scale: float
    heart_tilt: float
    """Angle of the heart's long axis to the spine in the lateral view, radians."""
    heart_x: float
    left_atrium_fullness: float
    diaphragm_x: float
    lung_density: float
    """Soft tissue per volume of aerated lung."""
    bone_density: float
    cartilage_calcification: float
    rib_radius: float
    liver_scale: float
    stomach_scale: float
    stomach_gas: float
    vessel_scale: float
    vessel_seed: int
    bowel_seed: int
    has_microchip: bool


def sample_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw a dog between toy and giant breed; the median trunk is 215 mm long."""
    conformation = rng.normal()
    condition = float(np.clip(rng.normal(0.0, 0.8), -1.5, 2.2))
    return Anatomy(
        trunk_length_mm=float(np.clip(np.exp(rng.normal(np.log(215.0), 0.24)), 110.0, 330.0)),
        chest_depth=float(0.69 * np.exp(0.07 * conformation + 0.04 * rng.normal())),
        chest_half_width=float(0.315 * np.exp(-0.09 * conformation + 0.04 * rng.normal())),
        body_condition=condition,
        fat_thickness=float(0.022 * np.exp(0.75 * condition)),
        muscle_thickness=float(0.05 * np.exp(0.1 * rng.normal())),
        spine_curve=tuple(rng.normal(0.0, 0.015, 5).tolist()),
        # Half axes of .218 and .158 at scale 1 give a vertebral heart score of about 9.7, the canine reference.
        heart_scale=float(np.exp(rng.normal(0.0, 0.035))),
        heart_tilt=float(np.deg2rad(rng.normal(42.0, 5.0))),
        heart_x=float(rng.normal(0.40, 0.015)),
        left_atrium_fullness=float(rng.uniform(0.0, 0.25)),
        diaphragm_x=float(rng.normal(0.0, 0.02)),
        lung_density=float(np.clip(rng.normal(0.27, 0.03), 0.2, 0.36)),
        bone_density=float(np.exp(rng.normal(0.0, 0.12))),
        cartilage_calcification=float(rng.uniform(0.05, 0.5)),
        rib_radius=float(0.0125 * np.exp(0.1 * rng.normal())),
        liver_scale=float(np.exp(rng.normal(0.0, 0.05))),
        stomach_scale=float(np.exp(rng.normal(-0.05, 0.15))),
        stomach_gas=float(rng.beta(1.3, 2.5)),
        vessel_scale=float(np.exp(rng.normal(0.0, 0.12))),
        vessel_seed=int(rng.integers(1 << 31)),
        bowel_seed=int(rng.integers(1 << 31)),
        has_microchip=bool(rng.uniform() < 0.5),
    )
