"""One set of features to its measurements: classes too, studies by their images' scores, and the scores behind a measurement."""

import numpy as np
import pytest

from vet_extensions.evaluation.cohort import MULTICLASS, MULTILABEL, Cohort, LabelledImages
from vet_extensions.evaluation.feature_set import FeatureSet
from vet_extensions.evaluation.metrics import ACCURACY, AUROC, BALANCED_ACCURACY, auroc
from vet_extensions.evaluation.scoring import Predictions, measure
from vet_extensions.evaluation.statistics import PatientBootstrap, macro_estimate
from vet_extensions.evaluation.suite_config import load_suite

N = 240


class NoPixels:
    def read(self, row_index: int, /) -> np.ndarray:
        raise AssertionError("not read")

    def __len__(self) -> int:
        return N


def given(task: str) -> tuple[np.ndarray, LabelledImages]:
    """Three classes as labels, two images a study and patient; features hold them plainly."""
    generator = np.random.default_rng(0)
    truth = np.repeat(generator.integers(0, 3, N // 2), 2)
    labels = np.eye(3, dtype=np.int8)[truth]
    features = np.concatenate([2.0 * labels + generator.normal(size=(N, 3)), generator.normal(size=(N, 5))], axis=1)
    codes = np.arange(N) // 2
    split = np.where(codes < 60, "train", np.where(codes < 75, "val", "test"))
    cohort = Cohort(split, np.full(N, "lateral"), codes, codes, labels)
    return features, LabelledImages("made up", cohort, ("a", "b", "c"), NoPixels(), "x", task=task)


def scored(task: str, **suite: object) -> tuple[dict, dict[tuple[str, str], Predictions]]:
    """(what was measured, level and protocol -> predictions)."""
    features, images = given(task)
    kept: dict[tuple[str, str], Predictions] = {}
    config = load_suite({"levels": ["image"], "groups": ["all"], "protocols": ["knn", "linear"], **suite})
    bootstrap = PatientBootstrap(images.cohort.patient_codes[images.cohort.split == "test"], n_resamples=30)

    def keep(one: Predictions) -> None:
        kept[one.level, one.protocol] = one

    return measure(FeatureSet(features), images, config, bootstrap=bootstrap, on_predictions=keep), kept


def test_classes_have_accuracies_beside_the_metrics_of_labels() -> None:
    found, kept = scored(MULTICLASS)
    for protocol in ("knn", "linear"):
        test = kept["image", protocol].of_split("test")
        right = test.scores.argmax(axis=1) == test.labels.argmax(axis=1)
        accuracy = macro_estimate(found["image", "all", protocol, ACCURACY].samples)
        balanced = macro_estimate(found["image", "all", protocol, BALANCED_ACCURACY].samples)
        recalls = [right[test.labels[:, column] == 1].mean() for column in range(3)]
        assert accuracy.value == pytest.approx(right.mean())
        assert accuracy.low <= accuracy.value <= accuracy.high
        assert balanced.value == pytest.approx(np.mean(recalls))


def test_labels_that_exclude_nothing_have_no_accuracy() -> None:
    found, _ = scored(MULTILABEL)
    assert {key[3] for key in found} == {"auroc", "average_precision"}


@pytest.mark.parametrize(("level", "pool"), [("study_mean", np.mean), ("study_max", np.max)])
def test_a_studys_score_is_pooled_from_its_images(level: str, pool: object) -> None:
    found, kept = scored(MULTILABEL, levels=["image", level], linear={"c_grid": [0.1]})
    images, studies = (kept[one, "linear"].of_split("test") for one in ("image", level))
    expected = [pool(images.scores[images.patient_codes == code], axis=0) for code in studies.patient_codes]  # type: ignore[operator]
    np.testing.assert_allclose(studies.scores, expected)
    assert studies.case_ids.tolist() == [str(code) for code in studies.patient_codes]
    samples = found[level, "all", "linear", AUROC].samples
    assert samples.values[0] == pytest.approx(auroc(studies.scores[:, 0], studies.labels[:, 0]))


def test_predictions_are_those_that_were_measured_for_every_case_of_val_and_test() -> None:
    found, kept = scored(MULTILABEL)
    one = kept["image", "linear"]
    assert sorted(one.rows.tolist()) == list(range(120, N))
    test = one.of_split("test")
    expected = [auroc(test.scores[:, column], test.labels[:, column]) for column in range(3)]
    assert found["image", "all", "linear", AUROC].samples.values == pytest.approx(expected)
    assert one.are_logits
    assert not kept["image", "knn"].are_logits
