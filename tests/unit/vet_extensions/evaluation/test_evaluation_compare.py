"""Results compared after the fact: paired, corrected, and silent about what the data cannot tell apart."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from vet_extensions.errors import UserError
from vet_extensions.evaluation.compare import BETTER, SAME, compare_evaluations
from vet_extensions.evaluation.delong import correlated_aurocs
from vet_extensions.evaluation.metrics import AUROC, label_metrics, macro
from vet_extensions.evaluation.predictions import Scorer, list_predictions, write_predictions
from vet_extensions.evaluation.scoring import Predictions
from vet_extensions.evaluation.statistics import bootstrap_difference, holm, shared_letters

N = 240


def predictions(signal: float, *, seed: int, level: str = "image", label_seed: int = 0) -> Predictions:
    """Two labels of 120 patients with two images each; a third of the patients is validation. One label value is missing."""
    codes = np.arange(N) // 2
    labels = np.repeat(np.random.default_rng(label_seed).integers(0, 2, (N // 2, 2)), 2, axis=0).astype(np.int8)
    labels[5, 0] = -128
    noise = np.random.default_rng(seed).normal(size=(N, 2))
    return Predictions(
        level=level,
        group="all",
        protocol="knn",
        label_names=("effusion", "nodule"),
        are_logits=False,
        fold=np.zeros(N, dtype=int),
        rows=np.arange(N),
        split=np.where(codes < 40, "val", "test"),
        case_ids=np.array([f"i{row:03d}" for row in range(N)]),
        patient_ids=np.array([f"p{code:03d}" for code in codes]),
        patient_codes=codes,
        labels=labels,
        scores=noise + signal * (labels == 1),
    )


def scorer(arm: str, **changes: object) -> Scorer:
    base = Scorer(arm, 0, f"hash-{arm}", is_control=False, data="d0", task="multilabel", leak="none found")
    return replace(base, **changes)  # type: ignore[arg-type]


def test_scores_come_back_from_parquet_as_they_were(tmp_path: Path) -> None:
    given = predictions(1.0, seed=1)
    write_predictions(tmp_path, scorer("vet_dino"), given)
    (file,) = list_predictions(tmp_path)
    read = file.read()
    assert file.scorer == scorer("vet_dino")
    for name in ("fold", "split", "case_ids", "patient_ids", "labels"):
        np.testing.assert_array_equal(getattr(read, name), getattr(given, name))
    np.testing.assert_allclose(read.scores, given.scores, rtol=1e-6)
    assert len(np.unique(read.patient_codes)) == N // 2


def test_two_folders_are_compared_by_the_paired_bootstrap_and_single_labels_by_delong(tmp_path: Path) -> None:
    good, bad = predictions(2.0, seed=1), predictions(0.3, seed=2)
    write_predictions(tmp_path / "a", scorer("vet_dino"), good)
    write_predictions(tmp_path / "b", scorer("same_image"), bad)
    found = compare_evaluations([tmp_path / "a", tmp_path / "b"], n_resamples=300)
    (row,) = [row for row in found.macros if row.metric == "macro_auroc"]
    test = good.split == "test"
    expected = bootstrap_difference(
        good.scores[test],
        second_scores=bad.scores[test],
        labels=good.labels[test],
        patient_codes=good.patient_codes[test],
        metric=AUROC,
        n_resamples=300,
    )
    assert (row.first, row.second, row.verdict) == ("vet_dino", "same_image", BETTER)
    assert (row.value, row.low, row.high) == pytest.approx((expected.value, expected.low, expected.high), abs=1e-6)
    both = np.stack([good.scores[test, 1], bad.scores[test, 1]], axis=1)
    delong = correlated_aurocs(both, labels=good.labels[test, 1], patient_codes=good.patient_codes[test])
    (label,) = [row for row in found.labels if row.label == "nodule"]
    assert label.p == pytest.approx(delong.contrast((1, -1)).p, rel=1e-3)


def test_what_is_not_told_apart_is_not_distinguishable_and_shares_a_letter(tmp_path: Path) -> None:
    for seed, (arm, signal) in enumerate({"first": 2.0, "second": 1.95, "third": 0.0}.items()):
        write_predictions(tmp_path, scorer(arm), predictions(signal, seed=seed + 10))
    found = compare_evaluations([tmp_path], n_resamples=300)
    verdicts = {(row.first, row.second): row.verdict for row in found.macros if row.metric == "macro_auroc"}
    assert verdicts == {("first", "second"): SAME, ("first", "third"): BETTER, ("second", "third"): BETTER}
    letters = {s.name: s.letters for s in found.standings if s.metric == "macro_auroc"}
    assert letters["first"] == letters["second"] == "a"
    assert letters["third"] == "b"


def test_the_correction_runs_over_all_pairs_measurements_and_metrics(tmp_path: Path) -> None:
    for seed, arm in enumerate("abc"):
        for level in ("image", "study"):
            write_predictions(tmp_path, scorer(arm), predictions(0.4 * seed, seed=seed + 1, level=level))
    found = compare_evaluations([tmp_path], n_resamples=100)
    assert len(found.macros) == 3 * 2 * 2
    assert [row.p_holm for row in found.macros] == holm([row.p for row in found.macros])
    one = compare_evaluations([tmp_path], wanted={"level": "study"}, n_resamples=100)
    assert len(one.macros) == 3 * 2


def test_seeds_of_an_arm_are_averaged_and_the_newest_checkpoint_of_a_seed_counts(tmp_path: Path) -> None:
    write_predictions(tmp_path, scorer("vet_dino", checkpoint_hash="old"), predictions(0.0, seed=9))
    seeds = [predictions(1.0, seed=1), predictions(1.0, seed=2)]
    for number, given in enumerate(seeds):
        write_predictions(tmp_path, scorer("vet_dino", seed=number, checkpoint_hash=f"new{number}"), given)
    write_predictions(tmp_path, scorer("same_image"), predictions(1.0, seed=3))
    found = compare_evaluations([tmp_path], n_resamples=50)
    (standing,) = [s for s in found.standings if s.name == "vet_dino" and s.metric == "macro_auroc"]
    test = seeds[0].split == "test"
    alone = [macro(label_metrics(g.scores[test], labels=g.labels[test])[AUROC][:, 0])[0] for g in seeds]
    assert standing.n_seeds == 2
    assert standing.estimate.value == pytest.approx(np.mean(alone), abs=1e-6)


def test_controls_are_compared_only_when_asked_for(tmp_path: Path) -> None:
    write_predictions(tmp_path, scorer("vet_dino"), predictions(1.0, seed=1))
    write_predictions(tmp_path, scorer("raw_pixels", is_control=True), predictions(0.0, seed=2))
    with pytest.raises(UserError, match="no two results to compare: found vet_dino"):
        compare_evaluations([tmp_path], n_resamples=20)
    assert compare_evaluations([tmp_path], with_controls=True, n_resamples=20).macros


def test_an_arm_of_the_same_name_in_two_folders_is_named_by_its_folder(tmp_path: Path) -> None:
    for seed, name in enumerate(("long", "short")):
        write_predictions(tmp_path / name, scorer("vet_dino"), predictions(1.0, seed=seed + 1))
    found = compare_evaluations([tmp_path / "long", tmp_path / "short"], n_resamples=20)
    assert {s.name for s in found.standings} == {"long: vet_dino", "short: vet_dino"}


def test_results_of_different_data_or_labels_are_refused(tmp_path: Path) -> None:
    write_predictions(tmp_path / "a", scorer("a"), predictions(1.0, seed=1))
    write_predictions(tmp_path / "b", scorer("b", data="d1"), predictions(1.0, seed=2))
    write_predictions(tmp_path / "c", scorer("c"), predictions(1.0, seed=2, label_seed=5))
    with pytest.raises(UserError, match="different data"):
        compare_evaluations([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(UserError, match="not scored on the same cases and labels"):
        compare_evaluations([tmp_path / "a", tmp_path / "c"])
    with pytest.raises(UserError, match="holds no predictions"):
        compare_evaluations([tmp_path / "nothing"])


def test_letters_are_shared_exactly_by_pairs_that_do_not_differ() -> None:
    names = list("abcdefg")
    for seed in range(40):
        generator = np.random.default_rng(seed)
        apart = {pair for pair in combinations(names, 2) if generator.random() < 0.5}
        letters = shared_letters(names, lambda x, y, apart=apart: tuple(sorted((x, y))) in apart)
        assert all(letters.values())
        for pair in combinations(names, 2):
            assert (not set(letters[pair[0]]) & set(letters[pair[1]])) is (pair in apart)
