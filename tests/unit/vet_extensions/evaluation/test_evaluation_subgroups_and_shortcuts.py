"""For whom a score holds, what can be read from features, and the control whose labels were dealt out anew."""

import math
from dataclasses import replace

import numpy as np
import pytest

from vet_extensions.evaluation import chance
from vet_extensions.evaluation.chance import shuffled_scores
from vet_extensions.evaluation.cohort import Cohort, LabelledImages
from vet_extensions.evaluation.feature_set import FeatureSet
from vet_extensions.evaluation.metrics import auroc
from vet_extensions.evaluation.scoring import Predictions
from vet_extensions.evaluation.shortcuts import fact_features, read_facts
from vet_extensions.evaluation.statistics import PatientBootstrap
from vet_extensions.evaluation.subgroups import subgroup_gaps
from vet_extensions.evaluation.suite_config import load_suite

N = 400


def predictions(scores: np.ndarray, labels: np.ndarray) -> Predictions:
    """Test rows only, two images a patient."""
    codes = np.arange(N) // 2
    ids = np.arange(N).astype(str)
    return Predictions(
        level="image",
        group="all",
        protocol="linear",
        label_names=("effusion",),
        are_logits=True,
        fold=np.zeros(N, dtype=int),
        rows=np.arange(N),
        split=np.full(N, "test"),
        case_ids=ids,
        patient_ids=codes.astype(str),
        patient_codes=codes,
        labels=labels,
        scores=scores,
    )


