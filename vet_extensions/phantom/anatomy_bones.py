"""The skeleton: vertebrae, ribs, sternum, fore limbs and a microchip, with fractures and spondylosis where present.

`scene.build_scene` calls `add_skeleton`. Positions in trunk lengths. A bone's mix is its difference to the soft
tissue around it.
"""

import numpy as np

from vet_extensions.phantom.anatomy import Anatomy
from vet_extensions.phantom.camera import rotation
from vet_extensions.phantom.exposure import Exposure
from vet_extensions.phantom.findings import Lesions, RibFracture
from vet_extensions.phantom.lofts import at_x
from vet_extensions.phantom.primitives import Bore, Mix, Part, SceneBuilder, frames_along
from vet_extensions.phantom.trunk import Trunk

N_THORACIC = 13
VERTEBRA_LENGTH = 1.0 / N_THORACIC
FIRST_VERTEBRA, LAST_VERTEBRA = -5, 19  # C3 to L7, counted from T1 = 0
N_RIB_POINTS = 15
N_BONY_POINTS_STERNAL, N_BONY_POINTS_ASTERNAL = 11, 14  # then costal cartilage
N_STERNAL_RIBS = 9

_RIB_END_X = np.array([0.02, 0.07, 0.13, 0.20, 0.27, 0.35, 0.43, 0.52, 0.62, 0.73, 0.85, 0.98, 1.12])
_RIB_REACH = np.array([1.0] * N_STERNAL_RIBS + [0.9, 0.8, 0.68, 0.5])  # how far round the chest; false ribs stop short
_SIDES = np.array([-1.0, 1.0])  # right, left
_Y = np.array([0.0, 1.0, 0.0])


def vertebra_name(index: int) -> str:
    """Name of a vertebra by its place, T1 = 0: C1..C7, T1..T13, L1.."""
    if index < 0:
        return f"C{8 + index}"
    return f"T{index + 1}" if index < N_THORACIC else f"L{index - N_THORACIC + 1}"


def rib_name(side: int, rib: int) -> str:
    """Landmark name of a rib; side 0 = right, 1 = left; rib 0..12."""
    return f"rib_{rib + 1}_{('right', 'left')[side]}"


def add_skeleton(
    builder: SceneBuilder, trunk: Trunk, anatomy: Anatomy, lesions: Lesions, exposure: Exposure
) -> dict[str, np.ndarray]:
    """Add all bones; returns their landmarks (vertebral bodies, ribs, sternebrae) and `fracture_<n>`, `spur_<n>`."""
    landmarks = _add_spine(builder, trunk, anatomy, lesions)
    landmarks |= _add_ribs(builder, trunk, anatomy, lesions)
    landmarks |= _add_sternum(builder, trunk, anatomy)
    _add_fore_limbs(builder, trunk, anatomy, exposure)
    if anatomy.has_microchip:  # under the skin between the shoulder blades
        chip = np.array([0.04, 0.02, float(trunk.spine_height(0.04)) + 0.20])
        builder.add_tubes(
            chip + np.array([(0.0, 0.0, 0.0), (0.028, 0.01, 0.004)]), 0.004, mix=Mix(metal=0.15), part=Part.MICROCHIP
        )
    return landmarks


