"""Intervals over seeds are those of the paired t-test, and looking at many comparisons costs what Holm says."""

import math

import numpy as np
import pytest
from scipy import stats

from vet_extensions.ablation.paired import paired_difference, spread
from vet_extensions.evaluation.statistics import holm


def scores(n_seeds: int, *, mean: float, generator: np.random.Generator) -> dict[int, float]:
    return {seed: float(value) for seed, value in enumerate(generator.normal(mean, 0.02, n_seeds))}


@pytest.mark.parametrize("n_seeds", [2, 3, 5, 30])
def test_interval_and_p_value_equal_those_of_scipys_paired_t_test(n_seeds: int) -> None:
    generator = np.random.default_rng(n_seeds)
    first, second = (scores(n_seeds, mean=mean, generator=generator) for mean in (0.61, 0.60))
    found = paired_difference(first, second)
    expected = stats.ttest_rel(list(first.values()), list(second.values()))
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high, found.p) == pytest.approx((interval.low, interval.high, expected.pvalue), rel=1e-9)


def test_interval_of_two_seeds_is_twelve_point_seven_standard_errors() -> None:
    """The 97.5 % quantile for one degree of freedom in every printed table: 12.706."""
    found = paired_difference({0: 0.60, 1: 0.62}, {0: 0.59, 1: 0.59})
    assert found.mean == pytest.approx(0.02)
    assert found.high - found.mean == pytest.approx(12.706 * 0.01, rel=1e-4)


def test_intervals_hold_the_true_difference_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    n_trials = 2000
    held = 0
    for _ in range(n_trials):
        first, second = (scores(3, mean=mean, generator=generator) for mean in (0.63, 0.60))
        found = paired_difference(first, second)
        held += found.low <= 0.03 <= found.high
    # Three standard deviations of a binomial share at 0.95.
    assert held / n_trials == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / n_trials))


def test_only_seeds_that_both_arms_have_are_compared() -> None:
    found = paired_difference({0: 0.5, 1: 0.6, 2: 0.7}, {1: 0.5, 2: 0.65, 3: 0.1})
    assert list(found.per_seed) == [1, 2]
    assert found.mean == pytest.approx(0.075)


@pytest.mark.parametrize(
    ("first", "second", "mean"),
    [
        ({0: 0.61}, {0: 0.60}, 0.01),
        ({0: 0.1 + 0.2, 1: 0.7}, {0: 0.1, 1: 0.5}, 0.2),
        ({0: 0.5, 1: 0.6}, {0: 0.5, 1: 0.6}, 0.0),
    ],
    ids=["one seed", "all seeds differ by the same", "identical arms"],
)
def test_without_a_spread_over_seeds_there_is_no_interval(first: dict, second: dict, mean: float) -> None:
    found = paired_difference(first, second)
    assert found.mean == pytest.approx(mean)
    assert not found.has_interval
    assert math.isnan(found.high)
    assert math.isnan(found.p)


def test_without_a_shared_seed_there_is_no_difference() -> None:
    assert math.isnan(paired_difference({0: 0.5}, {1: 0.5}).mean)


def test_spread_is_the_sample_standard_deviation() -> None:
    assert spread([0.5, 0.6, 0.8]) == pytest.approx(np.std([0.5, 0.6, 0.8], ddof=1))
    assert math.isnan(spread([0.5]))


def test_holm_multiplies_the_smallest_by_the_number_tested_and_never_turns_the_order() -> None:
    # By hand: 4 x 0.005, 3 x 0.01, 2 x 0.03, then 0.04, which may not fall below the 0.06 before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_holm_counts_only_what_was_tested() -> None:
    adjusted = holm([math.nan, 0.02, math.nan])
    assert adjusted[1] == 0.02
    assert math.isnan(adjusted[0])
    assert math.isnan(adjusted[2])


def test_holm_keeps_false_alarms_over_a_whole_table_below_one_in_twenty() -> None:
    generator = np.random.default_rng(1)
    n_tables = 2000
    alarms = sum(min(holm(generator.uniform(size=8).tolist())) < 0.05 for _ in range(n_tables))
    assert alarms / n_tables < 0.05 + 3 * math.sqrt(0.05 * 0.95 / n_tables)
    uncorrected = sum(generator.uniform(size=8).min() < 0.05 for _ in range(n_tables))
    assert uncorrected / n_tables > 0.25
