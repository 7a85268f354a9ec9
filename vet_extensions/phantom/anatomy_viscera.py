"""The soft organs: airways, vessels, nodules, a dilated oesophagus, and everything behind the diaphragm.

`scene.build_scene` calls `add_chest` and `add_abdomen`. Positions in trunk lengths. Chest structures differ from
aerated lung, abdominal ones from the fat and folded bowel around them, gas from whatever it displaces.
"""

import numpy as np

from vet_extensions.phantom.anatomy import Anatomy
from vet_extensions.phantom.camera import rotation
from vet_extensions.phantom.exposure import Exposure
from vet_extensions.phantom.findings import ForeignBody, ForeignBodyKind, Lesions
from vet_extensions.phantom.lofts import at_x
from vet_extensions.phantom.primitives import Bore, Mix, Part, SceneBuilder, frames_along
from vet_extensions.phantom.trunk import ABDOMINAL_FAT_CONTRAST, Trunk
from vet_extensions.schema import View

REFERENCE_DEPTH, REFERENCE_HALF_WIDTH = 0.7, 0.315
"""The chest for which organ positions are written down; they scale with the animal's own depth and width."""

_ORGAN = Mix(soft=ABDOMINAL_FAT_CONTRAST, fat=-ABDOMINAL_FAT_CONTRAST)
_GAS_IN_ORGAN = Mix(soft=-0.95)
_N_VESSELS = 9  # each side
_N_BOWEL_LOOPS = 11

# Where stomach gas rises to, relative to the stomach's centre: away from the table.
_STOMACH_GAS_OFFSET = {
    View.LATERAL_LEFT: (0.03, -0.11, -0.10),
    View.LATERAL_RIGHT: (-0.01, 0.09, 0.09),
    View.VD: (0.02, -0.02, -0.06),
    View.DV: (0.0, 0.09, 0.05),
}


def add_chest(builder: SceneBuilder, trunk: Trunk, anatomy: Anatomy, lesions: Lesions) -> dict[str, np.ndarray]:
    """Add trachea, bronchi, vessels, nodules and oesophagus; returns `carina`, `thoracic_inlet`, `nodule_<n>`, `esophagus`."""
    solidity = 1 - trunk.lung_density
    trachea = _trachea_points(trunk, anatomy, lesions)
    # Wall and lumen: where the trachea crosses the mediastinum its air replaces more than lung.
    air = Bore(0.82, Mix(soft=-1.5, bone=-0.02), is_thin=True)
    builder.add_tubes(trachea, 0.030 * 1.22, mix=Mix(soft=0.55, bone=0.02), part=Part.TRACHEA, bore=air)
    carina = trachea[-1]
    landmarks = {"carina": carina, "thoracic_inlet": trachea[6]}
    _add_bronchi(builder, trunk, anatomy, carina)
    _add_pulmonary_vessels(builder, anatomy, carina, Mix(soft=0.95 * solidity))
    x = np.linspace(0.36, 1.5, 8)
    aorta_z = trunk.spine_height(x) - 0.075 - 0.05 * np.exp(-(((x - 0.36) / 0.12) ** 2))
    aorta = np.stack([x, 0.035 * np.exp(-3 * (x - 0.36)), aorta_z], axis=1)
    builder.add_tubes(aorta, 0.030, mix=Mix(soft=0.8 * solidity), part=Part.VESSELS)
    depth = anatomy.chest_depth
    vena_cava = np.linspace(
        (0.52, -0.05, float(trunk.spine_height(0.5)) - 0.52 * depth),
        (0.80, -0.06, float(trunk.spine_height(0.8)) - 0.50 * depth),
        4,
    )
    builder.add_tubes(vena_cava, 0.026, mix=Mix(soft=0.85 * solidity), part=Part.VESSELS)
    landmarks |= _add_nodules(builder, trunk, lesions, Mix(soft=0.97 * solidity))
    if lesions.megaesophagus_radius:
        landmarks["esophagus"] = _add_esophagus(builder, trunk, lesions.megaesophagus_radius)
    return landmarks


def _trachea_points(trunk: Trunk, anatomy: Anatomy, lesions: Lesions) -> np.ndarray:
    """Neck to carina, [9, 3]; pushed down by a dilated oesophagus, up by a large heart."""
    x = np.linspace(-0.75, 0.34, 9)
    below_spine = 0.235 * anatomy.chest_depth / REFERENCE_DEPTH * np.clip(0.55 + 1.1 * x, 0.62, 1.02)
    pushed_down = lesions.megaesophagus_radius * np.clip(3 * x + 0.6, 0.2, 1.0)
    pushed_up = 0.06 * (lesions.heart_enlargement - 1) * np.clip(3 * x, 0.0, 1.0)
    z = trunk.spine_height(x) - below_spine - pushed_down + pushed_up
    y = 0.012 * np.clip(-x, -0.2, 0.3) - 0.018 * np.exp(-(((x - 0.15) / 0.12) ** 2))
    z[-1] -= 0.01
    return np.stack([x, y, z], axis=1)


