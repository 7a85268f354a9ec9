"""A suite reaches every protocol on frozen features by its name, for labels and for classes, and gets rows of its own."""

import numpy as np
import pytest

from vet_extensions.evaluation.cohort import MULTICLASS, MULTILABEL, Cohort, LabelledImages
from vet_extensions.evaluation.feature_set import FeatureSet
from vet_extensions.evaluation.knn import knn_probe
from vet_extensions.evaluation.probes import ProbeData
from vet_extensions.evaluation.scoring import Predictions, measure
from vet_extensions.evaluation.statistics import PatientBootstrap
from vet_extensions.evaluation.suite_config import load_suite


class NoPixels:
    """The features are given; nothing is read."""

    def __init__(self, n: int) -> None:
        self._n = n

    def __len__(self) -> int:
        return self._n

    def read(self, row_index: int, /) -> np.ndarray:
        raise AssertionError(f"image {row_index} was read")


def archive(task: str, n: int = 240) -> tuple[LabelledImages, np.ndarray]:
    """Studies of a lateral and a frontal image; features that tell the first two of three labels, or the class."""
    generator = np.random.default_rng(0)
    study = np.arange(n) // 2
    hidden = generator.normal(size=(n // 2, 3))[study]
    labels = np.eye(3, dtype=np.int8)[hidden.argmax(axis=1)] if task == MULTICLASS else (hidden > 0.5).astype(np.int8)
    cohort = Cohort(
        split=np.repeat(["train", "val", "test"], [n // 2, n // 4, n // 4]),
        family=np.tile(["lateral", "frontal"], n // 2),
        patient_codes=study // 2,
        study_codes=study,
        labels=labels,
    )
    features = np.hstack([hidden, generator.normal(size=(n, 5))]) + 0.3 * generator.normal(size=(n, 8))
    data = LabelledImages("made up", cohort, ("a", "b", "c"), NoPixels(n), "0", task=task)
    return data, features.astype(np.float32)


SETTINGS = {
    "levels": ["image"],
    "groups": ["all"],
    "knn": {"ks": [5, 15]},
    "linear": {"c_grid": [0.1]},
    "linear_grid": {"learning_rates": [0.01, 0.1], "epochs": 5},
    "few_shot": {"shots": [1, 8], "shares": [0.2, 1.0], "n_draws": 3},
}


def measured_with(protocols: list[str], task: str) -> dict[str, float]:
    """Protocol of the row -> macro AUROC."""
    data, features = archive(task)
    config = load_suite({**SETTINGS, "protocols": protocols})
    patients = data.cohort.patient_codes[data.cohort.split == "test"]
    found = measure(FeatureSet(features), data, config, bootstrap=PatientBootstrap(patients, n_resamples=20))
    return {key[2]: float(np.mean(one.samples.values)) for key, one in found.items() if key[3] == "auroc"}


@pytest.mark.parametrize("task", [MULTILABEL, MULTICLASS])
def test_every_protocol_finds_what_the_features_tell(task: str) -> None:
    found = measured_with(["knn", "linear", "ml_knn", "linear_grid"], task)
    assert set(found) == {"knn", "linear", "ml_knn", "linear_grid"}
    assert min(found.values()) > 0.8


def test_a_curve_has_a_row_for_every_size_and_grows() -> None:
    found = measured_with(["few_shot", "label_share"], MULTILABEL)
    assert set(found) == {"few_shot_1", "few_shot_8", "label_share_0.2", "label_share_1"}
    assert found["few_shot_1"] < found["few_shot_8"]
    assert found["label_share_0.2"] < found["label_share_1"]


def test_retrieval_has_its_rows_with_chance() -> None:
    data, features = archive(MULTILABEL)
    config = load_suite({**SETTINGS, "protocols": ["retrieval"], "levels": ["image", "cross_view", "study"]})
    patients = data.cohort.patient_codes[data.cohort.split == "test"]
    found = measure(FeatureSet(features), data, config, bootstrap=PatientBootstrap(patients, n_resamples=20))
    assert {key[:3] for key in found} == {("image", "all", "retrieval"), ("cross_view", "same_study", "retrieval")}
    assert all("chance" in one.config for one in found.values())


def measure_made_up(features: FeatureSet, data: LabelledImages, **suite: object) -> tuple[dict, dict]:
    """(what was measured, protocol -> its predictions) of a suite."""
    kept = {}
    patients = data.cohort.patient_codes[data.cohort.split == "test"]
    bootstrap = PatientBootstrap(patients, n_resamples=20)

    def keep(one: Predictions) -> None:
        kept[one.protocol] = one

    return measure(features, data, load_suite({**SETTINGS, **suite}), bootstrap=bootstrap, on_predictions=keep), kept


@pytest.mark.parametrize("level", ["image", "study"])
def test_the_grid_of_heads_reads_the_block_that_tells_the_labels(level: str) -> None:
    data, telling = archive(MULTILABEL)
    noise = np.random.default_rng(1).normal(size=(5, len(telling), 2)).astype(np.float32)
    noise = np.concatenate([noise, np.zeros((5, len(telling), telling.shape[1] - 2), dtype=np.float32)], axis=2)
    features = FeatureSet(  # only an earlier block knows
        noise[0], cls_by_block=np.stack([telling, *noise[1:3], noise[0]], axis=1), mean_patch=noise[4]
    )
    settings = {"protocols": ["linear", "linear_grid"], "linear_grid": {"learning_rates": [0.1, 2.0], "epochs": 40}}
    found, _ = measure_made_up(features, data, levels=[level], **settings)
    of_vectors, of_grid = (found[level, "all", protocol, "auroc"] for protocol in ("linear", "linear_grid"))
    assert of_grid.samples.values.mean() > 0.75 > 0.6 > of_vectors.samples.values.mean()
    assert of_grid.chosen["input"][0] in ("4 blocks", "4 blocks, mean patch")


@pytest.mark.parametrize("task", [MULTILABEL, MULTICLASS])
def test_a_refit_scores_the_chosen_candidate_with_train_and_val_as_its_bank(task: str) -> None:
    data, features = archive(task)
    _, plain = measure_made_up(FeatureSet(features), data, protocols=["knn"])
    found, refitted = measure_made_up(FeatureSet(features), data, protocols=["knn"], refit=True)
    one = found["image", "all", "knn", "auroc"]
    is_bank, is_test = data.cohort.split != "test", data.cohort.split == "test"
    parts = [ProbeData(features[of], data.cohort.labels[of]) for of in (is_bank, is_test)]
    k = int(one.chosen["k"][0])
    by_hand = knn_probe(parts[0], val=parts[1], test=parts[1], ks=(k,), temperature=0.07, task=task).test[0]
    np.testing.assert_allclose(refitted["knn"].of_split("test").scores, by_hand, rtol=1e-6)
    assert not np.allclose(plain["knn"].of_split("test").scores, by_hand)
    # What validation chose by stays as it was: a bank that holds the validation images could not be chosen among.
    np.testing.assert_array_equal(refitted["knn"].of_split("val").scores, plain["knn"].of_split("val").scores)
    assert one.config["fitted_on"] == "train, then train and val with what val chose"


@pytest.mark.parametrize("protocol", ["linear", "linear_grid", "ml_knn"])
def test_every_probe_that_can_be_refitted_scores_otherwise_and_not_worse_than_chance(protocol: str) -> None:
    data, features = archive(MULTILABEL)
    given = FeatureSet(features, cls_by_block=np.stack([features] * 4, axis=1), mean_patch=features)
    found, refitted = measure_made_up(given, data, protocols=[protocol], refit=True)
    _, plain = measure_made_up(given, data, protocols=[protocol])
    assert not np.allclose(plain[protocol].of_split("test").scores, refitted[protocol].of_split("test").scores)
    assert found["image", "all", protocol, "auroc"].samples.values.mean() > 0.8


@pytest.mark.parametrize("task", [MULTILABEL, MULTICLASS])
def test_every_pooling_judges_studies_by_their_images_and_no_other_level(task: str) -> None:
    data, features = archive(task)
    names = ["pool_mean", "pool_max", "pool_attention", "abmil", "pool_transformer"]
    pooling = {"epochs": 15, "learning_rates": [0.003], "width": 16, "positions": "none"}
    found, kept = measure_made_up(
        FeatureSet(features), data, protocols=names, levels=["image", "study"], pooling=pooling
    )
    assert {key[:3] for key in found} == {("study", "all", name) for name in names}
    for name in names:
        assert found["study", "all", name, "auroc"].samples.values.mean() > 0.7
        test = kept[name].of_split("test")
        np.testing.assert_array_equal(test.labels, data.cohort.labels[data.cohort.split == "test"][::2])
        assert test.case_ids.tolist() == [str(code) for code in range(90, 120)]


def test_studies_are_pooled_from_refitted_image_scores() -> None:
    data, features = archive(MULTILABEL)
    _, refitted = measure_made_up(FeatureSet(features), data, protocols=["linear"], refit=True)
    _, pooled = measure_made_up(FeatureSet(features), data, protocols=["linear"], refit=True, levels=["study_max"])
    images = refitted["linear"].of_split("test").scores
    np.testing.assert_array_equal(pooled["linear"].of_split("test").scores, images.reshape(-1, 2, 3).max(axis=1))


def test_a_resolution_curve_has_a_row_for_each_size_with_the_side_that_was_used() -> None:
    data, telling = archive(MULTILABEL)
    noise = np.random.default_rng(1).normal(size=telling.shape).astype(np.float32)
    features = FeatureSet(noise, at_size=lambda px: (telling if px > 50 else noise, px // 8 * 8))
    settings = {"protocols": ["resolution"], "resolution": {"sizes_px": [30, 60]}, "levels": ["image", "study"]}
    found, _ = measure_made_up(features, data, **settings)
    assert {key[:3] for key in found} == {("image", "all", "resolution_30"), ("image", "all", "resolution_60")}
    small, large = (found["image", "all", f"resolution_{px}", "auroc"] for px in (30, 60))
    assert (small.config["image_size_px"], large.config["image_size_px"]) == (24, 56)
    assert large.samples.values.mean() > 0.8 > 0.65 > small.samples.values.mean()
