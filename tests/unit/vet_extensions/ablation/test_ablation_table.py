"""The table counts what is done, compares it seed by seed with the baseline, and says no more than the seeds allow."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from tests.ablation_factory import METRIC, OTHER_METRIC, cell, cells, one_axis_plan, result, two_axes_plan
from vet_extensions.ablation.cells import DONE, FAILED, RUNNING, WAITING
from vet_extensions.ablation.plan import ONE_AT_A_TIME
from vet_extensions.ablation.table import (
    BETTER,
    IDENTICAL,
    NO_SCORE,
    NO_SEED,
    NO_SPREAD,
    NOT_AFTER_HOLM,
    ONE_SEED,
    SAME,
    WORSE,
    AblationTable,
    Row,
    ablation_table,
)
from vet_extensions.evaluation.statistics import PatientBootstrap, average, macro_estimate

SEEDS = (0.600, 0.640, 0.580)
"""Scores of the baseline: the seeds differ much more than the arms do."""


def row_of(table: AblationTable, **arms: str) -> Row:
    return next(row for row in [*table.combinations, *table.axes] if row.arms == arms)


def scored(changes: dict[str, tuple[float, ...]], **plan) -> AblationTable:
    """One axis: baseline "a", and an arm for each entry that adds its value to the baseline's, seed by seed."""
    the_plan = one_axis_plan(["a", *changes], **plan)
    return ablation_table(the_plan, cells(the_plan, lambda arms, s: SEEDS[s] + changes.get(arms["arm"], (0, 0, 0))[s]))


def test_mean_and_spread_are_over_the_seeds_of_an_arm() -> None:
    score = row_of(scored({"b": (0.0, 0.0, 0.0)}), arm="a").scores[METRIC]
    assert score.mean == pytest.approx(np.mean(SEEDS))
    assert score.sd == pytest.approx(np.std(SEEDS, ddof=1))


def test_difference_to_the_baseline_is_the_paired_t_test_of_scipy() -> None:
    paired = row_of(scored({"b": (0.011, 0.008, 0.013)}), arm="b").comparisons[METRIC].paired
    expected = stats.ttest_1samp([0.011, 0.008, 0.013], 0.0)
    interval, (_, p) = expected.confidence_interval(0.95), expected
    assert (paired.mean, paired.p) == pytest.approx((0.032 / 3, p))
    assert (paired.low, paired.high) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ((0.011, 0.008, 0.013), BETTER),
        ((-0.011, -0.008, -0.013), WORSE),
        ((0.02, -0.01, 0.03), SAME),
        ((0.0, 0.0, 0.0), IDENTICAL),
        ((0.01, 0.01, 0.01), NO_SPREAD),
    ],
)
def test_verdict_says_what_the_seeds_show(changes: tuple[float, ...], verdict: str) -> None:
    assert row_of(scored({"b": changes}), arm="b").comparisons[METRIC].verdict == verdict


def test_pairing_by_seed_shows_a_difference_that_the_spread_of_the_seeds_would_hide() -> None:
    table = scored({"b": (0.011, 0.008, 0.013)})
    first, second = ([*row_of(table, arm=arm).scores[METRIC].per_seed.values()] for arm in ("a", "b"))
    assert np.asarray(stats.ttest_ind(first, second))[1] > 0.5, "unpaired, the p-value is large"
    assert row_of(table, arm="b").comparisons[METRIC].verdict == BETTER


def test_one_seed_gives_a_difference_and_no_interval() -> None:
    comparison = row_of(scored({"b": (0.01,)}, seeds=[0]), arm="b").comparisons[METRIC]
    assert comparison.paired.mean == pytest.approx(0.01)
    assert comparison.verdict == ONE_SEED


