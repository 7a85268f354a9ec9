"""The trunk of one animal at one moment: body wall, chest cavity, lungs, diaphragm, heart and mediastinum.

`scene.build_scene` makes a `Trunk` first; bones and viscera then hang on its tables, and `composition` combines its
large bodies without counting any tissue twice. Lengths in trunk lengths; breathing, heart beat and gravity come from
the exposure.
"""

from dataclasses import dataclass

import numpy as np

from vet_extensions.phantom.anatomy import Anatomy
from vet_extensions.phantom.camera import rotation
from vet_extensions.phantom.exposure import Exposure
from vet_extensions.phantom.findings import Lesions
from vet_extensions.phantom.lofts import STATIONS, Loft, at_x, profile
from vet_extensions.phantom.primitives import frames_along
from vet_extensions.schema import View

ABDOMINAL_FAT_CONTRAST = 0.80
"""Share by which abdominal organs differ from the fat and folded bowel around them."""

_SPINE_X = (-0.9, -0.55, -0.15, 0.05, 0.4, 0.8, 1.2, 1.8, 2.3)
_SPINE_Z = (0.16, 0.04, -0.085, -0.075, 0.0, 0.02, 0.0, -0.03, -0.1)
_DEPTH_X = (-0.9, -0.3, -0.1, 0.1, 0.35, 0.6, 0.8, 1.1, 1.5, 2.3)
_DEPTH = (0.30, 0.30, 0.42, 0.62, 0.88, 1.0, 1.02, 0.94, 0.82, 0.62)  # of the chest depth, at _DEPTH_X
_WIDTH_X = (-0.9, -0.35, -0.1, 0.1, 0.4, 0.7, 1.0, 1.4, 1.8, 2.3)
_WIDTH = (0.46, 0.46, 0.50, 0.68, 0.95, 1.08, 1.12, 1.08, 0.95, 0.8)  # of the chest half width, at _WIDTH_X
_EPAXIAL_HEIGHT = 0.165  # muscle and spinous processes above the cavity's roof
_SKIN_THICKNESS = 0.008


@dataclass(frozen=True)
class Solid:
    """One ellipsoid: centre [3], half axes [3], frame [3, 3] whose columns are its axes; trunk lengths."""

    centre: np.ndarray
    half_axes: np.ndarray
    frame: np.ndarray

    def is_clear_of(self, points: np.ndarray, margin: float) -> np.ndarray:
        """[n] whether points [n, 3] lie outside the ellipsoid with its half axes grown by `margin`."""
        inside = (points - self.centre) @ self.frame / (self.half_axes + margin)
        return np.einsum("nk,nk->n", inside, inside) > 1


@dataclass(frozen=True)
class Trunk:
    """The large bodies. `lung` is None where the lung fills the chest; the costal plane n.p < offset parts chest from belly."""

    spine: np.ndarray
    skin: Loft
    muscle: Loft
    cavity: Loft
    lung: Loft | None
    lung_edge: Loft
    lung_density: float
    costal_normal: np.ndarray
    costal_offset: float
    diaphragm: Solid
    heart: Solid
    atria: Solid
    mediastinum: Solid
    diaphragm_shift: float
    landmarks: dict[str, np.ndarray]

    def into_lung(self, point: np.ndarray, radius: float) -> np.ndarray:
        """The point [3], moved towards the middle of its own lung until a ball of this radius meets no heart, dome or belly."""
        x, side = 0.5, np.sign(point[1])
        half_width = float(at_x(self.lung_edge.half_width, x))
        refuge = np.array([x, side * 0.65 * half_width, float(at_x(self.lung_edge.centre, x))])
        way = point + np.linspace(0.0, 1.0, 41)[:, None] * (refuge - point)
        is_clear = way @ self.costal_normal < self.costal_offset - radius
        for solid in (self.diaphragm, self.heart, self.atria):
            is_clear &= solid.is_clear_of(way, radius)
        return way[np.argmax(is_clear)] if is_clear.any() else refuge

    def spine_height(self, x: np.ndarray | float) -> np.ndarray:
        """Height of the vertebral bodies' axis at x."""
        return at_x(self.spine, x)