def _add_spine(builder: SceneBuilder, trunk: Trunk, anatomy: Anatomy, lesions: Lesions) -> dict[str, np.ndarray]:
    density = anatomy.bone_density
    index = np.arange(FIRST_VERTEBRA, LAST_VERTEBRA + 1)
    n = len(index)
    is_cervical, is_lumbar = index < 0, index >= N_THORACIC
    length = VERTEBRA_LENGTH * np.select([is_cervical, is_lumbar], [1.12, 1.28], 1.0)
    x = np.where(is_lumbar, 1.0 + (index - N_THORACIC + 0.5) * length, (index + 0.5) * length)
    centre = np.stack([x, np.zeros(n), trunk.spine_height(x)], axis=1)
    slope = np.arctan((trunk.spine_height(x + 0.02) - trunk.spine_height(x - 0.02)) / 0.04)
    caudal = np.stack([np.cos(slope), np.zeros(n), np.sin(slope)], axis=1)
    dorsal = np.stack([-np.sin(slope), np.zeros(n), np.cos(slope)], axis=1)

    # Bodies: waisted cylinders with a cortical shell.
    along = np.array([-1.0, -0.8, 0.0, 0.8, 1.0])[None, :, None] * (0.43 * length)[:, None, None]
    body_radius = np.where(is_lumbar, 0.031, 0.0265)
    builder.add_tubes(
        centre[:, None] + along * caudal[:, None],
        body_radius[:, None] * np.array([1.12, 1.10, 0.92, 1.10, 1.12]),
        mix=Mix(soft=-0.30, bone=0.78 * density),
        part=Part.SPINE,
        bore=Bore(0.80, Mix(bone=-0.30 * density)),
    )
    # Spinous processes: tall and leaning back over the withers, short behind.
    is_withers = (index >= 0) & (index < 10)
    lean = np.select([is_withers, index < N_THORACIC], [0.75, -0.10], -0.25)
    process = np.select([index == 0, is_withers, is_cervical], [0.075, 0.105 - 0.006 * index, 0.045], 0.05)
    direction = dorsal + lean[:, None] * caudal
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    builder.add_ellipsoids(
        centre + 0.052 * dorsal + 0.55 * process[:, None] * direction,
        np.stack([0.62 * process, np.full(n, 0.0065), np.full(n, 0.017)], axis=1),
        frame=frames_along(direction),
        mix=Mix(soft=-0.3, bone=0.55 * density),
        part=Part.SPINE,
    )
    transverse = np.where(is_lumbar, 0.055, 0.03)
    for side in _SIDES:
        builder.add_ellipsoids(  # the arch's wall beside the canal
            centre + 0.036 * dorsal + side * 0.024 * _Y,
            np.stack([0.42 * length, np.full(n, 0.006), np.full(n, 0.020)], axis=1),
            frame=frames_along(caudal),
            mix=Mix(soft=-0.3, bone=0.55 * density),
            part=Part.SPINE,
        )
        offset = np.stack([np.zeros(n), side * (0.03 + 0.5 * transverse), np.where(is_lumbar, -0.012, 0.005)], axis=1)
        builder.add_ellipsoids(
            centre + offset,
            np.stack([np.full(n, 0.014), 0.62 * transverse, np.full(n, 0.007)], axis=1),
            mix=Mix(soft=-0.3, bone=0.5 * density),
            part=Part.SPINE,
        )
    epaxial = np.array([[0.62, side * 0.075, float(trunk.spine_height(0.62)) + 0.055] for side in _SIDES])
    builder.add_ellipsoids(epaxial, np.array([1.25, 0.085, 0.085]), mix=Mix(soft=0.55), part=Part.OTHER)
    landmarks = {vertebra_name(int(k)): centre[row] for row, k in enumerate(index)}
    for number, spur in enumerate(lesions.spurs):
        row = spur.vertebra - FIRST_VERTEBRA
        disc = centre[row] + 0.5 * length[row] * caudal[row] - 1.15 * body_radius[row] * dorsal[row]
        beside = disc + np.array([[-0.6], [0.0], [0.6]]) * body_radius[row] * _Y
        builder.add_ellipsoids(
            beside, np.array([0.018, 0.016, spur.size]), mix=Mix(soft=-0.5, bone=0.55 * density), part=Part.SPURS
        )
        landmarks[f"spur_{number}"] = disc
    return landmarks


