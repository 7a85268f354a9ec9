"""Images, landmarks and masks agree with each other and with what each finding is."""

from dataclasses import replace

import numpy as np
import pytest

from vet_extensions.errors import UserError
from vet_extensions.phantom.exposure import PHANTOM_VIEWS, Exposure
from vet_extensions.phantom.findings import ForeignBody, ForeignBodyKind
from vet_extensions.phantom.primitives import Mix, Part, SceneBuilder
from vet_extensions.phantom.raster import add_ellipsoids
from vet_extensions.phantom.render import organ_masks, path_lengths, render_view, set_up
from vet_extensions.phantom.studies import LANDMARKS, PhantomStudy, finding_centroids_mm, landmarks_mm, sample_study
from vet_extensions.schema import FINDINGS, View

SIZE = 96
HEALTHY = dict.fromkeys(FINDINGS, False)
ALL_VIEWS = list(PHANTOM_VIEWS)


def study_with(*names: str, number: int = 3) -> PhantomStudy:
    return sample_study(5, number, views=["LATERAL_RIGHT", "VD"], findings=HEALTHY | dict.fromkeys(names, True))


def centre_of(mask: np.ndarray) -> np.ndarray:
    """(column, row) of a mask's centre."""
    return np.argwhere(mask).mean(axis=0)[::-1]


def test_an_image_is_float32_between_0_and_1_and_the_same_every_time() -> None:
    study = sample_study(0, 0)
    first, again = (render_view(study, study.exposures[0], SIZE) for _ in range(2))
    assert first.image.dtype == np.float32
    assert first.image.shape == (SIZE, SIZE)
    assert first.image.min() >= 0
    assert first.image.max() <= 1
    np.testing.assert_array_equal(first.image, again.image)


def test_images_do_not_depend_on_what_was_rendered_before() -> None:
    studies = [sample_study(4, number) for number in range(3)]
    forwards = [render_view(study, study.exposures[1], 64).image for study in studies]
    backwards = [render_view(study, study.exposures[1], 64).image for study in reversed(studies)]
    for one, other in zip(forwards, reversed(backwards)):
        np.testing.assert_array_equal(one, other)


def test_bone_is_white_and_air_is_black() -> None:
    study = study_with()
    exposure = Exposure(view=View.VD, has_marker=False)
    image = render_view(study, exposure, SIZE).image
    masks = organ_masks(study, exposure, SIZE)
    field = image > 0
    assert image[masks["spine"] & field].mean() > image[masks["lung"] & ~masks["spine"] & field].mean() + 0.15
    assert image[~masks["body"]].mean() < 0.02


@pytest.mark.parametrize("view", ALL_VIEWS)
def test_a_dense_marker_at_each_landmark_appears_at_its_projected_pixel(view: View) -> None:
    study = sample_study(9, 1, views=[view])
    exposure = study.exposures[0]
    camera, scene = set_up(study, exposure, SIZE)
    builder = SceneBuilder(unit_mm=1.0, is_fine=False)
    points = np.stack([scene.landmarks[name] for name in LANDMARKS])
    builder.add_ellipsoids(points, np.full(3, 10.0), mix=Mix(metal=1.0), part=Part.OTHER)
    canvas = np.zeros((len(LANDMARKS), SIZE, SIZE), np.float32)
    add_ellipsoids(canvas, camera, builder.ellipsoids(), weights=np.eye(len(LANDMARKS)))
    projected = render_view(study, exposure, SIZE).landmarks_px
    rows, columns = np.mgrid[:SIZE, :SIZE]
    n_seen = 0
    for name, path in zip(LANDMARKS, canvas):
        column, row = projected[name]
        if not (4 <= column <= SIZE - 5 and 4 <= row <= SIZE - 5):
            continue
        n_seen += 1
        centre = np.array([(columns * path).sum(), (rows * path).sum()]) / path.sum()
        assert np.abs(centre - (column, row)).max() < 0.15, name
    assert n_seen > 25