def build_trunk(anatomy: Anatomy, lesions: Lesions, exposure: Exposure) -> Trunk:
    """Shape the trunk for this breath and beat, lying as this view lies."""
    depth, half_width = anatomy.chest_depth, anatomy.chest_half_width
    diaphragm_shift = 0.03 * exposure.inspiration + anatomy.diaphragm_x
    spine_z = np.array(_SPINE_Z)
    spine_z[2:7] += anatomy.spine_curve
    spine = profile(_SPINE_X, spine_z)
    cavity = _cavity(anatomy, exposure, spine)
    muscle, skin = _body_wall(anatomy, cavity)
    lung_edge = _lung_edge(lesions, cavity, is_lateral=exposure.is_lateral)
    is_collapsed = lesions.effusion > 0 or lesions.pneumothorax > 0
    breathing = anatomy.lung_density * (1 - 0.10 * exposure.inspiration)
    heart, atria, heart_axis = _heart(anatomy, lesions, exposure, spine)
    # The costal arch runs from the xiphoid region obliquely back to the last rib's head.
    arch_ventral, arch_dorsal = 0.70 + diaphragm_shift, 1.14 + diaphragm_shift
    normal = np.array([1.0, 0.0, -(arch_dorsal - arch_ventral) / depth])
    dome_centre = np.array([0.985 + diaphragm_shift, 0.0, -0.50 * depth - 0.02])
    dome = Solid(dome_centre, np.array([0.36, half_width * 1.22, 0.62 * depth]), rotation(0.0, np.deg2rad(-24.0), 0.0))
    mediastinum_width = 0.022 + 0.014 * max(anatomy.body_condition, 0.0)  # obese dogs have a wide one
    mediastinum = Solid(
        np.array([0.12, 0.0, float(at_x(spine, 0.12)) - 0.30 * depth]),
        np.array([0.26, mediastinum_width, 0.20 * depth]),
        np.eye(3),
    )
    return Trunk(
        spine=spine,
        skin=skin,
        muscle=muscle,
        cavity=cavity,
        lung=lung_edge if is_collapsed else None,
        lung_edge=lung_edge,
        lung_density=breathing * (1 + 1.1 * lesions.effusion + 1.6 * lesions.pneumothorax),
        costal_normal=normal,
        costal_offset=float(normal @ (arch_ventral, 0.0, -depth)),
        diaphragm=dome,
        heart=heart,
        atria=atria,
        mediastinum=mediastinum,
        diaphragm_shift=diaphragm_shift,
        landmarks={
            "heart_centre": heart.centre,
            "heart_apex": heart.centre + heart_axis * heart.half_axes[0],
            "heart_base": heart.centre - heart_axis * heart.half_axes[0] * 0.8,
            "left_atrium": atria.centre,
            "diaphragm_cupola": dome_centre - np.array([0.36, 0.0, 0.0]),
            "pleura_right": _chest_side(cavity, side=-1),
            "pleura_left": _chest_side(cavity, side=1),
        },
    )


def _chest_side(cavity: Loft, *, side: int) -> np.ndarray:
    """The middle of one half of the chest."""
    x = 0.5
    return np.array([x, side * 0.5 * float(at_x(cavity.half_width, x)), float(at_x(cavity.centre, x))])


def _cavity(anatomy: Anatomy, exposure: Exposure, spine: np.ndarray) -> Loft:
    """The serosal cavity, chest and belly in one; its roof is just above the vertebral bodies' axis."""
    depth = profile(_DEPTH_X, _DEPTH) * anatomy.chest_depth
    width = profile(_WIDTH_X, _WIDTH) * anatomy.chest_half_width * (1 + 0.03 * exposure.inspiration)
    return Loft(centre=spine - 0.40 * depth, half_width=width, above=0.40 * depth + 0.005, below=0.60 * depth)