def test_more_comparisons_ask_for_more_and_the_row_says_so() -> None:
    alone = scored({"b": (0.012, 0.006, 0.010)})
    assert 0.01 < row_of(alone, arm="b").comparisons[METRIC].paired.p < 0.05
    assert row_of(alone, arm="b").comparisons[METRIC].verdict == BETTER
    others = {f"other_{place}": (0.02, -0.01, 0.01 * place) for place in range(7)}
    among_many = scored({"b": (0.012, 0.006, 0.010), **others})
    comparison = row_of(among_many, arm="b").comparisons[METRIC]
    assert among_many.n_comparisons == 8
    assert comparison.p_holm == pytest.approx(8 * comparison.paired.p)
    assert (comparison.verdict, comparison.note) == (SAME, NOT_AFTER_HOLM)


def test_every_metric_counts_as_a_comparison() -> None:
    table = scored({"b": (0.011, 0.008, 0.013)}, metrics=(METRIC, OTHER_METRIC))
    comparison = row_of(table, arm="b").comparisons[OTHER_METRIC]
    assert table.n_comparisons == 2
    assert comparison.p_holm == pytest.approx(2 * comparison.paired.p)


@pytest.mark.parametrize("state", [FAILED, RUNNING, WAITING])
def test_a_cell_that_is_not_done_is_named_and_not_counted(state: str) -> None:
    plan = one_axis_plan()
    found = cells(plan, lambda arms, seed: SEEDS[seed] + 0.01 * (arms["arm"] == "b") * (1 + seed))
    found[4] = replace(found[4], state=state, results=[])
    table = ablation_table(plan, found)
    row = row_of(table, arm="b")
    assert list(row.scores[METRIC].per_seed) == [0, 2]
    assert row.missing == {1: state}
    assert list(row.comparisons[METRIC].paired.per_seed) == [0, 2]
    assert [(c.arms, c.seed) for c in table.missing] == [({"arm": "b"}, 1)]


def test_arms_without_a_shared_seed_are_not_compared() -> None:
    plan = one_axis_plan(seeds=(0, 1))
    found = cells(plan, lambda arms, seed: SEEDS[seed])
    states = (DONE, FAILED, FAILED, DONE)
    found = [c if s == DONE else replace(c, state=s, results=[]) for c, s in zip(found, states, strict=True)]
    assert row_of(ablation_table(plan, found), arm="b").comparisons[METRIC].verdict == NO_SEED


def test_a_table_of_nothing_says_so() -> None:
    plan = one_axis_plan()
    waiting = [replace(c, state=WAITING, results=[], cost=None) for c in cells(plan, lambda arms, seed: 0.5)]
    table = ablation_table(plan, waiting)
    assert row_of(table, arm="b").comparisons[METRIC].verdict == NO_SCORE
    assert table.n_comparisons == 0
    assert all(math.isnan(cost.seconds_of_all) for cost in table.costs)


def test_a_score_that_could_not_be_measured_is_left_out() -> None:
    plan = one_axis_plan(seeds=(0, 1))
    found = [
        replace(c, results=[result(METRIC, math.nan if c.seed == 1 else 0.6, seed=c.seed)])
        for c in cells(plan, lambda arms, seed: 0.6)
    ]
    assert row_of(ablation_table(plan, found), arm="a").scores[METRIC].per_seed == {0: 0.6}


def test_a_full_design_averages_each_arm_over_the_arms_of_the_other_axes() -> None:
    plan = two_axes_plan(seeds=(0, 1, 2))
    effects = {("multi_view", "on"): (0.02, 0.03, 0.01), ("multi_view", "off"): (0.05, 0.03, 0.06)}
    found = cells(plan, lambda arms, s: SEEDS[s] + effects.get((arms["routing"], arms["ibot"]), (0, 0, 0))[s])
    table = ablation_table(plan, found)
    paired = row_of(table, routing="multi_view").comparisons[METRIC].paired
    assert paired.per_seed == pytest.approx({0: 0.035, 1: 0.03, 2: 0.035})
    assert [row.arms for row in table.axes if row.is_baseline] == [{"routing": "single_view"}, {"ibot": "on"}]
    assert table.n_comparisons == 2 + 2, "two axes, and the two combinations that differ from the baseline at all"