def _add_bronchi(builder: SceneBuilder, trunk: Trunk, anatomy: Anatomy, carina: np.ndarray) -> None:
    ends = []
    for side in (-1, 1):
        for x, lateral, height in ((0.95, 0.50, -0.10), (0.60, 0.62, -0.62), (0.12, 0.55, -0.45)):
            z = float(trunk.spine_height(x)) - 0.40 * anatomy.chest_depth
            z += height * 0.35 * anatomy.chest_depth / REFERENCE_DEPTH
            ends.append((x, side * lateral * anatomy.chest_half_width, z))
    reach = carina + (np.array(ends) - carina) * 0.55
    points = np.linspace(np.broadcast_to(carina, reach.shape), reach, 4, axis=1)
    builder.add_tubes(points, np.linspace(0.016, 0.007, 4), mix=Mix(soft=-trunk.lung_density), part=Part.OTHER)


def _add_pulmonary_vessels(builder: SceneBuilder, anatomy: Anatomy, carina: np.ndarray, mix: Mix) -> None:
    """A fan of bowed vessels from each hilus, each with two branches."""
    rng = np.random.default_rng(anatomy.vessel_seed)
    n = 2 * _N_VESSELS
    side = np.repeat((-1.0, 1.0), _N_VESSELS)
    # In the lateral plane from caudodorsal round to cranioventral.
    fan = np.tile(np.arange(_N_VESSELS) / (_N_VESSELS - 1), 2)
    angle = np.pi * (-0.15 + 1.35 * fan) + 0.12 * rng.normal(size=n)
    length = rng.uniform(0.30, 0.52, n)
    lateral = side * rng.uniform(0.25, 0.85, n) * anatomy.chest_half_width
    way = np.stack([1.05 * np.cos(angle) * length, lateral, -0.72 * np.sin(angle) * length], axis=1)
    hilus = carina + np.stack([np.full(n, 0.03), 0.03 * side, np.full(n, -0.03)], axis=1)
    bow = rng.normal(0.0, 0.03, (n, 3)) * (1.0, 0.4, 1.0)
    t = np.linspace(0.0, 1.0, 6)[None, :, None]
    points = hilus[:, None] + t * way[:, None] + np.sin(np.pi * t) * bow[:, None]
    root = anatomy.vessel_scale * rng.uniform(0.009, 0.0155, n)
    radius = root[:, None] + np.linspace(0.0, 1.0, 6) * (0.003 - root[:, None])
    builder.add_tubes(points, radius, mix=mix, part=Part.VESSELS)
    for branch_at in (2, 3):
        start = points[:, branch_at]
        turn = rng.normal(0.0, 0.07, (n, 3)) * (1.0, 0.6, 1.0)
        end = start + way * rng.uniform(0.3, 0.5, (n, 1)) + turn
        radius = 0.62 * root[:, None] + np.linspace(0.0, 1.0, 4) * (0.0022 - 0.62 * root[:, None])
        builder.add_tubes(np.linspace(start, end, 4, axis=1), radius, mix=mix, part=Part.VESSELS)


def _add_nodules(builder: SceneBuilder, trunk: Trunk, lesions: Lesions, mix: Mix) -> dict[str, np.ndarray]:
    """Round masses. What would lie in the heart or belly is moved into the lung, since it stands out against air alone."""
    lung = trunk.lung_edge
    landmarks = {}
    for number, nodule in enumerate(lesions.nodules):
        half_width = float(at_x(lung.half_width, nodule.x)) * np.sqrt(max(1 - nodule.vertical**2, 0.1))
        height = float(at_x(lung.above if nodule.vertical > 0 else lung.below, nodule.x))
        z = float(at_x(lung.centre, nodule.x)) + nodule.vertical * height
        centre = trunk.into_lung(np.array([nodule.x, nodule.lateral * half_width, z]), nodule.radius)
        builder.add_ellipsoids(centre, nodule.radius * np.array([1.0, 0.95, 1.0]), mix=mix, part=Part.NODULE)
        landmarks[f"nodule_{number}"] = centre
    return landmarks


