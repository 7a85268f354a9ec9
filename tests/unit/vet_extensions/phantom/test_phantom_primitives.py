"""Chords of ellipsoids and mitred tubes against ray marching; patches, frames and the camera."""

import numpy as np
import pytest

from vet_extensions.phantom.camera import Camera, Rays, place_camera, rotation
from vet_extensions.phantom.conics import ellipsoid_interval
from vet_extensions.phantom.exposure import PHANTOM_VIEWS, Exposure
from vet_extensions.phantom.primitives import Bore, Mix, Part, SceneBuilder, Segments, frames_along
from vet_extensions.phantom.raster import add_ellipsoids, add_segments
from vet_extensions.phantom.trunk import Solid
from vet_extensions.schema import View

SIZE = 64
UNIT_MM = 200.0
SOFT = Mix(soft=1.0)
BEND = np.array([[0.2, -0.1, -0.5], [0.4, 0.05, -0.45], [0.6, 0.0, -0.2], [0.65, 0.15, -0.1], [0.9, 0.1, -0.3]])


def tilted_camera(view: View, size_px: int = SIZE) -> Camera:
    exposure = Exposure(view=view, roll=0.15, pitch=-0.1, yaw=0.12, in_plane_rotation=0.2)
    return place_camera(exposure, trunk_length_mm=UNIT_MM, chest_depth=0.7, size_px=size_px)


def new_builder() -> SceneBuilder:
    return SceneBuilder(unit_mm=UNIT_MM, is_fine=False)


def sample_points(camera: Camera, step_mm: float) -> np.ndarray:
    """Points along every ray of the camera, [H, W, steps, 3] in mm."""
    rays = Rays(camera)
    depths = np.arange(-200.0, 200.0, step_mm)
    anchor, direction = np.stack(rays.anchor, axis=-1), np.stack(rays.direction, axis=-1)
    return anchor[:, :, None] + depths[:, None] * direction[:, :, None]


def n_segments_holding(segments: Segments, points: np.ndarray) -> np.ndarray:
    """In how many segments each point [..., 3] lies."""
    count = np.zeros(points.shape[:-1], int)
    for k in range(len(segments.radius)):
        axis = segments.end[k] - segments.start[k]
        axis = axis / np.linalg.norm(axis)
        offset = points - segments.start[k]
        is_near = ((offset - (offset @ axis)[..., None] * axis) ** 2).sum(-1) <= segments.radius[k] ** 2
        is_after = offset @ segments.start_normal[k] >= 0
        is_before = (points - segments.end[k]) @ segments.end_normal[k] < 0
        count += is_near & is_after & is_before
    return count


@pytest.mark.parametrize("view", PHANTOM_VIEWS)
def test_ellipsoid_chords_equal_ray_marching(view: View) -> None:
    camera = tilted_camera(view, 48)
    centres = np.array([[0.5, 0.1, -0.3], [0.3, -0.15, -0.4]])
    half_axes, frame = np.array([0.15, 0.05, 0.08]), rotation(0.3, 0.5, 0.7)
    builder = new_builder()
    builder.add_ellipsoids(centres, half_axes, frame=frame, mix=SOFT, part=Part.OTHER)
    canvas = np.zeros((4, 48, 48), np.float32)
    ellipsoids = builder.ellipsoids()
    add_ellipsoids(canvas, camera, ellipsoids, weights=ellipsoids.mix)
    points = sample_points(camera, 0.5) / UNIT_MM
    marched = sum((((points - centre) @ frame / half_axes) ** 2).sum(-1) <= 1 for centre in centres).sum(-1) * 0.5
    assert marched.max() > 15
    assert np.abs(canvas[0] - marched).max() < 1.01  # one step at either end of a chord
    assert np.abs(canvas[0] - marched).mean() < 0.05


def test_one_large_ellipsoid_has_the_same_chords_as_in_patches() -> None:
    camera = tilted_camera(View.LATERAL_RIGHT)
    solid = Solid(np.array([0.5, 0.05, -0.4]), np.array([0.3, 0.1, 0.2]), rotation(0.1, 0.4, 0.2))
    enter, leave = ellipsoid_interval(solid, camera, unit_mm=UNIT_MM)
    builder = new_builder()
    builder.add_ellipsoids(solid.centre, solid.half_axes, frame=solid.frame, mix=SOFT, part=Part.OTHER)
    canvas = np.zeros((1, SIZE, SIZE), np.float32)
    add_ellipsoids(canvas, camera, builder.ellipsoids(), weights=np.ones((1, 1)))
    np.testing.assert_allclose(np.maximum(leave - enter, 0), canvas[0], atol=0.02)


@pytest.mark.parametrize("view", [View.LATERAL_LEFT, View.VD])
def test_tube_chords_equal_ray_marching(view: View) -> None:
    camera = tilted_camera(view, 48)
    builder = new_builder()
    builder.add_tubes(BEND, np.array([0.03, 0.05, 0.05, 0.04, 0.02]), mix=SOFT, part=Part.OTHER)
    segments = builder.segments()
    canvas = np.zeros((4, 48, 48), np.float32)
    add_segments(canvas, camera, segments, weights=segments.mix)
    marched = n_segments_holding(segments, sample_points(camera, 0.5)).sum(-1) * 0.5
    assert marched.max() > 15
    assert np.abs(canvas[0] - marched).max() < 2.1  # a ray may cross two segments, a step at either end of each
    assert np.abs(canvas[0] - marched).mean() < 0.05