def _body_wall(anatomy: Anatomy, cavity: Loft) -> tuple[Loft, Loft]:
    """Muscle and skin around the cavity; the ventral wall thickens behind the sternum, where the fat pad thins."""
    muscle, fat = anatomy.muscle_thickness, anatomy.fat_thickness
    is_belly = 1 / (1 + np.exp((0.85 - STATIONS) / 0.07))
    muscle_below = cavity.below + muscle * (0.9 + 0.5 * is_belly)
    wall = Loft(cavity.centre, cavity.half_width + 0.9 * muscle, cavity.above + _EPAXIAL_HEIGHT, muscle_below)
    skin = Loft(
        cavity.centre,
        wall.half_width + 1.1 * fat + _SKIN_THICKNESS,
        wall.above + 0.7 * fat + _SKIN_THICKNESS,
        muscle_below + fat * 1.3 * (1.3 - 0.3 * is_belly) + _SKIN_THICKNESS,
    )
    return wall, skin


def _lung_edge(lesions: Lesions, cavity: Loft, *, is_lateral: bool) -> Loft:
    """The lung's surface: the cavity less a film of fluid; retracted by effusion (most ventrally) and by free air.

    Lying on its side, the animal's free air gathers under the upper ribs and lifts the lung and heart off the sternum.
    """
    fluid, air = lesions.effusion, lesions.pneumothorax
    sideways = 1 - 0.55 * fluid - 0.75 * air
    upwards = 1 - 0.35 * fluid - 0.70 * air
    downwards = 1 - 1.25 * fluid - (0.90 if is_lateral else 0.50) * air
    return Loft(
        cavity.centre,
        np.maximum(cavity.half_width * sideways - 0.006, 0.01),
        cavity.above * upwards,
        np.maximum(cavity.below * downwards - 0.004, 0.01),
    )


def _heart(
    anatomy: Anatomy, lesions: Lesions, exposure: Exposure, spine: np.ndarray
) -> tuple[Solid, Solid, np.ndarray]:
    """Ventricles, atria and the unit long axis from base to apex."""
    depth = anatomy.chest_depth
    scale = anatomy.heart_scale * lesions.heart_enlargement * (1 + exposure.heart_phase)
    long_half = 0.218 * scale
    short_half = 0.158 * scale * (1 + 0.25 * (lesions.heart_enlargement - 1))
    axis = np.array([np.cos(anatomy.heart_tilt), 0.22, -np.sin(anatomy.heart_tilt)])
    axis /= np.linalg.norm(axis)
    sinks_left = {View.LATERAL_LEFT: 0.012, View.LATERAL_RIGHT: -0.012}.get(exposure.view, 0.0)
    lift = 0.35 * lesions.pneumothorax if exposure.is_lateral else 0.0
    centre = np.array(
        [
            anatomy.heart_x + 0.02 * exposure.inspiration,
            0.012 + sinks_left,
            float(at_x(spine, 0.40)) - 0.625 * depth + lift + 0.01 * (scale - 1),
        ]
    )
    if lesions.heart_enlargement > 1:  # the sternum is in the way, so the large heart grows up and back
        centre += (scale - 1) * np.array([0.02, 0.0, 0.05])
    half_axes = np.array([long_half, min(0.98 * short_half, 0.75 * anatomy.chest_half_width), 1.02 * short_half])
    heart = Solid(centre, half_axes, frames_along(axis)[0])
    fullness = anatomy.left_atrium_fullness if lesions.left_atrium is None else lesions.left_atrium
    atria = Solid(
        centre + np.array([0.02 + 0.07 * fullness, 0.01, 0.085 * scale + 0.05 * fullness]),
        np.array([0.115, 0.105, 0.085]) * scale * (1 + 0.22 * fullness),
        np.eye(3),
    )
    return heart, atria, axis