def _add_esophagus(builder: SceneBuilder, trunk: Trunk, radius: float) -> np.ndarray:
    """A gas-filled tube above the trachea, widest before the diaphragm; returns its middle."""
    x = np.linspace(-0.35, 0.92, 11)
    calibre = np.array([0.5, 0.65, 0.75, 0.8, 0.85, 0.95, 1.0, 1.05, 1.05, 0.9, 0.45])
    points = np.stack([x, np.full(11, 0.02), trunk.spine_height(x) - 0.075 - 0.85 * radius], axis=1)
    builder.add_tubes(points, radius * calibre, mix=Mix(soft=-0.32), part=Part.ESOPHAGUS)
    return points[6]


def add_abdomen(
    builder: SceneBuilder, trunk: Trunk, anatomy: Anatomy, lesions: Lesions, exposure: Exposure
) -> dict[str, np.ndarray]:
    """Add liver, stomach, spleen, kidneys, bowel and bladder; returns their centres and `foreign_body`."""
    depth, half_width = anatomy.chest_depth, anatomy.chest_half_width
    to_width, to_depth = half_width / REFERENCE_HALF_WIDTH, depth / REFERENCE_DEPTH
    breath = 0.02 * exposure.inspiration
    liver_scale = anatomy.liver_scale * lesions.liver_enlargement
    growth = liver_scale - 1
    liver = np.array(
        [0.90 + 0.10 * growth + 1.5 * breath, -0.01, float(trunk.spine_height(0.9)) - 0.60 * depth - 0.03 * growth]
    )
    liver_axes = (0.205 * liver_scale**1.1, 0.88 * half_width * min(liver_scale, 1.1), 0.36 * depth * liver_scale**0.5)
    builder.add_ellipsoids(
        liver, np.array(liver_axes), frame=rotation(0.0, np.deg2rad(-16.0), 0.0), mix=_ORGAN, part=Part.LIVER
    )
    stomach = np.array([1.06 + 0.20 * growth + 1.5 * breath, 0.07, float(trunk.spine_height(1.06)) - 0.50 * depth])
    landmarks = {"liver": liver, "stomach": stomach}
    landmarks |= _add_stomach(builder, anatomy, lesions, exposure, stomach)
    spleen = np.array([1.22 + 0.15 * growth, 0.16 * to_width, float(trunk.spine_height(1.2)) - 0.62 * depth])
    builder.add_ellipsoids(
        spleen, np.array([0.05, 0.06, 0.16]), frame=rotation(0.5, 0.5, 0.0), mix=_ORGAN, part=Part.SPLEEN
    )
    landmarks["spleen"] = spleen
    for name, side, x in (("kidney_right", -1, 1.17), ("kidney_left", 1, 1.30)):
        kidney = np.array([x + breath, side * 0.11, float(trunk.spine_height(x)) - 0.145])
        kidney_axes = np.array([0.088, 0.05, 0.052])
        builder.add_ellipsoids(kidney, kidney_axes, frame=rotation(0.0, 0.12, 0.0), mix=_ORGAN, part=Part.KIDNEYS)
        landmarks[name] = kidney
    _add_small_bowel(builder, trunk, anatomy, exposure)
    colon = np.array(
        [
            (1.30, -0.09, -0.30),
            (1.25, -0.06, -0.36),
            (1.25, 0.06, -0.36),
            (1.4, 0.12, -0.26),
            (1.7, 0.08, -0.20),
            (2.1, 0.02, -0.18),
        ]
    )
    colon[:, 2] = colon[:, 2] * to_depth + float(trunk.spine_height(1.3))
    wall = 0.75 * ABDOMINAL_FAT_CONTRAST
    builder.add_tubes(colon, 0.036, mix=Mix(soft=wall, fat=-wall), part=Part.BOWEL)
    lumen = 0.024 * np.array([0.6, 1.0, 1.0, 0.8, 1.0, 0.6])
    builder.add_tubes(colon, lumen, mix=Mix(soft=-0.45, fat=-0.25), part=Part.GAS)
    bladder = np.array([1.95, 0.0, float(trunk.spine_height(1.9)) - 0.62 * depth])
    builder.add_ellipsoids(bladder, np.array([0.14, 0.08, 0.085]), mix=_ORGAN, part=Part.BLADDER)
    return landmarks