def test_tube_joints_neither_gap_nor_overlap() -> None:
    builder = new_builder()
    builder.add_tubes(BEND, 0.03, mix=SOFT, part=Part.OTHER)
    segments = builder.segments()
    rng = np.random.default_rng(0)
    joints = np.repeat(segments.end[:-1], 4000, axis=0)
    points = joints + rng.uniform(-6.0, 6.0, joints.shape)
    count = n_segments_holding(segments, points)
    is_inside = np.linalg.norm(points - joints, axis=1) < 0.999 * 0.03 * UNIT_MM
    assert is_inside.sum() > 1000
    assert (count[is_inside] == 1).all()
    assert count.max() == 1


def test_a_ray_along_a_tube_meets_its_whole_length() -> None:
    camera = place_camera(Exposure(view=View.VD), trunk_length_mm=UNIT_MM, chest_depth=0.7, size_px=65)
    aim = (camera.source + camera.source_object_mm * camera.beam) / UNIT_MM
    builder = new_builder()
    builder.add_tubes(np.stack([aim - 0.1 * camera.beam, aim + 0.1 * camera.beam]), 0.05, mix=SOFT, part=Part.OTHER)
    canvas = np.zeros((1, 65, 65), np.float32)
    add_segments(canvas, camera, builder.segments(), weights=np.ones((1, 1)))
    assert canvas[0, 32, 32] == pytest.approx(0.2 * UNIT_MM, rel=1e-3)


def test_patches_cut_by_the_image_border_equal_those_of_a_wider_image() -> None:
    camera = tilted_camera(View.VD)
    builder = new_builder()
    at_border = camera.source + camera.source_object_mm * (camera.beam + 31 * camera.step_right - 30 * camera.step_down)
    builder.add_ellipsoids(at_border / UNIT_MM, np.array([0.1, 0.15, 0.05]), mix=SOFT, part=Part.OTHER)
    canvas = np.zeros((1, SIZE, SIZE), np.float32)
    add_ellipsoids(canvas, camera, builder.ellipsoids(), weights=np.ones((1, 1)))
    wide = Camera(
        camera.source, camera.right, camera.down, camera.beam, camera.source_object_mm, camera.pitch_mm, 2 * SIZE
    )
    wide_canvas = np.zeros((1, 2 * SIZE, 2 * SIZE), np.float32)
    add_ellipsoids(wide_canvas, wide, builder.ellipsoids(), weights=np.ones((1, 1)))
    assert canvas.max() > 10
    np.testing.assert_allclose(canvas[0], wide_canvas[0, 32:96, 32:96], atol=1e-3)


def test_small_and_many_patches_add_up_like_single_ones() -> None:
    """Many small patches are added by binning, few by slices: both ways give one sum."""
    camera = tilted_camera(View.LATERAL_LEFT)
    centres = np.random.default_rng(1).uniform((0.1, -0.2, -0.6), (1.0, 0.2, -0.1), (300, 3))
    many, one_by_one = np.zeros((1, SIZE, SIZE), np.float32), np.zeros((1, SIZE, SIZE), np.float32)
    builder = new_builder()
    builder.add_ellipsoids(centres, np.full(3, 0.02), mix=SOFT, part=Part.OTHER)
    ellipsoids = builder.ellipsoids()
    add_ellipsoids(many, camera, ellipsoids, weights=np.ones((300, 1)))
    for k in range(300):
        add_ellipsoids(one_by_one, camera, ellipsoids.select(np.array([k])), weights=np.ones((1, 1)))
    np.testing.assert_allclose(many, one_by_one, atol=1e-3)


def test_a_folded_marrow_cavity_keeps_the_amount_of_bone() -> None:
    camera = tilted_camera(View.LATERAL_LEFT)
    totals = []
    for is_fine in (False, True):
        builder = SceneBuilder(unit_mm=UNIT_MM, is_fine=is_fine)
        builder.add_tubes(BEND, 0.05, mix=Mix(bone=0.8), part=Part.RIBS, bore=Bore(0.6, Mix(bone=-0.5)))
        segments = builder.segments()
        canvas = np.zeros((4, SIZE, SIZE), np.float32)
        add_segments(canvas, camera, segments, weights=segments.mix)
        totals.append(canvas[2].sum())
    assert totals[0] == pytest.approx(totals[1], rel=0.01)


def test_frames_are_orthonormal_and_follow_their_axes() -> None:
    axes = np.random.default_rng(0).normal(size=(50, 3))
    axes[0] = (0, 1, 0)
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    frames = frames_along(axes)
    np.testing.assert_allclose(frames.transpose(0, 2, 1) @ frames, np.broadcast_to(np.eye(3), (50, 3, 3)), atol=1e-12)
    np.testing.assert_allclose(frames[:, :, 0], axes)


def test_projection_is_the_inverse_of_the_rays() -> None:
    camera = tilted_camera(View.DV)
    points = sample_points(camera, 100.0)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    projected = camera.project(points)
    np.testing.assert_allclose(projected[..., 0], np.broadcast_to(columns[..., None], projected.shape[:-1]), atol=1e-3)
    np.testing.assert_allclose(projected[..., 1], np.broadcast_to(rows[..., None], projected.shape[:-1]), atol=1e-3)


def test_a_resized_camera_sees_the_same_field() -> None:
    camera = tilted_camera(View.VD)
    point = np.array([100.0, 10.0, -50.0])
    fine = camera.resized(4 * SIZE)
    # Pixel edges coincide, centres do not: (p + 1/2) scales.
    np.testing.assert_allclose(fine.project(point) + 0.5, 4 * (camera.project(point) + 0.5))
