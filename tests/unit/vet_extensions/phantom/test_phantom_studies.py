"""Sampling: determinism, independence of streams, prevalence, views, users' mistakes."""

from dataclasses import fields, replace

import numpy as np
import pytest

from vet_extensions.errors import UserError
from vet_extensions.phantom.exposure import Exposure
from vet_extensions.phantom.findings import PROFILES
from vet_extensions.phantom.studies import LANDMARKS, finding_centroids_mm, landmarks_mm, sample_study
from vet_extensions.schema import FINDINGS, View, ViewFamily, view_family

NUISANCES = [field.name for field in fields(Exposure) if field.name != "view"]


def test_a_study_follows_from_seed_and_number_alone_in_any_order() -> None:
    forwards = [sample_study(7, number) for number in range(6)]
    backwards = [sample_study(7, number) for number in reversed(range(6))]
    assert forwards == backwards[::-1]


def test_other_seeds_and_numbers_give_other_animals() -> None:
    lengths = {sample_study(seed, number).trunk_length_mm for seed in range(5) for number in range(5)}
    assert len(lengths) == 25


def test_forcing_a_finding_changes_nothing_else() -> None:
    none = sample_study(1, 2, findings=dict.fromkeys(FINDINGS, False))
    for name in FINDINGS:
        one = sample_study(1, 2, findings=dict.fromkeys(FINDINGS, False) | {name: True})
        assert (one.anatomy, one.exposures) == (none.anatomy, none.exposures)
        assert one.findings == none.findings | {name: True}
        assert one.lesions != none.lesions


def test_a_finding_has_the_same_size_whichever_others_are_present() -> None:
    alone = sample_study(1, 2, findings=dict.fromkeys(FINDINGS, False) | {"nodule": True})
    among_all = sample_study(1, 2, findings=dict.fromkeys(FINDINGS, True))
    assert alone.lesions.nodules == among_all.lesions.nodules


def test_the_extent_of_one_finding_says_nothing_about_another() -> None:
    all_present = dict.fromkeys(FINDINGS, True)
    lesions = [sample_study(0, k, findings=all_present).lesions for k in range(300)]
    extent = np.array(
        [(one.effusion, one.pneumothorax, one.heart_enlargement, one.megaesophagus_radius) for one in lesions]
    )
    assert np.abs(np.corrcoef(extent.T) - np.eye(4)).max() < 4.5 / np.sqrt(300)


@pytest.mark.parametrize("profile", list(PROFILES))
def test_findings_have_their_prevalence_and_are_independent(profile: str) -> None:
    present = np.array([list(sample_study(0, k, profile=profile).findings.values()) for k in range(1200)], dtype=float)
    expected = np.array([PROFILES[profile][name] for name in FINDINGS])
    spread = np.sqrt(expected * (1 - expected) / 1200)
    assert (np.abs(present.mean(axis=0) - expected) < 4 * spread).all()
    correlation = np.corrcoef(present.T) - np.eye(len(FINDINGS))
    assert np.abs(correlation).max() < 4.5 / np.sqrt(1200)


def test_every_finding_is_named_in_the_order_of_the_schema() -> None:
    assert tuple(sample_study(0, 0).findings) == FINDINGS


def test_the_default_views_are_one_lateral_and_one_frontal_of_either_kind() -> None:
    pairs = [[exposure.view for exposure in sample_study(0, k).exposures] for k in range(40)]
    assert all([view_family(v) for v in pair] == [ViewFamily.LATERAL, ViewFamily.FRONTAL] for pair in pairs)
    assert {view for pair in pairs for view in pair} == {View.LATERAL_LEFT, View.LATERAL_RIGHT, View.VD, View.DV}


def test_views_are_taken_as_asked_and_each_keeps_its_exposure() -> None:
    both = sample_study(0, 1, views=["VD", "LATERAL_LEFT"])
    assert [exposure.view for exposure in both.exposures] == [View.VD, View.LATERAL_LEFT]
    assert both.exposures[1] == sample_study(0, 1, views=["LATERAL_LEFT"]).exposures[0]


def test_a_view_taken_twice_is_two_exposures() -> None:
    first, second = sample_study(0, 1, views=["VD", "VD"]).exposures
    assert first.noise_seed != second.noise_seed


def test_exposures_of_the_views_of_a_study_are_independent() -> None:
    studies = [sample_study(11, k) for k in range(400)]
    for name in NUISANCES:
        values = np.array([[np.ravel(getattr(e, name))[0] for e in study.exposures] for study in studies], dtype=float)
        assert abs(np.corrcoef(values.T)[0, 1]) < 4.5 / np.sqrt(400), name


def test_shared_exposure_gives_every_view_the_same_nuisances() -> None:
    first, second = sample_study(11, 3, shared_exposure=True).exposures
    assert first.view != second.view
    assert replace(first, view=second.view) == second


def test_every_animal_has_the_46_landmarks_and_they_are_apart() -> None:
    study = sample_study(0, 5)
    points = landmarks_mm(study, study.exposures[0])
    assert len(LANDMARKS) == len(set(LANDMARKS)) == 46
    assert tuple(points) == LANDMARKS
    stacked = np.stack(list(points.values()))
    distance = np.linalg.norm(stacked[:, None] - stacked[None], axis=-1) + 1e3 * np.eye(46)
    assert distance.min() > 1.0
    assert points["T1"][0] < points["T13"][0]
    assert points["kidney_right"][1] < 0 < points["kidney_left"][1]
    assert points["sternebra_4"][2] < points["heart_centre"][2] < points["T6"][2]


def test_breathing_moves_the_diaphragm_and_not_the_spine() -> None:
    study = sample_study(0, 5)
    expired, inspired = (landmarks_mm(study, Exposure(view=View.VD, inspiration=depth)) for depth in (-1.0, 1.0))
    assert inspired["diaphragm_cupola"][0] - expired["diaphragm_cupola"][0] > 0.05 * study.trunk_length_mm
    np.testing.assert_array_equal(inspired["T8"], expired["T8"])


def test_centroids_name_exactly_the_findings_present_with_one_point_per_lesion() -> None:
    study = sample_study(2, 4, findings=dict.fromkeys(FINDINGS, True))
    centroids = finding_centroids_mm(study)
    assert tuple(centroids) == FINDINGS
    assert len(centroids["nodule"]) == len(study.lesions.nodules)
    assert len(centroids["rib_fracture"]) == len(study.lesions.rib_fractures)
    assert len(centroids["spondylosis"]) == len(study.lesions.spurs)
    assert finding_centroids_mm(sample_study(2, 4, findings=dict.fromkeys(FINDINGS, False))) == {}


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"profile": "weird"}, "weird"),
        ({"findings": {"cardiomegally": True}}, "cardiomegally"),
        ({"views": ["PA"]}, "PA"),
        ({"views": []}, "No view"),
    ],
)
def test_what_is_not_known_is_named_with_what_is_allowed(kwargs: dict, named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        sample_study(0, 0, **kwargs)
    assert "Allowed" in str(caught.value)


def test_negative_numbers_are_refused() -> None:
    with pytest.raises(UserError, match="-1"):
        sample_study(0, -1)