@pytest.fixture
def scored() -> tuple[Predictions, np.ndarray]:
    """Scores that know the label of dogs and not that of cats; species by patient."""
    generator = np.random.default_rng(0)
    species = np.repeat(np.where(np.arange(N // 2) % 2, "canine", "feline"), 2)
    labels = np.repeat(generator.integers(0, 2, N // 2), 2).astype(np.int8)[:, None]
    scores = generator.normal(size=(N, 1)) + 2.0 * labels * (species == "canine")[:, None]
    return predictions(scores, labels), species


def test_a_subgroup_that_a_model_fails_is_seen_with_its_gap(scored: tuple) -> None:
    given, species = scored
    found = subgroup_gaps(given, {"species": species}, bootstrap=PatientBootstrap(given.patient_codes, n_resamples=200))
    dogs, cats = found
    assert (dogs.value, cats.value) == ("canine", "feline")
    is_cat = species == "feline"
    assert cats.score is not None
    assert cats.score.value == pytest.approx(auroc(given.scores[is_cat, 0], given.labels[is_cat, 0]))
    assert cats.gap is not None
    assert dogs.gap is not None
    assert cats.gap.high < 0
    assert cats.gap.value == pytest.approx(-dogs.gap.value)
    assert cats.p_holm < 0.01


def test_the_interval_of_a_gap_is_that_of_a_plain_loop_over_resamples_that_both_sides_share(scored: tuple) -> None:
    given, _ = scored
    view = np.tile(["VD", "LATERAL_LEFT"], N // 2)
    bootstrap = PatientBootstrap(given.patient_codes, n_resamples=40)
    gaps = []
    for counts in bootstrap.counts.T:
        drawn = np.repeat(np.arange(N), counts[given.patient_codes].astype(int))
        sides = [drawn[view[drawn] == name] for name in ("VD", "LATERAL_LEFT")]
        first, second = (auroc(given.scores[rows, 0], given.labels[rows, 0]) for rows in sides)
        gaps.append(first - second)
    gap = subgroup_gaps(given, {"view": view}, bootstrap=bootstrap)[1].gap
    assert gap is not None
    assert [gap.low, gap.high] == pytest.approx(list(np.quantile(gaps, [0.025, 0.975])), abs=1e-6)


def test_a_fact_that_makes_no_difference_shows_none(scored: tuple) -> None:
    given, _ = scored
    view = np.tile(["VD", "LATERAL_LEFT"], N // 2)
    found = subgroup_gaps(given, {"view": view}, bootstrap=PatientBootstrap(given.patient_codes, n_resamples=200))
    assert all(subgroup.p_holm > 0.05 for subgroup in found)


def test_too_few_patients_are_counted_and_not_judged(scored: tuple) -> None:
    given, _ = scored
    part = np.full(N, "THORAX", dtype="<U8")
    part[:10] = "SKULL"
    bootstrap = PatientBootstrap(given.patient_codes, n_resamples=20)
    skull, thorax = subgroup_gaps(given, {"body_part": part}, bootstrap=bootstrap)
    assert (skull.n_rows, skull.n_patients, skull.score) == (10, 5, None)
    assert "fewer than 20 patients" in skull.reason
    assert math.isnan(skull.p_holm)
    assert thorax.reason  # nothing to compare it with either


def test_what_is_not_stated_is_no_subgroup_and_one_value_none_to_compare(scored: tuple) -> None:
    given, _ = scored
    facts = {"laterality": np.full(N, ""), "species": np.full(N, "canine")}
    assert subgroup_gaps(given, facts, bootstrap=PatientBootstrap(given.patient_codes, n_resamples=5)) == []


def cohort(labels: np.ndarray) -> Cohort:
    """Two images a patient and study; half train, a tenth val, the rest test."""
    codes = np.arange(N) // 2
    split = np.where(codes < 100, "train", np.where(codes < 120, "val", "test"))
    return Cohort(split, np.full(N, "lateral"), codes, codes, labels)


def test_a_fact_that_the_features_hold_is_read_and_one_that_they_do_not_is_at_chance() -> None:
    generator = np.random.default_rng(1)
    species = np.repeat(np.where(generator.random(N // 2) < 0.25, "feline", "canine"), 2)
    view = np.array(["VD", "DV", "LATERAL_LEFT"])[generator.integers(0, 3, N)]
    features = generator.normal(size=(N, 8))
    features[:, 0] += 4.0 * (species == "feline")
    given = cohort(np.zeros((N, 1), dtype=np.int8))
    bootstrap = PatientBootstrap(given.patient_codes, n_resamples=100)
    by_fact = {r.fact: r for r in read_facts(features, given, {"species": species, "view": view}, bootstrap=bootstrap)}
    assert by_fact["species"].balanced_accuracy.value > 0.9  # although one in four is a cat
    assert by_fact["species"].chance == 0.5
    assert by_fact["view"].chance == pytest.approx(1 / 3)
    assert by_fact["view"].balanced_accuracy.low < 1 / 3 < by_fact["view"].balanced_accuracy.high


def test_facts_become_columns_by_what_training_images_have() -> None:
    species = np.array(["canine", "feline", "", "equine"])
    found = fact_features({"species": species, "view": np.full(4, "VD")}, is_bank=np.array([True, True, True, False]))
    assert found is not None
    assert found.shape == (4, 3)
    assert found.sum(axis=1).tolist() == [1, 1, 1, 0]
    assert fact_features({"view": np.full(4, "VD")}, is_bank=np.ones(4, dtype=bool)) is None


class NoPixels:
    def read(self, row_index: int, /) -> np.ndarray:
        raise AssertionError("not read")

    def __len__(self) -> int:
        return N


SUITE = load_suite(
    {"levels": ["image", "study"], "groups": ["all"], "knn": {"ks": [5, 20]}, "linear": {"c_grid": [0.01, 0.1]}}
)


def easy() -> tuple[np.ndarray, LabelledImages]:
    """Features that hold two labels plainly."""
    generator = np.random.default_rng(2)
    labels = np.repeat(generator.integers(0, 2, (N // 2, 2)), 2, axis=0).astype(np.int8)
    features = np.concatenate([labels * 3.0 + generator.normal(size=(N, 2)), generator.normal(size=(N, 6))], axis=1)
    return features, LabelledImages("made up", cohort(labels), ("effusion", "nodule"), NoPixels(), "x")


def test_shuffled_labels_are_at_chance_where_the_true_ones_are_found() -> None:
    features, images = easy()
    found = shuffled_scores(FeatureSet(features), images, SUITE)
    assert {key[:3] for key in found} == {(level, "all", p) for level in ("image", "study") for p in ("knn", "linear")}
    assert all(score.is_at_chance and score.low <= score.value <= score.high for score in found.values())


def test_scoring_that_knows_the_answers_from_elsewhere_is_not_at_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    features, images = easy()
    monkeypatch.setattr(
        chance, "_dealt", lambda cohort, _, task: [cohort.labels] * 2
    )  # as if shuffling changed nothing
    assert not any(score.is_at_chance for score in shuffled_scores(FeatureSet(features), images, SUITE).values())


def test_test_labels_are_not_dealt_and_the_others_keep_their_counts() -> None:
    _, images = easy()
    dealt, opposite = chance._dealt(images.cohort, np.random.default_rng(0), task=images.task)
    is_test = images.cohort.split == "test"
    assert (dealt[is_test] == images.cohort.labels[is_test]).all()
    assert (dealt[~is_test] != images.cohort.labels[~is_test]).any()
    for split in ("train", "val"):
        rows = images.cohort.split == split
        assert dealt[rows].sum(axis=0).tolist() == images.cohort.labels[rows].sum(axis=0).tolist()
        np.testing.assert_array_equal(opposite[rows], 1 - dealt[rows])
    np.testing.assert_array_equal(opposite[is_test], dealt[is_test])


def test_labels_that_nobody_knows_have_no_opposite() -> None:
    _, images = easy()
    labels = images.cohort.labels.copy()
    labels[:, 0] = np.resize(np.repeat([-128, -1], 2), N)
    dealt, opposite = chance._dealt(replace(images.cohort, labels=labels), np.random.default_rng(0), task=images.task)
    np.testing.assert_array_equal(opposite[:, 0], dealt[:, 0])


@pytest.mark.parametrize("seed", range(5))
def test_the_luck_of_a_deal_does_not_pass_for_knowledge(seed: int) -> None:
    features, images = easy()
    one = replace(images, cohort=replace(images.cohort, labels=images.cohort.labels[:, :1]), label_names=("effusion",))
    strong = FeatureSet(features[:, :1])  # it falls to one side of any deal, and ranks the test images by that
    found = shuffled_scores(strong, one, replace(SUITE, levels=("image",), protocols=("linear",)), seed=seed)
    assert all(abs(score.value - 0.5) < 0.01 for score in found.values())


def test_classes_are_dealt_as_classes() -> None:
    features, images = easy()
    one = images.cohort.labels[:, :1]
    classes = replace(
        images, cohort=replace(images.cohort, labels=np.concatenate([one, 1 - one], axis=1)), task="multiclass"
    )
    found = shuffled_scores(FeatureSet(features), classes, replace(SUITE, levels=("image",)), n_deals=3)
    assert all(score.n_deals == 3 for score in found.values())
