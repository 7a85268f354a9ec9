"""Everything a ray can meet: one animal at one moment, built from its anatomy, its lesions and the exposure.

`render` projects a `Scene`; `studies` reads its landmarks.
"""

from dataclasses import dataclass

import numpy as np

from vet_extensions.phantom.anatomy import Anatomy
from vet_extensions.phantom.anatomy_bones import add_skeleton
from vet_extensions.phantom.anatomy_viscera import REFERENCE_DEPTH, REFERENCE_HALF_WIDTH, add_abdomen, add_chest
from vet_extensions.phantom.exposure import Exposure
from vet_extensions.phantom.findings import Lesions
from vet_extensions.phantom.primitives import Ellipsoids, SceneBuilder, Segments
from vet_extensions.phantom.trunk import Trunk, build_trunk


@dataclass(frozen=True)
class Haze:
    """A consolidated lobe: a Gaussian cloud of soft tissue in the lung. centre [3] and radius (one sigma) in mm; soft per mm."""

    centre: np.ndarray
    radius: float
    soft: float


@dataclass(frozen=True)
class Scene:
    """trunk in trunk lengths (`unit_mm` each), the rest in mm. effusion, pneumothorax: how far the lung retracts."""

    unit_mm: float
    trunk: Trunk
    ellipsoids: Ellipsoids
    segments: Segments
    haze: Haze | None
    effusion: float
    pneumothorax: float
    landmarks: dict[str, np.ndarray]


def build_scene(anatomy: Anatomy, lesions: Lesions, exposure: Exposure, *, is_fine: bool = False) -> Scene:
    """Build the animal as it lies for this exposure. is_fine: with marrow cavities of their own, for large images."""
    unit_mm = anatomy.trunk_length_mm
    trunk = build_trunk(anatomy, lesions, exposure)
    builder = SceneBuilder(unit_mm=unit_mm, is_fine=is_fine)
    landmarks = dict(trunk.landmarks)
    landmarks |= add_skeleton(builder, trunk, anatomy, lesions, exposure)
    landmarks |= add_chest(builder, trunk, anatomy, lesions)
    landmarks |= add_abdomen(builder, trunk, anatomy, lesions, exposure)
    haze = None
    if lesions.consolidation is not None:
        lobe = lesions.consolidation
        y = lobe.y * anatomy.chest_half_width / REFERENCE_HALF_WIDTH
        z = float(trunk.spine_height(lobe.x)) + lobe.z * anatomy.chest_depth / REFERENCE_DEPTH
        landmarks["consolidation"] = np.array([lobe.x, y, z])
        haze = Haze(
            centre=landmarks["consolidation"] * unit_mm,
            radius=lobe.radius * unit_mm,
            soft=(1 - trunk.lung_density) * lobe.density,
        )
    return Scene(
        unit_mm=unit_mm,
        trunk=trunk,
        ellipsoids=builder.ellipsoids(),
        segments=builder.segments(),
        haze=haze,
        effusion=lesions.effusion,
        pneumothorax=lesions.pneumothorax,
        landmarks={name: np.asarray(point, dtype=float) * unit_mm for name, point in landmarks.items()},
    )
