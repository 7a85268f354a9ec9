"""Images and ground truth of a phantom study: `render_view`, `path_lengths`, `organ_masks`.

The archive writer, the tests and the pictures of the report call these. Everything is projected through one `Camera`
per exposure, so images, landmarks and masks of one size agree to the pixel.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from vet_extensions.errors import UserError
from vet_extensions.phantom.camera import Camera, Rays, place_camera
from vet_extensions.phantom.composition import add_trunk, compose_trunk, haze_path
from vet_extensions.phantom.conics import bounding_boxes
from vet_extensions.phantom.exposure import Exposure
from vet_extensions.phantom.formation import form_image
from vet_extensions.phantom.primitives import Ellipsoids, Part, Segments
from vet_extensions.phantom.raster import add_ellipsoids, add_segments, ellipsoid_reach
from vet_extensions.phantom.scene import Scene
from vet_extensions.phantom.studies import LANDMARKS, PhantomStudy, centroids_of, study_scene

SMALLEST_PX, LARGEST_PX = 32, 4096

_FINE_FROM_PX = 200
"""From this size on, pixels are finer than marrow cavities and these are drawn."""

_LARGE_HALF_WIDTH_PX = 36
"""Ellipsoids wider than this on a large image are smooth enough to be drawn small and enlarged."""


@dataclass(frozen=True)
class RenderedView:
    """One image. image: [H, W] float32 in [0, 1], bone white, air black.

    pixel_spacing_mm is measured on the detector, where things appear magnified. landmarks_px: the 46 landmarks as
    (column, row), which may lie outside the image; findings_px: the same for the findings that are present.
    landmarks_mm, findings_mm: the same points in this exposure's body frame, as `studies.landmarks_mm` and
    `studies.finding_centroids_mm` give them, from the scene that was drawn.
    """

    image: np.ndarray
    pixel_spacing_mm: float
    landmarks_px: dict[str, tuple[float, float]]
    findings_px: dict[str, list[tuple[float, float]]]
    landmarks_mm: dict[str, np.ndarray]
    findings_mm: dict[str, list[tuple[float, float, float]]]


def render_view(study: PhantomStudy, exposure: Exposure, size_px: int) -> RenderedView:
    """Take one radiograph of a study's animal, size_px x size_px."""
    camera, scene = set_up(study, exposure, size_px)
    image = form_image(scene_paths(scene, camera), exposure)
    landmarks_mm = {name: scene.landmarks[name] for name in LANDMARKS}
    findings_mm = centroids_of(study, scene.landmarks)
    columns_rows = camera.project(np.stack(list(landmarks_mm.values()))).tolist()
    return RenderedView(
        image=image,
        pixel_spacing_mm=camera.pitch_mm,
        landmarks_px={name: (column, row) for name, (column, row) in zip(LANDMARKS, columns_rows)},
        findings_px={
            name: [(column, row) for column, row in camera.project(np.array(points)).tolist()]
            for name, points in findings_mm.items()
        },
        landmarks_mm=landmarks_mm,
        findings_mm=findings_mm,
    )


def path_lengths(study: PhantomStudy, exposure: Exposure, size_px: int) -> np.ndarray:
    """Millimetres of soft tissue, fat, bone and metal on each pixel's ray, [4, H, W] float32, before any exposure."""
    camera, scene = set_up(study, exposure, size_px)
    return scene_paths(scene, camera)


def organ_masks(study: PhantomStudy, exposure: Exposure, size_px: int) -> dict[str, np.ndarray]:
    """Projected silhouettes, [H, W] bool each: organs by name, and one for each finding that is present.

    A pixel belongs to a large organ from 3 mm of it on the ray, to a small one from 0.8 mm.
    """
    camera, scene = set_up(study, exposure, size_px)
    rays = Rays(camera)
    trunk = compose_trunk(scene, rays)
    large = {
        "body": trunk.skin,
        "lung": trunk.lung,
        "heart": trunk.heart,
        "diaphragm": trunk.diaphragm,
        **{
            part.name.lower(): _part_path(scene, camera, part)
            for part in (Part.LIVER, Part.STOMACH, Part.SPLEEN, Part.KIDNEYS)
        },
    }
    small_parts = (Part.SPINE, Part.RIBS, Part.STERNUM, Part.TRACHEA)
    small = {part.name.lower(): _part_path(scene, camera, part) for part in small_parts}
    masks = {name: path * rays.obliquity > 3.0 for name, path in large.items()}
    masks |= {name: path * rays.obliquity > 0.8 for name, path in small.items()}
    return masks | _finding_masks(study, scene, rays, masks, trunk.lung, trunk.pleural_space)