def test_landmarks_lie_on_the_anatomy_that_is_rendered() -> None:
    study = study_with()
    for exposure in study.exposures:
        view = render_view(study, exposure, SIZE)
        bone = path_lengths(study, exposure, SIZE)[2]
        masks = organ_masks(study, exposure, SIZE)
        parts = {"T": "spine", "sternebra": "sternum", "rib": "ribs"}
        organs = {"heart_centre": "heart", "liver": "liver", "spleen": "spleen", "carina": "trachea"}
        for name, (column, row) in view.landmarks_px.items():
            organ = organs.get(name) or parts.get(name[0] if name[1:].isdigit() else name.split("_")[0])
            if organ and 1 <= column <= SIZE - 2 and 1 <= row <= SIZE - 2:
                window = slice(round(row) - 1, round(row) + 2), slice(round(column) - 1, round(column) + 2)
                assert masks[organ][window].any(), name
                if organ in parts.values():
                    assert bone[window].max() > 0.5, name


def test_a_coin_appears_where_the_finding_is_said_to_be() -> None:
    study = study_with("foreign_body")
    coin = ForeignBody(ForeignBodyKind.COIN, (0.6, 0.6, 0.53), 0.05, (0.1, 0.1, 0.1))
    study = replace(
        study,
        lesions=replace(study.lesions, foreign_body=coin),
        anatomy=replace(study.anatomy, has_microchip=False),
    )
    for exposure in study.exposures:
        metal = path_lengths(study, exposure, SIZE)[3]
        (position,) = render_view(study, exposure, SIZE).findings_px["foreign_body"]
        assert metal.max() > 0
        np.testing.assert_allclose(centre_of(metal > 0.2 * metal.max()), position, atol=1.0)


@pytest.mark.parametrize(
    ("finding", "reach"),
    [
        ("cardiomegaly", 0.32),
        ("megaesophagus", 0.65),
        ("consolidation", 0.32),
        ("hepatomegaly", 0.5),
        ("nodule", 0.2),
        ("foreign_body", 0.2),
        ("rib_fracture", 0.35),
        ("spondylosis", 0.15),
    ],
)
@pytest.mark.parametrize("number", [3, 8])
def test_a_finding_changes_the_paths_near_its_centroids(finding: str, reach: float, number: int) -> None:
    """`reach` in trunk lengths: the change within that distance of a centroid must be 90 % of all."""
    healthy, ill = study_with(number=number), study_with(finding, number=number)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    for exposure in healthy.exposures:
        change = np.abs(path_lengths(ill, exposure, SIZE) - path_lengths(healthy, exposure, SIZE)).sum(axis=0)
        view = render_view(ill, exposure, SIZE)
        radius_px = reach * ill.trunk_length_mm / (view.pixel_spacing_mm * 0.9)
        is_near = np.zeros((SIZE, SIZE), bool)
        for column, row in view.findings_px[finding]:
            is_near |= np.hypot(columns - column, rows - row) < radius_px
        assert change.sum() > 1
        assert change[is_near].sum() > 0.9 * change.sum()


@pytest.mark.parametrize("finding", ["effusion", "pneumothorax"])
def test_pleural_disease_changes_the_chest_and_leaves_the_belly(finding: str) -> None:
    healthy, ill = study_with(), study_with(finding)
    for exposure in healthy.exposures:
        before, after = (path_lengths(study, exposure, SIZE)[0] for study in (healthy, ill))
        masks = organ_masks(ill, exposure, SIZE)
        chest = organ_masks(healthy, exposure, SIZE)["lung"] | masks["heart"]
        difference = after - before
        assert np.abs(difference[~chest]).sum() < 0.1 * np.abs(difference).sum()
        if finding == "effusion":
            assert difference[masks["effusion"]].mean() > 1.0


def test_effusion_and_pneumothorax_together_share_the_pleural_space() -> None:
    exposure = Exposure(view=View.VD)
    soft = [
        path_lengths(study_with(*names), exposure, SIZE)[0].sum()
        for names in (("effusion",), ("effusion", "pneumothorax"))
    ]
    assert soft[1] < soft[0]


def test_cardiomegaly_enlarges_the_heart_and_hepatomegaly_the_liver() -> None:
    for finding, organ, factor in (("cardiomegaly", "heart", 1.25), ("hepatomegaly", "liver", 1.1)):
        for number in range(3):
            healthy, ill = study_with(number=number), study_with(finding, number=number)
            exposure = Exposure(view=View.LATERAL_RIGHT)
            before, after = (organ_masks(study, exposure, SIZE)[organ].sum() for study in (healthy, ill))
            assert after > factor * before


