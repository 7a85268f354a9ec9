"""A suite reaches every protocol on frozen features by its name, for labels and for classes, and gets rows of its own."""

import numpy as np
import pytest

from vet_extensions.evaluation.cohort import MULTICLASS, MULTILABEL, Cohort, LabelledImages
from vet_extensions.evaluation.results import load_suite
from vet_extensions.evaluation.scoring import measure
from vet_extensions.evaluation.statistics import PatientBootstrap


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
    found = measure(features, data, config, bootstrap=PatientBootstrap(patients, n_resamples=20))
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
    found = measure(features, data, config, bootstrap=PatientBootstrap(patients, n_resamples=20))
    assert {key[:3] for key in found} == {("image", "all", "retrieval"), ("cross_view", "same_study", "retrieval")}
    assert all("chance" in one.config for one in found.values())
