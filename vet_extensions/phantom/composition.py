"""Path lengths through the trunk's large bodies, which overlap: skin, muscle, cavity, lungs, diaphragm, heart, mediastinum.

`render` starts its image with `compose_trunk`. All bodies are convex along a ray, so each is one interval of depth,
an overlap is an intersection of intervals, and the lung is the pleural space less the union of diaphragm dome, heart
and mediastinum by inclusion and exclusion: no tissue counts twice.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from vet_extensions.phantom.camera import Camera, Rays
from vet_extensions.phantom.conics import ellipsoid_interval
from vet_extensions.phantom.lofts import Interval, Loft, loft_interval
from vet_extensions.phantom.scene import Haze, Scene
from vet_extensions.phantom.trunk import ABDOMINAL_FAT_CONTRAST

_FREE_AIR = 0.97
"""Soft tissue that free air replaces, per length."""

_BELLY_FILL = 0.95
"""Share of the belly outside its organs that mesenteric fat and folded bowel fill."""


@dataclass(frozen=True)
class TrunkPaths:
    """Depth in mm [H, W] float32 inside each body. pleural_space: chest outside the lung, empty in health."""

    skin: np.ndarray
    muscle: np.ndarray
    lung: np.ndarray
    pleural_space: np.ndarray
    belly: np.ndarray
    heart: np.ndarray
    diaphragm: np.ndarray


def compose_trunk(scene: Scene, rays: Rays, *, coarse: Rays | None = None) -> TrunkPaths:
    """Measure the large bodies along all rays. With `coarse`, lofts are solved on those rays and interpolated."""

    def interval_of(loft: Loft) -> Interval:
        enter, leave = loft_interval(loft, coarse or rays, unit_mm=scene.unit_mm)
        return (enter, leave) if coarse is None else (_enlarge(enter, rays.camera), _enlarge(leave, rays.camera))

    trunk, camera = scene.trunk, rays.camera
    cavity = interval_of(trunk.cavity)
    chest = _front_of_costal_arch(cavity, scene, rays)
    dome, heart, atria, mediastinum = (
        ellipsoid_interval(solid, camera, unit_mm=scene.unit_mm)
        for solid in (trunk.diaphragm, trunk.heart, trunk.atria, trunk.mediastinum)
    )
    heart = (
        np.minimum(heart[0], atria[0]),
        np.maximum(heart[1], atria[1]),
    )  # hull: the groove between is filled by fat
    lung = pleura = length_outside(chest, dome, heart, mediastinum)
    if trunk.lung is not None:
        lung = length_outside(_front_of_costal_arch(interval_of(trunk.lung), scene, rays), dome, heart, mediastinum)
    dome_in_chest = _length(_meet(chest, dome))
    return TrunkPaths(
        skin=_length(interval_of(trunk.skin)),
        muscle=_length(interval_of(trunk.muscle)),
        lung=lung,
        pleural_space=np.maximum(pleura - lung, 0),
        belly=np.maximum(_length(cavity) - _length(chest) + dome_in_chest, 0),
        heart=_length(heart),
        diaphragm=dome_in_chest,
    )


def add_trunk(canvas: np.ndarray, paths: TrunkPaths, scene: Scene) -> None:
    """Add the trunk's soft tissue and fat to canvas [soft, fat, bone, metal] in place: what is neither fat nor air is muscle."""
    fat_in_belly = ABDOMINAL_FAT_CONTRAST * _BELLY_FILL * paths.belly
    canvas[0] += paths.muscle - (1 - np.float32(scene.trunk.lung_density)) * paths.lung - fat_in_belly
    canvas[1] += paths.skin - paths.muscle + fat_in_belly
    if scene.pneumothorax > 0:
        # With effusion too, air and fluid share the pleural space as they share in the lung's retraction.
        air = np.float32(_FREE_AIR * scene.pneumothorax / (scene.pneumothorax + scene.effusion))
        canvas[0] -= air * paths.pleural_space


def length_outside(base: Interval, dome: Interval, heart: Interval, mediastinum: Interval) -> np.ndarray:
    """Length of `base` outside the union of the three, by inclusion and exclusion."""
    d, h, m = _meet(base, dome), _meet(base, heart), _meet(base, mediastinum)
    dh = _meet(d, h)
    covered = _length(d) + _length(h) + _length(m)
    covered -= _length(dh) + _length(_meet(d, m)) + _length(_meet(h, m))
    covered += _length(_meet(dh, m))
    return np.maximum(_length(base) - covered, 0)


def haze_path(haze: Haze, lung: np.ndarray, rays: Rays) -> np.ndarray:
    """Depth in mm [H, W] of a Gaussian cloud, no more than nine tenths of the lung that the ray meets.

    A Gaussian's integral along a line at distance e from its centre is sqrt(2 pi) sigma exp(-e^2 / 2 sigma^2).
    """
    to_centre = [np.float32(haze.centre[k]) - rays.anchor[k] for k in range(3)]
    obliquity2 = rays.obliquity**2
    depth = sum(to_centre[k] * rays.direction[k] for k in range(3)) / obliquity2
    distance2 = sum((to_centre[k] - depth * rays.direction[k]) ** 2 for k in range(3))
    cloud = np.sqrt(2 * np.pi) * haze.radius * np.exp(-distance2 / (2 * haze.radius**2)) / rays.obliquity
    return np.minimum(cloud, 0.9 * lung).astype(np.float32)


def _enlarge(values: np.ndarray, camera: Camera) -> np.ndarray:
    return cv2.resize(values, (camera.size_px, camera.size_px), interpolation=cv2.INTER_LINEAR)


def _length(interval: Interval) -> np.ndarray:
    return np.maximum(interval[1] - interval[0], 0)


def _meet(one: Interval, other: Interval) -> Interval:
    return np.maximum(one[0], other[0]), np.minimum(one[1], other[1])


def _front_of_costal_arch(interval: Interval, scene: Scene, rays: Rays) -> Interval:
    """The part of an interval cranial of the costal arch's plane."""
    normal = scene.trunk.costal_normal.astype(np.float32)
    slope = normal[0] * rays.direction[0] + normal[2] * rays.direction[2]
    offset = np.float32(scene.trunk.costal_offset * scene.unit_mm)
    room = offset - normal[0] * rays.anchor[0] - normal[2] * rays.anchor[2]
    leaves = slope > 0
    slope = np.where(np.abs(slope) < 1e-6, np.float32(1e-6), slope)
    crossing = room / slope
    enter = np.where(leaves, interval[0], np.maximum(interval[0], crossing))
    leave = np.where(leaves, np.minimum(interval[1], crossing), interval[1])
    return enter, leave