def _add_stomach(
    builder: SceneBuilder, anatomy: Anatomy, lesions: Lesions, exposure: Exposure, centre: np.ndarray
) -> dict[str, np.ndarray]:
    """The stomach with its gas bubble, and what was swallowed; contents drift from one exposure to the next."""
    scale = anatomy.stomach_scale
    to_width = anatomy.chest_half_width / REFERENCE_HALF_WIDTH
    to_depth = anatomy.chest_depth / REFERENCE_DEPTH
    drift = 0.012 * np.array(exposure.gas_drift)
    axes = np.array([0.10, 0.22 * to_width, 0.20 * to_depth]) * scale
    frame = rotation(0.25, np.deg2rad(10.0), 0.15)
    builder.add_ellipsoids(centre, axes, frame=frame, mix=_ORGAN, part=Part.STOMACH)
    bubble = centre + np.array(_STOMACH_GAS_OFFSET[exposure.view]) * scale + drift
    bubble_axes = np.array([0.055, 0.095, 0.085]) * (0.55 + 0.75 * anatomy.stomach_gas) * scale
    builder.add_ellipsoids(bubble, bubble_axes, frame=rotation(0.2, 0.3, 0.2), mix=_GAS_IN_ORGAN, part=Part.GAS)
    if lesions.foreign_body is None:
        return {}
    place = centre + np.array(lesions.foreign_body.offset) * (0.10, 0.20, 0.18) * scale + drift
    _add_foreign_body(builder, lesions.foreign_body, place)
    return {"foreign_body": place}


def _add_foreign_body(builder: SceneBuilder, body: ForeignBody, centre: np.ndarray) -> None:
    direction, radius, part = np.array(body.direction), body.radius, Part.FOREIGN_BODY
    match body.kind:
        case ForeignBodyKind.STONE:
            builder.add_ellipsoids(centre, np.full(3, 0.8 * radius), mix=Mix(soft=-0.5, bone=0.50), part=part)
        case ForeignBodyKind.COIN:
            axes = np.array([0.75 * radius, 0.75 * radius, 0.006])
            builder.add_ellipsoids(centre, axes, frame=frames_along(direction), mix=Mix(metal=0.12), part=part)
        case ForeignBodyKind.BONE:
            ends = np.stack([centre - 1.3 * radius * direction, centre + 1.3 * radius * direction])
            builder.add_tubes(ends, 0.014, mix=Mix(soft=-0.5, bone=0.62), part=part)
            builder.add_ellipsoids(ends, np.full(3, 0.024), mix=Mix(soft=-0.5, bone=0.5), part=part)
        case ForeignBodyKind.NEEDLE:
            ends = np.stack([centre - 1.5 * radius * direction, centre + 1.5 * radius * direction])
            builder.add_tubes(ends, 0.0045, mix=Mix(metal=0.25), part=part)


def _add_small_bowel(builder: SceneBuilder, trunk: Trunk, anatomy: Anatomy, exposure: Exposure) -> None:
    """Coiled loops at random places of the mid-abdomen, some with gas that drifts between exposures."""
    rng = np.random.default_rng(anatomy.bowel_seed)
    n = _N_BOWEL_LOOPS
    centre = np.stack(
        [
            rng.uniform(1.22, 1.85, n),
            rng.uniform(-0.6, 0.6, n) * anatomy.chest_half_width,
            float(trunk.spine_height(1.4)) - rng.uniform(0.3, 0.95, n) * anatomy.chest_depth * 0.9,
        ],
        axis=1,
    )
    t = np.linspace(0.0, 1.0, 7)[None, :]
    phase = rng.uniform(0.0, 2 * np.pi, (n, 1))
    to_width = anatomy.chest_half_width / REFERENCE_HALF_WIDTH
    coil = np.stack(
        [
            0.13 * np.cos(phase + 3.2 * t),
            0.11 * np.sin(phase + 2.0 * t) * to_width,
            0.09 * np.sin(1.7 * phase + 3.0 * t),
        ],
        axis=2,
    )
    points = centre[:, None] + coil * rng.uniform(0.6, 1.2, (n, 1, 1))
    radius = rng.uniform(0.022, 0.030, (n, 1))
    wall = 0.8 * ABDOMINAL_FAT_CONTRAST
    builder.add_tubes(points, radius, mix=Mix(soft=wall, fat=-wall), part=Part.BOWEL)
    has_gas = rng.uniform(size=n) < 0.45
    if has_gas.any():
        gas_points = points[has_gas][:, 1:5] + 0.008 * np.array(exposure.gas_drift)
        calibre = 0.72 * radius[has_gas] * np.array([0.4, 1.0, 1.0, 0.4])
        builder.add_tubes(gas_points, calibre, mix=Mix(soft=-0.8, fat=-0.1), part=Part.GAS)
