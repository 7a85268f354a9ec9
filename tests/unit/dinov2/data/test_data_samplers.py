"""Samplers: the official orders draw for draw, and the seeded one that resumes exactly."""

import itertools
import pickle
import warnings

import pytest
import torch

from dinov2.data import samplers
from dinov2.data.samplers import (
    EpochSampler,
    InfiniteSampler,
    PositionedIndex,
    SeededInfiniteSampler,
    ShardedInfiniteSampler,
)
from dinov2.utils.errors import UserError


def take(sampler, n):
    return [int(index) for index in itertools.islice(iter(sampler), n)]


def sharded(**options):
    return ShardedInfiniteSampler(sample_count=8, shuffle=True, seed=1, start=1, step=2, **options)


def infinite(**options):
    return InfiniteSampler(sample_count=6, shuffle=True, seed=1, start=0, step=2, **options)


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (EpochSampler(size=9, sample_count=6, shuffle=True, seed=3, start=1, step=2), [4, 2, 1, 0]),
        (infinite(), [1, 2, 3, 5, 0, 4, 4, 3, 1]),
        (infinite(advance=4), [0, 4, 4, 3, 1]),
        (sharded(), [3, 0, 6, 4, 0, 3, 6, 4, 3, 0]),
        (sharded(use_new_shuffle_tensor_slice=True), [4, 6, 0, 3, 0, 3, 6, 4, 6, 4]),
        (sharded(advance=19), [6, 0, 6, 4, 3, 6]),
    ],
    ids=["epoch", "infinite", "infinite_advanced", "sharded", "sharded_new", "sharded_advanced"],
)
def test_order_equals_the_official_one(sampler, expected):
    assert take(sampler, len(expected)) == expected


def test_block_draws_equal_single_draws_over_several_blocks():
    """The plain twin of the fast path: one `torch.randint` for every index, as official."""
    n = 70_001
    generator = torch.Generator().manual_seed(5)
    expected, order = [], list(range(n))
    for i in range(n):
        j = int(torch.randint(i, n, (1,), generator=generator))
        expected.append(order[j])
        order[i], order[j] = order[j], order[i]
    assert take(InfiniteSampler(sample_count=n, shuffle=True, seed=5, start=0, step=1), n) == expected


def test_odd_numbers_of_draws_carry_over_to_the_next_pass():
    n = 5
    generator = torch.Generator().manual_seed(2)
    expected = []
    for _ in range(3):
        order = list(range(n))
        for i in range(n):
            j = int(torch.randint(i, n, (1,), generator=generator))
            expected.append(order[j])
            order[i], order[j] = order[j], order[i]
    assert take(InfiniteSampler(sample_count=n, shuffle=True, seed=2, start=0, step=1), 3 * n) == expected