def test_masks_are_named_and_hold_their_landmarks() -> None:
    study = study_with(*FINDINGS)
    for exposure in study.exposures:
        masks = organ_masks(study, exposure, SIZE)
        assert {"body", "lung", "heart", "liver", "stomach", "spine", "ribs", "diaphragm", *FINDINGS} <= set(masks)
        for name, mask in masks.items():
            assert mask.shape == (SIZE, SIZE)
            assert mask.dtype == bool
            assert mask.any(), name
        assert (masks["heart"] <= masks["body"]).all()
        (column, row), *_ = render_view(study, exposure, SIZE).findings_px["cardiomegaly"]
        assert np.abs(centre_of(masks["heart"]) - (column, row)).max() < 0.12 * SIZE


def test_healthy_studies_have_no_finding_masks() -> None:
    study = study_with()
    assert not set(FINDINGS) & set(organ_masks(study, study.exposures[0], 64))


def test_left_and_right_lateral_show_the_stomach_gas_in_different_places() -> None:
    study = study_with()
    left, right = (path_lengths(study, Exposure(view=view), SIZE)[0] for view in PHANTOM_VIEWS[:2])
    assert np.abs(left - right).max() > 5


def test_no_path_is_negative_and_none_is_longer_than_a_dog() -> None:
    for number in range(4):
        study = sample_study(6, number)
        for exposure in study.exposures:
            paths = path_lengths(study, exposure, 64)
            assert paths.shape == (4, 64, 64)
            assert paths.min() >= 0
            assert paths.sum(axis=0).max() < 1.3 * study.trunk_length_mm


def test_a_large_image_shows_what_a_small_one_shows() -> None:
    study = study_with()
    exposure = study.exposures[0]
    small = path_lengths(study, exposure, 64).sum(axis=0)
    large = path_lengths(study, exposure, 512).sum(axis=0).reshape(64, 8, 64, 8).mean(axis=(1, 3))
    assert np.abs(small - large).mean() < 0.02 * small.max()
    assert np.corrcoef(small.ravel(), large.ravel())[0, 1] > 0.998


def test_landmarks_scale_with_the_image() -> None:
    study = study_with()
    exposure = study.exposures[0]
    small, large = render_view(study, exposure, 64), render_view(study, exposure, 128)
    for name in LANDMARKS:
        np.testing.assert_allclose(np.add(large.landmarks_px[name], 0.5), 2 * np.add(small.landmarks_px[name], 0.5))
    assert small.pixel_spacing_mm == pytest.approx(2 * large.pixel_spacing_mm)


def test_pixel_spacing_measures_the_magnified_animal() -> None:
    study = study_with()
    exposure = Exposure(view=View.LATERAL_RIGHT)
    view = render_view(study, exposure, SIZE)
    points = landmarks_mm(study, exposure)
    true_mm = np.linalg.norm(points["T13"] - points["T1"])
    shown_mm = np.linalg.norm(np.subtract(view.landmarks_px["T13"], view.landmarks_px["T1"])) * view.pixel_spacing_mm
    assert 1.05 < shown_mm / true_mm < 1.25


@pytest.mark.parametrize("size_px", [0, 8, 100_000])
def test_an_impossible_size_is_refused_with_what_is_allowed(size_px: int) -> None:
    study = study_with()
    with pytest.raises(UserError, match="32 to 4096"):
        render_view(study, study.exposures[0], size_px)


@pytest.mark.parametrize("size_px", [64, 256])
def test_a_view_carries_the_points_of_its_scene_in_millimetres(size_px: int) -> None:
    study = study_with("nodule", "effusion")
    for exposure in study.exposures:
        view = render_view(study, exposure, size_px)
        known = landmarks_mm(study, exposure)
        assert list(view.landmarks_mm) == list(LANDMARKS)
        for name in LANDMARKS:
            np.testing.assert_array_equal(view.landmarks_mm[name], known[name])
        assert view.findings_mm == finding_centroids_mm(study, exposure)
        assert {name: len(points) for name, points in view.findings_mm.items()} == {
            name: len(points) for name, points in view.findings_px.items()
        }