def rib_points(trunk: Trunk) -> np.ndarray:
    """Centre lines of all ribs with their cartilage, [2 sides, 13 ribs, 15 points, 3], from the spine round to the sternum."""
    rib = np.arange(N_THORACIC)[:, None]
    way = np.linspace(0.0, 1.0, N_RIB_POINTS)[None, :]
    head_x = (rib + 0.05) * VERTEBRA_LENGTH
    x = head_x + (_RIB_END_X[:, None] - head_x) * np.sin(way * np.pi / 2) ** 1.3
    x = x + 0.015 * np.sin(np.pi * way) * rib / 12
    angle = way * np.pi * 0.93 * _RIB_REACH[:, None]  # from dorsal round to ventral
    cavity = trunk.cavity
    half_width = at_x(cavity.half_width, x) + 0.012
    height = np.where(np.cos(angle) > 0, at_x(cavity.above, x), at_x(cavity.below, x)) + 0.012
    y = half_width * np.sin(np.maximum(angle, 0.09)) ** 0.82
    z = at_x(cavity.centre, x) + height * np.cos(angle)
    return np.stack([np.stack([x, side * y, z], axis=-1) for side in _SIDES])


def _add_ribs(builder: SceneBuilder, trunk: Trunk, anatomy: Anatomy, lesions: Lesions) -> dict[str, np.ndarray]:
    points = rib_points(trunk)
    stoutness = np.where((np.arange(N_THORACIC) >= 3) & (np.arange(N_THORACIC) <= 9), 1.1, 0.95)
    radius = anatomy.rib_radius * stoutness[:, None] * (1 - 0.25 * np.linspace(0.0, 1.0, N_RIB_POINTS))
    radius = np.broadcast_to(radius, (2, N_THORACIC, N_RIB_POINTS))
    bone = Mix(soft=-0.3, bone=0.80 * anatomy.bone_density)
    marrow = Bore(0.66, Mix(soft=0.1, bone=-0.55 * anatomy.bone_density))
    cartilage = Mix(soft=0.15, fat=-0.15, bone=0.16 * anatomy.cartilage_calcification)
    broken = {(fracture.side, fracture.rib): fracture for fracture in lesions.rib_fractures}
    is_whole = np.array([[(side, rib) not in broken for rib in range(N_THORACIC)] for side in range(2)])
    is_sternal = np.broadcast_to(np.arange(N_THORACIC) < N_STERNAL_RIBS, (2, N_THORACIC))
    for chosen, n_bony in ((is_sternal, N_BONY_POINTS_STERNAL), (~is_sternal, N_BONY_POINTS_ASTERNAL)):
        whole = chosen & is_whole
        builder.add_tubes(points[whole][:, :n_bony], radius[whole][:, :n_bony], mix=bone, part=Part.RIBS, bore=marrow)
        builder.add_tubes(
            points[chosen][:, n_bony - 1 :], 1.05 * radius[chosen][:, n_bony - 1 :], mix=cartilage, part=Part.CARTILAGE
        )
    landmarks = {rib_name(s, r): points[s, r, N_RIB_POINTS // 2] for s in range(2) for r in range(N_THORACIC)}
    for number, ((side, rib), fracture) in enumerate(broken.items()):
        upper, lower, at = _broken_rib(points[side, rib], fracture)
        for piece, first in ((upper, 0), (lower, at)):
            piece_radius = radius[side, rib, first : first + len(piece)]
            builder.add_tubes(piece, piece_radius, mix=bone, part=Part.RIBS, bore=marrow)
        landmarks[f"fracture_{number}"] = (upper[-1] + lower[0]) / 2
    return landmarks


def _broken_rib(points: np.ndarray, fracture: RibFracture) -> tuple[np.ndarray, np.ndarray, int]:
    """The bony rib [m, 3] in two pieces, the lower one displaced (less so towards its sternal end); and where it broke."""
    n_bony = N_BONY_POINTS_STERNAL if fracture.rib < N_STERNAL_RIBS else N_BONY_POINTS_ASTERNAL
    at = int(np.clip(round(fracture.fraction * (n_bony - 1)), 2, n_bony - 4))
    inwards = -0.35 * abs(fracture.displaced_caudal) * _SIDES[fracture.side]
    displacement = np.array([fracture.displaced_caudal, inwards, fracture.displaced_dorsal])
    upper, lower = points[: at + 1], points[at:n_bony]
    return upper, lower + np.linspace(1.0, 0.55, len(lower))[:, None] * displacement, at


def _add_sternum(builder: SceneBuilder, trunk: Trunk, anatomy: Anatomy) -> dict[str, np.ndarray]:
    x = np.linspace(-0.06, 0.70, 8)
    z = at_x(trunk.cavity.centre - trunk.cavity.below, x) - 0.022
    centre = np.stack([x, np.zeros(8), z], axis=1)
    before, after = np.maximum(np.arange(8) - 1, 0), np.minimum(np.arange(8) + 1, 7)
    slope = np.arctan2(z[after] - z[before], x[after] - x[before])
    builder.add_ellipsoids(
        centre,
        np.array([0.040, 0.022, 0.019]),
        frame=np.stack([rotation(0.0, -angle, 0.0) for angle in slope]),
        mix=Mix(soft=-0.3, bone=0.42 * anatomy.bone_density),
        part=Part.STERNUM,
    )
    return {f"sternebra_{i + 1}": centre[i] for i in range(8)}


def _add_fore_limbs(builder: SceneBuilder, trunk: Trunk, anatomy: Anatomy, exposure: Exposure) -> None:
    """Shoulder blades, upper arms and their muscle: drawn forward in laterals, forward and out in frontal views."""
    pose = exposure.limb_pose
    density = anatomy.bone_density
    chest_edge = float(at_x(trunk.cavity.half_width, -0.1))
    for i, side in enumerate(_SIDES):
        swing = 0.03 * pose[4 + i]
        if exposure.is_lateral:
            z = -0.34 * anatomy.chest_depth / 0.7 + 0.04 * pose[2 + i]
            shoulder = np.array([-0.20 + 0.03 * pose[i], side * (chest_edge + 0.10), z])
            blade_top = shoulder + np.array([0.20 + swing, -0.02 * side, 0.36])
            elbow = shoulder + np.array([-0.33 + swing, 0.0, -0.14 + 0.05 * pose[6 + i]])
        else:
            shoulder = np.array([-0.16 + 0.03 * pose[i], side * (chest_edge + 0.16), -0.24])
            blade_top = shoulder + np.array([0.27 + swing, -0.03 * side, 0.22])
            elbow = shoulder + np.array([-0.40, side * (0.04 + 0.03 * pose[6 + i]), -0.12])
        blade = blade_top - shoulder
        blade_length = float(np.linalg.norm(blade))
        blade_frame = frames_along(blade / blade_length)
        middle = (shoulder + blade_top) / 2
        builder.add_ellipsoids(
            middle + 0.12 * blade,
            np.array([0.50 * blade_length, 0.007, 0.085]),
            frame=blade_frame,
            mix=Mix(soft=-0.2, bone=0.45 * density),
            part=Part.LIMBS,
        )
        builder.add_tubes(  # the scapula's spine
            np.linspace(shoulder, blade_top, 5),
            np.array([0.020, 0.012, 0.008, 0.008, 0.008]),
            mix=Mix(soft=-0.6, bone=0.42 * density),
            part=Part.LIMBS,
        )
        builder.add_tubes(
            np.linspace(shoulder, elbow, 6),
            np.array([0.036, 0.030, 0.022, 0.021, 0.022, 0.030]),
            mix=Mix(soft=-0.8, bone=0.62 * density),
            part=Part.LIMBS,
            bore=Bore(0.68, Mix(bone=-0.45 * density)),
        )
        builder.add_ellipsoids(
            middle - np.array([0.0, 0.0, 0.03]),
            np.array([0.62 * blade_length, 0.040, 0.12]),
            frame=blade_frame,
            mix=Mix(soft=0.8, fat=0.2),
            part=Part.OTHER,
        )
        arm = elbow - shoulder
        arm_length = float(np.linalg.norm(arm))
        builder.add_ellipsoids(
            (shoulder + elbow) / 2 + np.array([0.02, 0.0, 0.0]),
            np.array([0.72 * arm_length, 0.075, 0.095]),
            frame=frames_along(arm / arm_length),
            mix=Mix(soft=0.85, fat=0.15),
            part=Part.OTHER,
        )