def inside_out_one_by_one(n, seed):
    """The plain twin: one `torch.randint` and two moves for every element, as official."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = list(range(n))
    for i in range(1, n):
        j = int(torch.randint(0, i + 1, (1,), generator=generator))
        shuffled[i] = shuffled[j]
        shuffled[j] = i
    return shuffled


def one_pass_inside_out(n, seed):
    own = torch.arange(n, dtype=torch.int32)
    return ShardedInfiniteSampler._inside_out_slice(own, torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("n", [*range(1, 40), 255, 256, 5_003])
def test_a_shuffle_without_a_loop_equals_the_one_step_by_step(n):
    for seed in range(3):
        assert one_pass_inside_out(n, seed) == inside_out_one_by_one(n, seed)


def test_a_share_too_long_for_one_word_a_draw_is_drawn_one_by_one(monkeypatch):
    monkeypatch.setattr(samplers, "_WORD_LIMIT", 50)
    assert one_pass_inside_out(60, 4) == inside_out_one_by_one(60, 4)


def test_indices_are_pythons_own_numbers():
    options = {"sample_count": 20_000, "shuffle": True, "start": 0, "step": 1}
    made = (
        EpochSampler(size=20_000, **options),
        InfiniteSampler(**options),
        ShardedInfiniteSampler(**options),
        ShardedInfiniteSampler(**options, use_new_shuffle_tensor_slice=True),
    )
    for sampler in made:
        assert {type(index) for index in itertools.islice(sampler, 20_000)} == {int}


def test_epoch_sampler_gives_every_index_once_over_the_ranks_and_another_order_next_epoch():
    ranks = [EpochSampler(size=10, sample_count=10, shuffle=True, seed=1, start=r, step=3) for r in range(3)]
    assert sorted(itertools.chain(*ranks)) == list(range(10))
    assert [len(s) for s in ranks] == [4, 3, 3] == [len(list(s)) for s in ranks]
    before = list(ranks[0])
    ranks[0].set_epoch(5)
    assert list(ranks[0]) != before


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("advance", [1, 4, 9, 30])
def test_advance_by_rank_yields_the_tail(shuffle, new, advance):
    options = {"sample_count": 12, "shuffle": shuffle, "seed": 2, "start": 1, "step": 3}
    options["use_new_shuffle_tensor_slice"] = new
    whole = take(ShardedInfiniteSampler(**options), 60)
    advanced = take(ShardedInfiniteSampler(**options, advance=advance, advance_by_rank=True), 20)
    assert advanced == whole[advance : advance + 20]


def test_sharded_sampler_says_how_many_samples_it_drops():
    with pytest.warns(UserWarning, match="1 of 7 samples"):
        take(ShardedInfiniteSampler(sample_count=7, shuffle=True, start=0, step=3), 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ShardedInfiniteSampler(sample_count=3, shuffle=True, start=0, step=4),
        lambda: InfiniteSampler(sample_count=3, start=3, step=4),
        lambda: SeededInfiniteSampler(sample_count=0, start=0, step=1),
        lambda: EpochSampler(size=1, sample_count=0, start=0, step=1),
    ],
    ids=["sharded", "infinite", "seeded", "epoch"],
)
def test_a_data_set_too_small_for_the_ranks_is_refused_instead_of_searched_for_ever(make):
    with pytest.raises(UserError, match="fewer processes"):
        make()


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("step", [1, 3, 17])
@pytest.mark.parametrize("advance", [0, 1, 7, 100])
def test_seeded_sampler_advanced_yields_exactly_the_tail(shuffle, step, advance):
    options = {"sample_count": 10, "shuffle": shuffle, "seed": 4, "start": step - 1, "step": step}
    whole = list(itertools.islice(SeededInfiniteSampler(**options), advance + 25))[advance:]
    resumed = list(itertools.islice(SeededInfiniteSampler(**options, advance=advance), 25))
    assert resumed == whole
    assert [index.position for index in resumed] == [index.position for index in whole]


def test_seeded_stream_is_the_same_for_any_number_of_ranks():
    def stream(n_ranks):
        ranks = [
            SeededInfiniteSampler(sample_count=7, shuffle=True, seed=9, start=r, step=n_ranks) for r in range(n_ranks)
        ]
        return [int(i) for row in itertools.islice(zip(*ranks, strict=True), 24 // n_ranks) for i in row]

    assert stream(1) == stream(2) == stream(3) == stream(8)


def test_seeded_sampler_gives_every_index_once_an_epoch_in_another_order_each():
    indices = take(SeededInfiniteSampler(sample_count=50, shuffle=True, seed=0, start=0, step=1), 100)
    assert sorted(indices[:50]) == sorted(indices[50:]) == list(range(50))
    assert indices[:50] != indices[50:]


def test_seeded_positions_count_over_the_whole_run_and_all_ranks():
    sampler = SeededInfiniteSampler(sample_count=4, shuffle=True, start=1, step=2)
    assert [index.position for index in itertools.islice(sampler, 5)] == [1, 3, 5, 7, 9]


def test_a_positioned_index_is_an_index_and_survives_pickling():
    index = pickle.loads(pickle.dumps(PositionedIndex(2, 41)))
    assert "abc"[index] == "c"
    assert (index, index.position) == (2, 41)


def test_iterating_twice_gives_the_same_order():
    sampler = sharded(advance=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert take(sampler, 9) == take(sampler, 9)