def test_an_average_over_axes_counts_a_seed_only_where_all_its_cells_are_done() -> None:
    plan = two_axes_plan(seeds=(0, 1, 2))
    found = cells(plan, lambda arms, s: SEEDS[s] + 0.01 * s * (arms["ibot"] == "off"))
    gone = next(i for i, c in enumerate(found) if c.arms == {"routing": "multi_view", "ibot": "off"} and c.seed == 1)
    found[gone] = replace(found[gone], state=FAILED, results=[])
    table = ablation_table(plan, found)
    assert list(row_of(table, ibot="off").scores[METRIC].per_seed) == [0, 2]
    assert list(row_of(table, ibot="on").scores[METRIC].per_seed) == [0, 1, 2]


def test_one_at_a_time_has_no_averages_because_the_arms_say_the_same() -> None:
    plan = two_axes_plan(design=ONE_AT_A_TIME)
    table = ablation_table(plan, cells(plan, lambda arms, seed: SEEDS[seed]))
    assert not table.axes
    assert len(table.combinations) == 3


def test_interval_over_patients_is_the_mean_of_the_seeds_intervals() -> None:
    score = row_of(scored({"b": (0.0, 0.0, 0.0)}), arm="a").scores[METRIC]
    assert (score.low, score.high) == pytest.approx((score.mean - 0.05, score.mean + 0.05))


def test_controls_stand_beside_the_arms_and_one_without_seeds_counts_once() -> None:
    table = scored({"b": (0.0, 0.0, 0.0)})
    controls = {row.label: row.scores[METRIC] for row in table.controls}
    assert controls["random_init"].per_seed == pytest.approx({0: 0.52, 1: 0.53, 2: 0.54})
    assert controls["raw_pixels"].per_seed == {0: 0.5}
    assert not any(row.comparisons for row in table.controls)


def test_cost_is_counted_apart_for_failed_attempts_too() -> None:
    plan = one_axis_plan(seeds=(0, 1))
    found = cells(plan, lambda arms, seed: 0.6)
    found[3] = replace(found[3], state=FAILED, results=[], cost=100.0)
    cost = ablation_table(plan, found).costs[1]
    assert (cost.n_done, cost.seconds_per_cell, cost.seconds_of_all) == (1, 36.0, 136.0)


def test_unequal_budgets_are_noticed() -> None:
    plan = one_axis_plan(seeds=(0,))
    found = [cell({"arm": "a"}, 0, 0.6), cell({"arm": "b"}, 0, 0.6, steps=20)]
    assert not ablation_table(plan, found).has_equal_budgets
    assert ablation_table(plan, [found[0], replace(found[1], steps=10)]).has_equal_budgets


@pytest.mark.parametrize(
    "shared", [0.0, 0.5, 1.0], ids=["seeds err apart", "seeds err partly alike", "seeds err alike"]
)
def test_interval_over_patients_is_no_narrower_than_that_of_the_mean_over_seeds(shared: float) -> None:
    """Against the suite's own way for several seeds: their average within each resample of the patients."""
    generator = np.random.default_rng(3)
    n_patients, patients = 60, np.repeat(np.arange(60), 2)
    labels = np.repeat(generator.integers(0, 2, (n_patients, 4)), 2, axis=0)
    bootstrap = PatientBootstrap(patients, n_resamples=1000)
    common = generator.normal(size=labels.shape)
    samples = []
    for _ in range(3):
        noise = shared * common + (1 - shared) * generator.normal(size=labels.shape)
        scores = labels + 1.5 * noise
        samples.append(bootstrap.label_samples(scores, labels=labels, patient_codes=patients)["average_precision"])
    each = [macro_estimate(one) for one in samples]
    of_the_mean = macro_estimate(average(samples))
    plan = one_axis_plan()
    found = cells(plan, lambda arms, seed: each[seed].value)
    found = [
        replace(c, results=[result(METRIC, e.value, seed=c.seed, low=e.low, high=e.high)])
        for c, e in zip(found, [*each, *each], strict=True)
    ]
    score = row_of(ablation_table(plan, found), arm="a").scores[METRIC]
    assert score.mean == pytest.approx(of_the_mean.value)
    assert score.high - score.low > 0.99 * (of_the_mean.high - of_the_mean.low)