def _finding_masks(
    study: PhantomStudy,
    scene: Scene,
    rays: Rays,
    organs: dict[str, np.ndarray],
    lung: np.ndarray,
    pleural_space: np.ndarray,
) -> dict[str, np.ndarray]:
    masks = {}
    parts = {
        "nodule": Part.NODULE,
        "megaesophagus": Part.ESOPHAGUS,
        "foreign_body": Part.FOREIGN_BODY,
        "spondylosis": Part.SPURS,
    }
    for name in (name for name, is_present in study.findings.items() if is_present):
        if name in parts:
            masks[name] = _part_path(scene, rays.camera, parts[name]) * rays.obliquity > 0.8
        elif name in ("effusion", "pneumothorax"):
            masks[name] = pleural_space * rays.obliquity > 3.0
        elif name == "consolidation" and scene.haze is not None:
            masks[name] = haze_path(scene.haze, lung, rays) * scene.haze.soft * rays.obliquity > 3.0
        elif name == "rib_fracture":
            masks[name] = _discs_around(scene, rays.camera, "fracture_")
        else:
            masks[name] = organs["heart" if name == "cardiomegaly" else "liver"]
    return masks


def set_up(study: PhantomStudy, exposure: Exposure, size_px: int) -> tuple[Camera, Scene]:
    """The camera of one exposure and the animal as it lies before it; UserError for a size that cannot be rendered."""
    if not SMALLEST_PX <= size_px <= LARGEST_PX:
        raise UserError(f"An image of {size_px} pixels was asked for. Allowed: {SMALLEST_PX} to {LARGEST_PX}.")
    anatomy = study.anatomy
    camera = place_camera(
        exposure, trunk_length_mm=anatomy.trunk_length_mm, chest_depth=anatomy.chest_depth, size_px=size_px
    )
    return camera, study_scene(study, exposure, is_fine=size_px >= _FINE_FROM_PX)


def _coarsening(size_px: int) -> int:
    """By how much smooth bodies are drawn smaller than the image, to save time where nobody sees the difference."""
    if size_px < 192:
        return 1
    return 2 if size_px < 768 else 4


def scene_paths(scene: Scene, camera: Camera) -> np.ndarray:
    """Millimetres of soft tissue, fat, bone and metal on each of the camera's rays, [4, H, W] float32.

    The trunk's large bodies overlap and are composed; the small ones carry differences and are simply added. In large
    images what is smooth is drawn small and enlarged.
    """
    size, factor = camera.size_px, _coarsening(camera.size_px)
    rays = Rays(camera)
    coarse = rays.resized(size // factor) if factor > 1 else None
    canvas = np.zeros((4, size, size), np.float32)
    trunk = compose_trunk(scene, rays, coarse=coarse)
    add_trunk(canvas, trunk, scene)
    if scene.haze is not None:
        canvas[0] += np.float32(scene.haze.soft) * haze_path(scene.haze, trunk.lung, rays)
    ellipsoids = scene.ellipsoids
    if coarse is not None:
        is_large = _is_large(ellipsoids, camera)
        _add_enlarged(canvas, coarse.camera, ellipsoids.select(is_large))
        ellipsoids = ellipsoids.select(~is_large)
    add_ellipsoids(canvas, camera, ellipsoids, weights=ellipsoids.mix)
    add_segments(canvas, camera, scene.segments, weights=scene.segments.mix)
    canvas *= rays.obliquity
    return np.maximum(canvas, 0, out=canvas)


def _add_enlarged(canvas: np.ndarray, coarse: Camera, ellipsoids: Ellipsoids) -> None:
    """Add ellipsoids to canvas [4, H, W] in place, drawn on the coarse camera's grid."""
    size = canvas.shape[-1]
    small_canvas = np.zeros((4, coarse.size_px, coarse.size_px), np.float32)
    add_ellipsoids(small_canvas, coarse, ellipsoids, weights=ellipsoids.mix)
    for channel in np.flatnonzero(ellipsoids.mix.any(axis=0)):
        canvas[channel] += cv2.resize(small_canvas[channel], (size, size), interpolation=cv2.INTER_LINEAR)


def _is_large(ellipsoids: Ellipsoids, camera: Camera) -> np.ndarray:
    boxes = bounding_boxes(camera, ellipsoids.centre, ellipsoid_reach(camera, ellipsoids))
    height, width = boxes.last_row - boxes.first_row, boxes.last_column - boxes.first_column
    return np.minimum(height, width) > 2 * _LARGE_HALF_WIDTH_PX


def _part_path(scene: Scene, camera: Camera, part: Part) -> np.ndarray:
    """Depth in mm [H, W] inside the primitives of one part."""
    canvas = np.zeros((1, camera.size_px, camera.size_px), np.float32)
    ellipsoids = scene.ellipsoids.select(scene.ellipsoids.part == part)
    segments: Segments = scene.segments.select(scene.segments.part == part)
    add_ellipsoids(canvas, camera, ellipsoids, weights=np.ones((len(ellipsoids.part), 1)), keeps_mass=False)
    add_segments(canvas, camera, segments, weights=np.ones((len(segments.part), 1)), keeps_mass=False)
    return canvas[0]


def _discs_around(scene: Scene, camera: Camera, prefix: str) -> np.ndarray:
    """Discs of a rib space's width around landmarks."""
    mask = np.zeros((camera.size_px, camera.size_px), np.uint8)
    points = np.array([point for name, point in scene.landmarks.items() if name.startswith(prefix)])
    radius = max(1, round(0.05 * scene.unit_mm / camera.pitch_mm))
    for column, row in camera.project(points):
        cv2.circle(mask, (round(float(column)), round(float(row))), radius, 1, thickness=-1)
    return mask.astype(bool)
